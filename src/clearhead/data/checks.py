"""Checks of what people bring: files and texts, refused by file and line before anything is computed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from clearhead.errors import DataError


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file, without their ends.

    Raises DataError, naming file and line, for a file that is missing, not UTF-8, or has an empty line.
    """
    try:
        with open(path, "rb") as file:
            return decode_lines(file, str(path))
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def decode_lines(file: BinaryIO | Iterable[bytes], name: str) -> list[str]:
    """The lines of an open binary file called `name`; errors as `read_lines`."""
    lines = []
    for number, raw in enumerate(file, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            raise DataError(f"{name}:{number}: not UTF-8 (byte 0x{byte:02X}); save the file as UTF-8") from None
        if not line:
            raise DataError(f"{name}:{number}: an empty line; remove it")
        lines.append(line)
    if not lines:
        raise DataError(f"{name}: an empty file; write one text a line")
    return lines


def check_texts(texts: Sequence[str]) -> None:
    """Raise DataError when there is no text, or an empty one."""
    if not texts:
        raise DataError("nothing to predict from; give at least one text")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise DataError(f"text {number} is empty; remove it")


def check_lengths(
    texts: Sequence[str], tokens: Sequence[Sequence[int]], limit: int, truncate: bool = False
) -> list[list[int]]:
    """The tokens of the texts, none longer than `limit`.

    With `truncate`, what is longer is cut; without, DataError names the first by its number, its length and the limit.
    """
    for number, (text, row) in enumerate(zip(texts, tokens, strict=True), start=1):
        if len(row) > limit and not truncate:
            shown = text if len(text) <= 24 else text[:21] + "..."
            raise DataError(
                f"line {number}: {shown!r} has {len(row)} tokens, the model reads {limit}: shorten or truncate it"
            )
    return [list(row[:limit]) for row in tokens]
