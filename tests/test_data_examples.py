import gzip
import random

import pytest
import torch

from clearhead.data import Examples, Ragged, SourceTexts, Tokenizer
from clearhead.data.checks import check_lengths, check_texts
from clearhead.data.examples import spell_a_token
from clearhead.data.layouts import Columns
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
        (b"one\n\ntwo\n", r":2: the source is empty; remove the line"),
        (b"", r": an empty file"),
        (b"one\rtwo\r", r":1: carriage returns alone end no lines"),
    ],
)
def test_files_are_refused_by_line(content, problem, tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"words\.txt{problem}"):
        read([path])


def read(files, **options):
    asked = SourceTexts([], [str(file) for file in files], **options)
    known = [text for block in asked.known() for text in block.texts]
    assert [text for block in asked.blocks(1) for text in block.texts] == known
    return known


def test_files_are_read_however_they_were_saved(tmp_path):
    (tmp_path / "words.txt").write_bytes("\ufeffété\r\n two ".encode())
    (tmp_path / "words.txt.gz").write_bytes(gzip.compress(b"three\n"))
    (tmp_path / "pairs.csv").write_text('target,source\nx,"fo\nur"\n')
    (tmp_path / "alone.csv").write_text("id,source\n1,five\n")
    (tmp_path / "pairs.tsv").write_text("six\tx\n")
    (tmp_path / "alone.tsv").write_text("seven\n")
    (tmp_path / "pairs.jsonl").write_text('{"id": 1, "source": "eight"}\n')
    names = ["words.txt", "words.txt.gz", "pairs.csv", "alone.csv", "pairs.tsv", "alone.tsv", "pairs.jsonl"]
    found = read([tmp_path / name for name in names])
    assert found == ["été", " two ", "three", "fo\nur", "five", "six", "seven", "eight"]
    (tmp_path / "t.csv").write_text("en,de\na,b\n")
    assert read([tmp_path / "t.csv"], columns=Columns("de")) == ["b"]
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        read([tmp_path / "none.txt"])


def test_a_text_of_a_file_has_its_line(tmp_path):
    (tmp_path / "t.csv").write_text('source\n"a\nb"\nc\nd\n')
    blocks = list(SourceTexts(["x", "y"], [str(tmp_path / "t.csv")]).blocks(2))
    places = [block.where(i).rpartition("/")[2] for block in blocks for i in range(len(block.texts))]
    assert places == ["text 1", "text 2", "t.csv:2", "t.csv:4", "t.csv:5"]
