"""The lines of text files, plain or gzip, by blocks, so that memory does not depend on the file."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from clearhead.errors import DataError

_CHUNK = 4 << 20


class Problem(NamedTuple):
    """Why a line cannot be learnt from. kind: what all such lines are called."""

    file: str
    line: int | None
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.message}"


class Problems:
    """The problems of a block, and which lines have one."""

    def __init__(self, known: Sequence[Problem] = ()) -> None:
        self.all, self.lines = list(known), {problem.line for problem in known}

    def __bool__(self) -> bool:
        return bool(self.all)

    def add(self, file: str, line: int, kind: str, message: str) -> None:
        """Note the first problem of a line."""
        if line not in self.lines:
            self.all.append(Problem(file, line, kind, message))
            self.lines.add(line)


class Lines(NamedTuple):
    """Lines of a file that follow each other, without their ends: the number of the first, and those not in UTF-8."""

    first: int
    texts: list[str]
    problems: list[Problem]


def lines(file: str, keep_ends: bool = False) -> Iterator[Lines]:
    """The lines of a text file, in blocks; a line that is not UTF-8 is empty, with a problem.

    Without keep_ends, the ends of lines are taken off: \\n, or \\r\\n.

    Raises DataError for a file that is missing or empty.
    """
    number = 1
    for chunk in chunks(file):
        problems: list[Problem] = []
        try:
            texts = chunk.decode("utf-8-sig" if number == 1 else "utf-8").split("\n")
        except UnicodeDecodeError:
            raw = chunk.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").split(b"\n")
            texts = [_decoded(line, file, number + i, problems) for i, line in enumerate(raw)]
        if not texts[-1]:  # behind the last end of a line there is no line
            texts.pop()
        if keep_ends:
            texts = [f"{text}\n" for text in texts]
        elif b"\r" in chunk:
            texts = [text.removesuffix("\r") for text in texts]
        yield Lines(number, texts, problems)
        number += len(texts)
    if number == 1:
        raise DataError(f"{file}: an empty file")


def _decoded(raw: bytes, file: str, number: int, problems: list[Problem]) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        message = f"not UTF-8 (byte 0x{raw[error.start]:02X}); save the file as UTF-8"
        problems.append(Problem(file, number, "lines that are not UTF-8", message))
        return ""


def chunks(file: str) -> Iterator[bytes]:
    """The bytes of a file, plain or gzip, in chunks of whole lines; raises DataError where it cannot be read."""
    rest = b""
    try:
        with gzip.open(file) if file.endswith(".gz") else open(file, "rb") as opened:
            while read := opened.read(_CHUNK):
                end = read.rfind(b"\n") + 1
                if end:
                    yield rest + read[:end]
                    rest = read[end:]
                else:
                    rest += read
        if rest:
            yield rest
    except (EOFError, zlib.error):
        raise DataError(f"{file}: the gzip file is damaged, or ends in its middle") from None
    except gzip.BadGzipFile:
        raise DataError(f"{file}: not a gzip file, although its name ends in .gz") from None
    except OSError as error:
        raise DataError(f"{file}: {(error.strerror or str(error)).lower()}") from None
