"""The rows of one tile: softmax, its statistics and its gradient, as the equations have them.

Shapes: logits and weights (b, h, r, K); what is one number a row, (b, h, r, 1).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.kernels.distances import bias_of
from clearhead.kernels.score import Score, without_values
from clearhead.kernels.tiles import Tile
from clearhead.kernels.visible import Visible

RAW = ("logsumexp", "max_logit", "entropy", "sink", "distance", "log_total", "visible")
"""What a kernel measures of each row while it passes over it; the other statistics follow from these. `log_total` is
logsumexp - max_logit, which keeps its digits where both are large."""


@dataclass(eq=False)
class Rows:
    """softmax(logits) = exp(logits - shift) / total.

    `logits` are shifted already, and hugely negative where unseen: with the weight 0 that they have there they give 0,
    as -inf would not. `products` are those before the bias. A row that sees nothing has exp 0 and total 1, so its
    weights are 0; `blank` marks such rows, None where there are none.
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


def softmax_rows(
    tile: Tile, q: Tensor, k: Tensor, score: Score, visible: Visible, logsumexp: Tensor | None = None
) -> Rows:
    """The rows of `tile` from its queries (b, h, r, D) and keys (b, hkv, K, D).

    With the rows' `logsumexp` (b, h, r) from an earlier pass, maximum and sum need not be found again.
    """
    products = score.products(q, k)
    pairs = tile.pairs(visible)
    # from here on in place, as far as nothing else needs the tensor: a pass over a tile costs a tenth of its product
    logits = products if score.softcap is None else products.clone()
    bias = bias_of(tile, score, visible)
    if bias is not None:
        logits = products + bias
        shown = bias != -math.inf
        pairs = shown if pairs is None else pairs & shown
    unseen = torch.finfo(logits.dtype).min / 4
    if pairs is not None:
        logits.masked_fill_(~pairs, unseen)
    # softmax does not depend on the shift, so no gradient goes through it
    shift = logits.detach().amax(-1, keepdim=True) if logsumexp is None else logsumexp[..., None]
    blank = None if pairs is None else shift <= unseen
    if blank is not None and not without_values(blank) and not bool(blank.any()):
        blank = None
    if blank is not None:
        shift = shift.masked_fill(blank, 0)
    exp = logits.sub_(shift).exp()
    total = exp.sum(-1, keepdim=True) if logsumexp is None else torch.ones_like(shift)
    if blank is not None:
        total = total.masked_fill(blank, 1)
    return Rows(tile, pairs, products, logits, shift, exp, total, blank)


def measure(rows: Rows, sinks: Tensor, ways: "Ways | None") -> Tensor:
    """The RAW statistics of the rows, (RAW, b, h, r); -inf and NaN where a row sees nothing.

    `sinks` as in `sink_weight`; without `ways` distances are 0. Uses up `rows.logits`.
    """
    total, top = rows.total.squeeze(-1), rows.shift.squeeze(-1)
    log_total = total.log()
    if rows.blank is not None:
        top = top.masked_fill(rows.blank.squeeze(-1), -math.inf)
    far = torch.zeros_like(total) if ways is None else ways.summed(rows.exp)
    if rows.pairs is None:
        count = torch.full_like(total, rows.logits.shape[-1])
    else:
        pairs = rows.pairs.expand(*rows.pairs.shape[:-1], rows.logits.shape[-1])
        count = pairs.sum(-1).to(total.dtype).expand_as(total)
    # a logit may be -inf by itself, and its weight 0
    dot = rows.logits.clamp_(min=torch.finfo(total.dtype).min).mul_(rows.exp).sum(-1)
    # from the shifted logits: log Σ exp s - Σ A s with s as it came would lose digits where logits are large
    entropy = (log_total - dot / total).clamp_(min=0)  # below it by rounding alone
    sink = sink_weight(rows, sinks) / total
    return torch.stack([top + log_total, top, entropy, sink, far / total, log_total, count])


def logsumexp(rows: Rows) -> Tensor:
    """(b, h, r); -inf where a row sees nothing."""
    lse = rows.shift + rows.total.log()
    return (lse if rows.blank is None else lse.masked_fill(rows.blank, -math.inf)).squeeze(-1)


_FEW = 1 << 14


class Ways:
    """How far it is from the queries of a tile, at positions q (b, h, r), to its keys, at k (b, h, K), by broadcasting.

    Keys before all queries of the tile, or behind them, need no |·|: sums of exp and of exp times the way to the
    tile's edge do, which one product gives. Those between are few.
    """

    def __init__(self, q: Tensor, k: Tensor, dtype: torch.dtype) -> None:
        self._edges: Tensor | None = None
        if q.numel() * k.shape[-1] <= _FEW:  # no plan is worth its while
            self._columns = slice(0)
            self._near = apart(q, k, dtype)
            return
        first, last = q.amin(-1, keepdim=True), q.amax(-1, keepdim=True)
        before, behind = (first - k).clamp(min=0).to(dtype), (k - last).clamp(min=0).to(dtype)
        self._edges = torch.stack([(k <= first).to(dtype), before, (k > last).to(dtype), behind], -2)
        one = torch.ones_like(q, dtype=dtype)
        self._to_edges = torch.stack([(q - first).to(dtype), one, (last - q).to(dtype), one], -2)
        between = (k > first) & (k <= last)
        columns = between.flatten(0, -2).any(0).nonzero().squeeze(-1)
        near = slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 0)
        self._columns = near
        self._near = apart(q, k[..., near], dtype).mul_(between[..., None, near])

    def summed(self, exp: Tensor) -> Tensor:
        """Σ exp · |position of the query - position of the key|, (b, h, r)."""
        if self._edges is None:
            return (exp * self._near).sum(-1)
        sums = self._edges.expand(*exp.shape[:2], -1, -1).matmul(exp.mT)
        total = sums.mul_(self._to_edges).sum(2)
        if self._columns.stop > self._columns.start:
            total += (exp[..., self._columns] * self._near).sum(-1)
        return total


def apart(q: Tensor, k: Tensor, dtype: torch.dtype) -> Tensor:
    """|position of the query - position of the key|, (…, r, K): whole numbers first, of which floats lose some."""
    return (q[..., :, None] - k[..., None, :]).abs_().to(dtype)


def sink_weight(rows: Rows, sinks: Tensor) -> Tensor:
    """The sum of exp over the keys `sinks` (b or 1, S), (b, h, r); NaN where the row sees none of them."""
    keys = rows.tile.keys
    if sinks.numel() == 1 and rows.pairs is None and keys.start <= (first := int(sinks)) < keys.stop:
        return rows.exp[..., first - keys.start]
    index, inside = _within(rows, sinks)
    weight = (rows.exp.gather(-1, index) * inside).sum(-1)
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
        _, g_top, g_entropy, g_sink, g_distance, g_log_total, _ = grad_raw[..., None].unbind(0)
        g_lse, g_top = g_lse + g_log_total, g_top - g_log_total
        # a logit may be -inf by itself, and its weight 0
        log_weights = rows.logits.clamp(min=-1e3) - rows.total.log()
        if rows.pairs is not None:
            log_weights = log_weights.masked_fill_(~rows.pairs, 0)
        grad_weights = grad_weights - g_entropy * (log_weights + 1)
        index, inside = _within(rows, sinks)
        grad_weights = grad_weights.scatter_add(-1, index, g_sink * inside)
        if distance is not None:
            grad_weights = grad_weights + g_distance * distance
    grad = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True) + g_lse)
    if sinks is not None:
        top = rows.logits.argmax(-1, keepdim=True)
        grad = grad.scatter_add(-1, top, g_top)
    return grad
