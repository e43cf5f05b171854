"""From a pattern to bands: what `blocks` calls fused attention on.

The block layout says which runs of keys each block of queries sees; neighbours whose runs look alike become a band, and
a block that sees several runs lies in several. Where blocks look alike but hold different pairs (documents of any
length), rows are looked at one by one: those that see the same keys, without a gap, make a rectangle without a mask.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from clearhead.kernels.bands import Band, allowed
from clearhead.kernels.spans import Described, described
from clearhead.kernels.visible import Visible
from clearhead.patterns import ALL, NONE, block_layout

ROWS = 128
"""Queries in a block. Fused attention reads each key less often the more there are; but more rows of a window see more
keys that only some of them see."""
KEYS = 64

_LOOKED_AT = 1 << 20
"""Pairs that are looked at in one go."""
_CALL = 4096
"""Pairs of a head that take as long as a call does without them."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The bands of a call of one sample, or of samples that all see the same, without padding.

    A band that is the `first` of its rows stands before the others of these rows. `pairs` is how many the bands hold,
    for one head.
    """

    bands: tuple[Band, ...]
    pairs: int


def plan(visible: Visible) -> Plan:
    """The bands that hold all visible pairs of a call, exactly once."""
    return _plan_of(described(visible))


@lru_cache(maxsize=64)
def _plan_of(call: Described) -> Plan:
    """All layers of a model see the same, in the forward pass and the backward one: plans are worth keeping."""
    found = _bands(call.visible)
    return Plan(found, sum(band.pairs for band in found))


@dataclass(frozen=True)
class _Piece:
    """Some rows and a run of keys, of which the parts `some` are not seen by all of them."""

    row: int
    rows: int
    key: int
    keys: int
    some: tuple[tuple[int, int], ...]
    first: bool

    @property
    def end(self) -> int:
        return self.key + self.keys


def _bands(visible: Visible) -> tuple[Band, ...]:
    q_at, k_at = visible.positions_of_queries(), visible.positions_of_keys()
    layout = block_layout(visible.pattern, q_at, k_at, ROWS, KEYS)
    least, most = layout.amin((0, 1)), layout.amax((0, 1))  # over heads: a band spans them all
    codes = torch.where(most == NONE, 0, torch.where(least == ALL, 2, 1)).tolist()
    visible = replace(visible.placed(), mask=None)
    found, pieces = [], []
    for band in _gathered(_pieces(codes, visible)):
        looked_at = _look(visible, band) if band.some else [band]
        found += [x for x in looked_at if isinstance(x, Band)]
        pieces += [x for x in looked_at if isinstance(x, _Piece)]
    found += _gathered(_joined(pieces))
    return tuple(sorted(found, key=lambda band: not band.first))


def _pieces(layout: list[list[int]], visible: Visible) -> Iterator[_Piece]:
    """A piece for each run of each block of rows."""
    for block, codes in enumerate(layout):
        row = block * ROWS
        rows = min(ROWS, visible.n_queries - row)
        for i, (start, stop) in enumerate(_runs(codes)):
            keys = min(stop * KEYS, visible.n_keys) - start * KEYS
            parts = _runs([NONE if code == ALL else code for code in codes[start:stop]])
            some = tuple((first * KEYS, min(behind * KEYS, keys)) for first, behind in parts)
            yield _Piece(row, rows, start * KEYS, keys, some, first=i == 0)


def _runs(codes: list[int]) -> Iterator[tuple[int, int]]:
    """Where blocks that hold any pair begin and end."""
    start = None
    for i, code in enumerate([*codes, NONE]):
        if code != NONE and start is None:
            start = i
        elif code == NONE and start is not None:
            yield start, i
            start = None


def _gathered(pieces: Iterable[_Piece]) -> list[Band]:
    """Pieces in the order of their rows, gathered to bands."""
    made: list[Band] = []
    growing: dict[tuple[object, ...], list[int]] = {}  # what a next piece must be like: the bands it may prolong
    for piece in pieces:
        like = (piece.rows, piece.keys, piece.some, piece.first)
        candidates = growing.get((piece.row, *like), [])
        at = next((at for at in candidates if _prolongs(piece, made[at])), None)
        if at is None:
            at = len(made)
            made.append(Band(piece.row, piece.rows, 1, piece.key, piece.keys, 0, piece.some, piece.first))
        else:
            candidates.remove(at)
            last = made[at]
            made[at] = replace(last, count=last.count + 1, step=(piece.key - last.key) // last.count)
        growing.setdefault((piece.row + piece.rows, *like), []).append(at)
    return [_whole(band) for band in made]


def _prolongs(piece: _Piece, band: Band) -> bool:
    """Does a piece below a band begin a step behind its last run? The second one says what a step is."""
    step = band.step if band.count > 1 else max(0, piece.key - band.key)
    return piece.key == band.key + band.count * step


def _whole(band: Band) -> Band:
    """Blocks whose rows all see the same keys are one block."""
    alike = band.step == 0 and not band.some
    return replace(band, rows=band.rows * band.count, count=1) if alike else band


def _look(visible: Visible, band: Band) -> list[Band | _Piece]:
    """A band whose blocks hold some pairs only, with what they hold if it is the same in all; else its pieces."""
    one = allowed(visible, band.part(0, 1), 1)
    if one.shape[0] > 1:
        return [band]  # heads see different pairs
    if _repeated(visible, band, one):
        rectangles = _rectangles(one[0, 0], band) if band.step == 0 else None
        return [replace(band, see=one)] if rectangles is None else [*rectangles]
    found: list[Band | _Piece] = []
    for i in range(band.count):
        part = band.part(i, i + 1)
        found += _rectangles(allowed(visible, part, 1)[0, 0], part) or [part]
    return [band] if all(isinstance(x, Band) for x in found) else found


def _repeated(visible: Visible, band: Band, one: Tensor) -> bool:
    """Do all blocks of a band hold the pairs that the first one does?"""
    step = max(1, _LOOKED_AT // (band.rows * band.keys))
    parts = (band.part(start, min(band.count, start + step)) for start in range(1, band.count, step))
    return all(bool((allowed(visible, part, 1) == one).all()) for part in parts)


def _rectangles(see: Tensor, band: Band) -> list[_Piece] | None:
    """Rows that see the same keys, all of a stretch, from what a block sees, (rows, keys); None if few rows do."""
    flags = see.to(torch.uint8)
    count, start = flags.sum(-1, dtype=torch.int64), flags.argmax(-1)
    stop = see.shape[-1] - flags.flip(-1).argmax(-1)
    stop = stop.where(count > 0, 0)
    if not torch.equal(count, stop - start):
        return None
    new = torch.ones_like(count, dtype=torch.bool)
    new[1:] = (start[1:] != start[:-1]) | (stop[1:] != stop[:-1])
    firsts = new.nonzero().squeeze(-1)
    if len(firsts) > band.rows // 4:
        return None
    ends = [*firsts[1:].tolist(), band.rows] * band.count
    found = []
    for block in range(band.count):
        part = band.part(block, block + 1)
        bounds = zip(firsts.tolist(), ends, start[firsts].tolist(), stop[firsts].tolist(), strict=False)
        for row, end, lo, hi in bounds:
            if hi:
                found.append(_Piece(part.row + row, end - row, part.key + lo, hi - lo, (), band.first))
    return found


def _joined(pieces: list[_Piece]) -> Iterator[_Piece]:
    """Rectangles that continue each other made one, and small ones made one with a mask, where that takes less time."""
    current: _Piece | None = None
    for piece in sorted(pieces, key=lambda piece: (not piece.first, piece.row)):
        joined = None if current is None else _together(current, piece)
        if joined is None and current is not None:
            yield current
        current = joined or piece
    if current is not None:
        yield current


def _together(one: _Piece, two: _Piece) -> _Piece | None:
    """Two rectangles of neighbouring rows as one, if that is cheaper; None: it is not."""
    if one.first != two.first or one.row + one.rows != two.row:
        return None
    if not one.some and (one.key, one.keys) == (two.key, two.keys):
        return replace(one, rows=one.rows + two.rows)
    key, end = min(one.key, two.key), max(one.end, two.end)
    rows = one.rows + two.rows
    if rows * (end - key) > one.rows * one.keys + two.rows * two.keys + _CALL:
        return None
    return _Piece(one.row, rows, key, end - key, ((0, end - key),), one.first)
