"""How maps report that they are applied to whoever watches, without knowing who that is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Observer = Callable[[Any], None]
"""Told each attention map that is applied to values, just before."""

_observers: list[Observer] = []
_thread = threading.local()


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Within the block, `observer(map)` is called for each attention map that is applied to values, in any thread."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def observed() -> bool:
    """Does anyone observe?"""
    return bool(_observers)


@contextmanager
def applying(map: Any) -> Iterator[None]:
    """The block that applies `map`, of which observers are told."""
    for observer in [*_observers]:
        observer(map)
    outer, _thread.applying = is_applying(), True
    try:
        yield
    finally:
        _thread.applying = outer


def is_applying() -> bool:
    """Is this thread inside the computation of a map's product, which was reported already?"""
    return getattr(_thread, "applying", False)
