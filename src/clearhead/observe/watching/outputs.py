"""How much the tokens differ that a layer puts out: rank collapse shows there without any map, in O(n · d).

Shapes: B samples, N tokens, E width, S measured samples, R measured rows.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.observe.calls import Call
from clearhead.observe.heads import KEYS, rank_residual


@torch.no_grad()
def token_residual(call: Call, module: nn.Module, output: Any, samples: int, tokens: int) -> Tensor | None:
    """`rank_residual` of the measured samples, (S,), over their measured rows without padding.

    NaN for a sample of fewer than 8 such rows, which say little, or of zeros; None where the module's output is not of
    as many `samples` and `tokens` as the call's queries, or where it is unknown which rows see a key.
    """
    x, visible = _batch_first(module, output, samples, tokens), call.statistics.visible
    if x is None or visible is None or not x.numel():
        return None
    x = x if call.samples is None else x.index_select(0, call.samples.to(x.device))
    x = x if call.rows is None else x.index_select(1, (call.rows % tokens).to(x.device))
    if x.device.type == "cpu" and call.padding is None and x.shape[1] >= KEYS and int(visible.amin()) > 0:
        return rank_residual(x)  # the usual case; to ask a GPU would cost more than the operations that it saves
    real = (visible.reshape(len(x), -1, x.shape[1]) > 0).any(1)
    if call.padding is not None:
        real = real & ~call.padding.to(x.device)
    return rank_residual(x, real).masked_fill(real.sum(1) < KEYS, math.nan)


def _batch_first(module: nn.Module, output: Any, samples: int, tokens: int) -> Tensor | None:
    """The output, or the first of several, as (B, N, E); None where it is something else."""
    x = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(x, Tensor) or x.is_nested or not x.is_floating_point() or x.dim() not in (2, 3):
        return None
    x = x.detach()
    x = x[None] if x.dim() == 2 else x.transpose(0, 1) if getattr(module, "batch_first", True) is False else x
    return x if x.shape[:2] == (samples, tokens) else None
