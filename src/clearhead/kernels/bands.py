"""Bands: parts of an attention matrix that one call of a fused operator computes, as strided views.

A band is some neighbouring blocks of queries that each see a run of keys of one length, every run beginning so many
keys behind the last: a window is a band of overlapping runs, which are one view of the keys.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clearhead.kernels.visible import Visible


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
