"""Tokens that take no part in a call, where anything may stand, NaN included.

They are padding, what the mask hides from all (a key that no query sees, a query that sees none), and what documents
leave out. Shapes: B samples, H heads, Hkv key heads, N tokens; a size of 1 broadcasts.
"""

import torch
from torch import Tensor

from clearhead.kernels.shared import numbers, shares
from clearhead.kernels.visible import Visible


def absent(see: Visible, k: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Which queries (B, H, N, 1) and which keys of `k` (B, Hkv, N, 1) take no part; None: all do."""
    queries, keys = see.padding()
    for left_out in (_masked(see, k), _left_out(see, k)):
        if left_out is not None:
            queries, keys = (_either(x, more) for x, more in zip((queries, keys), left_out, strict=True))
    return queries, keys


def _masked(see: Visible, k: Tensor) -> tuple[Tensor | None, Tensor | None] | None:
    """What the mask hides from all."""
    if see.mask is None or not see.mask.numel():
        return None
    seen = see.mask.view(torch.uint8) if shares(see.device) else see.mask  # the greatest byte is found 30 times as fast
    blind, hidden = seen.amax(-1) == 0, seen.amax(-2) == 0
    return _if_any(blind), _if_any(_of_key_heads(hidden, k.shape[1]))


def _left_out(see: Visible, k: Tensor) -> tuple[Tensor | None, Tensor | None] | None:
    """What the pattern leaves out."""
    b = numbers(k.shape[0], see.device).view(-1, 1, 1)
    blind = see.pattern.absent(b, see.positions_of_queries())
    hidden = see.pattern.absent(b, see.positions_of_keys())
    if blind is None or hidden is None:
        return None
    return _if_any(blind), _if_any(_of_key_heads(hidden, k.shape[1]))


def _of_key_heads(hidden: Tensor, kv_heads: int) -> Tensor:
    """Keys (B, H, N) that are hidden from all query heads they serve, (B, Hkv, N)."""
    heads = hidden.shape[1]
    return hidden if heads in (1, kv_heads) else hidden.unflatten(1, (kv_heads, heads // kv_heads)).all(2)


def _if_any(x: Tensor) -> Tensor | None:
    """`x` (B, H, N) with a last axis; None if none is, where that can be read without waiting."""
    return None if shares(x.device) and not x.any() else x.unsqueeze(-1)


def _either(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return one if two is None else two if one is None else one | two


def cleaned(x: Tensor, where: Tensor | None) -> Tensor:
    """`x` (B, H, N, D) with zeros where tokens take no part."""
    return x if where is None else x.masked_fill(where, 0)
