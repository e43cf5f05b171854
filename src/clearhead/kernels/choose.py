"""Which kernel computes A v: an ordered list, read from the top; the first that fits runs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.kernels.score import Score
from clearhead.kernels.visible import Visible

SMALL = 1 << 20
"""Query-key pairs that may be held at once: 4 MiB in float32. Below, a dense mask or n² weights are the fast path."""


@dataclass(frozen=True, eq=False)
class Call:
    """One application of attention, as far as the choice of a kernel depends on it. `shape` is (B, H, Nq, Nk)."""

    shape: tuple[int, int, int, int]
    widths: tuple[int, int]
    device: torch.device
    visible: Visible
    score: Score
    dropout: float = 0.0
    statistics: bool = False

    @property
    def pairs(self) -> int:
        b, h, n_queries, n_keys = self.shape
        return b * h * n_queries * n_keys


def _sdpa(call: Call) -> str | None:
    if call.statistics:
        return "returns no statistics"
    if call.score.softcap is not None:
        return "has no soft cap"
    if (cells := _mask_cells(call)) > SMALL:
        return f"would need a dense mask of {cells:,} pairs; at most {SMALL:,} are held"
    return _unfused(call) if call.device.type == "cpu" and call.pairs > SMALL else None


def _unfused(call: Call) -> str | None:
    """Why scaled_dot_product_attention would leave its fused kernel on the CPU, and hold n² weights."""
    bias, (width, value_width) = call.score.bias, call.widths
    if call.dropout:
        cause = "with dropout"
    elif width != value_width:
        cause = f"with values of width {value_width} and keys of {width}"
    elif bias is not None and bias.requires_grad:
        cause = "with a bias that needs a gradient"
    else:
        return None
    return f"is not fused on this device {cause}: it would hold {call.pairs:,} weights"


def _mask_cells(call: Call) -> int:
    """How many pairs the mask that `sdpa` builds would hold."""
    see, (b, h, n_queries, n_keys) = call.visible, call.shape
    if see.full or (see.plainly_causal and call.score.bias is None):
        return 0
    parts = [x for x in (see.mask, see.q_positions, see.k_positions, call.score.bias) if x is not None]
    samples = b if not see.unpadded else max([1, *(x.shape[0] for x in parts)])
    heads = max([1, *(x.shape[1] for x in parts)])
    return samples * min(heads, h) * n_queries * n_keys


KERNELS: tuple[tuple[str, Callable[[Call], str | None]], ...] = (("sdpa", _sdpa), ("stream", lambda call: None))
"""Name, and why it does not fit a call (None: it fits), in order of preference."""


def choose(call: Call) -> str:
    """The name of the first kernel that fits."""
    return next(name for name, misfit in KERNELS if misfit(call) is None)


@dataclass(frozen=True)
class Explanation:
    """Which kernel runs, and why each other one does not; prints as a table."""

    chosen: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.reasons))
        marks = {name: "▸" if name == self.chosen else " " for name in self.reasons}
        return "\n".join(f"{marks[name]} {name:<{width}}  {reason}" for name, reason in self.reasons.items())

    __repr__ = __str__


def explain(call: Call) -> Explanation:
    """The choice for `call` with its reasons."""
    chosen, reasons = choose(call), {}
    for name, misfit in KERNELS:
        why_not = misfit(call)
        if name == chosen:
            reasons[name] = "chosen: the first that fits"
        else:
            reasons[name] = why_not or f"fits, but {chosen} comes first"
    return Explanation(chosen, reasons)


def describe(q: Tensor, k: Tensor, value_width: int, visible: Visible, score: Score, **options: object) -> Call:
    """The call that q (B, H, Nq, D) and k (B, Hkv, Nk, D) make."""
    b, h, n_queries, width = q.shape
    return Call((b, h, n_queries, k.shape[2]), (width, value_width), q.device, visible, score, **options)  # type: ignore[arg-type]
