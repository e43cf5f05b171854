"""What is known of tensors on their way from a product to a softmax and on to the values, and whether it holds.

Shapes: those of the program's own, in which any axis may be that of keys.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clearhead.observe.watching.layouts import Layout, Order

CHANGED = "its weights were changed between the softmax and the product with values"
_OTHER_AXIS = "its softmax is over another axis than the one that the product with values sums over"
_CHECKED_ROWS = 16
_MOVED = 0.02
"""Share by which half-precision weights may differ from the softmax; others by 100 times their rounding."""


@dataclass(eq=False)
class Made:
    """What is known of a tensor that came out of a product, with nothing but elementwise functions since."""

    by: str | None = None
    """The activation or normalisation that it went through."""
    plain: bool = True
    """Were all functions since elementwise?"""
    order: Order | None = None
    """What its queries tell of samples and heads."""


@dataclass(eq=False)
class Softmax:
    """A softmax that ran: its logits, its axis, the type of its result, and what product `made` the logits; was it
    `recorded`?"""

    logits: Tensor
    axis: int
    dtype: torch.dtype
    made: Made | None
    recorded: bool = False


@dataclass(frozen=True, eq=False)
class Weights:
    """What is known of a tensor that came out of a softmax."""

    of: Softmax
    views: tuple[Callable[[Tensor], Tensor], ...] = field(default=())
    """How its axes were moved since."""
    scale: float = 1.0
    """What dropout multiplied it by."""
    left: tuple[int, torch.dtype] | None = None
    """How many numbers dropout left of it, and of which type."""
    why: str | None = None
    """What has changed its numbers."""

    def moved(self, x: Tensor) -> Tensor:
        """`x`, whose axes are the logits', with the axes of the weights."""
        for view in self.views:
            x = view(x)
        return x


@torch.no_grad()
def changed(x: Tensor, weights: Weights, layout: Layout | None = None) -> str | None:
    """What is wrong with `x` as the weights that its softmax gave, dropped and rescaled if it was; None: nothing."""
    if weights.why is not None:
        return weights.why
    logits, axis, whole = weights.of.logits.detach(), weights.of.axis, x.detach()
    if not weights.views and layout is not None and layout.keys != axis:
        return _OTHER_AXIS
    if not weights.views and axis == x.dim() - 1 and x.dim() > 1 and logits.shape == x.shape:
        logits, x = _some_rows(logits), _some_rows(whole)
    wide = torch.promote_types(logits.dtype, torch.float32)
    expected = weights.moved(logits.to(wide).softmax(axis))
    if expected.shape != x.shape:
        return CHANGED
    if weights.views and layout is not None and not _sums_to_one(expected, layout.keys):
        return _OTHER_AXIS
    got, expected, left = x.to(wide), expected * weights.scale, weights.left
    far = (got - expected).abs() > _tolerance(x.dtype, logits.dtype, weights.of.dtype) * (
        expected + 1e-4 * weights.scale
    )
    far &= ~(got.isnan() & expected.isnan())
    if left is not None:
        far &= got != 0
    if bool(far.any()) or (left is not None and left[1] == x.dtype and int(whole.count_nonzero()) != left[0]):
        return CHANGED
    return None


def _tolerance(*dtypes: torch.dtype) -> float:
    coarsest = max(torch.finfo(dtype).eps for dtype in dtypes)
    return _MOVED if coarsest > 1e-4 else 100 * coarsest


def _some_rows(x: Tensor) -> Tensor:
    """Rows of `x`, from the first to the last; a function that changes weights changes them in all rows."""
    n = x.shape[-2]
    if n <= 2 * _CHECKED_ROWS:
        return x
    return x.index_select(-2, torch.linspace(0, n - 1, _CHECKED_ROWS, device=x.device).long())


def _sums_to_one(weights: Tensor, axis: int) -> bool:
    if not weights.numel():
        return True
    sums = weights.sum(axis)
    return bool(((sums - 1).abs() < 1e-3).logical_or(sums.isnan()).all())
