"""The bias of a tile, where it is given for distances: what ALiBi, T5's buckets and learned relative positions add.

Where positions rise by one from token to token, all pairs of a diagonal are as far apart, and a tile of r rows and K
keys has r + K - 1 numbers, beginning with the last row's first key. Elsewhere each pair is looked up.

Shapes: B samples, H heads; a tile (b, h, r, K), or 1 where it broadcasts.
"""

from dataclasses import replace

import torch
from torch import Tensor

from clearhead.kernels.score import ByDistance, Score, traced
from clearhead.kernels.tiles import Tile
from clearhead.kernels.visible import Visible, cut


def bias_of(tile: Tile, score: Score, visible: Visible) -> Tensor | None:
    """What a score adds to the products of a tile, (b, h, r, K) by broadcasting."""
    if not isinstance(score.bias, ByDistance):
        return None if score.bias is None else tile.of(score.bias)
    there = distances(tile, visible)
    found = within(tile, score.bias).at(there)
    if there.dim() == 4:
        return found
    return found.unfold(-1, tile.keys.stop - tile.keys.start, 1).flip(-2)


def distances(tile: Tile, visible: Visible, *, by_diagonal: bool = True) -> Tensor:
    """The distances of a tile: of its diagonals, (b, h, r + K - 1), or else of its pairs, (b, h, r, K)."""
    at = visible.positions_of_queries(), visible.positions_of_keys()
    q, k = (cut(x, tile.b, tile.h)[..., part] for x, part in zip(at, (tile.rows, tile.keys), strict=True))
    found = _along(visible, q, k) if by_diagonal else None
    return k[..., None, :] - q[..., :, None] if found is None else found


def diagonals(visible: Visible) -> Tensor | None:
    """The distances of all diagonals of a call, (B or 1, H or 1, Nq + Nk - 1); None where these hold several."""
    return _along(visible, visible.positions_of_queries(), visible.positions_of_keys())


def _along(visible: Visible, q: Tensor, k: Tensor) -> Tensor | None:
    given = visible.q_positions is not None or visible.k_positions is not None
    if traced() or not (q.shape[-1] and k.shape[-1]) or (given and not steady(q, k)):
        return None
    return k[..., :1] - q[..., -1:] + torch.arange(q.shape[-1] + k.shape[-1] - 1, device=q.device)


def steady(*positions: Tensor) -> bool:
    """Do these rise by one from token to token?"""
    return all(bool((x.diff(dim=-1) == 1).all()) for x in positions)


def within(tile: Tile, bias: ByDistance) -> ByDistance:
    """The bias of a tile's samples and heads."""
    return replace(bias, table=cut(bias.table, tile.b, tile.h))


def give_back(tile: Tile, bias: ByDistance, visible: Visible, grad: Tensor, table: Tensor) -> None:
    """Add to the gradient `table` what comes from the one in a tile's logits, (b, h, r, K)."""
    part = cut(table, tile.b, tile.h)
    there = distances(tile, visible)
    if there.dim() == 3:
        grad = _diagonal_sums(grad)
    part += within(tile, bias).gradient(there, grad).sum_to_size(part.shape)


def _diagonal_sums(x: Tensor) -> Tensor:
    """The sums of x (…, r, K) along its diagonals, from the last row's first key, (…, r + K - 1)."""
    rows, keys = x.shape[-2:]
    # each row, the last one first, moves one further to the right
    moved = torch.nn.functional.pad(x.flip(-2), (0, rows)).flatten(-2)[..., :-rows]
    return moved.unflatten(-1, (rows, rows + keys - 1)).sum(-2)
