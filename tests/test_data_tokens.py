import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.data import BOS, EOS, PAD, Tokenizer
from clearhead.errors import InputError

LETTERS = Tokenizer.characters(["attention", "don't", "naïve"])
SYMBOLS = Tokenizer.symbols(["AH0 T EH1 N SH AH0 N", "<eos> K"])


@given(st.text())
def test_any_text_comes_back(text):
    (tokens,) = LETTERS.encode([text])
    assert LETTERS.decode(tokens) == text
    assert not {PAD, BOS, EOS} & set(tokens)


@given(st.lists(st.sampled_from(["<eos>", "<0x41>", "end token", "padding token", "�", "\x00", " ", "é", "😀"])))
def test_what_looks_like_a_token_is_text(parts):
    text = "".join(parts)
    (tokens,) = LETTERS.encode([text])
    assert LETTERS.decode(tokens) == text
    assert min(tokens, default=3) > EOS


TEXTS = ["the dog barks at the dog", "the cat isn't old", "naïve 犬 собака 12, 34!"] * 3
KINDS = {kind: Tokenizer.train(kind, TEXTS, 330) for kind in ("bpe", "bytes", "characters", "unigram", "words")}


@pytest.mark.parametrize("kind", KINDS)
@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t dogthe,1\x85\xa0"))))
def test_any_text_comes_back_from_every_kind(kind, text):
    tokenizer = KINDS[kind]
    (tokens,) = tokenizer.encode([text])
    assert tokenizer.decode(tokens) == text
    assert not {PAD, BOS, EOS} & set(tokens)
    assert tokens == tokenizer.backend.encode(text, add_special_tokens=False).ids  # pieces are as the whole
    assert [byte for token in tokens for byte in tokenizer.spell_token(token)] == tokenizer.spell(text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_again(kind, tmp_path):
    again = Tokenizer.train(kind, TEXTS, 330)
    assert again.to_json() == KINDS[kind].to_json()
    assert again.digest == KINDS[kind].digest
    (tmp_path / "t.json").write_text(again.to_json())
    text = "begin token, the dog 😀 <0x41>"
    assert Tokenizer.load(tmp_path / "t.json").encode([text]) == KINDS[kind].encode([text])
    assert len(again) <= 330
    assert again.spells


def test_what_kinds_make_of_a_text():
    shown = {kind: KINDS[kind].labels("the dog é") for kind in KINDS}
    bytes_of_e = ["<0xC3>", "<0xA9>"]
    assert shown["words"] == ["the", " dog", " ", *bytes_of_e]
    assert shown["bytes"] == [*"the dog ", *bytes_of_e]
    assert shown["characters"] == [*"the dog ", *bytes_of_e]
    assert len(shown["bpe"]) < len(shown["bytes"])
    assert [KINDS[kind].spelled("the dog é") for kind in ("words", "characters", "bpe")] == [["é"], ["é"], []]


def test_pieces_that_are_not_remembered_are_read_all_the_same(monkeypatch):
    monkeypatch.setattr("clearhead.data.tokens._KEPT_WORDS", 2)
    tokenizer = Tokenizer.train("bpe", TEXTS, 330)
    assert tokenizer.encode(TEXTS) == KINDS["bpe"].encode(TEXTS)
    assert len(tokenizer._others) <= 2


def test_a_kind_that_there_is_not():
    with pytest.raises(InputError, match="unknown kind of tokenizer 'bqe'; did you mean 'bpe'"):
        Tokenizer.train("bqe", TEXTS)
    with pytest.raises(InputError, match="12 different symbols do not fit into 9 tokens"):
        Tokenizer.train("symbols", TEXTS, 9)


def test_a_character_never_seen_is_its_bytes():
    assert LETTERS.labels("té") == ["t", "<0xC3>", "<0xA9>"]
    assert LETTERS.encode(["é"])[0] == LETTERS.spell("é")
    assert LETTERS.spelled("tété5t5") == ["é", "5"]
    assert LETTERS.spelled("naïve") == []
    assert len(LETTERS.encode(["naïve"])[0]) == 5


def test_all_bytes_are_in_the_vocabulary():
    every = {token for byte in range(256) for token in [LETTERS.spell("a")[0] - ord("a") + byte]}
    assert every <= set(range(len(LETTERS)))
    assert [LETTERS.backend.id_to_token(token) for token in sorted(every)] == [f"<0x{byte:02X}>" for byte in range(256)]


def test_lowercase_letters_hide_case():
    letters = Tokenizer.characters(["Attention"], lowercase=True)
    assert letters.decode(letters.encode(["ATTENTION"])[0]) == "attention"
    assert letters.spelled("ATTENTION") == []


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(InputError, match=r"'ab\\ud800': character 2 is U\+D800, half of a surrogate pair"):
        LETTERS.encode(["fine", "ab\ud800"])


def test_symbols_are_a_closed_set():
    text = "AH0 T <eos>"
    (tokens,) = SYMBOLS.encode([text])
    assert SYMBOLS.decode(tokens) == text
    assert EOS not in tokens
    with pytest.raises(InputError, match="unknown symbol 'AHO0'; did you mean 'AH0'"):
        SYMBOLS.encode(["T AHO0"])
    with pytest.raises(InputError, match="unknown symbol 'end'"):
        SYMBOLS.encode(["end token"])


def test_decode_leaves_out_what_is_no_text():
    assert SYMBOLS.decode([BOS, *SYMBOLS.encode(["T N"])[0], EOS, PAD]) == "T N"


@pytest.mark.parametrize("tokenizer", [LETTERS, SYMBOLS])
def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokens.json"
    path.write_text(tokenizer.to_json())
    again = Tokenizer.load(path)
    text = "T EH1" if tokenizer is SYMBOLS else "été <eos>"
    assert again.encode([text]) == tokenizer.encode([text])
    assert (len(again), again.spells) == (len(tokenizer), tokenizer.spells)


@pytest.mark.parametrize("content", ["", "{}", "{", '{"version": 1}'])
def test_another_file_is_no_tokenizer(content, tmp_path):
    path = tmp_path / "tokens.json"
    path.write_text(content)
    with pytest.raises(InputError, match="not a tokenizer"):
        Tokenizer.load(path)
