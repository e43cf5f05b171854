"""Blocks of a matrix: level z has cells of 2^z × 2^z pairs, so that each cell is four of the level below."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE = 256
"""Cells along a side of a tile."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Mean weights of blocks of pairs, those that nobody sees counted with weight 0.

    Attributes:
        level: a cell is a block of 2^level rows and as many keys, or what there is of it at the end.
        rows, keys: which of them it shows.
        values: (r, c) float32.
        error: the standard error of each value where rows were sampled, (r, c); None: values are exact.
    """

    level: int
    rows: slice
    keys: slice
    values: Tensor
    error: Tensor | None = None

    @property
    def exact(self) -> bool:
        return self.error is None

    @property
    def overall_error(self) -> float:
        """How far it is expected to be from the exact picture, √Σ error² / √Σ values²; 0 where it is exact."""
        if self.error is None:
            return 0.0
        size = float(self.values.double().square().sum())
        return (float(self.error.double().square().sum()) / size) ** 0.5 if size else 0.0


def count(n: int, level: int) -> int:
    """How many blocks n rows make."""
    return -(-n >> level)


def sizes(n: int, level: int) -> Tensor:
    """How many of n rows each block holds, (blocks,): the last may hold fewer."""
    starts = torch.arange(count(n, level)) << level
    return (starts + (1 << level)).clamp(max=n) - starts


def sums(x: Tensor, level: int) -> Tensor:
    """The sums of x (…, n) over blocks of its last axis, (…, blocks)."""
    blocks = count(x.shape[-1], level)
    filled = pad(x, (0, (blocks << level) - x.shape[-1]))
    return filled.unflatten(-1, (blocks, 1 << level)).sum(-1)


def pairs(rows: int, keys: int, level: int) -> Tensor:
    """How many pairs each block of `rows` × `keys` pairs holds, (r, c)."""
    return sizes(rows, level)[:, None] * sizes(keys, level)


def means(x: Tensor, level: int) -> Tensor:
    """The means of x (n,) over blocks, of those that are no NaN; NaN where all are."""
    known = ~x.isnan()
    return sums(x.masked_fill(~known, 0).double(), level).div(sums(known.double(), level)).float()
