"""What the weights of a row say, as numbers: DESIGN's table of statistics.

Shapes: B samples, H heads, Nq rows, Nk keys. Rows that see nothing hold NaN.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.kernels import fused


@dataclass(eq=False)  # a frozen one takes four times as long to make
class Statistics:
    """Statistics of attention rows, of the weights before dropout. None is "not measured", never 0.

    Attributes, (B, H, Nq) float32 unless said, natural logarithms:
        logsumexp: log Σ exp s over the keys the row sees, s the logits after scale, soft cap and bias; and over a
            learned sink.
        max_logit, max_weight: the greatest logit, the greatest weight.
        entropy: -Σ A log A, in nats.
        normalized_entropy: entropy / log(visible keys); NaN where a row sees one key.
        sink: the weight of the sample's first real key (Xiao 2023, Gu 2025), or of the keys named, and
            of a learned sink; NaN where the row sees none.
        distance: Σ A · |position of the query - position of the key|.
        visible: how many keys the row sees, int64.
        received: (B, H, Nk), the sum of the weights that each key received; over all rows only.
    """

    logsumexp: Float[Tensor, "*h q"] | None = None
    max_logit: Float[Tensor, "*h q"] | None = None
    max_weight: Float[Tensor, "*h q"] | None = None
    entropy: Float[Tensor, "*h q"] | None = None
    normalized_entropy: Float[Tensor, "*h q"] | None = None
    sink: Float[Tensor, "*h q"] | None = None
    distance: Float[Tensor, "*h q"] | None = None
    visible: Int[Tensor, "*h q"] | None = None
    received: Float[Tensor, "*h k"] | None = None

    @classmethod
    def of(cls, raw: Tensor, received: Tensor | None, *, distance: bool) -> "Statistics":
        """From what a kernel measured, (RAW, …, Nq); `distance` says whether positions were known."""
        if fused.tells(raw):
            (lse, top, weight, entropy, normalized, sink, far), visible = fused.told(raw)
            return cls(lse, top, weight, entropy, normalized, sink, far if distance else None, visible, received)
        visible = raw[-1].detach().round().to(torch.int64)
        lse, top, entropy, sink, far, log_total = raw[:-1].masked_fill(visible == 0, math.nan).unbind(0)
        widest = visible.clamp(min=2).to(entropy.dtype).log()
        return cls(
            logsumexp=lse,
            max_logit=top,
            max_weight=(-log_total).exp(),
            entropy=entropy,
            normalized_entropy=(entropy / widest).masked_fill(visible < 2, math.nan),
            sink=sink,
            distance=far if distance else None,
            visible=visible,
            received=received,
        )

    def map(self, function: Any) -> "Statistics":
        """The same statistics with `function` applied to each tensor that was measured."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Statistics(**{name: None if x is None else function(x) for name, x in values.items()})

    def only(self, wanted: Callable[[str], bool]) -> "Statistics":
        """Those of a name that is `wanted`; the others are not measured."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Statistics(**{name: x for name, x in values.items() if wanted(name)})

    def __repr__(self) -> str:
        lines = []
        for field in fields(self):
            x = getattr(self, field.name)
            lines.append(f"  {field.name:<19}" + ("not measured" if x is None else _summary(x.detach())))
        return "\n".join(["Statistics", *lines])


def _summary(x: Tensor) -> str:
    known = x[~x.isnan()] if x.is_floating_point() else x.double()
    shape = "×".join(map(str, x.shape))
    if not known.numel():
        return f"{shape}, undefined everywhere"
    return f"{shape}, mean {known.mean():.4g}, from {known.min():.4g} to {known.max():.4g}"
