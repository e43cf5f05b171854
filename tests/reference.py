"""Attention as the literature writes it, in float64 with its matrix: what every kernel is held to.

Nothing here is shared with the library: patterns are plain Python functions of two positions.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Problem:
    """Random tensors of one attention call and what may be seen in it."""

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: object = None
    sees: object = None  # (query positions, key positions) -> bool tensor
    call: dict = field(default_factory=dict)
    scale: float | None = None
    softcap: float | None = None
    bias: Tensor | None = None
    by: str | None = None  # what the bias goes by, if by distance: "alibi", "t5" or "relative"; then it is a parameter
    sinks: Tensor | None = None  # (H,), each a logit more in the rows of its head, whose value is zero

    def visible(self) -> Tensor:
        """(B, H, Nq, Nk): what the pattern's definition, padding, mask and bias leave."""
        b, h, nq, nk = self.q.shape[0], self.q.shape[1], self.q.shape[2], self.k.shape[2]
        q_at, k_at = self.positions()
        out = self.sees(q_at[..., :, None], k_at[..., None, :]).expand(b, h, nq, nk)
        q_len, k_len = self.lengths()
        out = out & (torch.arange(nq) < q_len[:, None])[:, None, :, None]
        out = out & (torch.arange(nk) < k_len[:, None])[:, None, None, :]
        if "mask" in self.call:
            out = out & self.call["mask"]
        return out if self.bias is None or self.by else out & (self.bias != -math.inf)

    def lengths(self) -> tuple[Tensor, Tensor]:
        b, nq, nk = self.q.shape[0], self.q.shape[2], self.k.shape[2]
        lengths = self.call.get("lengths")
        q_len, k_len = lengths if isinstance(lengths, tuple) else (lengths, lengths)
        return torch.full((b,), nq) if q_len is None else q_len, torch.full((b,), nk) if k_len is None else k_len

    def positions(self) -> tuple[Tensor, Tensor]:
        """Where queries and keys stand: as given, else with their ends lined up, padding not counted."""
        q_len, k_len = self.lengths()
        at = torch.arange(self.q.shape[2])[None, None] + (k_len - q_len)[:, None, None]
        return self.call.get("q_positions", at), self.call.get("k_positions", torch.arange(self.k.shape[2])[None, None])

    def logits(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """float64 logits, -inf where unseen, of q, k in float64."""
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        s = q @ k.mT * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)
        if self.softcap is not None:
            s = torch.tanh(s / self.softcap) * self.softcap
        if self.by:
            s = s + self.by_distance(bias)
        elif bias is not None:
            s = s + bias.masked_fill(bias == -math.inf, 0)
        return s.masked_fill(~self.visible(), -math.inf)

    def by_distance(self, weight: Tensor | None) -> Tensor:
        """The bias of every pair, (B, H, Nq, Nk): ALiBi of 2^i heads, T5's with 8 buckets up to 12, or 4 distances."""
        q_at, k_at = self.positions()
        d = (k_at[..., None, :] - q_at[..., :, None]).expand(-1, self.q.shape[1], -1, -1)
        heads = torch.arange(self.q.shape[1])[:, None, None]
        if weight is None:
            return -(2.0 ** (-8 * (heads + 1) / self.q.shape[1])).double() * d.abs()
        if self.by == "relative":
            return weight[heads, d.clamp(-4, 4) + 4]
        far = d.abs().clamp(max=12)
        bucket = torch.tensor([0, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3])[far]  # 2 + ⌊2 · ln(far / 2) / ln 6⌋ from 2 on
        return weight[bucket + 4 * (d > 0), heads]

    def weights(self, s: Tensor, sinks: Tensor | None = None) -> Tensor:
        seen, sinks = self.visible(), self.sinks if sinks is None else sinks
        blank = ~seen.any(-1, keepdim=True)
        s = s.masked_fill(blank, 0)
        if sinks is not None:
            s = torch.cat([s, sinks.double()[:, None, None].expand(*s.shape[:3], 1)], -1)
        return s.softmax(-1)[..., : seen.shape[-1]].masked_fill(blank | ~seen, 0)

    def clean64(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v in float64 with whatever stands in padding removed."""
        lengths = self.call.get("lengths")
        q_len, k_len = lengths if isinstance(lengths, tuple) else (lengths, lengths)

        def clean(x: Tensor, n: Tensor | None) -> Tensor:
            x = x.detach().double()
            if n is None:
                return x
            return x.masked_fill((torch.arange(x.shape[2]) >= n[:, None])[:, None, :, None], 0)

        return clean(self.q, q_len), clean(self.k, k_len), clean(self.v, k_len)

    def output(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, sinks: Tensor | None = None
    ) -> Tensor:
        w = self.weights(self.logits(q, k, bias), sinks)
        return w @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def statistics(problem: Problem, s: Tensor, w: Tensor, sinks: Tensor | None = None) -> dict[str, Tensor]:
    """DESIGN's table, row by row from the matrix; NaN where undefined."""
    sinks = problem.sinks if sinks is None else sinks
    whole = s if sinks is None else torch.cat([s, sinks.double()[:, None, None].expand(*s.shape[:3], 1)], -1)
    seen = problem.visible()
    count = seen.sum(-1)
    blank = count == 0
    q_at, k_at = problem.positions()
    far = (q_at[..., :, None] - k_at[..., None, :]).abs().double()
    entropy = torch.special.entr(w).sum(-1)
    rows = {
        "logsumexp": whole.logsumexp(-1),
        "max_logit": s.amax(-1),
        "max_weight": w.amax(-1),
        "entropy": entropy,
        "distance": (w * far).sum(-1),
    }
    rows = {name: x.masked_fill(blank, math.nan) for name, x in rows.items()}
    rows["normalized_entropy"] = (entropy / count.clamp(min=2).double().log()).masked_fill(count < 2, math.nan)
    return rows
