"""Caches: attention for queries that arrive step by step. Prefill + steps = full, whatever the mechanism.

Shapes: B samples, H heads, Hkv key heads, n new tokens, N tokens cached so far, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.maps.base import AttentionMap
from clearhead.patterns import Pattern


class Cache(ABC):
    """What decoding keeps between steps: growing, a ring, or a state; `mechanism.cache()` makes the one that fits.

    `map` is the last step's AttentionMap, or None where there is none (a state has the values folded in). Caches are
    for inference: gradients do not flow through what was cached.
    """

    map: AttentionMap | None = None

    @abstractmethod
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
        """Add the new tokens' keys and values and return the output of their queries, (B, H, n, Dv).

        Without `k` and `v` nothing is added: a fixed memory, whose projected keys are kept. `lengths` is right
        padding among the new tokens: (B,), or a pair (queries, keys). Each sample's keys go behind its own last real
        one. `positions` (B or 1, n) are the new tokens', where they are not simply the next ones.
        """

    @abstractmethod
    def reorder(self, index: Tensor) -> None:
        """Sample i becomes what sample `index[i]` was; `index` may be of any length, and repeat (beam search)."""

    @property
    @abstractmethod
    def lengths(self) -> Tensor | None:
        """How many real tokens each sample has, (B,); None before the first."""

    @property
    @abstractmethod
    def positions(self) -> Tensor | None:
        """The position that each sample's next token will have, (B,); None before the first token."""

    def keep(self, rows: Tensor) -> None:
        """Drop all samples but `rows`: a boolean (B,) or sample numbers."""
        self.reorder(rows.nonzero().squeeze(-1) if rows.dtype == torch.bool else rows)


class GrowingCache(Cache):
    """Keeps every key and value; room doubles when it is full, so a step costs no copy of the past."""

    def __init__(self, mechanism: Callable[..., AttentionMap]) -> None:
        self._mechanism = mechanism
        self._k: Tensor | None = None
        self._v: Tensor | None = None
        self._at: Tensor | None = None  # positions (B, room), kept once some were given
        self._lengths: Tensor | None = None
        self._longest = 0
        self._even = True  # all samples are equally long, so there is no padding

    @property
    def lengths(self) -> Tensor | None:
        return self._lengths

    @property
    def positions(self) -> Tensor | None:
        if self._at is None or self._lengths is None:
            return self._lengths
        last = self._at.gather(1, (self._lengths - 1).clamp(min=0)[:, None]).squeeze(1)
        return torch.where(self._lengths > 0, last + 1, 0)

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
        q_lengths, k_lengths = lengths if isinstance(lengths, tuple) else (lengths, lengths)
        if (k is None) != (v is None):
            raise InputError("k and v go together: give both, or neither for a fixed memory")
        if k is not None and v is not None:
            self._add(k, v, k_lengths, positions)
        if self._k is None or self._v is None:
            raise InputError("the cache is empty: give k and v with the first queries")
        keys, values = self._k[:, :, : self._longest], self._v[:, :, : self._longest]
        own = None if self._even else self._lengths
        if isinstance(lengths, tuple) or k is None:
            pair: Any = (q_lengths, own)  # a memory, whose tokens are others than the queries
        elif own is None:
            pair = None
        else:
            pair = (torch.full_like(own, q.shape[2]) if q_lengths is None else q_lengths, own)
        at = None if self._at is None else self._at[:, None, : self._longest]
        self.map = self._mechanism(
            q,
            keys,
            pattern=pattern,
            lengths=pair,
            mask=mask,
            q_positions=at if at is None else self._query_positions(q, positions, k),
            k_positions=at,
        )
        return self.map @ values

    def _query_positions(self, q: Tensor, positions: Tensor | None, k: Tensor | None) -> Tensor:
        """Where the queries stand, (B or 1, 1, n): with the keys that they brought along."""
        if positions is None and k is None:
            raise InputError("this cache holds keys with positions: give the queries' positions too")
        if positions is None:
            assert self._at is not None
            new = self._starts[:, None] + torch.arange(q.shape[2], device=q.device)
            return self._at.gather(1, new.clamp(max=self._at.shape[1] - 1))[:, None]
        return positions.expand(-1, q.shape[2])[:, None]

    def _add(self, k: Tensor, v: Tensor, lengths: Tensor | None, positions: Tensor | None) -> None:
        samples, n = k.shape[0], k.shape[2]
        if self._lengths is None:
            self._lengths = torch.zeros(samples, dtype=torch.int64, device=k.device)
        elif samples != len(self._lengths):
            raise InputError(f"{samples} samples came to a cache of {len(self._lengths)}; use keep or reorder first")
        self._starts = self._lengths
        slots = self._starts[:, None] + torch.arange(n, device=k.device)
        if positions is not None or self._at is not None:
            self._place(slots, positions)
        self._k = self._store(self._k, k, slots)
        self._v = self._store(self._v, v, slots)
        self._lengths = self._starts + (n if lengths is None else lengths)
        self._even = self._even and lengths is None
        self._longest = self._longest + n if self._even else int(self._lengths.max())

    def _store(self, held: Tensor | None, new: Tensor, slots: Tensor) -> Tensor:
        """`held` (B, Hkv, room, D) with `new` (B, Hkv, n, D) in its slots (B, n), in more room if it is needed."""
        needed = self._longest + new.shape[2]
        if held is None or held.shape[2] < needed:
            room = new.new_zeros(*new.shape[:2], max(needed, 2 * self._longest), new.shape[3])
            if held is not None:
                room[:, :, : self._longest] = held[:, :, : self._longest]
            held = room
        if self._even:
            held[:, :, self._longest : needed] = new
            return held
        return held.scatter_(2, slots[:, None, :, None].expand_as(new), new)

    def _place(self, slots: Tensor, positions: Tensor | None) -> None:
        """Keep the positions of the new tokens, and, the first time, of all before them."""
        starts = self.positions
        assert starts is not None
        new = positions if positions is not None else starts[:, None] + (slots - slots[:, :1])
        room = max(int(slots.max()) + 1 if slots.numel() else 0, 0 if self._at is None else self._at.shape[1])
        at = torch.arange(room, device=slots.device).repeat(len(slots), 1)
        if self._at is not None:
            at[:, : self._at.shape[1]] = self._at
        self._at = at.scatter(1, slots, new.expand_as(slots).to(torch.int64))

    def reorder(self, index: Tensor) -> None:
        for name in ("_k", "_v", "_at", "_lengths"):
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.index_select(0, index))
        self.map = None
