"""A picture from some rows: a few drawn from each block of rows, whose weights are exact, keys added up in blocks.

Each row of a block is as likely to be drawn as any other, so means are unbiased; how much rows of a block differ tells
how far off they are (stratified sampling, Cochran 1977, chapter 5). What no drawn row shows is not seen, and not told
by the error either: of attention that few rows show, the exact picture alone tells.

Shapes: Nq queries, Nk keys; S blocks of rows, C blocks of keys; R drawn rows.
"""

import torch
from torch import Tensor

from clearhead.maps import AttentionMap
from clearhead.view.blocks import Picture, count, pairs, sizes, sums
from clearhead.view.rectangles import block_sums, logsumexps

PAIRS = 1 << 28
"""Weights that are computed for a picture, about; a core takes 2 s."""


class Sample:
    """Rows drawn from a map (1, 1, Nq, Nk), a few from each block of level `base`, at least two."""

    def __init__(self, A: AttentionMap, base: int, seed: int) -> None:
        _, _, self._n_queries, self._n_keys = A.full_shape
        self._base, self._size = base, sizes(self._n_queries, base)
        rows, self._block = self._drawn(max(2, PAIRS // max(1, self._n_queries * self._n_keys >> base)), seed)
        some = A.part(rows.to(A.device)[None])
        found = logsumexps(some.statistics(received=False))
        drawn, keys = slice(0, len(rows)), slice(0, self._n_keys)
        self._sums = block_sums(some, drawn, keys, found, row_level=0, key_level=base)  # (R, C)

    def _drawn(self, most: int, seed: int) -> tuple[Tensor, Tensor]:
        """At most so many rows of each block, and the blocks they are of, both (R,)."""
        draw = torch.Generator().manual_seed(seed)
        wanted = self._size.clamp(max=most)
        chosen = [
            torch.randperm(int(size), generator=draw)[: int(some)]
            for size, some in zip(self._size, wanted, strict=True)
        ]
        block = torch.arange(len(chosen)).repeat_interleave(wanted)
        return torch.cat(chosen) + (block << self._base), block

    def picture(self, level: int) -> Picture:
        """The whole map at a level not below `base`, with its error."""
        up = level - self._base
        x = sums(self._sums.double(), up)
        drawn = torch.bincount(self._block, minlength=len(self._size)).double()[:, None]
        mean = self._added(x) / drawn
        spread = self._added((x - mean[self._block]).square()) / (drawn - 1).clamp(min=1)
        size = self._size.double()[:, None]
        # of a block's sum: what is known of it in full has no error
        variance = size.square() * (1 - drawn / size) * spread / drawn
        held = pairs(self._n_queries, self._n_keys, level)
        values, error = sums((mean * size).mT, up).mT / held, sums(variance.mT, up).mT.sqrt() / held
        return Picture(level, slice(0, self._n_queries), slice(0, self._n_keys), values.float(), error.float())

    def _added(self, x: Tensor) -> Tensor:
        """The sums of x (R, C) over the rows drawn from each block, (S, C)."""
        return x.new_zeros(count(self._n_queries, self._base), x.shape[1]).index_add_(0, self._block, x)
