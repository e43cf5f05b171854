"""Everything Clearhead raises on purpose, and the words in which it does.

    ClearheadError
    ├── InputError (ValueError)      an argument that cannot work
    │   ├── ShapeError               tensors whose shapes do not fit
    │   ├── ConfigError              a configuration key or its value, named by its path
    │   └── DataError                a file to learn or predict from, named by file and line
    ├── RunError                     a run folder that is missing, half-written or of a newer version
    └── MissingExtra (ImportError)   an optional dependency that is not installed

A message is one line: what was wrong, where, and what to write instead. The command line prints it and ends with
status 2.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class ClearheadError(Exception):
    """The root of the tree; catch it to catch whatever Clearhead raises on purpose."""


class InputError(ClearheadError, ValueError):
    """An argument that cannot work."""


class ShapeError(InputError):
    """Tensors whose shapes do not fit each other."""


class ConfigError(InputError):
    """A configuration key that does not exist, or a value it cannot take."""


class DataError(InputError):
    """Data that cannot be used; the message begins with FILE:LINE where there is one."""


class RunError(ClearheadError):
    """A run folder that cannot be used."""


class MissingExtra(ClearheadError, ImportError):
    """An optional dependency that is not installed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, and all of them when they are few.

    >>> nearest("causl", ["causal", "window"])
    "; did you mean 'causal'? (known: causal, window)"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return hint + (f" (known: {', '.join(names)})" if len(names) <= 16 else "")


def extra(module: str, name: str) -> ModuleType:
    """Import `module`, which comes with the extra `name`.

    Raises MissingExtra, saying what to install, when it is not there.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingExtra(f"{module!r} is not installed: pip install 'clearhead[{name}]'") from None
