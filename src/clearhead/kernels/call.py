"""One application of attention, as far as the choice of a kernel depends on it."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from clearhead.kernels.runs import ROWS, Plan, plan
from clearhead.kernels.score import ByDistance, Score
from clearhead.kernels.spans import rectangles, spans
from clearhead.kernels.tiles import Size
from clearhead.kernels.visible import Visible

SMALL = 1 << 20
"""Query-key pairs that may be held at once: 4 MiB in float32. Below, a dense mask or n² weights are the fast path."""

FEATURES = {
    "statistics": "returns no statistics",
    "sinks": "gives the logsumexp no gradient, as learned sinks need",
    "dropout": "drops no weights",
    "softcap": "has no soft cap",
    "bias": "adds no bias",
}
"""What a call may ask for, and what is said of a kernel that lacks it."""


@dataclass(eq=False)  # a frozen one takes four times as long to make
class Call:
    """One application of attention, as far as the choice of a kernel depends on it. `shape` is (B, H, Nq, Nk).

    With learned `sinks` the logsumexp is asked for too, and has a gradient. `backward`: are gradients wanted?
    """

    shape: tuple[int, int, int, int]
    widths: tuple[int, int]
    device: torch.device
    visible: Visible
    score: Score
    dropout: float = 0.0
    statistics: bool = False
    sinks: bool = False
    dtype: torch.dtype = torch.float32
    backward: bool = True

    def lacking(self, *features: str) -> str | None:
        """Why a kernel that lacks some of FEATURES cannot compute it (None: the call asks for none of them)."""
        for feature in features:
            if getattr(self, feature):
                return FEATURES[feature]
        return None

    @property
    def softcap(self) -> bool:
        return self.score.softcap is not None

    @property
    def bias(self) -> bool:
        return self.score.bias is not None

    @property
    def pairs(self) -> int:
        b, h, n_queries, n_keys = self.shape
        return b * h * n_queries * n_keys

    @property
    def brief(self) -> bool:
        """Are there so few queries or keys that no kernel could leave any out?"""
        return min(self.shape[2], self.shape[3]) <= 2 * ROWS

    @property
    def mask_cells(self) -> int:
        """How many pairs the mask that `sdpa` builds would hold."""
        see, (b, h, n_queries, n_keys) = self.visible, self.shape
        if see.full and not isinstance(self.score.bias, ByDistance):
            return 0  # what padding and a bias need is there
        if see.plainly_causal and self.score.bias is None:
            return 0
        parts = [x for x in (see.mask, see.q_positions, see.k_positions, self.score.tensor) if x is not None]
        samples = b if not see.unpadded else max([1, see.pattern.samples, *(x.shape[0] for x in parts)])
        heads = max([1, *(x.shape[1] for x in parts)])
        return samples * min(heads, h) * n_queries * n_keys

    @property
    def unfused(self) -> str | None:
        """Why scaled_dot_product_attention would leave its fused kernel on the CPU, and hold n² weights."""
        width, value_width = self.widths
        if self.device.type != "cpu":
            return None
        if self.dropout:
            return "with dropout"
        if width != value_width:
            return f"with values of width {value_width} and keys of {width}"
        return "with a bias that needs a gradient" if self.score.learns else None

    @cached_property
    def plan(self) -> Plan:
        """The bands of the first sample, as if it had no padding."""
        return plan(self._first)

    @property
    def _first(self) -> Visible:
        see = replace(self.visible, mask=None, q_lengths=None, k_lengths=None)
        parts = [x for x in (see.q_positions, see.k_positions) if x is not None]
        return see.of(torch.tensor([0])) if max([see.pattern.samples, *(x.shape[0] for x in parts)]) > 1 else see

    @property
    def in_blocks(self) -> int:
        """The pairs that lie in blocks of which anything is seen."""
        return self.shape[0] * self.shape[1] * self.plan.pairs

    def in_tiles(self, size: Size) -> tuple[int, int]:
        """The pairs that `stream` walks in tiles of that size, and the tiles of a head: judged by the first sample."""
        if self.device.type != "cpu" or self.brief:
            return self.pairs, self.shape[0] * -(-self.shape[2] // size.rows)
        found = rectangles(spans(self._first), 0, 1, size.rows, size.call)
        return self.shape[0] * self.shape[1] * sum(each.pairs for each in found), self.shape[0] * len(found)


def describe(
    q: Tensor,
    k: Tensor,
    value_width: int,
    visible: Visible,
    score: Score,
    dropout: float = 0.0,
    statistics: bool = False,
    sinks: bool = False,
    backward: bool = True,
) -> Call:
    """The call that q (B, H, Nq, D) and k (B, Hkv, Nk, D) make."""
    b, h, n_queries, width = q.shape
    shape = (b, h, n_queries, visible.n_keys)
    return Call(shape, (width, value_width), q.device, visible, score, dropout, statistics, sinks, q.dtype, backward)
