"""Tokens that take no part in a call, where anything may stand, NaN included.

They are padding, what the mask hides from all (a key that no query sees, a query that sees none), keys whose bias is
-inf for all queries, and what documents leave out. Shapes: B samples, H heads, Hkv key heads, N tokens; a size of 1
broadcasts.
"""

import math

import torch
from torch import Tensor

from clearhead.kernels.kept import Kept
from clearhead.kernels.score import Score
from clearhead.kernels.shared import numbers, shares
from clearhead.kernels.visible import Visible

Sides = tuple[Tensor | None, Tensor | None]
"""Of queries and of keys, which are meant; None: none."""


def absent(see: Visible, score: Score, k: Tensor) -> Sides:
    """Which queries (B, H, N, 1) and which keys of `k` (B, Hkv, N, 1) take no part; None: all do."""
    queries, keys = see.padding()
    for left_out in (_masked(see, k), _biased(score, k), _left_out(see, k)):
        if left_out is not None:
            queries, keys = (_either(x, more) for x, more in zip((queries, keys), left_out, strict=True))
    return queries, keys


def _masked(see: Visible, k: Tensor) -> Sides | None:
    """What the mask hides from all."""
    if see.mask is None or not see.mask.numel():
        return None
    seen = see.mask.view(torch.uint8) if shares(see.device) else see.mask  # the greatest byte is found 30 times as fast
    return _hidden(seen.amax(-1)), _hidden(_of_key_heads(seen.amax(-2), k.shape[1]))


def _biased(score: Score, k: Tensor) -> Sides | None:
    """The keys that a bias hides which is the same for all queries, as padding is often given."""
    bias = score.bias
    if not isinstance(bias, Tensor) or bias.shape[2] > 1 or not bias.numel():
        return None
    return None, _hidden(_of_key_heads(bias.detach()[:, :, 0] != -math.inf, k.shape[1]))


def _left_out(see: Visible, k: Tensor) -> Sides | None:
    """What the pattern leaves out, by the tensors that it holds."""
    if not (held := see.pattern.tensors()):
        return None
    if not shares(see.device):
        return _positions_left_out(see, k)
    given = (*held, see.q_positions, see.k_positions, see.q_lengths, see.k_lengths)
    what = (see.pattern.outline(), see.n_queries, see.n_keys, k.shape[0], k.shape[1])
    with torch.inference_mode(False):  # for any later call
        return _found.of(what, given, lambda: _positions_left_out(see, k))


_found: Kept[Sides | None] = Kept()


def _positions_left_out(see: Visible, k: Tensor) -> Sides | None:
    b = numbers(k.shape[0], see.device).view(-1, 1, 1)
    blind = see.pattern.absent(b, see.positions_of_queries())
    hidden = see.pattern.absent(b, see.positions_of_keys())
    if blind is None or hidden is None:
        return None
    return _hidden(~blind), _hidden(_of_key_heads(~hidden, k.shape[1]))


def _of_key_heads(seen: Tensor, kv_heads: int) -> Tensor:
    """Which keys (B, H, N) are seen by a query head that they serve, (B, Hkv, N)."""
    heads = seen.shape[1]
    return seen if heads in (1, kv_heads) else seen.unflatten(1, (kv_heads, heads // kv_heads)).amax(2)


def _hidden(seen: Tensor) -> Tensor | None:
    """What is not seen (B, H, N), with a last axis; None if all is, where that can be read without waiting."""
    return None if shares(seen.device) and seen.all() else (seen == 0).unsqueeze(-1)


def _either(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return one if two is None else two if one is None else one | two


def cleaned(x: Tensor, where: Tensor | None) -> Tensor:
    """`x` (B, H, N, D) with zeros where tokens take no part."""
    return x if where is None else x.masked_fill(where, 0)
