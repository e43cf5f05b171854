"""Patterns made of integers. They are classes spelled like functions, because they are read inside expressions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.patterns.base import Pattern, spread, verdict, whole


@dataclass(frozen=True, repr=False)
class everything(Pattern):
    """Every query sees every key: full attention."""

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.ones_like(q - k, dtype=torch.bool)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        true = torch.ones_like(q_lo - k_lo, dtype=torch.bool)
        return verdict(true, true)


@dataclass(frozen=True, repr=False)
class causal(Pattern):
    """Each query sees itself and the past: the self-attention of decoders (Vaswani 2017)."""

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        return verdict(k_lo < q_hi, k_hi - 1 <= q_lo)


@dataclass(frozen=True, repr=False)
class window(Pattern):
    """Each query sees `before` positions before itself, itself, and `after` behind (as many as before, if not said).

    A sliding window of W keys up to the query itself is `window(W - 1, 0)`.
    """

    before: int
    after: int | None = None

    def __post_init__(self) -> None:
        whole("window", "before", self.before, 0)
        if self.after is not None:
            whole("window", "after", self.after, 0)

    def __repr__(self) -> str:
        return f"window({self.before})" if self.after is None else f"window({self.before}, {self.after})"

    @property
    def extent(self) -> int:
        least, most = self._reach()
        return 2 * (most - least)

    def _reach(self) -> tuple[int, int]:
        return -(self.before if self.after is None else self.after), self.before

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        least, most = self._reach()
        return (k >= q - most) & (k <= q - least)  # not by q - k, which would be n² whole numbers

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        least, most = self._reach()
        nearest, farthest = q_lo - (k_hi - 1), q_hi - 1 - k_lo  # the range of q - k, all of whose values occur
        return verdict((nearest <= most) & (farthest >= least), (nearest >= least) & (farthest <= most))


@dataclass(frozen=True, repr=False)
class chunks(Pattern):
    """Each query sees its own chunk of `size` positions, and `neighbours` more to each side: block-local attention."""

    size: int
    neighbours: int = 0

    def __post_init__(self) -> None:
        whole("chunks", "size", self.size, 1)
        whole("chunks", "neighbours", self.neighbours, 0)

    def __repr__(self) -> str:
        return f"chunks({self.size}, {self.neighbours})" if self.neighbours else f"chunks({self.size})"

    @property
    def extent(self) -> int:
        return (2 + 2 * self.neighbours) * self.size

    def _chunk(self, position: Tensor) -> Tensor:
        return torch.div(position, self.size, rounding_mode="floor")

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own, other = self._chunk(q), self._chunk(k)
        if not self.neighbours:
            return own == other
        return (other >= own - self.neighbours) & (other <= own + self.neighbours)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        nearest = self._chunk(q_lo) - self._chunk(k_hi - 1)  # the range of distances in chunks, all of which occur
        farthest = self._chunk(q_hi - 1) - self._chunk(k_lo)
        reach = self.neighbours
        return verdict((nearest <= reach) & (farthest >= -reach), (nearest >= -reach) & (farthest <= reach))


@dataclass(frozen=True, repr=False)
class first(Pattern):
    """The first `n` positions see all and are seen by all: global tokens, attention sinks (Xiao 2023)."""

    n: int

    def __post_init__(self) -> None:
        whole("first", "n", self.n, 1)

    def __repr__(self) -> str:
        return f"first({self.n})"

    @property
    def extent(self) -> int:
        return 3 * self.n

    def _holds(self, position: Tensor) -> Tensor:
        return (position >= 0) & (position < self.n)

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self._holds(q) | self._holds(k)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        meets = (q_lo < self.n) & (q_hi > 0) | (k_lo < self.n) & (k_hi > 0)
        inside = (q_lo >= 0) & (q_hi <= self.n) | (k_lo >= 0) & (k_hi <= self.n)
        return verdict(meets, inside)


@dataclass(frozen=True, repr=False)
class prefix(Pattern):
    """Every query sees the first `n` positions; `causal() | prefix(n)` is a prefix LM (Liu 2018, Raffel 2020)."""

    n: int

    def __post_init__(self) -> None:
        whole("prefix", "n", self.n, 1)

    def __repr__(self) -> str:
        return f"prefix({self.n})"

    @property
    def extent(self) -> int:
        return 2 * self.n

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return spread((k >= 0) & (k < self.n), q, k)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        return spread(verdict((k_lo < self.n) & (k_hi > 0), (k_lo >= 0) & (k_hi <= self.n)), q_lo, k_lo)
