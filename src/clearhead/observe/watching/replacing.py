"""Functions of other libraries that are replaced for a while, by several watches that may end in any order.

To put back what was found at the beginning would be wrong where another watch has begun since and ends later: its
replacement would be lost, or stay for ever.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from types import ModuleType
from typing import Any

Wrap = Callable[[Any], Any]
"""Makes a replacement of the function that it is given."""

_lock = Lock()
_wraps: dict[tuple[int, str], tuple[Any, list[Wrap]]] = {}  # of (holder, name): the original, and who wraps it
_shared: dict[str, tuple[AbstractContextManager[Any], list[object]]] = {}


@contextmanager
def replaced(holder: Any, name: str, wrap: Wrap) -> Iterator[None]:
    """Within the block, the attribute `name` of `holder` is what `wrap` makes of it."""
    key = id(holder), name
    with _lock:
        original, wraps = _wraps.setdefault(key, (getattr(holder, name), []))
        wraps.append(wrap)
        _put(holder, name, original, wraps)
    try:
        yield
    finally:
        with _lock:
            wraps.remove(wrap)
            _put(holder, name, original, wraps)
            if not wraps:
                del _wraps[key]


def _put(holder: Any, name: str, original: Any, wraps: list[Wrap]) -> None:
    for wrap in wraps:
        original = wrap(original)
    setattr(holder, name, original)


@contextmanager
def shared(key: str, make: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """A block within a context that the first to come enters and the last to go leaves."""
    me = object()
    with _lock:
        if key not in _shared:
            context = make()
            context.__enter__()
            _shared[key] = context, []
        context, users = _shared[key]
        users.append(me)
    try:
        yield
    finally:
        with _lock:
            users.remove(me)
            if not users:
                del _shared[key]
                context.__exit__(None, None, None)


def frame_of(module: ModuleType) -> Any:
    """Return the innermost running frame of that module: what calls a replacement may itself be wrapped."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != module.__file__:
        frame = frame.f_back
    return frame
