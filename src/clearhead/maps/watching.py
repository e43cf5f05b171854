"""How maps report that they are applied to whoever watches, without knowing who that is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Observer = Callable[[Any], None]
"""Told each attention map that is applied to values, just before."""
Receiver = Callable[[Any, Any], None]
"""Given each attention map that was applied, and what came out, (B, H, Nq, Dv)."""

_observers: list[Observer] = []
_receivers: list[Receiver] = []
_thread = threading.local()


@contextmanager
def observing(observer: Observer, receiver: Receiver | None = None) -> Iterator[None]:
    """Within the block, `observer(map)` is called for each attention map that is applied to values, in any thread;
    and then `receiver(map, output)`."""
    receivers = [] if receiver is None else [receiver]
    _observers.append(observer)
    _receivers.extend(receivers)
    try:
        yield
    finally:
        _observers.remove(observer)
        for each in receivers:
            _receivers.remove(each)


def observed() -> bool:
    """Does anyone observe what this thread applies?"""
    return bool(_observers) and not is_applying()


@contextmanager
def applying(map: Any) -> Iterator[None]:
    """The block that applies `map`, of which observers are told."""
    for observer in [*_observers]:
        observer(map)
    with unobserved():
        yield


@contextmanager
def unobserved() -> Iterator[None]:
    """A block of this thread whose maps no observer sees: an observer's own, or parts of a map already seen."""
    outer, _thread.applying = is_applying(), True
    try:
        yield
    finally:
        _thread.applying = outer


def applied(map: Any, output: Any) -> None:
    """Hand the output of `map` to the observers of outputs."""
    for receiver in [*_receivers]:
        receiver(map, output)


def is_applying() -> bool:
    """Is this thread inside the computation of a map's product, which was reported already, or unobserved?"""
    return getattr(_thread, "applying", False)
