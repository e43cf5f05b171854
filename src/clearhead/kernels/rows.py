"""The rows of one tile: softmax, its statistics and its gradient, as the equations have them.

Shapes: logits and weights (b, h, r, K); what is one number a row, (b, h, r, 1).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.kernels.score import Score
from clearhead.kernels.tiles import Tile
from clearhead.kernels.visible import Visible

RAW = ("logsumexp", "max_logit", "entropy", "sink", "distance", "visible")
"""What a kernel measures of each row while it passes over it; the other statistics follow from these."""


@dataclass(eq=False)
class Rows:
    """softmax(logits) = exp(logits - shift) / total.

    `logits` are shifted already and -inf where unseen; `products` are those before the bias. A row that sees nothing
    has exp 0 and total 1, so its weights are 0; `blank` marks such rows, None where there can be none.
    """

    tile: Tile
    pairs: Tensor | None
    products: Tensor
    logits: Tensor
    shift: Tensor
    exp: Tensor
    total: Tensor
    blank: Tensor | None

    @property
    def weights(self) -> Tensor:
        return self.exp / self.total

    @property
    def seen_logits(self) -> Tensor:
        """The shifted logits with 0 where unseen, where a weight of 0 times -inf would be NaN."""
        return self.logits if self.pairs is None else self.logits.masked_fill(~self.pairs, 0)


def softmax_rows(
    tile: Tile, q: Tensor, k: Tensor, score: Score, visible: Visible, logsumexp: Tensor | None = None
) -> Rows:
    """The rows of `tile` from its queries (b, h, r, D) and keys (b, hkv, K, D).

    With the rows' `logsumexp` (b, h, r) from an earlier pass, maximum and sum need not be found again.
    """
    products = score.products(q, k)
    pairs = tile.pairs(visible)
    # from here on in place, as far as nothing else needs the tensor: a pass over a tile costs as much as its product
    logits = products if score.softcap is None else products.clone()
    if score.bias is not None:
        bias = tile.of(score.bias)
        logits = products + bias
        shown = bias != -math.inf
        pairs = shown if pairs is None else pairs & shown
    if pairs is not None:
        logits.masked_fill_(~pairs, -math.inf)
    # softmax does not depend on the shift, so no gradient goes through it
    shift = logits.detach().amax(-1, keepdim=True) if logsumexp is None else logsumexp[..., None]
    blank = None if pairs is None else shift == -math.inf
    if blank is not None:
        shift = shift.masked_fill(blank, 0)
    exp = logits.sub_(shift).exp()
    total = exp.sum(-1, keepdim=True) if logsumexp is None else torch.ones_like(shift)
    if blank is not None:
        total = total.masked_fill(blank, 1)
    return Rows(tile, pairs, products, logits, shift, exp, total, blank)


def logsumexp(rows: Rows) -> Tensor:
    """(b, h, r); -inf where a row sees nothing."""
    lse = rows.shift + rows.total.log()
    return (lse if rows.blank is None else lse.masked_fill(rows.blank, -math.inf)).squeeze(-1)


def measure(rows: Rows, sinks: Tensor, distance: Tensor | None) -> Tensor:
    """The RAW statistics of the rows, (RAW, b, h, r). `sinks` as in `sink_weight`; `distance` (b, h, r, K)."""
    lse, total, top = logsumexp(rows), rows.total.squeeze(-1), rows.shift
    if rows.blank is not None:
        top = top.masked_fill(rows.blank, -math.inf)
    count = lse.new_tensor(rows.logits.shape[-1]).expand_as(lse)
    if rows.pairs is not None:
        count = rows.pairs.sum(-1).to(lse.dtype).expand_as(lse)
    # from the shifted logits: log Σ exp s - Σ A s with s as it came would lose digits where logits are large
    entropy = total.log() - (rows.exp * rows.seen_logits).sum(-1) / total
    far = torch.zeros_like(lse) if distance is None else (rows.exp * distance).sum(-1) / total
    return torch.stack([lse, top.squeeze(-1), entropy, sink_weight(rows, sinks), far, count])


def sink_weight(rows: Rows, sinks: Tensor) -> Tensor:
    """The weight of the keys `sinks` (b or 1, S), summed, (b, h, r); NaN where the row sees none of them."""
    index, inside = _within(rows, sinks)
    weight = (rows.exp.gather(-1, index) * inside).sum(-1) / rows.total.squeeze(-1)
    if rows.pairs is not None:
        inside = inside & rows.pairs.expand_as(rows.logits).gather(-1, index)
    return weight.masked_fill(~inside.any(-1), math.nan)


def _within(rows: Rows, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Where the keys `sinks` stand in the tile, (b, h, r, S), and whether they are in it."""
    lo, hi = rows.tile.keys.start, rows.tile.keys.stop
    here = (sinks if sinks.shape[0] == 1 else sinks[rows.tile.b])[:, None, None, :]
    here = here.expand(*rows.logits.shape[:3], here.shape[-1])
    return (here - lo).clamp(0, hi - lo - 1), (here >= lo) & (here < hi)


def grad_logits(
    rows: Rows, grad_weights: Tensor, grad_raw: Tensor, sinks: Tensor | None, distance: Tensor | None
) -> Tensor:
    """The gradient in the logits from those in the weights and in what was measured; `grad_raw` (RAW or 1, b, h, r).

    dL/ds = A ⊙ (dA - Σ A dA) + A · dL/dlogsumexp; entropy, sink and distance enter through dA.
    """
    weights, g_lse = rows.weights, grad_raw[0, ..., None]
    if sinks is not None:
        _, _, g_entropy, g_sink, g_distance, _ = grad_raw[..., None].unbind(0)
        log_weights = rows.seen_logits - rows.total.log()
        grad_weights = grad_weights - g_entropy * (log_weights + 1)
        index, inside = _within(rows, sinks)
        grad_weights = grad_weights.scatter_add(-1, index, g_sink * inside)
        if distance is not None:
            grad_weights = grad_weights + g_distance * distance
    grad = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True) + g_lse)
    if sinks is not None:
        top = rows.logits.argmax(-1, keepdim=True)
        grad = grad.scatter_add(-1, top, grad_raw[1, ..., None])
    return grad
