"""Standard input, output and errors, whatever they are connected to: a full disk, nothing, a reader that has gone.

Results go to standard output. Where they cannot be written, the program ends with one line and status 2, and quietly
where the reader has enough. Remarks go to standard error: where they cannot be written they are lost, and the work goes
on.
"""

import codecs
import errno
import io
import os
import sys
from typing import Any

from clearhead.errors import ClearheadError


class OutputError(ClearheadError):
    """Standard output cannot be written to."""


class ReaderGone(Exception):
    """The program that reads standard output has enough of it, such as `head`."""


def prepare() -> None:
    """Make the three streams usable; streams that a test has put in their place stay as they are."""
    codecs.register_error("clearhead.escape", _escaped)
    _open_closed()
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Results(1, "w", closefd=False), sys.stdout, "clearhead.escape")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Remarks(2, "w", closefd=False), sys.stderr, "backslashreplace")


def _open_closed() -> None:
    """Open what was closed, or the next file that is opened gets its number, and what is printed.

    It is opened the wrong way round, so that every read or write fails.
    """
    for number, way in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, way), True)  # gets the lowest number that is free, which is this


class _Results(io.FileIO):
    """Standard output. After its first failure nothing more is written: the end of the interpreter is no second one."""

    _failed = False

    def write(self, data: Any) -> int:
        if self._failed:
            return len(data)
        try:
            return super().write(data)
        except BrokenPipeError:
            self._failed = True
            raise ReaderGone from None
        except OSError as error:
            self._failed = True
            why = "it is closed" if error.errno == errno.EBADF else (error.strerror or str(error)).lower()
            raise OutputError(f"standard output: {why}") from None


class _Remarks(io.FileIO):
    """Standard error, which no work is stopped for."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _text(raw: io.FileIO, before: Any, errors: str) -> Any:
    """Text as the stream before wrote it: same encoding, same moments."""
    if before is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), errors=errors, line_buffering=True)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding,
        errors=errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""What an encoding does not hold as \uXXXX, in pairs beyond U+FFFF: in JSON that is the same text."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end
