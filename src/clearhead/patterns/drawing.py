"""Patterns drawn in text, one cell for a pair or for a square of pairs."""

from typing import Any

import torch
from torch import Tensor

_CELLS = "·▒■"
"""Of none, some and all pairs: the three answers of `cover`, in order."""
_LOOKED_AT = 2048
"""Positions up to which every pair is looked at; beyond, the cover is asked, which says SOME where it has no proof."""


def drawn(pattern: Any, n: int, width: int, sample: int) -> str:
    """The first `n` positions of a pattern, in at most `width` rows and columns."""
    side = -(-n // width)
    answers = _by_pairs(pattern, n, side, sample) if n <= _LOOKED_AT else _by_cover(pattern, n, side, sample)
    rows = [" ".join(_CELLS[cell] for cell in row) for row in answers.tolist()]
    return "\n".join(
        rows if side == 1 else [*rows, f"a cell is {side} × {side} positions: ■ all pairs, ▒ some, · none"]
    )


def _by_pairs(pattern: Any, n: int, side: int, sample: int) -> Tensor:
    """NONE, SOME or ALL of each cell (cells, cells), cell row by cell row, so that n² pairs are never held."""
    device = _device(pattern)
    at, zero = torch.arange(n, device=device), torch.zeros((), dtype=torch.int64, device=device)
    cells, columns = -(-n // side), at // side
    sizes = torch.bincount(columns)
    rows = []
    for row in range(cells):
        q = at[row * side : (row + 1) * side]
        seen = pattern.allows(zero + sample, zero, q[:, None], at[None, :]).expand(len(q), n)
        allowed = torch.zeros_like(sizes).index_add_(0, columns, seen.sum(0))
        rows.append((allowed > 0).long() + (allowed == sizes * len(q)).long())
    return torch.stack(rows)


def _by_cover(pattern: Any, n: int, side: int, sample: int) -> Tensor:
    device = _device(pattern)
    lo, zero = torch.arange(0, n, side, device=device), torch.zeros((), dtype=torch.int64, device=device)
    hi = (lo + side).clamp(max=n)
    answers = pattern.cover(zero + sample, zero, lo[:, None], hi[:, None], lo[None, :], hi[None, :])
    return answers.expand(len(lo), len(lo)).long()


def _device(pattern: Any) -> torch.device:
    return next((x.device for x in pattern.tensors()), torch.device("cpu"))
