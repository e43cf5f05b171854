"""A lock on a run: one process at a time works on it. The system releases it when the process ends, also by a kill."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clearhead.errors import RunError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None


@contextmanager
def locked(path: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """A block that holds the lock file `path`; raises RunError, naming the holder, where another process does.

    what: what is locked, for messages.
    """
    if fcntl is None:
        yield
        return
    handle = _taken(path, what, say)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _taken(path: Path, what: str, say: Callable[[str], None]) -> int:
    """A handle of the file that is there now, and not of one that its holder removed in the meantime."""
    while True:
        handle = _opened(path, what)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace")
            os.close(handle)
            raise RunError(f"{what} is in use by {holder}: wait for its end, or choose another --name") from None
        except OSError as error:  # a file system without locks
            say(f"{what} cannot be locked ({error.strerror}): start no second process on it")
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return handle


def _opened(path: Path, what: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise RunError(f"cannot lock {what}: {path}: {error.strerror}") from None
