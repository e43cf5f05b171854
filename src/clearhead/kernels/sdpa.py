"""`sdpa`: PyTorch's fused attention, made to keep the laws.

Shapes: q (B, H, Nq, D), k (B, Hkv, Nk, D), v (B, Hkv, Nk, Dv), out (B, H, Nq, Dv).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from clearhead.kernels.absent import absent, cleaned
from clearhead.kernels.distances import bias_of
from clearhead.kernels.score import Score, as_given
from clearhead.kernels.tiles import Cuts, whole
from clearhead.kernels.visible import Visible

SHORT = 256
"""Keys up to which the fused backward pass on the CPU is faster in float32 than in half precision: 6 times at 32
keys, 1.1 times at 256, slower from 512 on (torch 2.13.0, with AMX)."""


def cuts() -> Cuts:
    """Where it changes course: few keys in half precision are computed in float32."""
    return Cuts((), (SHORT,), ())


def sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Visible, score: Score, dropout: float = 0.0) -> Tensor:
    """The output alone. What takes no part may hold anything: it is cut off where no sample has tokens, else set to
    zero."""
    if visible.unpadded and visible.mask is None and score.bias is None and not visible.pattern.tensors():
        return _attended(q, k, v, visible, score, dropout)
    see, n_queries = visible.shortened() if score.bias is None else visible, visible.n_queries
    q, k, v = _first(q, see.n_queries), _first(k, see.n_keys), _first(v, see.n_keys)
    queries, keys = absent(see, score, k)
    k, v = cleaned(k, keys), cleaned(v, keys)
    if q.requires_grad or k.requires_grad or v.requires_grad:  # what stands there would come back as a gradient
        q = cleaned(q, queries)
    out = cleaned(_attended(q, k, v, see, score, dropout), queries)
    return pad(out, (0, 0, 0, n_queries - see.n_queries)) if see.n_queries < n_queries else out


def _first(x: Tensor, n: int) -> Tensor:
    """The first n tokens of x (B, H, N, D)."""
    return x if x.shape[2] == n else x.narrow(2, 0, n)


def _attended(q: Tensor, k: Tensor, v: Tensor, visible: Visible, score: Score, dropout: float) -> Tensor:
    """Of queries, keys and values whose padding is harmless. The mask is dense where neither a flag nor the keys'
    padding says it all."""
    if slow := _slow_in_half(q, k, v):
        dtype, q, k, v = q.dtype, q.float(), k.float(), v.float()
    causal = score.bias is None and visible.plainly_causal
    mask = None if causal else _mask(q, k, visible, score)
    options: dict[str, Any] = {
        "scale": score.scale,
        "enable_gqa": bool(q.shape[1] != k.shape[1]),
    }  # no Tensor, as a trace has it
    with as_given(q.device):
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, **options)
    return out.to(dtype) if slow else out


def _slow_in_half(q: Tensor, k: Tensor, v: Tensor) -> bool:
    half = q.dtype in (torch.bfloat16, torch.float16) and q.device.type == "cpu" and k.shape[2] <= SHORT
    return half and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)


def _mask(q: Tensor, k: Tensor, visible: Visible, score: Score) -> Tensor | None:
    """What the fused kernel adds to the logits: nothing, a row per sample, or n². Queries that are padding see what
    keys there are; their output is cleared afterwards, like their gradient."""
    see = visible.real_keys() if visible.full else visible.dense(q.shape[0], q.shape[1])
    if score.bias is None:
        return see
    tile = whole(q.shape[0], k.shape[1], q.shape[1], visible.n_queries, visible.n_keys)
    if (bias := bias_of(tile, score, visible)) is None:
        return see
    bias = bias.to(q.dtype)
    return bias if see is None else bias.masked_fill(~see, -math.inf)
