import random

import pytest
import torch

from clearhead.data import Examples, Ragged, Tokenizer
from clearhead.data.checks import check_lengths, check_texts, read_lines
from clearhead.data.examples import spell_a_token
from clearhead.errors import DataError
from tiny_task import Tiny

TINY = Tiny()
LETTERS = Tokenizer.characters(word for word, _ in TINY.pairs("train"))
SYMBOLS = Tokenizer.symbols(text for _, text in TINY.pairs("train"))


def test_rows_are_gathered_as_they_were_given():
    rows = [[1, 2, 3], [4], [5, 6], [7, 8, 9], []]
    ragged = Ragged.of(rows)
    padded, lengths = ragged.gather(torch.tensor([2, 0, 4, 1]))
    assert padded.tolist() == [[5, 6, 0], [1, 2, 3], [0, 0, 0], [4, 0, 0]]
    assert lengths.tolist() == [2, 3, 0, 1]
    same, none = ragged.gather(torch.tensor([3, 0]))
    assert (same.tolist(), none) == ([[7, 8, 9], [1, 2, 3]], None)


def test_examples_are_the_pairs_of_the_source():
    examples = Examples.read(TINY, "train", LETTERS, SYMBOLS)
    pairs = list(TINY.pairs("train"))
    assert len(examples) == len(pairs)
    source, _ = examples.source.gather(torch.tensor([5]))
    target, _ = examples.target.gather(torch.tensor([5]))
    assert (LETTERS.decode(source[0].tolist()), SYMBOLS.decode(target[0].tolist())) == pairs[5]


def test_a_share_is_spelled_by_bytes_the_same_each_time():
    plain, count = Examples.read(TINY, "train", LETTERS, SYMBOLS), len(list(TINY.pairs("train")))
    one, two = (Examples.read(TINY, "train", LETTERS, SYMBOLS, byte_share=0.1, seed=7) for _ in range(2))
    assert len(one) == count + round(0.1 * count)
    assert one.source.flat.equal(two.source.flat)
    assert one.source.flat[: len(plain.source.flat)].equal(plain.source.flat)
    added = range(count, len(one))
    spelled = [one.source.gather(torch.tensor([row]))[0][0].tolist() for row in added]
    assert all(any(3 <= token < 259 for token in row) for row in spelled)
    other = Examples.read(TINY, "train", LETTERS, SYMBOLS, byte_share=0.1, seed=8)
    assert not other.source.flat.equal(one.source.flat)


def test_spelling_reaches_every_byte_of_utf_8_and_keeps_half_of_the_letters():
    rows = LETTERS.encode(["abcdef"]) * 4000
    generator = random.Random(0)
    spelled = [spell_a_token(row, LETTERS, generator) for row in rows]
    bytes_seen = {token - 3 for row in spelled for token in row if token < 259}
    assert bytes_seen > {*range(0x21, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xE0), *range(0xE0, 0xED), 0xF0}
    assert 0.4 < sum(LETTERS.decode(row) == "abcdef" for row in spelled) / len(spelled) < 0.6


def test_what_is_too_long_is_refused_or_cut():
    with pytest.raises(DataError, match=r"text 2: 'abcdef' has 6 tokens, the model reads 4: shorten or truncate it"):
        check_lengths(["ab", "abcdef"], LETTERS.encode(["ab", "abcdef"]), 4)
    cut = check_lengths(["ab", "abcdef"], LETTERS.encode(["ab", "abcdef"]), 4, truncate=True)
    assert [LETTERS.decode(row) for row in cut] == ["ab", "abcd"]
    with pytest.raises(DataError, match=r"has 4 tokens, the model reads 3"):
        Examples.read(TINY, "train", LETTERS, SYMBOLS, limit=3)


@pytest.mark.parametrize(("words", "problem"), [([], "nothing to predict"), (["a", " "], "text 2 is empty")])
def test_words_that_are_none(words, problem):
    with pytest.raises(DataError, match=problem):
        check_texts(words)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"one\n\xe9t\xe9\n", r":2: not UTF-8 \(byte 0xE9\); save the file as UTF-8"),
        (b"one\n\ntwo\n", r":2: an empty line; remove it"),
        (b"", r": an empty file; write one text a line"),
    ],
)
def test_files_are_refused_by_line(content, problem, tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"words\.txt{problem}"):
        list(read_lines(path))


def test_files_are_read_however_they_were_saved(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffété\r\ntwo".encode())
    assert list(read_lines(path)) == ["été", "two"]
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        list(read_lines(tmp_path / "none.txt"))
