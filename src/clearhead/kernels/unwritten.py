"""Results that were promised and never written: tests let them begin as NaN, so that they show."""

from collections.abc import Iterator

from torch import Tensor

BEGIN: float | None = None
"""What room for results is filled with before a kernel writes them; None: with nothing, since it writes all of them."""


def begin(promised: Iterator[Tensor]) -> None:
    """Fill what a kernel is to write, each a view of its results, with BEGIN."""
    if BEGIN is not None:
        for room in promised:
            room.fill_(BEGIN if room.is_floating_point() else -1)
