"""Checks of what people bring: files and texts, refused by file and line before anything is computed."""

import sys
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from clearhead.errors import DataError


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a text file, without their ends and the white space around them; "-" is standard input.

    Raises DataError, naming file and line, for a file that is missing, not UTF-8, or has an empty line.
    """
    if str(path) == "-":
        yield from decode_lines(sys.stdin.buffer, "standard input")
        return
    try:
        with open(path, "rb") as file:
            yield from decode_lines(file, str(path))
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def decode_lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """The lines of an open binary file called `name`; errors as `read_lines`."""
    number = 0
    for number, raw in enumerate(file, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            raise DataError(f"{name}:{number}: not UTF-8 (byte 0x{byte:02X}); save the file as UTF-8") from None
        if not line:
            raise DataError(f"{name}:{number}: an empty line; remove it")
        yield line
    if not number:
        raise DataError(f"{name}: an empty file; write one text a line")


class SourceTexts:
    """Texts to predict from: those given, then the lines of files, read as they are asked for.

    Files are checked before the first is read; standard input ("-") can only be checked on the way.
    """

    def __init__(self, texts: Sequence[str], files: Sequence[str]) -> None:
        self.texts, self.files = texts, files
        self._starts: list[int] = []

    def __iter__(self) -> Iterator[str]:
        for file in self.files:
            if file != "-":
                for _ in read_lines(file):
                    pass
        yield from self.texts
        count = len(self.texts)
        for file in self.files:
            self._starts.append(count)
            for line in read_lines(file):
                count += 1
                yield line

    def where(self, number: int) -> str:
        """Where a text that was read stands, counted from 0."""
        at = bisect(self._starts, number) - 1
        if at < 0:
            return _numbered(number)
        name = "standard input" if self.files[at] == "-" else self.files[at]
        return f"{name}:{number - self._starts[at] + 1}"


def check_texts(texts: Sequence[str]) -> None:
    """Raise DataError when there is no text, or an empty one."""
    if not texts:
        raise DataError("nothing to predict from; give at least one text")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise DataError(f"text {number} is empty; remove it")


def check_lengths(
    texts: Sequence[str],
    tokens: Sequence[Sequence[int]],
    limit: int,
    truncate: bool = False,
    where: Callable[[int], str] | None = None,
) -> list[list[int]]:
    """The tokens of the texts, none longer than `limit`.

    With `truncate`, what is longer is cut; without, DataError names where the first stands (`where` is given its
    number, from 0), its length and the limit.
    """
    where = where or _numbered
    for number, (text, row) in enumerate(zip(texts, tokens, strict=True)):
        if len(row) > limit and not truncate:
            shown = text if len(text) <= 24 else text[:21] + "..."
            raise DataError(
                f"{where(number)}: {shown!r} has {len(row)} tokens, the model reads {limit}: shorten or truncate it"
            )
    return [list(row[:limit]) for row in tokens]


def _numbered(number: int) -> str:
    """Where a text stands that came in no file."""
    return f"text {number + 1}"
