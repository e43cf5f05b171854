"""From the tensors that someone's attention was called with to the attention map that it is.

Shapes: q (B, H, Nq, D), k (B, Hkv, Nk, D), masks and biases broadcastable to (B, H, Nq, Nk).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from clearhead.kernels import Score, Visible
from clearhead.maps import AttentionMap, SoftmaxMap
from clearhead.patterns import causal, everything

Line = Literal["beginnings", "ends"]
"""What lines up where there are fewer queries than keys: PyTorch's `is_causal` means the beginnings."""


def attention_map(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    causal_from: Line | None = None,
    q_positions: Tensor | None = None,
    cross: bool = False,
) -> SoftmaxMap:
    """softmax(softcap(q · k · scale) + bias) over the keys that `mask` (True = may attend) and causality leave.

    Distances are known where `q_positions` say in which key's slot each query stands, and else in self-attention of as
    many queries as keys, or of a causal call.
    """
    n_queries, n_keys = q.shape[2], k.shape[2]
    at_keys = None
    if causal_from == "beginnings" and n_queries != n_keys:
        q_positions = torch.arange(n_queries, device=q.device)[None, None]
    if q_positions is not None:
        at_keys = torch.arange(n_keys, device=q.device)[None, None]
    pattern = everything() if causal_from is None else causal()
    see = Visible(pattern, n_queries, n_keys, q.device, mask, None, None, q_positions, at_keys)
    score = Score(1 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale, softcap, bias)
    known = q_positions is not None or n_queries == n_keys or causal_from is not None
    return SoftmaxMap(q, k, see, score, 4, distance=known and not cross, sinks=sinks)


def logits_map(logits: Tensor, cross: bool = False) -> SoftmaxMap:
    """The map whose logits (B, H, Nq, Nk) somebody computed: queries without width, and the logits as a bias."""
    b, h, n_queries, n_keys = logits.shape
    if logits.numel() and bool(logits.detach().amin() <= _hidden(logits.dtype)):
        logits = logits.masked_fill(logits <= _hidden(logits.dtype), -math.inf)
    q, k = logits.new_zeros(b, h, n_queries, 1), logits.new_zeros(b, h, n_keys, 1)
    return attention_map(q, k, scale=1.0, bias=logits, cross=cross)


def read_mask(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """A mask as others give it, boolean (True = may attend) or added to the logits, as (boolean mask, bias).

    Values at or near the lowest number of their type mean "hidden", as -inf does: whoever adds them means a mask.
    """
    if mask is None:
        return None, None
    mask = _unexpanded(four(mask))
    if not mask.is_floating_point():
        return mask.bool(), None
    shown = mask > _hidden(mask.dtype)
    if bool(((mask == 0) | ~shown).all()):
        return (None if bool(shown.all()) else shown), None
    return (None if bool(shown.all()) else shown), mask.masked_fill(~shown, 0)


def last_visible(mask: Tensor) -> Tensor:
    """The slot of the last key that each query may see, (B, 1, Nq): its own, in causal attention."""
    seen = mask.any(1, keepdim=True)
    n_keys = seen.shape[-1]
    at = torch.arange(n_keys, device=mask.device)
    return at.expand(seen.shape).masked_fill(~seen, 0).amax(-1)


def padding(A: SoftmaxMap, cross: bool) -> Tensor | None:
    """Which queries are padding, (B or 1, Nq): in self-attention those whose own key nobody sees. None: none is."""
    see = A.visible
    if cross or see.n_queries != see.n_keys:
        return None
    if see.k_lengths is not None and see.q_lengths is None:  # keys alone: the queries have rows
        hidden = torch.arange(see.n_keys, device=see.device) >= see.k_lengths[:, None]
    elif see.mask is not None and see.mask.shape[-1] == see.n_keys:
        hidden = ~see.mask.any(2).any(1)
    else:
        return None
    return hidden if bool(hidden.any()) else None


def received_from(A: AttentionMap, real: Tensor) -> Tensor:
    """What each key received from the queries that are `real` (B or 1, Nq) alone, (B, H, Nk)."""
    b, h, n_queries, n_keys = A.full_shape
    each = real.expand(b, n_queries)[:, None, :, None].expand(b, h, n_queries, 1)
    given = each.to(torch.promote_types(A.dtype, torch.float32)).reshape(*A.shape[:-1], 1)
    return (A.T @ given).reshape(b, h, n_keys)


def four(x: Tensor) -> Tensor:
    """`x` with four axes; those before the last three are one."""
    if x.dim() == 4:
        return x
    return x.reshape((1,) * (4 - x.dim()) + x.shape) if x.dim() < 4 else x.flatten(0, x.dim() - 4)


def _unexpanded(x: Tensor) -> Tensor:
    """`x` with size 1 where it repeats itself without memory of its own: four axes, of which the last stays."""
    for axis in range(3):
        if x.shape[axis] > 1 and x.stride(axis) == 0:
            x = x.narrow(axis, 0, 1)
    return x


def _hidden(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).min / 2
