"""Pairs from people's own files: checked line by line, then read by `datasets`, a block at a time."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clearhead.data.formats import Block, blocks, kind_of, layout
from clearhead.data.layouts import ANY, Columns
from clearhead.data.sources import SPLITS, Source, Split
from clearhead.errors import DataError, InputError, extra


class Files(Source):
    """The pairs of files, a file or two parallel ones for each split.

    files: for each split the path of a TSV, CSV, JSONL or Parquet file, or of two files whose lines belong together;
    each may be gzipped. columns: which columns hold source and target, by name or by number from 1; None: what can
    only be meant.

    Nothing is kept in memory: each time the files are read as a stream.
    """

    def __init__(self, files: Mapping[Split, Sequence[str] | None], columns: Columns = ANY) -> None:
        self.files = {split: tuple(paths) for split in SPLITS if (paths := files.get(split))}
        self.columns = columns
        self._counts: dict[Split, int] = {}

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(self.files)

    def check(self, split: Split) -> int:
        """How many pairs there are; raises DataError, with file and line, for the first that cannot be learnt from."""
        if split not in self._counts:
            count = 0
            for block in self.checked(split):
                if block.problems:
                    raise DataError(str(min(block.problems, key=lambda problem: problem.line or 0)))
                count += len(block.sources)
            if not count:
                raise DataError(f"{self._name(split)}: no pairs below the names of the columns")
            self._counts[split] = count
        return self._counts[split]

    def checked(self, split: Split) -> Iterator[Block]:
        """The pairs with their lines and with what is wrong, as `clearhead.data.formats.blocks`."""
        return blocks(self._files(split), self.columns)

    def blocks(self, split: Split, rows: int = 10_000) -> Iterator[tuple[list[str], list[str]]]:
        """The sources and targets, so many at a time; raises DataError as `check`."""
        expected, count = self.check(split), 0
        for sources, targets in _read(self._files(split), self.columns, rows):
            count += len(sources)
            yield sources, targets
        if count != expected:  # neither guess nor go on: a line that is read otherwise than it was checked
            raise DataError(f"{self._name(split)}: {count:,} pairs were read where {expected:,} were counted")

    def pairs(self, split: Split) -> Iterator[tuple[str, str]]:
        for sources, targets in self.blocks(split):
            yield from zip(sources, targets, strict=True)

    def where(self, split: Split, number: int, side: str = "source") -> str:
        """FILE:LINE of a pair, counted from 0."""
        files = self._files(split)
        for block in self.checked(split):
            if number < len(block.lines):
                return f"{files[-1] if side == 'target' else files[0]}:{block.lines[number]}"
            number -= len(block.lines)
        return self._name(split)

    def _files(self, split: Split) -> tuple[str, ...]:
        if split not in self.files:
            raise InputError(f"there is no {split} file: give one by --{split}, or as data.{split}")
        return self.files[split]

    def _name(self, split: Split) -> str:
        return ",".join(self._files(split))


def _read(files: Sequence[str], columns: Columns, rows: int) -> Iterator[tuple[list[str], list[str]]]:
    kind = kind_of(files)
    if kind == "text":
        sides = [_stream("text", file, rows, encoding="utf-8-sig") for file in files]
        for ours, theirs in zip(*sides, strict=True):
            yield ours["text"], theirs["text"]
        return
    if kind == "jsonl":
        yield from _objects(files, columns, rows)
        return
    form = layout(files, columns)
    names = [form.names[form.source], form.names[form.target]]
    if kind == "parquet":
        found = _stream("parquet", files[0], rows, columns=names)
    else:
        options = {"sep": "\t", "quoting": 3} if kind == "tsv" else {}
        every = list(form.names)
        found = _stream(
            "csv",
            files[0],
            rows,
            names=every,
            header=0 if form.header else None,
            usecols=names,
            features=_texts([name for name in every if name in names]),
            na_filter=False,
            keep_default_na=False,
            **options,
        )
    for block in found:
        yield block[names[0]], block[names[1]]


def _texts(names: Sequence[str]) -> Any:
    library = extra("datasets", "train")
    return library.Features({name: library.Value("string") for name in names})


def _stream(builder: str, file: str, rows: int, **options: Any) -> Iterator[dict[str, list[str]]]:
    """A file as `datasets` reads it, in blocks of rows."""
    library = extra("datasets", "train")
    with tempfile.TemporaryDirectory() as nowhere:  # it makes an empty folder, even where nothing is kept
        stream = library.load_dataset(
            builder,
            data_files={"all": _plain(file, nowhere)},
            split="all",
            streaming=True,
            cache_dir=nowhere,
            **options,
        )
        for table in stream.with_format("arrow").iter(rows):
            yield table.to_pydict()


def _plain(file: str, folder: str) -> str:
    """The file under a name that is neither an address nor a pattern of names: its own, or one in the folder."""
    if re.fullmatch(r"[\w./ -]+", file):
        return file
    name = os.path.join(folder, "file" + "".join(Path(file).suffixes[-2:]))
    os.symlink(os.path.abspath(file), name)
    return name


def _objects(files: Sequence[str], columns: Columns, rows: int) -> Iterator[tuple[list[str], list[str]]]:
    """A JSONL file. The reader of `datasets` takes texts that look like points in time for such, and writes them in
    another way; so it is given the pairs that were checked."""
    library = extra("datasets", "train")
    stream = library.IterableDataset.from_generator(
        _pairs_of, gen_kwargs={"files": tuple(files), "columns": columns}, features=_texts(["source", "target"])
    )
    for block in stream.iter(rows):
        yield block["source"], block["target"]


def _pairs_of(files: tuple[str, ...], columns: Columns) -> Iterator[dict[str, str]]:
    for block in blocks(files, columns):
        for source, target in zip(block.sources, block.targets, strict=True):
            yield {"source": source, "target": target}
