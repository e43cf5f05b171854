"""Files as spreadsheets, libraries and accidents leave them: check, training and predictions say the same.

For each file the pairs that are in it, or the one line that is said.
"""

import gzip
import os
import zipfile

import pytest

from clearhead.data import Files, SourceTexts, survey
from clearhead.data import lines as lines_of
from clearhead.data import records as records_of
from clearhead.data.layouts import Columns
from clearhead.errors import DataError

AB = [("a", "b")]
UTF8 = "save the file as UTF-8"
GZIP = gzip.compress(b"a\tb\n" * 9, mtime=0)
DEEP = b"[" * 100_000 + b"]" * 100_000
RETURNS = "1: carriage returns alone end no lines; save the file with line feeds"
WHOLE = b'{"source": "a", "target": "b"}'

ODD = {
    # spreadsheets
    "trailing.csv": (b"source,target,,\r\na,b,,\r\nc,d,,\r\n", [("a", "b"), ("c", "d")]),
    "ghost.csv": (b"source,target\r\na,b\r\n,\r\n", "3: the source is empty; remove the line"),
    "bom.csv": (b"\xef\xbb\xbfsource,target\r\na,b\r\n", AB),
    "returns.csv": (b'source,target\n"a\r\nb\rc",d\n', [("a\r\nb\rc", "d")]),
    "long.csv": (b'source,target\n"' + b"x" * 200_000 + b'",b\n', [("x" * 200_000, "b")]),
    "blank.csv": (b"\nsource,target\na,b\n", "1: an empty line; remove it"),
    "end.csv": (b"source,target\na,b\n\n", "3: an empty line; remove it"),
    "ragged.csv": (b"source,target\na,b\nc,d,e\n", "3: 3 columns, not 2"),
    "numbered.csv": (b",source,target\n0,a,b\n", AB),
    "quotes.csv": (b'source,target\na "b" c,d\n', [('a "b" c', "d")]),
    "open.csv": (
        b'source,target\n"a\n""b""",c\nd,"e\nf,g\n',
        "4: not CSV: the quote that opens here is not closed",
    ),
    "stray.csv": (
        b'source,target\na,"b\nc,d\ne,"f"\n',
        "2: not CSV: ',' expected after '\"' in line 4, where the quote that opens here is closed",
    ),
    "twice.csv": (b"source,id,id,target\na,1,2,b\n", AB),
    "sources.csv": (
        b"source,source,target\na,b,c\n",
        "1: 2 columns are called 'source'; rename all but the one that is meant",
    ),
    "case.csv": (
        b"Source,source,target\na,b,c\n",
        "1: 2 columns are called 'source'; rename all but the one that is meant",
    ),
    # encodings and ends of lines
    "utf16.csv": ("source,target\na,b\n".encode("utf-16"), f"1: UTF-16; {UTF8}"),
    "utf16.tsv": ("a\tb\n".encode("utf-16-le"), "1: the source holds a NUL character; remove it"),
    "latin.csv": (b"sourc\xe9,target\na,b\n", f"1: not UTF-8 (byte 0xE9); {UTF8}"),
    "latin.tsv": (b"\xe9\tb\nc\td\n", f"1: not UTF-8 (byte 0xE9); {UTF8}"),
    "mac.csv": (b"source,target\ra,b\r", RETURNS),
    "mac.tsv": (b"a\tb\rc\td\r", RETURNS),
    "mac.jsonl": (WHOLE + b"\r" + WHOLE + b"\r", RETURNS),
    "mark.csv": (b"\xef\xbb\xbf", ": an empty file"),
    "blank.tsv": (b"\n", "1: an empty line; remove it"),
    "nul.csv": (b"a,b\nc\0,d\n", "2: the source holds a NUL character; remove it"),
    # what jq, pandas and others write
    "mark.jsonl": (b"\xef\xbb\xbf" + WHOLE, AB),
    "indented.jsonl": (
        b'{\n  "source": "a",\n  "target": "b"\n}\n',
        "1: not JSON: expecting property name enclosed in double quotes; each line holds an object",
    ),
    "array.jsonl": (b"[" + WHOLE + b"]", "1: a JSON object is needed, not a list"),
    "null.jsonl": (b'{"source": null, "target": "b"}', "1: 'source' is null; a text is needed"),
    "nan.jsonl": (b'{"source": NaN, "target": "b"}', "1: 'source' is NaN; a text is needed"),
    "nested.jsonl": (b'{"source": {"en": "a"}, "target": "b"}', "1: 'source' is an object; a text is needed"),
    "deep.jsonl": (
        b'{"source": ' + DEEP + b"}",
        "1: not JSON that can be read: lists or objects within each other, too many of them",
    ),
    "twice.jsonl": (b'{"source": "a", "source": "c", "target": "b"}', "1: 'source' is there twice; remove one"),
    "none.jsonl": (b"{}", "1: 0 columns, and a pair has 2; say which by data.source_column"),
    "digits.jsonl": (
        WHOLE[:-1] + b', "n": ' + b"9" * 5000 + b"}",
        "1: not JSON: exceeds the limit (4300 digits) for integer string conversion; each line holds an object",
    ),
    # gzip and others
    "zeros.tsv.gz": (GZIP + b"\0" * 512, AB * 9),
    "members.tsv.gz": (GZIP + GZIP, AB * 18),
    "sum.tsv.gz": (
        GZIP[:-8] + b"\1\2\3\4" + GZIP[-4:],
        ": the gzip file is damaged: its content is not what its checksum says",
    ),
    "size.tsv.gz": (
        GZIP[:-4] + b"\0\0\0\0",
        ": the gzip file is damaged: its content is not what its checksum says",
    ),
    "cut.tsv.gz": (GZIP[:-9], ": the gzip file is damaged, or ends in its middle"),
    "more.tsv.gz": (GZIP + b"more", ": after the gzip data comes something else"),
    "plain.tsv.gz": (b"a\tb\n", ": not a gzip file, although its name ends in .gz"),
    "none.tsv.gz": (gzip.compress(b""), ": an empty file"),
    "gzip.tsv": (GZIP, "1: gzip data; let the name of the file end in .gz"),
    "t.parquet.gz": (GZIP, ": Parquet within gzip is not read; unpack it"),
}  # fmt: skip


def said(call):
    """What a call gives, or the one line that it ends in."""
    try:
        return call()
    except DataError as error:
        return str(error)


def everywhere(path):
    """What training reads of a file, after all agree: the check, training, and predictions where sources are alone."""
    source = Files({"train": [str(path)]})
    (found,) = survey(source)
    read = said(lambda: list(source.pairs("train")))
    assert said(lambda: source.check("train")) == (read if isinstance(read, str) else len(read))
    assert [one.examples[0] for one in found.refused][:1] == ([read] if isinstance(read, str) else [])
    known = said(lambda: [text for block in SourceTexts([], [str(path)]).known() for text in block.texts])
    return read, known


@pytest.mark.parametrize("name", ODD)
def test_all_read_the_same_or_say_the_same(name, tmp_path):
    content, expected = ODD[name]
    path = tmp_path / name
    path.write_bytes(content)
    read, known = everywhere(path)
    if isinstance(expected, str):
        expected = f"{path}{'' if expected[0] == ':' else ':'}{expected}"
    assert (read, known) == (expected, [s for s, _ in expected] if isinstance(expected, list) else expected)


def test_what_only_pairs_need(tmp_path):
    for name, content, message in (
        ("t.csv", b"source;target\na;b\n", "1: 1 column, and a pair has 2: commas separate them here, not semicolons"),
        ("t.tsv", b"a,b\n", "1: 1 column, and a pair has 2: tabs separate them here, not commas"),
        ("u.csv", b"source,target,target\na,b,c\n",
         "1: 2 columns are called 'target'; rename all but the one that is meant"),
        ("v.csv", b"source,target\n", " no pairs below the names of the columns"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        assert everywhere(tmp_path / name)[0] == f"{tmp_path / name}:{message}"


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.tsv")
    (tmp_path / "folder.tsv").mkdir()
    for name, target in (("loop.tsv", "loop.tsv"), ("device.tsv", "/dev/null"), ("dangling.tsv", "nowhere")):
        (tmp_path / name).symlink_to(target)
    with zipfile.ZipFile(tmp_path / "book.csv", "w") as book:
        book.writestr("sheet", "a")
    twice = ": a pipe or a device, which cannot be read twice; write its content into a file"
    for name, message in {
        "fifo.tsv": twice,
        "device.tsv": twice,
        "folder.tsv": ": is a directory",
        "loop.tsv": ": too many levels of symbolic links",
        "dangling.tsv": ": no such file or directory",
        "book.csv": ":1: a zip archive or a spreadsheet; save the table as CSV in UTF-8",
        "x" * 300 + ".tsv": ": file name too long",
        "a\0b.tsv": ": embedded null byte",
    }.items():
        assert said(lambda: Files({"train": [str(tmp_path / name)]}).check("train")) == f"{tmp_path / name}{message}"  # noqa: B023


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    text = pyarrow.string()
    bytes_as_text = pyarrow.Array.from_buffers(text, 2, pyarrow.array([b"ok", b"\xff"], pyarrow.binary()).buffers())
    long = [f"text {i}" * 9 for i in range(5000)]
    for name, columns, expected in (
        ("t", [("source", ["a\r\nb\tc"]), ("target", ["x\n"])], [("a\r\nb\tc", "x\n")]),
        ("words", [("source", pyarrow.array(["a", "a"]).dictionary_encode()), ("target", ["b", "b"])], AB * 2),
        ("large", [("source", pyarrow.array(["a"], pyarrow.large_string())), ("target", ["b"])], AB),
        ("ids", [("id", ["0"]), ("source", ["a"]), ("id", ["1"]), ("target", ["b"])], AB),
        ("dotted", [("source", ["a"]), ("target", ["b"]), ("a", [{"b": 1}]), ("a.b", [1])], AB),
        ("twice", [("source", ["a"]), ("target", ["b"]), ("source", ["c"])],
         ": 2 columns are called 'source'; rename all but the one that is meant"),
        ("numbers", [("source", [1]), ("target", ["b"])], ": column 'source' holds int64, not texts"),
        ("bytes", [("source", [b"a"]), ("target", ["b"])], ": column 'source' holds binary, not texts"),
        ("null", [("source", ["a", None]), ("target", ["b", "b"])], ":2: row 2: 'source' is null; a text is needed"),
        ("latin", [("source", bytes_as_text), ("target", ["b", "b"])], ":2: row 2: 'source' is not UTF-8 (byte 0xFF)"),
        ("damaged", [("source", long), ("target", long)], ": damaged, row 1 or after: corrupt snappy compressed data."),
        ("cut", [("source", long), ("target", long)], None),
        ("empty", [("source", pyarrow.array([], text)), ("target", pyarrow.array([], text))], None),
    ):  # fmt: skip
        path = tmp_path / f"{name}.parquet"
        names, arrays = zip(*columns, strict=True)
        parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(a) for a in arrays], names=list(names)), path)
        raw = path.read_bytes()
        if name == "damaged":
            path.write_bytes(raw[:200] + bytes(byte ^ 0x5A for byte in raw[200:400]) + raw[400:])
        elif name == "cut":
            path.write_bytes(raw[: len(raw) // 2])
        read, known = everywhere(path)
        if expected is None:
            assert read.startswith(f"{path}: n")
            assert "\n" not in read
        elif isinstance(expected, str):
            assert (read, known) == (f"{path}{expected}",) * 2
        else:
            assert (read, known) == (expected, [source for source, _ in expected])


def test_columns_of_one_name_are_chosen_by_number(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_arrays([pyarrow.array([text]) for text in "abc"], names=["x", "y", "x"])
    parquet.write_table(table, tmp_path / "t.parquet")
    assert list(Files({"train": [str(tmp_path / "t.parquet")]}, Columns(3, 1)).pairs("train")) == [("c", "a")]


def test_lines_and_records_without_end_fill_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_of, "_CHUNK", 100)
    monkeypatch.setattr(lines_of, "_LONGEST", 1000)
    monkeypatch.setattr(records_of, "_LONGEST", 1000)
    (tmp_path / "t.tsv").write_text("a\tb\n" * 9 + "x" * 2000)
    (tmp_path / "t.csv").write_text("a,b\n" * 9 + 'c,"' + "d,e\n" * 999)
    assert everywhere(tmp_path / "t.tsv")[0] == f"{tmp_path / 't.tsv'}:10: a line of more than 0 MiB"
    assert everywhere(tmp_path / "t.csv")[0].endswith("t.csv:10: not CSV: the quote that opens here is not closed")


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\n")
    source = Files({"train": [str(path)]})
    assert source.check("train") == 1
    path.write_text("a\tb\nc\td\n")
    with pytest.raises(DataError, match=r"t\.tsv changed while it was read: 1 pair, then 2"):
        list(source.pairs("train"))
