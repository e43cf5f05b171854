"""How an attention matrix that is never held whole is walked: rectangles of rows, sized to stay in cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.kernels.visible import Visible, cut
from clearhead.patterns import ALL, NONE, block_layout

ROWS = 128
KEYS = 64
PAIRS = 1 << 18
"""Logits held at a time: 1 MiB in float32; with their exponentials, about a core's second-level cache."""


@dataclass(frozen=True)
class Tile:
    """Some samples, some key heads and the query heads they serve, some rows, and a range of keys they may see.

    `free` means that the pattern allows every pair of the tile, `unpadded` that padding does not reach into it. Keys
    outside `partly` are seen by every row.
    """

    b: slice
    kv: slice
    h: slice
    rows: slice
    keys: slice
    partly: slice
    free: bool
    unpadded: bool

    def pairs(self, visible: Visible, keys: slice | None = None) -> Tensor | None:
        """The visible pairs of the tile, or of some of its keys, (b, h, rows, keys) by broadcasting; None: all."""
        where = (self.b, self.h, self.rows, keys or self.keys)
        return visible.pairs(*where, pattern=not self.free, padding=not self.unpadded)

    def of(self, x: Tensor) -> Tensor:
        """The tile of a tensor that broadcasts to (B, H, Nq, Nk)."""
        return cut(x, self.b, self.h, self.rows, self.keys)


def tiles(
    visible: Visible, samples: int, heads: int, kv_heads: int, most_rows: int = ROWS, pairs: int = PAIRS
) -> Iterator[Tile]:
    """Tiles that hold every visible pair exactly once. Each row lies in one tile, with all its keys.

    A tile has at most `most_rows` rows of a head, and about so many `pairs`.
    """
    group = heads // kv_heads
    if samples * heads * visible.n_queries * visible.n_keys <= PAIRS:  # one tile, which needs no plan
        sides = slice(0, samples), slice(0, kv_heads), slice(0, heads), slice(0, visible.n_queries)
        if visible.n_queries and samples:
            keys = slice(0, visible.n_keys)
            partly = slice(0, 0) if visible.full and visible.unpadded else keys
            yield Tile(*sides, keys, partly, free=False, unpadded=visible.unpadded)
        return
    rows = max(1, min(visible.n_queries, most_rows, max(16, pairs // max(1, group * visible.n_keys))))
    units = max(1, pairs // max(1, group * rows * visible.n_keys))  # (sample, key head) pairs in a tile
    step_b, step_kv = (units // kv_heads, kv_heads) if units >= kv_heads else (1, units)
    reaches = _Reaches(visible, rows)
    for b in range(0, samples, step_b):
        part = slice(b, min(samples, b + step_b))
        for row in range(0, visible.n_queries, rows):
            span = slice(row, min(visible.n_queries, row + rows))
            reach = reaches.of(part, span)
            for kv in range(0, kv_heads, step_kv):
                stop = min(kv_heads, kv + step_kv)
                yield Tile(part, slice(kv, stop), slice(kv * group, stop * group), span, *reach)


class _Reaches:
    """Which keys each block of rows may see, from the pattern's block layout and the lengths."""

    def __init__(self, visible: Visible, rows: int) -> None:
        self.visible, self.step = visible, rows
        if visible.n_keys and visible.n_queries:
            positions = visible.positions_of_queries(), visible.positions_of_keys()
            layout = block_layout(visible.pattern, *positions, rows, KEYS)
            least, most = layout.amin(1).cpu(), layout.amax(1).cpu()  # over heads: a tile spans several
            at = torch.arange(layout.shape[-1])
            seen = most != NONE
            self.first = at.where(seen, layout.shape[-1]).amin(-1)  # (B or 1, row blocks)
            self.behind = (at + 1).where(seen, 0).amax(-1)
            self.all = least == ALL

    def of(self, part: slice, rows: slice) -> tuple[slice, slice, bool, bool]:
        """The keys that some sample of `part` sees from `rows`; those that not all do; are all allowed; no padding?"""
        lengths_q, lengths_k = self.visible.q_lengths, self.visible.k_lengths
        if not self.visible.n_keys:
            return slice(0, 0), slice(0, 0), True, True
        block = rows.start // self.step
        first, behind, allowed = (x if x.shape[0] == 1 else x[part] for x in (self.first, self.behind, self.all))
        lo, hi = int(first[:, block].min()), int(behind[:, block].max())
        some = (~allowed[:, block, lo:hi].all(0)).nonzero()
        end = self.visible.n_keys if lengths_k is None else int(lengths_k[part].max())
        keys = slice(min(lo * KEYS, end), max(min(lo * KEYS, end), min(hi * KEYS, end)))
        real = keys.stop if lengths_k is None else min(keys.stop, int(lengths_k[part].min()))
        all_rows = lengths_q is None or int(lengths_q[part].min()) >= rows.stop
        if self.visible.mask is not None or not all_rows:
            partly = keys
        else:
            bounds = [(lo + int(i)) * KEYS for i in (some[0], some[-1] + 1)] if len(some) else []
            bounds += [real, keys.stop] if real < keys.stop else []
            partly = slice(min(bounds), min(max(bounds), keys.stop)) if bounds else slice(keys.start, keys.start)
        return keys, partly, not len(some), real == keys.stop and all_rows
