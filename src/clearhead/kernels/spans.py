"""Which keys each row sees, from the first to the last: what a walk over rows needs to know of a pattern.

Most rows of most patterns see all keys between two bounds: a document, a window, the past. Two numbers a row then say
what a mask would, and rows with the same two make a rectangle without one.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from clearhead.kernels.visible import Visible
from clearhead.patterns import ALL, NONE, block_layout, everything

BLOCK = 64
"""Rows and keys of a block of the layout."""
_FEW = 32
"""Blocks in a row of blocks that are looked into, pair by pair; where more hold some pairs only, rows have gaps."""
_LOOKED_AT = 1 << 20
"""Pairs that are looked at in one go."""
_FAR = torch.iinfo(torch.int64).max // 4
_JUMP = 16
"""Keys by which the bounds of neighbouring rows may differ in one rectangle."""


@dataclass(frozen=True, eq=False)
class Spans:
    """The first key that each row sees and the one behind the last, (B or 1, Nq); 0 and 0 where it sees none.

    `gaps` (B or 1, Nq): a row may see some of the keys between only, or heads differ. `apart`: samples differ in more
    than their lengths.
    """

    first: Tensor
    behind: Tensor
    gaps: Tensor
    apart: bool

    @property
    def samples(self) -> int:
        """B, or 1 where all see alike."""
        return self.first.shape[0]

    def real(self, q_lengths: Tensor | None, k_lengths: Tensor | None) -> "Spans":
        """The same without padding, from lengths (B,)."""
        first, behind = self.first, self.behind
        if q_lengths is None and k_lengths is None:
            return self
        if k_lengths is not None:
            behind = behind.minimum(k_lengths[:, None].to(behind))
        if q_lengths is not None:
            behind = behind * (torch.arange(behind.shape[-1]) < q_lengths[:, None].cpu())
        empty = behind <= first
        return Spans(first.masked_fill(empty, 0), behind.masked_fill(empty, 0), self.gaps & ~empty, self.apart)


@dataclass(frozen=True)
class Rectangle:
    """Some rows and the keys that any of them sees. `gaps`: bounds do not say which; `free`: each sees all of them."""

    row: int
    rows: int
    key: int
    keys: int
    gaps: bool
    free: bool

    @property
    def pairs(self) -> int:
        return self.rows * self.keys


@dataclass(frozen=True)
class Described:
    """Who sees whom, by what it depends on: equal where this is."""

    key: tuple[object, ...]
    visible: Visible = field(compare=False)


def described(visible: Visible) -> Described:
    """Pattern, sizes and positions, without mask and lengths; tensors by a digest, for they may be written to."""
    pattern = visible.pattern
    digest = hashlib.blake2b()
    given = (visible.q_positions, visible.k_positions, *pattern.tensors())
    for x in given:
        if x is not None:
            digest.update(x.contiguous().cpu().numpy().tobytes())
    shapes = tuple(None if x is None else (x.shape, x.dtype) for x in given)
    key = pattern.outline(), visible.n_queries, visible.n_keys, str(visible.device), shapes, digest.digest()
    return Described(key, replace(visible, mask=None, q_lengths=None, k_lengths=None))


def spans(visible: Visible) -> Spans:
    """Which keys the real rows of a call see, whatever its mask; on the CPU."""
    if isinstance(visible.pattern, everything):
        n_queries, n_keys = visible.n_queries, visible.n_keys
        first = torch.zeros(1, n_queries, dtype=torch.int64)
        all_ = Spans(first, first + n_keys, torch.zeros(1, n_queries, dtype=torch.bool), apart=False)
        return all_.real(visible.q_lengths, visible.k_lengths)
    placed = visible if visible.q_lengths is visible.k_lengths else visible.placed()
    return _spans_of(described(placed)).real(visible.q_lengths, visible.k_lengths)


@lru_cache(maxsize=64)
def _spans_of(call: Described) -> Spans:
    """All layers of a model see the same, in the forward pass and the backward one: they are worth keeping."""
    see = call.visible
    q_at, k_at = see.positions_of_queries(), see.positions_of_keys()
    layout = block_layout(see.pattern, q_at, k_at, BLOCK, BLOCK)
    least, most = layout.amin(1), layout.amax(1)  # over heads: a tile spans several
    partly = (most != NONE) & (least != ALL)
    unknown = partly.sum(-1) > _FEW
    rows = _Rows(see.n_keys, least.shape[0], layout.shape[-2] * BLOCK, see.device)
    for blocks in (least == ALL, partly & unknown[..., None]):
        rows.add_blocks(blocks)
    for blocks in (
        (partly & ~unknown[..., None]).nonzero().split(max(1, _LOOKED_AT // (BLOCK * BLOCK * layout.shape[1])))
    ):
        rows.add_pairs(blocks, _pairs(see.pattern.allows, blocks, q_at, k_at))
    return rows.found(unknown, see.n_queries)


def _pairs(allows: Callable[..., Tensor], blocks: Tensor, q_at: Tensor, k_at: Tensor) -> Tensor:
    """The visible pairs of some blocks, (H or 1, S, BLOCK, BLOCK), from their samples, row and key blocks (S, 3)."""
    b, i, j = blocks.unbind(1)
    within = torch.arange(BLOCK, device=blocks.device)
    rows, keys = i[:, None] * BLOCK + within, j[:, None] * BLOCK + within
    q, k = _taken(q_at, b, rows), _taken(k_at, b, keys)
    heads = torch.arange(max(q.shape[0], k.shape[0]), device=blocks.device)[:, None, None, None]
    see = allows(b[:, None, None], heads, q[..., :, None], k[..., None, :])
    return (see & (keys < k_at.shape[-1])[:, None, :]).expand(-1, len(b), BLOCK, BLOCK)


def _taken(at: Tensor, b: Tensor, index: Tensor) -> Tensor:
    """Positions (B or 1, H, N) of samples b (S,) at `index` (S, BLOCK), (H, S, BLOCK); its last beyond the end."""
    index = index.clamp(max=at.shape[-1] - 1)
    return at.movedim(1, 0)[:, (b if at.shape[0] > 1 else torch.zeros_like(b))[:, None], index]


class _Rows:
    """What is known of rows so far: their first and last keys, and how many they see."""

    def __init__(self, n_keys: int, samples: int, rows: int, device: torch.device) -> None:
        self._n_keys, self._shape = n_keys, (samples, rows)
        self._first = torch.full((samples * rows,), n_keys, device=device)
        self._behind, self._count = torch.zeros_like(self._first), torch.zeros_like(self._first)

    def add_blocks(self, blocks: Tensor) -> None:
        """Blocks that their rows see whole, bool (B or 1, row blocks, key blocks)."""
        at = torch.arange(blocks.shape[-1], device=blocks.device) * BLOCK
        ends = (at + BLOCK).clamp(max=self._n_keys)
        first = at.where(blocks, self._n_keys).amin(-1)
        behind, count = ends.where(blocks, 0).amax(-1), ((ends - at) * blocks).sum(-1)
        everywhere = torch.arange(len(self._first), device=blocks.device)
        self._add(everywhere, *(x.flatten().repeat_interleave(BLOCK) for x in (first, behind, count)))

    def add_pairs(self, blocks: Tensor, see: Tensor) -> None:
        """Blocks (S, 3), of which rows see the pairs `see` (H or 1, S, BLOCK, BLOCK)."""
        b, i, j = blocks.unbind(1)
        flags = see.to(torch.uint8)
        count = flags.sum(-1, dtype=torch.int64)
        start = (j * BLOCK)[:, None]
        first = (flags.argmax(-1) + start).masked_fill(count == 0, self._n_keys).amin(0)
        behind = (BLOCK - flags.flip(-1).argmax(-1) + start).masked_fill(count == 0, 0).amax(0)
        rows = (b * self._shape[1] + i * BLOCK)[:, None] + torch.arange(BLOCK, device=b.device)
        self._add(*(x.flatten() for x in (rows, first, behind, count.amin(0))))

    def _add(self, rows: Tensor, first: Tensor, behind: Tensor, count: Tensor) -> None:
        self._first.scatter_reduce_(0, rows, first, "amin")
        self._behind.scatter_reduce_(0, rows, behind, "amax")
        self._count.index_add_(0, rows, count)

    def found(self, unknown: Tensor, n_queries: int) -> Spans:
        """Of real rows; those of blocks (B or 1, row blocks) that are unknown have gaps."""
        first, behind, count = (
            x.view(self._shape)[:, :n_queries].cpu() for x in (self._first, self._behind, self._count)
        )
        gaps = (behind - first > count) | unknown.repeat_interleave(BLOCK, -1)[:, :n_queries].cpu()
        empty = behind == 0
        return Spans(first.masked_fill(empty, 0), behind, gaps & ~empty, len(first) > 1)


@lru_cache(maxsize=64)
def rectangles(found: Spans, start: int, stop: int, most_rows: int, call: int) -> tuple[Rectangle, ...]:
    """Rectangles that hold every pair which a row of the samples from `start` to `stop` sees; each row lies in one.

    Of at most `most_rows` each. Neighbours are one where that makes at most `call` more pairs: what a rectangle takes
    beside its pairs.
    """
    merged: list[Rectangle] = []
    for each in _stretches(found, slice(start, stop) if found.samples > 1 else slice(1)):
        one = _joined(merged[-1], each, most_rows, call) if merged else None
        if one is not None:
            merged[-1] = one
        else:
            merged.append(each)
    return tuple(merged)


def _joined(one: Rectangle, two: Rectangle, most_rows: int, call: int) -> Rectangle | None:
    rows = one.rows + two.rows
    if one.row + one.rows != two.row or rows > most_rows or one.gaps != two.gaps:
        return None
    key, end = min(one.key, two.key), max(one.key + one.keys, two.key + two.keys)
    alike = one.free and two.free and (one.key, one.keys) == (two.key, two.keys)
    if rows * (end - key) > one.pairs + two.pairs + call:
        return None
    return Rectangle(one.row, rows, key, end - key, one.gaps, alike)


def _stretches(found: Spans, samples: slice) -> Iterator[Rectangle]:
    """Neighbouring rows of a block whose bounds are close, and the hull of these; (S, Nq) of some samples."""
    first, behind, gaps = found.first[samples], found.behind[samples], found.gaps[samples]
    lo, hi = first.masked_fill(behind == 0, _FAR).amin(0), behind.amax(0)
    some, alike = gaps.any(0), ((first == lo) & (behind == hi) & ~gaps).all(0)
    moved = lo.diff().abs() + hi.diff().abs()
    begins = torch.arange(len(lo)) % BLOCK == 0
    begins[1:] |= (moved > _JUMP) | (some[1:] != some[:-1])
    alike[1:] &= (moved == 0) | begins[1:]
    stretch = begins.cumsum(0) - 1
    starts = begins.nonzero().squeeze(-1)
    ends = [*starts[1:].tolist(), len(lo)]
    bounds = (_of_each(x, stretch, len(ends), way) for x, way in ((lo, "amin"), (hi, "amax"), (alike.long(), "amin")))
    table = starts.tolist(), ends, some[starts].tolist(), *bounds
    for row, end, with_gaps, key, behind_key, free in zip(*table, strict=True):
        if behind_key:
            yield Rectangle(row, end - row, key, behind_key - key, with_gaps, bool(free))


def _of_each(x: Tensor, stretch: Tensor, count: int, way: str) -> list[int]:
    """The least or greatest of `x` (Nq,) in each stretch."""
    return x.new_empty(count).scatter_reduce(0, stretch, x, way, include_self=False).tolist()
