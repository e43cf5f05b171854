"""One head of an attention map at any scale, as one looks at a street map: from the whole down to single weights.

Two passes over the rows make it. A quick one samples rows (`first`); a thorough one (`exact`) finds each row's
logsumexp and statistics, and what each block of rows gave to each key. Coarser levels are sums of that; finer ones are
computed from queries and keys when they are asked for, since the logsumexps are then known. The matrix is never held.

Shapes: Nq queries, Nk keys; S blocks of rows, C blocks of keys, of level `base`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from threading import RLock

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.kernels import Statistics
from clearhead.maps import AttentionMap
from clearhead.view.blocks import TILE, Picture, count, means, pairs, sums
from clearhead.view.rectangles import block_sums, logsumexps
from clearhead.view.sample import Sample

BASE = 6
"""The level of the finest blocks that are kept, unless there were more of them than MOST along a side."""
MOST = 2048
STATISTICS = ("logsumexp", "entropy", "max_weight", "sink", "distance")
"""What is kept of each row."""
_AT_ONCE = 1 << 26
"""Pairs between two answers to whoever waits: a fifth of a second of a core."""
_FEW = 1 << 29
"""Pairs of which the exact picture takes a core about as long as a sample of them."""


class Pyramid:
    """Pictures of one head of one sample of a map of any length, in O(Nq + Nk) memory and what is kept of blocks.

    Safe for several threads. Nothing is differentiable.

    Args:
        A: the map, and `head` and `sample` which of its matrices.
        seed: of the choice of sampled rows.
        base: the level of the finest blocks that are kept; None: 6, or more where there would be very many.

    Attributes:
        shape: (Nq, Nk).
        levels: levels are 0 … levels - 1; the last one is a single tile.
    """

    def __init__(
        self, A: AttentionMap, head: int = 0, sample: int = 0, *, seed: int = 0, base: int | None = None
    ) -> None:
        samples, heads, n_queries, n_keys = A.full_shape
        for name, number, most in (("head", head, heads), ("sample", sample, samples)):
            if not 0 <= number < most:
                raise InputError(f"{name} {number} is not there: the map has {name}s 0 … {most - 1}")
        if not n_queries or not n_keys:
            raise InputError(f"a map of shape {A.shape} has nothing to look at")
        self.shape, self._seed = (n_queries, n_keys), seed
        self._map = A.part(torch.arange(n_queries, device=A.device)[None], head, sample)
        longest = max(self.shape)
        self.base = max(BASE, math.ceil(math.log2(longest / MOST))) if base is None else base
        self.levels = 1 + max(0, math.ceil(math.log2(longest / TILE)))
        self._blocks = count(n_queries, self.base)
        self._rows = {name: torch.full((n_queries,), math.nan) for name in STATISTICS}
        self._known = torch.zeros(self._blocks, dtype=torch.bool)  # whose rows are
        self._summed = torch.zeros(self._blocks, dtype=torch.bool)  # whose sums are
        self._sums = torch.zeros(self._blocks, count(n_keys, self.base))
        self._received = torch.zeros(n_keys, dtype=torch.float64)
        self._sample: Sample | None = None
        self._pictures: dict[int, Picture] = {}
        self._lock = RLock()

    # the two passes

    @property
    def finished(self) -> bool:
        """Is the exact picture there?"""
        return bool(self._summed.all())

    @property
    def progress(self) -> float:
        """How much of the exact picture is there, from 0 to 1."""
        return float(self._summed.double().mean())

    def first(self, level: int | None = None) -> Picture:
        """The whole map from sampled rows, at a level not below `base`; None: as one tile, if that is not below."""
        level = max(self.base, self.levels - 1) if level is None else level
        if level < self.base:
            raise InputError(f"level {level} cannot be told from a sample of rows: ask for {self.base} or more")
        with self._lock, torch.no_grad():
            if self._sample is None:
                self._sample = Sample(self._map, self.base, self._seed)
            return self._sample.picture(level)

    @torch.no_grad()
    def exact(self, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Compute the exact picture; `go_on` is asked several times a second, and may wait or say no.

        Returns whether it is finished. What is there stays, and another call goes on with the rest.
        """
        for blocks in self._sets(range(self._blocks)):
            if bool(self._summed[blocks].all()):
                continue
            if not go_on():
                return False
            self._take(blocks, received=True)
        return True

    def _sets(self, blocks: range) -> Iterator[slice]:
        """Neighbouring blocks of rows that are taken at once; the last block, which may be shorter, by itself."""
        step = max(1, _AT_ONCE // (self.shape[1] << self.base))
        whole = min(blocks.stop, self.shape[0] >> self.base)
        for start in range(blocks.start, whole, step):
            yield slice(start, min(whole, start + step))
        if whole < blocks.stop:
            yield slice(whole, blocks.stop)

    def _take(self, blocks: slice, received: bool) -> None:
        """Find the statistics of blocks of rows, and what they gave to each key."""
        rows = slice(blocks.start << self.base, min(self.shape[0], blocks.stop << self.base))
        sets = torch.arange(rows.start, rows.stop, device=self._map.device).view(blocks.stop - blocks.start, -1)
        found = self._map.part(sets).statistics(received=received)
        logsumexps(found)
        with self._lock:
            self._keep(found, rows)
            self._known[blocks] = True
            if found.received is not None and not bool(self._summed[blocks].any()):
                given = found.received[:, 0].cpu()
                self._sums[blocks] = sums(given, self.base).float()
                self._received += given.double().sum(0)
                self._summed[blocks] = True

    def _keep(self, found: Statistics, rows: slice) -> None:
        for name in STATISTICS:
            values = getattr(found, name)
            if values is None:
                self._rows.pop(name, None)
            else:
                self._rows[name][rows] = values.flatten().cpu().float()

    # pictures

    def tile(self, level: int, row: int, column: int) -> Picture:
        """TILE × TILE cells of a level, or what there is of them; those of tile (row, column) begin at TILE · row.

        Raises InputError for a tile that is not there.
        """
        return self.picture(level, *self._cells_of(level, row, column))

    def marginals(self, level: int, row: int, column: int) -> tuple[dict[str, Tensor | None], Tensor | None]:
        """Of the blocks along the sides of a tile: the statistics of rows that this map has, and what keys received.

        None: not known yet. Raises InputError for a tile that is not there.
        """
        rows, keys = (
            slice(cells.start << level, min(n, cells.stop << level))
            for cells, n in zip(self._cells_of(level, row, column), self.shape, strict=True)
        )
        if level < self.base:
            self._learn(rows)
        return {name: self.statistic(name, level, rows) for name in self._rows}, self.received(level, keys)

    @torch.no_grad()
    def picture(self, level: int, rows: slice, columns: slice) -> Picture:
        """Some rows and columns of the cells of a level.

        Exact where cells are smaller than the blocks that are kept, or the exact picture is there; else from sampled
        rows, with the error. Raises InputError for cells that are not there.
        """
        for cells, n, name in zip((rows, columns), self._cells(level), ("rows", "columns"), strict=True):
            if not 0 <= cells.start < cells.stop <= n:
                raise InputError(f"cells {cells.start} … {cells.stop} are not there: level {level} has {n} {name}")
        at, keys = (
            slice(cells.start << level, min(n, cells.stop << level))
            for cells, n in zip((rows, columns), self.shape, strict=True)
        )
        if level < self.base:
            return Picture(level, at, keys, self._near(level, at, keys))
        whole = self._whole(level)
        error = None if whole.error is None else whole.error[rows, columns]
        return Picture(level, at, keys, whole.values[rows, columns], error)

    def _cells_of(self, level: int, row: int, column: int) -> tuple[slice, slice]:
        """The rows and columns of cells of a tile."""
        cells = self._cells(level)
        for at, n, name in zip((row, column), cells, ("row", "column"), strict=True):
            last = (n - 1) // TILE
            if not 0 <= at <= last:
                raise InputError(f"tile {name} {at} is not there: level {level} has {name}s 0 … {last}")
        rows, columns = (slice(at * TILE, min(n, (at + 1) * TILE)) for at, n in zip((row, column), cells, strict=True))
        return rows, columns

    def _cells(self, level: int) -> tuple[int, int]:
        """How many rows and columns of cells a level has."""
        if not 0 <= level < self.levels:
            raise InputError(f"level {level} is not there: this map has levels 0 … {self.levels - 1}")
        n_queries, n_keys = self.shape
        return count(n_queries, level), count(n_keys, level)

    def _whole(self, level: int) -> Picture:
        """The whole map at a level not below `base`, exact if it can be."""
        with self._lock:
            kept = self._pictures.get(level)
            if self.shape[0] * self.shape[1] <= _FEW:
                self.exact()
            if kept is None or (self.finished and not kept.exact):
                kept = self._pictures[level] = self._summed_up(level) if self.finished else self.first(level)
                self._sample = None if self.finished else self._sample
            return kept

    def _summed_up(self, level: int) -> Picture:
        n_queries, n_keys = self.shape
        up = level - self.base
        values = sums(sums(self._sums.double(), up).mT, up).mT / pairs(n_queries, n_keys, level)
        return Picture(level, slice(0, n_queries), slice(0, n_keys), values.float())

    def weights(self, rows: slice, keys: slice) -> Tensor:
        """Single weights of a rectangle, (rows, keys)."""
        return self._near(0, rows, keys)

    @torch.no_grad()
    def _near(self, level: int, rows: slice, keys: slice) -> Tensor:
        """Means of blocks, computed from queries and keys; of rows and keys that begin at a block."""
        self._learn(rows)
        held = pairs(rows.stop - rows.start, keys.stop - keys.start, level)
        return block_sums(self._map, rows, keys, self._rows["logsumexp"], level, level) / held

    def _learn(self, rows: slice) -> None:
        """See to it that the logsumexps of some rows are known."""
        blocks = range(rows.start >> self.base, count(rows.stop, self.base))
        for part in self._sets(blocks):
            if not bool(self._known[part].all()):
                self._take(part, received=False)

    # rows and keys

    def statistic(self, name: str, level: int, rows: slice) -> Tensor | None:
        """A statistic of rows, its means over blocks of 2^level; NaN where rows see nothing.

        None where it is not measured, or not yet. Raises InputError for another name.
        """
        if name not in STATISTICS:
            raise InputError(f"no statistic {name!r} of rows is kept; known: {', '.join(STATISTICS)}")
        blocks = slice(rows.start >> self.base, count(rows.stop, self.base))
        if name not in self._rows or not bool(self._known[blocks].all()):
            return None
        return means(self._rows[name][rows], level)

    def received(self, level: int, keys: slice) -> Tensor | None:
        """What keys received, its means over blocks of 2^level; None where that is not known yet."""
        return means(self._received[keys], level) if self.finished else None

    @torch.no_grad()
    def keys_of(self, row: int, most: int = 8, hidden: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """The largest weights of a row and their keys, largest first; `hidden` ones and those of weight 0 left out."""
        self._check("row", row, self.shape[0])
        weights = self.weights(slice(row, row + 1), slice(0, self.shape[1]))[0]
        weights[torch.tensor(hidden, dtype=torch.int64)] = 0
        return _top(weights, most)

    @torch.no_grad()
    def rows_of(self, key: int, most: int = 8) -> tuple[Tensor, Tensor, int]:
        """The largest weights that a key is given and the rows that give them, largest first, and how many rows were
        looked at: those whose logsumexp is known, which are all once the exact picture is there."""
        self._check("key", key, self.shape[1])
        looked_at = int((self._known.repeat_interleave(1 << self.base)[: self.shape[0]]).sum())
        rows, column = slice(0, self.shape[0]), slice(key, key + 1)
        given = block_sums(self._map, rows, column, self._rows["logsumexp"], 0, 0)[:, 0]
        return *_top(given, most), looked_at

    def _check(self, name: str, number: int, n: int) -> None:
        if not 0 <= number < n:
            raise InputError(f"{name} {number} is not there: this map has {name}s 0 … {n - 1}")


def _top(weights: Tensor, most: int) -> tuple[Tensor, Tensor]:
    values, index = weights.topk(min(most, len(weights)))
    return values[values > 0], index[values > 0]
