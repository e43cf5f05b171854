"""A cache that forgets the keys that no later query may see: memory O(window), however long the decoding.

Shapes: B samples, H heads, Hkv key heads, n new tokens, N keys held, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.maps.base import AttentionMap
from clearhead.maps.cache import GrowingCache
from clearhead.patterns import NONE, Pattern

_FOR_EVER = 1 << 60
"""Behind every position that a token can have."""
_SLACK = 32
"""Tokens that come at least between two clearances, so that clearing costs each of them little."""


class RingCache(GrowingCache):
    """Keeps the keys that a later query may still see; made by `mechanism.cache()` where the pattern bounds them.

    Which ones these are the pattern itself proves: a key is forgotten where `cover` says NONE of the queries from the
    sample's next position on. So a window keeps its width, a chunk itself, and `first(n) | window(w, 0)` its first n
    tokens too. Room is half as much again, and is cleared when it is full. The sample's first token stays, since the
    statistic `sink` is about it, and its last, behind which the next one stands.

    The columns of `map` are the keys that are held; `held_positions` says where they stand. Positions that are given
    must not go back behind what was forgotten. A memory (`lengths` as a pair) is kept whole.
    """

    def __init__(self, mechanism: Callable[..., AttentionMap], pattern: Pattern) -> None:
        super().__init__(mechanism)
        self._pattern = pattern
        self._numbers: Tensor | None = None  # which of the sample's tokens each slot holds, (B, 1, room, 1)
        self._gone: Tensor | None = None  # how many were forgotten, (B,)
        self._from: Tensor | None = None  # the first position that queries may still have, (B,)
        self._full = _SLACK  # held keys from which on clearing pays

    @property
    def lengths(self) -> Tensor | None:
        return self._held if self._held is None or self._gone is None else self._held + self._gone

    @property
    def held_positions(self) -> Tensor | None:
        """Where the keys of the next step's map stand as far as they are held now, (B, N); None before the first.

        Sample b holds only the first N(b) of them; what stands behind is no token.
        """
        return None if self._at is None else self._at[:, 0, : self._most, 0]

    def attend(
        self,
        q: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        *,
        lengths: Any = None,
        mask: Tensor | None = None,
        pattern: Pattern | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        if self._held is None:
            self._placed = not isinstance(lengths, tuple)
        if positions is not None and self._from is not None:
            self._check_not_behind(positions, q.shape[2], lengths)
        out = super().attend(q, k, v, lengths=lengths, mask=mask, pattern=pattern, positions=positions)
        if self._placed and self._most >= self._full:
            self._clear(heads=q.shape[1])
        return out

    def _check_not_behind(self, positions: Tensor, n: int, lengths: Any) -> None:
        assert self._from is not None
        q_lengths = lengths[0] if isinstance(lengths, tuple) else lengths
        early = positions < self._from[:, None]
        if q_lengths is not None:
            early = early & (torch.arange(n, device=early.device) < q_lengths[:, None])
        if bool(early.any()):
            sample = int(early.any(1).nonzero()[0])
            raise InputError(
                f"positions go back behind {int(self._from[sample])} in sample {sample}, where keys were forgotten; "
                "decode in order, or use a GrowingCache(mechanism)"
            )

    def _place(self, slots: Tensor, positions: Tensor | None) -> None:
        super()._place(slots, positions)
        numbers = slots if self._gone is None else slots + self._gone[:, None]
        self._numbers = self._store(self._numbers, numbers[:, None, :, None], slots)

    def _columns(self, mask: Tensor | None) -> Tensor | None:
        if mask is None or self._gone is None or self._numbers is None or mask.shape[-1] == 1:
            return mask
        mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
        index = self._numbers[:, :, : self._most, 0][:, :, None].clamp(max=mask.shape[-1] - 1)
        full = mask.expand(len(index), -1, -1, -1)
        return full.gather(3, index.expand(*full.shape[:3], -1))

    def _clear(self, heads: int) -> None:
        """Forget what no later query may see, and make room for half as much again."""
        assert self._held is not None
        alive, next_ = self._alive(heads), self.positions
        counts = alive.sum(1)
        self._most = int(counts.max()) if len(counts) else 0
        order = (~alive).to(torch.uint8).argsort(dim=1, stable=True)[:, None, : self._most, None]  # in their order
        self._full = self._most + max(self._most // 2, _SLACK)
        for name in ("_k", "_v", "_at", "_numbers"):
            held = getattr(self, name)
            room = held.new_zeros(*held.shape[:2], self._full, held.shape[3])
            room[:, :, : self._most] = held.gather(2, order.expand(-1, held.shape[1], -1, held.shape[3]))
            setattr(self, name, room)
        gone = self._held - counts
        self._from, self._gone = next_, gone if self._gone is None else self._gone + gone
        self._held, self._even = counts, bool((counts == self._most).all())

    def _alive(self, heads: int) -> Tensor:
        """Which slots hold a key that some later query may see, (B, N)."""
        at, later = self.held_positions, self.positions
        assert at is not None
        assert later is not None
        assert self._held is not None
        b = torch.arange(len(at), device=at.device)[:, None, None]
        h = torch.arange(heads, device=at.device)[None, :, None]
        first, ever = later[:, None, None], torch.full_like(later, _FOR_EVER)[:, None, None]
        cover = self._pattern.cover(b, h, first, ever, at[:, None], at[:, None] + 1)
        seen = (cover != NONE).any(1).expand(at.shape)
        slots, count = torch.arange(at.shape[1], device=at.device), self._held[:, None]
        lowest = at.masked_fill(slots >= count, _FOR_EVER).argmin(1, keepdim=True)
        return (seen | (slots == lowest) | (slots == count - 1)) & (slots < count)

    _of_samples = (*GrowingCache._of_samples, "_numbers", "_gone", "_from")


def cache_for(mechanism: Callable[..., AttentionMap], pattern: Pattern) -> GrowingCache:
    """The cache that fits a mechanism with this pattern: a ring where far keys are forgotten, else a growing one.

    A ring is right for any pattern; it only pays where something is forgotten.
    """
    if pattern.tensors():  # they say nothing of positions that they do not hold
        return GrowingCache(mechanism)
    far, near = torch.tensor(1 << 40), torch.tensor(1 << 20)
    zero = torch.tensor(0)
    cover = pattern.cover(zero, zero, far, torch.tensor(_FOR_EVER), near, near + 1)
    return RingCache(mechanism, pattern) if bool((cover == NONE).all()) else GrowingCache(mechanism)
