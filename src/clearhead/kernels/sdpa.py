"""`sdpa`: PyTorch's fused attention, made to keep the laws.

Shapes: q (B, H, Nq, D), k (B, Hkv, Nk, D), v (B, Hkv, Nk, Dv), out (B, H, Nq, Dv).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from clearhead.kernels.score import Score, as_given
from clearhead.kernels.visible import Visible

SHORT = 256
"""Keys up to which the fused backward pass on the CPU is faster in float32 than in half precision: 6 times at 32
keys, 1.1 times at 256, slower from 512 on (torch 2.13.0, with AMX)."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Visible, score: Score, dropout: float = 0.0) -> Tensor:
    """The output alone. Its mask is dense where neither a flag nor the keys' padding says it all."""
    dtype = q.dtype
    if _slow_in_half(q, k, v):
        q, k, v = q.float(), k.float(), v.float()
    options: dict[str, Any] = {"scale": score.scale, "dropout_p": dropout, "enable_gqa": q.shape[1] != k.shape[1]}
    if visible.plainly_causal and score.bias is None:
        options["is_causal"] = True
    else:
        options["attn_mask"] = _mask(q, visible, score.bias)
    with as_given(q.device):
        return scaled_dot_product_attention(q, k, v, **options).to(dtype)


def _slow_in_half(q: Tensor, k: Tensor, v: Tensor) -> bool:
    half = q.dtype in (torch.bfloat16, torch.float16) and q.device.type == "cpu" and k.shape[2] <= SHORT
    return half and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)


def _mask(q: Tensor, visible: Visible, bias: Tensor | None) -> Tensor | None:
    """What the fused kernel adds to the logits: nothing, a row per sample, or n². Queries that are padding see what
    keys there are; their output is cleared afterwards, like their gradient."""
    see: Tensor | None
    if visible.full:
        see = None
        if visible.k_lengths is not None:
            see = (torch.arange(visible.n_keys, device=q.device) < visible.k_lengths[:, None])[:, None, None, :]
    else:
        see = visible.dense(q.shape[0], q.shape[1])
    if bias is None:
        return see
    bias = bias.to(q.dtype)
    return bias if see is None else bias.masked_fill(~see, -math.inf)
