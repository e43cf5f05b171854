"""Patterns made of integers that leave holes: strides, summaries, chosen tokens, random keys."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.patterns.base import SOME, Pattern, spread, verdict, whole


def _floor(x: Tensor, step: int) -> Tensor:
    return torch.div(x, step, rounding_mode="floor")


@dataclass(frozen=True, repr=False)
class stride(Pattern):
    """Each query sees every `step`-th position, counted from itself: dilated or strided attention (Child 2019)."""

    step: int

    def __post_init__(self) -> None:
        whole("stride", "step", self.step, 1)

    def __repr__(self) -> str:
        return f"stride({self.step})"

    @property
    def extent(self) -> int:
        return 3 * self.step

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.remainder(q, self.step) == torch.remainder(k, self.step)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        nearest, farthest = q_lo - (k_hi - 1), q_hi - 1 - k_lo  # the range of q - k, all of whose values occur
        last = _floor(farthest, self.step) * self.step  # the greatest multiple in it, if any
        return verdict(last >= nearest, (last == nearest) & (last == farthest) if self.step > 1 else last >= nearest)


@dataclass(frozen=True, repr=False)
class summaries(Pattern):
    """Every query sees the last `count` positions of each chunk of `size`, which sum it up (Child 2019, "fixed")."""

    size: int
    count: int

    def __post_init__(self) -> None:
        whole("summaries", "size", self.size, 1)
        whole("summaries", "count", self.count, 1)
        if self.count > self.size:
            raise InputError(f"summaries: count is {self.count}; a chunk has {self.size} positions, write at most that")

    def __repr__(self) -> str:
        return f"summaries({self.size}, {self.count})"

    @property
    def extent(self) -> int:
        return 3 * self.size

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return spread(torch.remainder(k, self.size) >= self.size - self.count, q, k)

    def _before(self, position: Tensor) -> Tensor:
        """How many positions that are seen lie before `position`, but for a constant."""
        within = torch.remainder(position, self.size) - (self.size - self.count)
        return _floor(position, self.size) * self.count + within.clamp(min=0)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        seen = self._before(k_hi) - self._before(k_lo)
        return spread(verdict(seen > 0, seen == k_hi - k_lo), q_lo, k_lo)


@dataclass(frozen=True, init=False, repr=False)
class global_tokens(Pattern):
    """The positions `indices` see all and are seen by all: global attention (Beltagy 2020, Zaheer 2020).

    `global_tokens([0, 7])`; positions count from the start, and those of `first(n)` need not be listed.
    """

    indices: tuple[int, ...]

    def __init__(self, indices: int | Iterable[int]) -> None:
        chosen = [indices] if isinstance(indices, int) else indices
        if isinstance(chosen, str) or not isinstance(chosen, Iterable):
            raise InputError(f"global_tokens: indices is {indices!r}; it must be whole numbers such as [0, 7]")
        if isinstance(chosen, Tensor):
            chosen = chosen.tolist()
        chosen = list(chosen)
        for i in chosen:
            whole("global_tokens", "an index", i, 0)
        if not chosen:
            raise InputError("global_tokens: indices is empty; name at least one position, such as [0]")
        object.__setattr__(self, "indices", tuple(sorted(set(chosen))))

    def __repr__(self) -> str:
        return f"global_tokens({list(self.indices)})"

    @property
    def extent(self) -> int:
        return self.indices[-1] + 3

    def _runs(self) -> list[tuple[int, int]]:
        """The chosen positions as intervals [lo, hi), which are compared without a table."""
        runs: list[tuple[int, int]] = []
        for i in self.indices:
            if runs and runs[-1][1] == i:
                runs[-1] = (runs[-1][0], i + 1)
            else:
                runs.append((i, i + 1))
        return runs

    def _holds(self, position: Tensor) -> Tensor:
        held = torch.zeros_like(position, dtype=torch.bool)
        for lo, hi in self._runs():
            held = held | ((position >= lo) & (position < hi))
        return held

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self._holds(q) | self._holds(k)

    def _chosen(self, lo: Tensor, hi: Tensor) -> Tensor:
        """How many of [lo, hi) are chosen."""
        chosen = torch.zeros_like(lo)
        for first, behind in self._runs():
            chosen = chosen + (hi.clamp(max=behind) - lo.clamp(min=first)).clamp(min=0)
        return chosen

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        rows, columns = self._chosen(q_lo, q_hi), self._chosen(k_lo, k_hi)
        return verdict((rows > 0) | (columns > 0), (rows == q_hi - q_lo) | (columns == k_hi - k_lo))


@dataclass(frozen=True, repr=False)
class scattered(Pattern):
    """Each query sees `per_row` random keys; with `block`, each block of queries so many blocks of keys (Zaheer 2020).

    Keys are drawn from the first `length` positions, or, if None, from the past of the query up to its own block: then
    the same are drawn whatever the length, and steps of decoding see what one pass sees. The draws are a hash of the
    query's block and `seed`, one from each of `per_row` equal parts, so that no key is drawn twice; where there are
    fewer blocks than draws, all are seen. All samples and heads draw alike; give layers seeds of their own.

    Blocks of 64 or more are what a kernel can skip; single keys leave some in every block, and save nothing.
    """

    per_row: int
    seed: int = 0
    block: int = 1
    length: int | None = None

    def __post_init__(self) -> None:
        whole("scattered", "per_row", self.per_row, 1)
        whole("scattered", "seed", self.seed, 0)
        whole("scattered", "block", self.block, 1)
        if self.length is not None:
            whole("scattered", "length", self.length, 1)

    def __repr__(self) -> str:
        block = f", block={self.block}" if self.block > 1 else ""
        length = "" if self.length is None else f", length={self.length}"
        return f"scattered({self.per_row}, {self.seed}{block}{length})"

    @property
    def extent(self) -> int:
        return 16 * self.block if self.length is None else self.length

    def _among(self, row: Tensor) -> Tensor:
        """From how many blocks of keys the queries of block `row` draw."""
        return (row + 1).clamp(min=0) if self.length is None else torch.full_like(row, -(-self.length // self.block))

    def _draw(self, row: Tensor, i: int, among: Tensor) -> Tensor:
        """The block of keys that the queries of block `row` see in the i-th of equal parts, or -1 if that is empty."""
        lo = _floor(among * i, self.per_row)
        size = _floor(among * (i + 1), self.per_row) - lo
        drawn = lo + torch.remainder(_hash(_hash(row + (self.seed * 0x1F123BB5 & _BITS)) + i), size.clamp(min=1))
        return torch.where(size > 0, drawn, -1)

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # int64 for the hash: compiled for a GPU, positions come in int32
        row, column = _floor(q.long(), self.block), _floor(k.long(), self.block)
        among = self._among(row)
        seen = self._draw(row, 0, among) == column
        for i in range(1, self.per_row):
            seen = seen | (self._draw(row, i, among) == column)
        return seen & (column >= 0)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        row, last_row = _floor(q_lo, self.block), _floor(q_hi - 1, self.block)
        column, last_column = _floor(k_lo, self.block), _floor(k_hi - 1, self.block)
        rows = int((last_row - row).max()) + 1 if row.numel() else 0
        if rows * self.per_row > _DRAWS:  # too many to look at each; where there is nothing to draw is known even so
            met = (last_column >= 0) & (column < self._among(last_row))
            return torch.where(met, SOME, 0).to(torch.int8)
        found = torch.zeros((), dtype=torch.int8, device=q_lo.device)
        for step in range(rows):
            at = row + step
            among = torch.where(at <= last_row, self._among(at), 0)
            for i in range(self.per_row):
                drawn = self._draw(at, i, among)
                found = found + ((drawn >= column.clamp(min=0)) & (drawn <= last_column))
        return verdict(found > 0, found == (last_row - row + 1) * (last_column - column + 1))


_DRAWS = 64
"""Draws that a cover looks at for a rectangle; of more it says SOME."""
_BITS = 0xFFFFFFFF


def _hash(x: Tensor) -> Tensor:
    """32 mixed bits of each integer, in int64; products stay below 2⁶³."""
    x = x & _BITS
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & _BITS
    return (x >> 16) ^ x
