"""From a block layout to runs of keys: what `blocks` calls fused attention on.

A band is some neighbouring blocks of queries that each see a run of keys of one length, every run beginning so many
keys behind the last: a window is a band of overlapping runs, which are one strided view of the keys. A block that sees
several runs lies in several bands.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from clearhead.kernels.visible import Visible
from clearhead.patterns import ALL, NONE, block_layout

ROWS = 128
"""Queries in a block. Fused attention takes 32 at once up to 191 and reads each key less often the more there are; but
more rows of a window see more keys that only some of them see."""
KEYS = 64


@dataclass(frozen=True, eq=False)
class Band:
    """`count` blocks of `rows` queries, from query `row` on; the i-th sees a run of `keys` from `key + i · step` on.

    `some` are the parts of a run of which a row may see some keys only. `first` means that no earlier band holds these
    rows. `see` are the visible pairs, (H or 1, 1, rows, keys), where they are known and the same in all blocks.
    """

    row: int
    rows: int
    count: int
    key: int
    keys: int
    step: int
    some: tuple[tuple[int, int], ...]
    first: bool
    see: Tensor | None = None

    @property
    def pairs(self) -> int:
        return self.count * self.rows * self.keys

    def part(self, start: int, stop: int) -> "Band":
        """The blocks from `start` to `stop` alone."""
        row, key = self.row + start * self.rows, self.key + start * self.step
        return replace(self, row=row, key=key, count=stop - start)

    def queries(self, x: Tensor) -> Tensor:
        """The queries of `x` (…, Nq, D), as (count, …, rows, D); a view."""
        return x.narrow(-2, self.row, self.count * self.rows).unflatten(-2, (self.count, self.rows)).movedim(-3, 0)

    def runs(self, x: Tensor) -> Tensor:
        """The runs of keys of `x` (…, Nk, D), as (count, …, keys, D); a view in which they overlap."""
        stride = x.stride(-2)
        shape, strides = (self.count, *x.shape[:-2], self.keys, x.shape[-1]), (self.step * stride, *x.stride())
        return x.as_strided(shape, strides, x.storage_offset() + self.key * stride)

    def add_runs(self, x: Tensor, parts: Tensor) -> None:
        """Add what stands for runs of keys, (count, …, keys, D), to `x` (…, Nk, D), where they overlap."""
        if self.count == 1 or not self.step:
            x.narrow(-2, self.key, self.keys).add_(parts[0] if self.count == 1 else parts.sum(0))
            return
        for start in range(0, self.keys, self.step):  # stretches of a step, which do not
            keys = min(self.step, self.keys - start)
            replace(self, key=self.key + start, keys=keys).runs(x).add_(parts[..., start : start + keys, :])

    def pairs_of(self, x: Tensor) -> Tensor:
        """The pairs of `x`, (H, Nq, Nk) by broadcasting, as (H, count, rows, keys) by broadcasting; a view."""
        shape, strides, offset = [x.shape[0], 1, 1, 1], [x.stride(0), 0, 0, 0], x.storage_offset()
        if x.shape[1] > 1:
            shape[1:3], strides[2] = (self.count, self.rows), x.stride(1)
            strides[1], offset = self.rows * x.stride(1), offset + self.row * x.stride(1)
        if x.shape[2] > 1:
            shape[1], shape[3], strides[3] = self.count, self.keys, x.stride(2)
            strides[1], offset = strides[1] + self.step * x.stride(2), offset + self.key * x.stride(2)
        return x.as_strided(shape, strides, offset)


def bands(visible: Visible) -> tuple[Band, ...]:
    """The bands of a call of one sample, or of samples that all see the same, without padding."""
    pattern = visible.pattern
    if visible.q_positions is None and visible.k_positions is None and not pattern.tensors():
        return _bands_by_default(pattern, visible.n_queries, visible.n_keys)
    return tuple(_bands(visible))


@lru_cache(maxsize=64)
def _bands_by_default(pattern: Hashable, n_queries: int, n_keys: int) -> tuple[Band, ...]:
    """The bands of a pattern that holds no tensors, at the usual positions: these are worth keeping."""
    visible = Visible(pattern, n_queries, n_keys, torch.device("cpu"))  # type: ignore[arg-type]
    return tuple(replace(band, see=_repeated(visible, band)) for band in _bands(visible))


def _bands(visible: Visible) -> Iterator[Band]:
    q_at, k_at = visible.positions_of_queries(), visible.positions_of_keys()
    layout = block_layout(visible.pattern, q_at, k_at, ROWS, KEYS)
    least, most = layout.amin((0, 1)), layout.amax((0, 1))  # over heads: a band spans them all
    yield from _gathered(torch.where(most == NONE, 0, torch.where(least == ALL, 2, 1)).tolist(), visible)


def _gathered(layout: list[list[int]], visible: Visible) -> Iterator[Band]:
    """Blocks gathered to bands, in the order of their first rows."""
    made: list[Band] = []
    growing: dict[tuple[object, ...], list[int]] = {}  # what runs look like: the bands that hold the last block
    for block, codes in enumerate(layout):
        grown: dict[tuple[object, ...], list[int]] = {}
        row = block * ROWS
        rows = min(ROWS, visible.n_queries - row)
        for i, (start, stop) in enumerate(_runs(codes)):
            key = start * KEYS
            keys = min(stop * KEYS, visible.n_keys) - key
            some = _parts(codes[start:stop], keys)
            like = (rows, keys, some, i == 0)
            for at in growing.get(like, ()):
                last = made[at]
                step = key - last.key if last.count == 1 else last.step
                if step >= 0 and key == last.key + last.count * step:
                    made[at] = replace(last, count=last.count + 1, step=step)
                    break
            else:
                at = len(made)
                made.append(Band(row, rows, 1, key, keys, 0, some, first=i == 0))
            grown.setdefault(like, []).append(at)
        growing = grown
    for band in made:
        whole = band.step == 0 and not band.some  # the same keys for all rows: one block
        yield replace(band, rows=band.rows * band.count, count=1) if whole else band


def _runs(codes: list[int]) -> Iterator[tuple[int, int]]:
    """Where blocks that hold any pair begin and end."""
    start = None
    for i, code in enumerate([*codes, NONE]):
        if code != NONE and start is None:
            start = i
        elif code == NONE and start is not None:
            yield start, i
            start = None


def _parts(codes: list[int], keys: int) -> tuple[tuple[int, int], ...]:
    """The parts of a run of `keys` that hold some pairs only."""
    bounds = _runs([NONE if code == ALL else code for code in codes])
    return tuple((start * KEYS, min(stop * KEYS, keys)) for start, stop in bounds)


_LOOKED_AT = 1 << 19
"""Pairs that are looked at in one go."""


def _repeated(visible: Visible, band: Band) -> Tensor | None:
    """The visible pairs of one block of the band, if all its blocks have the same."""
    if not band.some:
        return None
    step = max(1, _LOOKED_AT // (band.rows * band.keys))
    one = allowed(visible, band.part(0, 1), 1)
    for start in range(0, band.count, step):
        these = allowed(visible, band.part(start, min(band.count, start + step)), 1)
        if not torch.equal(these, one.expand_as(these)):
            return None
    return one


def allowed(visible: Visible, band: Band, heads: int) -> Tensor:
    """The pairs of a band that pattern and mask let see, (H or 1, count or 1, rows, keys)."""
    if band.see is not None and visible.mask is None:
        return band.see
    q_at, k_at = visible.positions_of_queries()[0, :, :, None], visible.positions_of_keys()[0, :, None, :]
    q, k = band.pairs_of(q_at), band.pairs_of(k_at)
    sample = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    head = torch.arange(heads)[:, None, None, None]
    shape = (1, band.count, band.rows, band.keys)
    see = torch.ones(shape, dtype=torch.bool)
    for start, stop in band.some:
        part = visible.pattern.allows(sample, head, q, k[..., start:stop])
        if part.shape[0] > see.shape[0]:
            see = see.expand(part.shape[0], *shape[1:]).clone()
        see[..., start:stop] = part
    return see if visible.mask is None else see & band.pairs_of(visible.mask[0])
