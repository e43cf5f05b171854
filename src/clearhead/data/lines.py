"""The lines of text files, plain or gzip, by blocks, so that memory does not depend on the file."""

import errno
import gzip
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from clearhead.errors import DataError

_CHUNK = 1 << 18
"""Bytes read at once: more keep so many objects alive that the collector of garbage takes as long as the work."""
_LONGEST = 1 << 28
"""Bytes of a line. A longer one is no text, and would fill the memory."""
_FOREIGN = {
    b"\xff\xfe": "UTF-16; save the file as UTF-8",
    b"\xfe\xff": "UTF-16; save the file as UTF-8",
    b"\x1f\x8b": "gzip data; let the name of the file end in .gz",
    b"PK\x03\x04": "a zip archive or a spreadsheet; save the table as CSV in UTF-8",
    b"PAR1": "Parquet; let the name of the file end in .parquet",
}
"""How files begin that are no text, and what to do about it."""


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
    """The lines of a text file, in blocks of at least one; a line that is not UTF-8 is empty, with a problem.

    Without keep_ends, the ends of lines are taken off: \\n, or \\r\\n.

    Raises DataError for a file that cannot be read, is empty, or is no text.
    """
    number = 1
    for chunk in chunks(file):
        if number == 1:
            chunk = begun(file, chunk)
        problems: list[Problem] = []
        try:
            texts = chunk.decode().split("\n")
        except UnicodeDecodeError:
            texts = [_decoded(line, file, number + i, problems) for i, line in enumerate(chunk.split(b"\n"))]
        if not texts[-1]:  # after the last end of a line there is no line
            texts.pop()
        if keep_ends:
            texts = [f"{text}\n" for text in texts]
        elif b"\r" in chunk:
            texts = [text.removesuffix("\r") for text in texts]
        if texts:
            yield Lines(number, texts, problems)
        number += len(texts)
    if number == 1:
        raise DataError(f"{file}: an empty file")


def begun(file: str, chunk: bytes) -> bytes:
    """The first lines without a mark of their encoding; raises DataError where they cannot be lines of UTF-8."""
    if foreign := next((begin for begin in _FOREIGN if chunk.startswith(begin)), None):
        raise DataError(f"{file}:1: {_FOREIGN[foreign]}")
    if b"\n" not in chunk and b"\r" in chunk.rstrip(b"\r"):
        raise DataError(f"{file}:1: carriage returns alone end no lines; save the file with line feeds")
    return chunk.removeprefix(b"\xef\xbb\xbf")


def _decoded(raw: bytes, file: str, number: int, problems: list[Problem]) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        problems.append(Problem(file, number, "lines that are not UTF-8", not_utf8(raw[error.start])))
        return ""


def not_utf8(byte: int) -> str:
    return f"not UTF-8 (byte 0x{byte:02X}); save the file as UTF-8"


def chunks(file: str) -> Iterator[bytes]:
    """The bytes of a file, plain or gzip, in chunks of whole lines; raises DataError where it cannot be read."""
    return whole_lines(_read(file), file)


def whole_lines(reads: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Bytes as they were read, cut where lines end."""
    rest: list[bytes] = []
    number, size = 1, 0
    for read in reads:
        end = read.rfind(b"\n") + 1
        if end:
            yield b"".join([*rest, read[:end]])
            number += read.count(b"\n")
            rest, size = [], 0
        rest.append(read[end:])
        size += len(read) - end
        if size > _LONGEST:
            raise DataError(f"{name}:{number}: a line of more than {_LONGEST >> 20:,} MiB")
    if size:
        yield b"".join(rest)


def _read(file: str) -> Iterator[bytes]:
    try:
        require_file(file)
        with _opened(file) as opened:
            while read := opened.read(_CHUNK):
                yield read
    except DataError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: {_damage(file, error)}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {unreadable(error)}") from None


def _opened(file: str) -> IO[bytes]:
    return gzip.open(file) if file.endswith(".gz") else open(file, "rb")  # type: ignore[return-value]


def require_file(file: str) -> None:
    """Raise DataError for a pipe or a device: files are read several times. A folder is refused by who opens it."""
    mode = os.stat(file).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{file}: a pipe or a device, which cannot be read twice; write its content into a file")


def unreadable(error: Exception) -> str:
    """What the system says of a file, in the words of our messages."""
    if getattr(error, "errno", None) == errno.EBADF:
        return "it is closed"
    return (getattr(error, "strerror", None) or str(error)).lower()


def _damage(file: str, error: Exception) -> str:
    """What is wrong with a gzip file."""
    said = str(error)
    if isinstance(error, EOFError):
        return "the gzip file is damaged, or ends in its middle"
    if said.startswith("Not a gzipped"):
        with open(file, "rb") as opened:
            begins = opened.read(2) == b"\x1f\x8b"
        return (
            "after the gzip data comes something else" if begins else "not a gzip file, although its name ends in .gz"
        )
    if said.startswith(("CRC", "Incorrect length")):
        return "the gzip file is damaged: its content is not what its checksum says"
    return f"the gzip file is damaged: {said.lower()}"
