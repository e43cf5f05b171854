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
        self._at: Tensor | None = None  # positions (B, 1, room, 1), kept once some were given
        self._held: Tensor | None = None  # how many keys each sample has here, (B,)
        self._starts: Tensor | None = None  # how many it had before this step
        self._most = 0
        self._even = True  # all samples have as many, so there is no padding
        self._placed = False  # positions are kept from the first token on

    @property
    def lengths(self) -> Tensor | None:
        return self._held

    @property
    def positions(self) -> Tensor | None:
        if self._at is None or self._held is None:
            return self._held
        last = self._at[:, 0, :, 0].gather(1, (self._held - 1).clamp(min=0)[:, None]).squeeze(1)
        return torch.where(self._held > 0, last + 1, 0)

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
        if (k is None) != (v is None):
            raise InputError("k and v go together: give both, or neither for a fixed memory")
        if k is not None and v is not None:
            self._add(k, v, lengths, positions)
        if self._k is None or self._v is None:
            raise InputError("the cache is empty: give k and v with the first queries")
        at = None if self._at is None else self._at[:, :, : self._most, 0]
        self.map = self._mechanism(
            q,
            self._k[:, :, : self._most],
            pattern=pattern,
            lengths=self._sides(q, lengths, memory=isinstance(lengths, tuple) or k is None),
            mask=self._columns(mask),
            q_positions=at if at is None else self._query_positions(q, positions, k),
            k_positions=at,
        )
        return self.map @ self._v[:, :, : self._most]

    def _sides(self, q: Tensor, lengths: Any, memory: bool) -> Any:
        """The lengths of queries and keys; the tokens of a memory are others than the queries."""
        q_lengths = lengths[0] if isinstance(lengths, tuple) else lengths
        own = None if self._even else self._held
        if memory or own is None:
            return (q_lengths, own) if memory else None
        return (torch.full_like(own, q.shape[2]) if q_lengths is None else q_lengths, own)

    def _columns(self, mask: Tensor | None) -> Tensor | None:
        """A mask over all tokens that ever came, (…, cached + n), as one over the keys that are held."""
        return mask

    def _query_positions(self, q: Tensor, positions: Tensor | None, k: Tensor | None) -> Tensor:
        """Where the queries stand, (B or 1, 1, n): with the keys that they brought along."""
        if positions is not None:
            return positions.expand(-1, q.shape[2])[:, None]
        if k is None or self._starts is None or self._at is None:
            raise InputError("this cache holds keys with positions: give the queries' positions too")
        slots = self._starts[:, None] + torch.arange(q.shape[2], device=q.device)
        return self._at[:, 0, :, 0].gather(1, slots)[:, None]

    def _add(self, k: Tensor, v: Tensor, lengths: Any, positions: Tensor | None) -> None:
        samples, n = k.shape[0], k.shape[2]
        if self._held is None:
            self._held = torch.zeros(samples, dtype=torch.int64, device=k.device)
        elif samples != len(self._held):
            raise InputError(f"{samples} samples came to a cache of {len(self._held)}; use keep or reorder first")
        new = lengths[1] if isinstance(lengths, tuple) else lengths
        self._starts = self._held
        slots = self._starts[:, None] + torch.arange(n, device=k.device)
        if positions is not None or self._at is not None or self._placed:
            self._place(slots, positions)
        self._k, self._v = self._store(self._k, k, slots), self._store(self._v, v, slots)
        self._held = self._starts + (n if new is None else new)
        self._even = self._even and new is None
        self._most = self._most + n if self._even else int(self._held.max())

    def _store(self, held: Tensor | None, new: Tensor, slots: Tensor) -> Tensor:
        """`held` (B, Hkv, room, D) with `new` (B, Hkv, n, D) in its slots (B, n), in more room if it is needed."""
        needed = self._most + new.shape[2]
        if held is None or held.shape[2] < needed:
            room = new.new_zeros(*new.shape[:2], max(needed, 2 * self._most), new.shape[3])
            if held is not None:
                room[:, :, : self._most] = held[:, :, : self._most]
            held = room
        if self._even:
            held[:, :, self._most : needed] = new
            return held
        return held.scatter_(2, slots[:, None, :, None].expand_as(new), new)

    def _place(self, slots: Tensor, positions: Tensor | None) -> None:
        """Keep the positions of the new tokens, and, the first time, of all before them."""
        starts = self.positions
        assert starts is not None
        new = starts[:, None] + (slots - slots[:, :1]) if positions is None else positions.to(torch.int64)
        if self._at is None and self._most:
            at = torch.arange(self._most, device=slots.device)
            self._at = at[:, None].repeat(len(slots), 1, 1, 1)
        self._at = self._store(self._at, new.expand_as(slots)[:, None, :, None], slots)

    def reorder(self, index: Tensor) -> None:
        for name in self._of_samples:
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.index_select(0, index))
        self.map = None

    _of_samples: tuple[str, ...] = ("_k", "_v", "_at", "_held")
