"""What nobody expected: one line on standard error, exit status 1, and a file with the details."""

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence


def of_named_file(error: Exception, arguments: Sequence[str]) -> str | None:
    """What the system says against a file that the arguments name; None: the error is about something else."""
    if not isinstance(error, OSError) or error.filename is None or not error.strerror:
        return None
    file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    named = any(argument and argument in file for argument in arguments)
    return f"{file}: {error.strerror.lower()}" if named else None


def report(error: Exception, version: str) -> int:
    """Say what happened in one line, and where more is written; returns the exit status."""
    print(f"error: {_words(error)}; {_written(error, version)}", file=sys.stderr)
    return 1


def _words(error: Exception) -> str:
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said:
        return "there is not enough memory for this"
    cut = said if len(said) <= 200 else f"{said[:199]}…"
    return f"unexpected {type(error).__name__}: {cut}" if cut else f"unexpected {type(error).__name__}"


def _written(error: Exception, version: str) -> str:
    """Write the details; returns what is to be said of them."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="clearhead-", suffix=".txt", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            file.write(_details(error, version))
        return f"the details are in {file.name}"
    except OSError as other:
        return f"the details cannot be written ({(other.strerror or str(other)).lower()})"


def _details(error: Exception, version: str) -> str:
    torch = getattr(sys.modules.get("torch"), "__version__", "not imported")
    about = f"clearhead {version}, torch {torch}, Python {platform.python_version()}, {platform.platform()}"
    return f"{about}\n{sys.argv}\n\n{''.join(traceback.format_exception(error))}"
