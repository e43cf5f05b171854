"""People's own files: what is read is what was written, and what cannot be learnt from is refused by file and line."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clearhead.data import Examples, Files, Tokenizer
from clearhead.data.formats import blocks
from clearhead.data.layouts import Columns
from clearhead.errors import DataError, InputError

PAIRS = [
    ("the dog is not old", "der Hund ist nicht alt"),
    ("NA", "null"),
    ("007", "1.0"),
    ('"quoted, and "half', "„Gänsefüßchen“, 'so'"),
    ("  spaces around ", "犬は古くない。"),
    ("2020-01-01T00:00:00Z", "собака\u2028не старая"),
    ("a\x85b\x0cc", "😀 <eos> # \\N"),
]


def write_tsv(path, pairs, header=None, end="\n"):
    rows = ([header] if header else []) + [list(pair) for pair in pairs]
    text = "".join("\t".join(row) + end for row in rows)
    with gzip.open(path, "wb") if str(path).endswith(".gz") else open(path, "wb") as file:
        file.write(text.encode())


def write_csv(path, pairs, header=("source", "target")):
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([header, *pairs])


def write_jsonl(path, pairs):
    rows = [{"id": i, "document": source, "summary": target} for i, (source, target) in enumerate(pairs)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path, pairs):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"id": range(len(pairs)), "source": [s for s, _ in pairs],
                                       "target": [t for _, t in pairs]}), path)  # fmt: skip


def both_ways(files, columns=Columns()):  # noqa: B008
    """The pairs as the checks see them, and as training reads them."""
    source = Files({"train": [str(file) for file in files]}, columns)
    checked = [pair for block in source.checked("train") for pair in zip(block.sources, block.targets, strict=True)]
    return checked, list(source.pairs("train"))


@pytest.mark.parametrize("name", ["t.tsv", "t.tsv.gz", "[t] *?.tsv.gz", "named.tsv", "t.csv", "t.jsonl", "t.parquet"])
def test_what_is_read_is_what_was_written(name, tmp_path):
    path = tmp_path / name
    if name == "named.tsv":
        write_tsv(path, [(t, "x", s) for s, t in PAIRS], header=["Target", "other", "Source"], end="\r\n")
    else:
        write = {".csv": write_csv, ".jsonl": write_jsonl, ".parquet": write_parquet}
        write.get(path.suffix, write_tsv)(path, PAIRS)
    assert both_ways([path]) == (PAIRS, PAIRS)


def test_two_parallel_files_are_pairs(tmp_path):
    files = [tmp_path / "t.en", tmp_path / "t.de.gz"]
    files[0].write_bytes(b"\xef\xbb\xbf" + "\r\n".join(source for source, _ in PAIRS).encode())  # no end at the end
    with gzip.open(files[1], "wb") as file:
        file.write("".join(target + "\n" for _, target in PAIRS).encode())
    assert both_ways(files) == (PAIRS, PAIRS)


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\0\ufeff"), min_size=1).filter(
    str.strip
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(lines, lines), min_size=1, max_size=5), st.sampled_from(["tsv", "csv", "jsonl", "text"]))
def test_any_pairs_come_back(tmp_path, pairs, kind):
    files = [tmp_path / f"t.{kind}"]
    if kind == "text":
        files = [tmp_path / "t.a", tmp_path / "t.b"]
        for side, file in enumerate(files):
            file.write_bytes("".join(pair[side] + "\n" for pair in pairs).encode())
    else:
        {"tsv": write_tsv, "csv": write_csv, "jsonl": write_jsonl}[kind](files[0], pairs)
    columns = Columns(1, 2) if kind == "tsv" else Columns()  # or a first line may look like names
    assert both_ways(files, columns) == (pairs, pairs)


def test_blocks_are_the_whole(tmp_path, monkeypatch):
    pairs = [(f"source {i}", f"target {'é' * (i % 7)} {i}") for i in range(500)]
    write_tsv(tmp_path / "t.tsv", pairs)
    monkeypatch.setattr("clearhead.data.lines._CHUNK", 100)  # lines end anywhere in it
    assert len(list(blocks([str(tmp_path / "t.tsv")]))) > 50
    assert both_ways([tmp_path / "t.tsv"]) == (pairs, pairs)
    source = Files({"train": [str(tmp_path / "t.tsv")]})
    read = [pair for block in source.blocks("train") for pair in zip(*block, strict=True)]
    assert read == pairs
    assert source.where("train", 321).endswith("t.tsv:322")


def test_columns_are_chosen_by_name_or_number(tmp_path):
    path = tmp_path / "t.tsv"
    write_tsv(path, [("1", "ein Hund", "a dog")], header=["id", "de", "en"])
    chosen = both_ways([path], Columns("en", "de"))
    assert chosen == ([("a dog", "ein Hund")], [("a dog", "ein Hund")])
    write_tsv(path, [("1", "ein Hund", "a dog")])
    assert both_ways([path], Columns(3, 2)) == chosen


ANY, NAMED = (None, None), ("en", "dee")
CUT_OFF = gzip.compress(b"a\tb\n" * 99, mtime=0)[:-9]
GOOD = b'{"source": "a", "target": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "columns", "problem"),
    [
        ("t.tsv", b"a\tb\nc\td\te\n", ANY, "t.tsv:2: 3 columns, not 2"),
        ("t.tsv", b"a\tb\nc\n", ANY, "t.tsv:2: 1 column, not 2"),
        ("t.tsv", b"a\tb\n\nc\td\n", ANY, "t.tsv:2: an empty line; remove it"),
        ("t.tsv", b"a\tb\nc\t \n", ANY, "t.tsv:2: the target is empty; remove the line"),
        ("t.tsv", b"a\tb\n\xff\tc\n", ANY, "t.tsv:2: not UTF-8 (byte 0xFF); save the file as UTF-8"),
        ("t.tsv", b"a\tb\nc\rd\te\n", ANY, "t.tsv:2: the source holds a carriage return; remove it"),
        ("t.tsv", b"a\tb\nc\0d\te\n", ANY, "t.tsv:2: the source holds a NUL character; remove it"),
        ("t.tsv", b"", ANY, "t.tsv: an empty file"),
        ("t.tsv", b"source\ttarget\n", ANY, "t.tsv: no pairs below the names of the columns"),
        ("t.tsv", b"a\tb\tc\n", ANY, "t.tsv:1: 3 columns, and a pair has 2; say which by data.source_column"),
        ("t.tsv", b"id\ten\tde\n1\ta\tb\n", NAMED, "'dee', which data.target_column names; did you mean 'de'?"),
        ("t.tsv", b"a\tb\n", (1, 3), "t.tsv: data.target_column is 3, and there are 2 columns"),
        ("t.tsv", b"a\tb\n", (2, None), "source and target are both column '2': set data.target_column too"),
        ("t.tsv.gz", b"a\tb\n", ANY, "t.tsv.gz: not a gzip file, although its name ends in .gz"),
        (
            "t.tsv.gz",
            gzip.compress(b"a\tb\n" * 99, mtime=0)[:-9],
            ANY,
            "the gzip file is damaged, or ends in its middle",
        ),
        ("t.csv", b'source,target\n"a\nb",c\nd,"e\n', ANY, "t.csv:4: not CSV: the quote that opens here is not closed"),
        ("t.csv", b'a,b\n"x\ny",z\nonly\n', ANY, "t.csv:4: 1 column, not 2"),
        ("t.csv", b"a,b\nc,\xe9\n", ANY, "t.csv:2: not UTF-8 (byte 0xE9)"),
        ("t.jsonl", GOOD + b'{"source": "a"', ANY, "t.jsonl:2: not JSON"),
        ("t.jsonl", GOOD + b'["a"]\n', ANY, "t.jsonl:2: a JSON object is needed, not a list"),
        ("t.jsonl", GOOD + b'{"source": "a", "tarbet": "c"}\n', ANY, "there is no 'target'; did you mean 'tarbet'?"),
        ("t.jsonl", GOOD + b'{"source": "a", "target": 3}\n', ANY, "t.jsonl:2: 'target' is 3; a text is needed"),
        (
            "t.jsonl",
            GOOD + b'{"source": "\\ud800", "target": "b"}\n',
            ANY,
            "t.jsonl:2: the source holds U+D800, half of",
        ),
        ("t.parquet", b"nonsense", ANY, "t.parquet: not a Parquet file"),
        ("t.xml", b"a", ANY, "t.xml: a file of pairs ends in .tsv, .csv, .jsonl"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(name, content, columns, problem, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        Files({"train": [str(path)]}, Columns(*columns)).check("train")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("left", "right", "problem"),
    [
        (b"a\nb\nc\n", b"x\ny\n", "t.a:3: {0}/t.b ends after 2 lines; parallel files have as many lines"),
        (b"a\nb\n", b"x\ny\nz", "t.b:3: {0}/t.a ends after 2 lines"),
        (b"a\nb\n", b"x\n \n", "t.b:2: is empty; remove the line"),
        (b"a\nb\n", b"x\n\xc3\n", "t.b:2: not UTF-8 (byte 0xC3)"),
        (b"a\nb\n", None, "t.b: no such file"),
    ],
)
def test_parallel_files_that_do_not_fit(left, right, problem, tmp_path):
    for name, content in (("t.a", left), ("t.b", right)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        Files({"train": [f"{tmp_path}/t.a", f"{tmp_path}/t.b"]}).check("train")
    assert problem.format(tmp_path) in str(caught.value)


def test_splits_are_those_that_were_given(tmp_path):
    write_tsv(tmp_path / "t.tsv", PAIRS)
    source = Files({"train": [f"{tmp_path}/t.tsv"], "valid": None})
    assert source.splits == ("train",)
    with pytest.raises(InputError, match=r"there is no test file: give one by --test, or as data\.test"):
        list(source.pairs("test"))


@pytest.mark.parametrize("lowercase", [False, True])
def test_tokens_in_files_are_those_in_memory(lowercase, tmp_path):
    pairs = [(f"Word{i % 50} and {i}", f"wort {i % 30} é") for i in range(300)]
    write_tsv(tmp_path / "t.tsv", pairs)
    source = Files({"train": [f"{tmp_path}/t.tsv"]})
    ours = Tokenizer.train("bpe", [s for s, _ in pairs], 300, lowercase)
    theirs = Tokenizer.train("words", [t for _, t in pairs], 300)
    plain = Examples.read(source, "train", ours, theirs, byte_share=0.1)
    stored = Examples.read(source, "train", ours, theirs, byte_share=0.1, folder=tmp_path)
    again = Examples.open(tmp_path, "train")
    assert again is not None
    assert len(plain) == len(stored) == len(again) == 330
    for one in (stored, again):
        for left, right in ((plain.source, one.source), (plain.target, one.target)):
            assert left.flat.equal(right.flat)
            assert left.lengths.equal(right.lengths)
    assert Examples.open(tmp_path, "valid") is None


def test_a_text_that_is_too_long_is_named_by_file_and_line(tmp_path):
    write_tsv(tmp_path / "t.tsv", [("a b", "c d"), ("a b", "c d e f")], header=["source", "target"])
    source, words = Files({"train": [f"{tmp_path}/t.tsv"]}), Tokenizer.train("words", ["a b c d e f"] * 2, 300)
    with pytest.raises(DataError, match=r"t\.tsv:3: the target has 4 tokens, the model reads 3: .*data\.truncate=true"):
        Examples.read(source, "train", words, words, limit=4)
    cut = Examples.read(source, "train", words, words, limit=4, truncate=True)
    assert cut.target.lengths.tolist() == [4, 5]


def test_quotes_of_csv_are_not_those_of_tsv(tmp_path):
    text = io.StringIO()
    csv.writer(text).writerow(['say "so"', "a, b"])
    (tmp_path / "t.csv").write_text(text.getvalue())
    (tmp_path / "t.tsv").write_text(text.getvalue().strip().replace('",', '"\t') + "\n")
    assert both_ways([tmp_path / "t.csv"])[1] == [('say "so"', "a, b")]
    assert both_ways([tmp_path / "t.tsv"])[1] == [('"say ""so"""', '"a, b"')]
