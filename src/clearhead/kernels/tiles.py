"""How an attention matrix that is never held whole is walked: rectangles of rows, sized to stay in cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.kernels.spans import Rectangle, Spans, rectangles, spans
from clearhead.kernels.visible import Visible, cut

ROWS = 128
FEWEST = 16
"""Rows of a tile at least, however many keys they see."""
PAIRS = 1 << 18
"""Logits held at a time: 1 MiB in float32; with their exponentials, about a core's second-level cache."""


@dataclass(frozen=True)
class Tile:
    """Some samples, some key heads and the query heads they serve, some rows, and a range of keys they may see.

    `free` means that the pattern allows every pair of the tile, `unpadded` that padding does not reach into it. Where
    `spans` are known, (B or 1, 1, Nq, 2) int32 for all rows of the call, pattern and padding let each row see exactly
    the keys from the first number to before the second, unless there are `gaps`.
    """

    b: slice
    kv: slice
    h: slice
    rows: slice
    keys: slice
    free: bool
    unpadded: bool
    spans: Tensor | None = None
    gaps: bool = True

    def pairs(self, visible: Visible) -> Tensor | None:
        """The visible pairs of the tile, (b, h, rows, keys) by broadcasting; None: all."""
        where = (self.b, self.h, self.rows, self.keys)
        return visible.pairs(*where, pattern=not self.free, padding=not self.unpadded)

    def beyond_spans(self, visible: Visible) -> Tensor | None:
        """The pairs that are visible if its row's span says so too; None: all."""
        if self.spans is None:
            return self.pairs(visible)
        where = (self.b, self.h, self.rows, self.keys)
        return visible.pairs(*where, pattern=self.gaps, padding=False)

    def of(self, x: Tensor) -> Tensor:
        """The tile of a tensor that broadcasts to (B, H, Nq, Nk)."""
        return cut(x, self.b, self.h, self.rows, self.keys)


def whole(b: int, kv_heads: int, h: int, n_queries: int, n_keys: int) -> Tile:
    """All pairs as one tile of which nothing is known."""
    sides = slice(0, b), slice(0, kv_heads), slice(0, h), slice(0, n_queries), slice(0, n_keys)
    return Tile(*sides, free=False, unpadded=False)


@dataclass(frozen=True)
class Size:
    """How large tiles are made: at most `rows` of a head, and about so many `pairs`.

    `call` is how many pairs of a head take as long as a tile does without them.
    """

    rows: int = ROWS
    pairs: int = PAIRS
    call: int = 1 << 14


@dataclass(frozen=True)
class Cuts:
    """Numbers of rows, keys, and pairs of all heads at which a kernel changes course. Laws are held around them."""

    rows: tuple[int, ...]
    keys: tuple[int, ...]
    pairs: tuple[int, ...]


COMPILED = Size(4 * ROWS, 4 * PAIRS, 1 << 11)
"""Of tiles of a compiled pass, whose call takes many and whose blocks of rows and keys are taken inside."""


def tiles(visible: Visible, samples: int, heads: int, kv_heads: int, size: Size = Size()) -> Iterator[Tile]:
    """Tiles that hold every visible pair exactly once. Each row that sees a key lies in one tile, with all its keys.

    Tiles of the same sample have all their heads in common, or none.
    """
    n_queries, n_keys, group = visible.n_queries, visible.n_keys, heads // max(1, kv_heads)
    if not (samples and heads and n_queries and n_keys):
        return
    if samples * heads * n_queries * n_keys <= PAIRS:  # one tile, which needs no plan
        sides = slice(0, samples), slice(0, kv_heads), slice(0, heads), slice(0, n_queries), slice(0, n_keys)
        yield Tile(*sides, free=False, unpadded=visible.unpadded)
        return
    known = None if visible.full and visible.unpadded else spans(visible)
    bounds = None if known is None else torch.stack([known.first, known.behind], -1)[:, None].int()
    for part, found in _parts(visible, samples, heads, known, size):
        rows = [min(each.rows, size.rows, max(FEWEST, size.pairs // (group * each.keys))) for each in found]
        most = max((r * each.keys for r, each in zip(rows, found, strict=True)), default=1)
        units = max(1, size.pairs // (group * most))  # (sample, key head) pairs in a tile
        step_b, step_kv = (units // kv_heads, kv_heads) if units >= kv_heads else (1, units)
        for b in _stretches(part.start, part.stop, step_b):
            for step, each in zip(rows, found, strict=True):
                keys, unpadded = slice(each.key, each.key + each.keys), each.free or visible.unpadded
                for span in _stretches(each.row, each.row + each.rows, step):
                    for kv in _stretches(0, kv_heads, step_kv):
                        h = slice(kv.start * group, kv.stop * group)
                        yield Tile(b, kv, h, span, keys, each.free, unpadded, bounds, each.gaps)


def _parts(
    visible: Visible, samples: int, heads: int, known: Spans | None, size: Size
) -> Iterator[tuple[slice, tuple[Rectangle, ...]]]:
    """Samples that are walked alike, and the rectangles of their walk."""
    if known is None:
        yield slice(0, samples), (Rectangle(0, visible.n_queries, 0, visible.n_keys, gaps=False, free=True),)
        return
    step = samples
    if known.samples > 1:  # lengths alone differ little; what else does has rectangles of its own
        step = 1 if known.apart else max(1, size.pairs // (heads * visible.n_queries * visible.n_keys))
    for part in _stretches(0, samples, step):
        yield part, rectangles(known, part.start, part.stop, size.rows, size.call)


def _stretches(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(stop, first + step))
