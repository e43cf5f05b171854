"""Texts to predict from: those given, then those of files, then those that arrive, each with its place."""

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import BinaryIO, NamedTuple

from clearhead.data.checks import numbered
from clearhead.data.formats import sources
from clearhead.data.layouts import ANY, Columns
from clearhead.data.lines import begun, unreadable, whole_lines
from clearhead.errors import DataError

_AT_ONCE = 1 << 20


class Asked(NamedTuple):
    """Texts that are predicted together. where: the place of each, by its number from 0. arriving: more may follow, so
    that what cannot be read is reported, and ends nothing."""

    texts: list[str]
    where: Callable[[int], str]
    arriving: bool = False


class SourceTexts:
    """Texts given, then those of files: TSV, CSV, JSONL and Parquet as training reads them, others a text on each line.

    "-" is standard input. That, pipes and devices are read as they arrive; other files can be checked before.
    """

    def __init__(self, texts: Sequence[str], files: Sequence[str] = (), columns: Columns = ANY) -> None:
        self.texts, self.files, self.columns = texts, files, columns

    @property
    def arriving(self) -> bool:
        """Does some of it arrive as it is read?"""
        return any(map(_arrives, self.files))

    def known(self) -> Iterator[Asked]:
        """All but what arrives; raises DataError for a line of a file that cannot be used."""
        if self.texts:
            yield Asked(list(self.texts), numbered)
        for file in self.files:
            if not _arrives(file):
                yield from self._of_file(file)

    def blocks(self, most: int) -> Iterator[Asked]:
        """Yield all texts in order, up to `most` at a time; from a pipe, those that have arrived."""
        yield from in_blocks(self.texts, most)
        for file in self.files:
            for block in _arriving(file) if _arrives(file) else self._of_file(file):
                for first in range(0, len(block.texts), most):
                    yield Asked(block.texts[first : first + most], partial(_later, block.where, first), block.arriving)

    def _of_file(self, file: str) -> Iterator[Asked]:
        empty = True
        for block in sources(file, self.columns):
            if block.problems:
                raise DataError(str(min(block.problems, key=lambda problem: problem.line or 0)))
            empty = empty and not block.sources
            yield Asked(block.sources, partial(_of_lines, file, block.lines))
        if empty:
            raise DataError(f"{file}: no texts below the names of the columns")


def in_blocks(texts: Iterable[str], most: int) -> Iterator[Asked]:
    """Any texts, read as they are asked for."""
    stream, first = iter(texts), 0
    while block := list(islice(stream, most)):
        yield Asked(block, partial(_later, numbered, first))
        first += len(block)


def _later(where: Callable[[int], str], first: int, number: int) -> str:
    return where(first + number)


def _of_lines(file: str, lines: Sequence[int], number: int) -> str:
    return f"{file}:{lines[number]}"


def _arrives(file: str) -> bool:
    """Is it standard input, a pipe or a device? What is not there is reported by who opens it."""
    try:
        return file == "-" or (not stat.S_ISREG(mode := os.stat(file).st_mode) and not stat.S_ISDIR(mode))
    except (OSError, ValueError):
        return False


def _arriving(file: str) -> Iterator[Asked]:
    name = "standard input" if file == "-" else file
    try:
        if file == "-":
            yield from _lines(sys.stdin.buffer, name)
            return
        with open(file, "rb") as opened:
            yield from _lines(opened, name)
    except OSError as error:
        raise DataError(f"{name}: {unreadable(error)}") from None


def _lines(file: BinaryIO, name: str) -> Iterator[Asked]:
    """Its lines as they come, without their ends. What is not UTF-8 stays in the text as halves of characters."""
    number = 1
    for chunk in whole_lines(iter(lambda: file.read1(_AT_ONCE), b""), name):  # type: ignore[attr-defined]
        raw = (begun(name, chunk) if number == 1 else chunk).removesuffix(b"\n").split(b"\n")
        texts = [line.removesuffix(b"\r").decode(errors="surrogateescape") for line in raw]
        yield Asked(texts, partial(_of_lines, name, range(number, number + len(texts))), arriving=True)
        number += len(texts)
    if number == 1:
        raise DataError(f"{name}: an empty file; write one text a line")
