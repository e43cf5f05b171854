"""How modules report the maps they use to whoever watches, without knowing who that is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from clearhead.maps.base import AttentionMap

Observer = Callable[[nn.Module, AttentionMap], None]

_observers: list[Observer] = []


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Within the block, `observer(module, map)` is called for each attention that Clearhead's modules compute."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def report(module: nn.Module, map: AttentionMap) -> None:
    """Called by modules for each map that they apply."""
    for observer in _observers:
        observer(module, map)
