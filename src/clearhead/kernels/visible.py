"""Who sees whom in one call: the pattern, and everything that came with the batch.

Shapes: B samples, H heads, Nq queries, Nk keys; a size of 1 broadcasts.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clearhead.patterns import Pattern, causal, everything


@dataclass(frozen=True, eq=False)
class Visible:
    """The visible pairs of one call.

    `mask` (B, H, Nq, Nk) bool is read by row and column. `q_lengths` and `k_lengths` (B,) mean right padding, which
    does not exist, on either side; one tensor given for both sides is the same object in both fields. The pattern
    speaks of positions: `q_positions` and `k_positions` (B, H, N) where given; else key j stands at j and the ends of
    queries and keys line up, counted without padding.
    """

    pattern: Pattern
    n_queries: int
    n_keys: int
    device: torch.device
    mask: Tensor | None = None
    q_lengths: Tensor | None = None
    k_lengths: Tensor | None = None
    q_positions: Tensor | None = None
    k_positions: Tensor | None = None

    @property
    def unpadded(self) -> bool:
        return self.q_lengths is None and self.k_lengths is None

    @property
    def aligned(self) -> bool:
        """Query i and key i stand at the same position, in every sample."""
        default = self.q_positions is None and self.k_positions is None
        return default and self.n_queries == self.n_keys and self.q_lengths is self.k_lengths

    @property
    def full(self) -> bool:
        """Every query sees every key that is not padding."""
        return self.mask is None and isinstance(self.pattern, everything)

    @property
    def plainly_causal(self) -> bool:
        """Causal, and no row of a real query reaches padding: the causal flag of a fused kernel says it all."""
        return self.mask is None and isinstance(self.pattern, causal) and self.aligned

    def positions_of_queries(self) -> Tensor:
        """Where each query stands, (B or 1, H or 1, Nq)."""
        if self.q_positions is not None:
            return self.q_positions
        at = torch.arange(self.n_queries, device=self.device)
        if self.q_lengths is self.k_lengths:
            return (at + (self.n_keys - self.n_queries if self.unpadded else 0))[None, None]
        keys = self.n_keys if self.k_lengths is None else self.k_lengths[:, None, None]
        queries = self.n_queries if self.q_lengths is None else self.q_lengths[:, None, None]
        return at + (keys - queries)

    def positions_of_keys(self) -> Tensor:
        """Where each key stands, (B or 1, H or 1, Nk)."""
        if self.k_positions is not None:
            return self.k_positions
        return torch.arange(self.n_keys, device=self.device)[None, None]

    def placed(self) -> "Visible":
        """The same call with its positions written out, for a walk that asks for them at every tile."""
        return replace(self, q_positions=self.positions_of_queries(), k_positions=self.positions_of_keys())

    def pairs(
        self, b: slice, h: slice, rows: slice, keys: slice, *, pattern: bool = True, padding: bool = True
    ) -> Tensor | None:
        """The visible pairs of a rectangle, boolean and broadcastable to (B, H, rows, keys); None: all of them.

        `pattern=False` and `padding=False` leave these out, for rectangles that they are known to allow.
        """
        seen: Tensor | None = None
        if pattern and not isinstance(self.pattern, everything):
            q, k = (cut(at, b, h) for at in (self.positions_of_queries(), self.positions_of_keys()))
            samples = torch.arange(b.start, b.stop, device=self.device)[:, None, None, None]
            heads = torch.arange(h.start, h.stop, device=self.device)[None, :, None, None]
            seen = self.pattern.allows(samples, heads, q[..., rows, None], k[..., None, keys])
        if self.mask is not None:
            mask = cut(self.mask, b, h, rows, keys)
            seen = mask if seen is None else seen & mask
        for lengths, part, shape in ((self.k_lengths, keys, (1, 1, 1, -1)), (self.q_lengths, rows, (1, 1, -1, 1))):
            if padding and lengths is not None:
                real = (
                    torch.arange(part.start, part.stop, device=self.device).view(shape) < lengths[b, None, None, None]
                )
                seen = real if seen is None else seen & real
        return seen

    def dense(self, samples: int, heads: int) -> Tensor | None:
        """All visible pairs, broadcastable to (B, H, Nq, Nk). For sizes where n² is small."""
        return self.pairs(slice(0, samples), slice(0, heads), slice(0, self.n_queries), slice(0, self.n_keys))

    def take(self, rows: Tensor) -> "Visible":
        """The same call for some of its rows alone; `rows` (R,)."""
        mask = self.mask if self.mask is None or self.mask.shape[2] == 1 else self.mask.index_select(2, rows)
        if self.q_lengths is not None:
            real = (rows < self.q_lengths[:, None])[:, None, :, None]
            mask = real if mask is None else mask & real
        return replace(
            self,
            n_queries=len(rows),
            mask=mask,
            q_lengths=None,
            q_positions=self.positions_of_queries().index_select(-1, rows),
            k_positions=self.positions_of_keys(),
        )

    def of(self, samples: Tensor) -> "Visible":
        """The same call for some of its samples alone; `samples` (S,)."""

        def some(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.shape[0] == 1 else x.index_select(0, samples)

        q_lengths, k_lengths = some(self.q_lengths), some(self.k_lengths)
        if self.q_lengths is self.k_lengths:
            k_lengths = q_lengths
        mask, q_at, k_at = some(self.mask), some(self.q_positions), some(self.k_positions)
        some_see = replace(self, pattern=self.pattern.of(samples), mask=mask)
        return replace(some_see, q_lengths=q_lengths, k_lengths=k_lengths, q_positions=q_at, k_positions=k_at)

    def clean(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """`x` (B, H, N, D) with zeros in its padding, where anything may stand, NaN included."""
        if lengths is None:
            return x
        padding = torch.arange(x.shape[-2], device=x.device) >= lengths[:, None]
        return x.masked_fill(padding[:, None, :, None], 0)

    def first_key(self) -> Tensor:
        """The sample's first real key, (B or 1, 1): the lowest position that is neither padding nor masked for all."""
        if not self.n_keys or (self.mask is None and self.k_positions is None):
            return torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        real = torch.ones(1, self.n_keys, dtype=torch.bool, device=self.device)
        if self.mask is not None:
            real = self.mask.any(2).any(1).expand(-1, self.n_keys)
        if self.k_positions is None:
            return real.to(torch.uint8).argmax(-1, keepdim=True)
        at = self.positions_of_keys().amin(1)
        if self.k_lengths is not None:
            real = real & (torch.arange(self.n_keys, device=self.device) < self.k_lengths[:, None])
        return at.masked_fill(~real, torch.iinfo(at.dtype).max).argmin(-1, keepdim=True)


def cut(x: Tensor, *parts: slice) -> Tensor:
    """`x` narrowed to a part of each of its first axes, unless it broadcasts there."""
    for axis, part in enumerate(parts):
        if x.shape[axis] != 1:
            x = x.narrow(axis, part.start, part.stop - part.start)
    return x
