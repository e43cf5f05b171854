"""Tensors that calls share, since to make them anew takes longer than a small call's attention. Never written to."""

from functools import lru_cache

import torch
from torch import Tensor

from clearhead.kernels.score import traced

SHARED = 1 << 12
"""Numbers that calls share, at most: of more, the operation that makes them is nothing beside the attention."""


def shares(device: torch.device) -> bool:
    """May calls share tensors: keep one for later calls, and read what earlier ones left?

    Not where the compiler, a transform or a dispatch mode (fake tensors) looks on, which would keep what stands for
    others; and on the CPU alone, since elsewhere one stream may read before another has written.
    """
    return device.type == "cpu" and not (traced() or torch._C._len_torch_dispatch_stack())


def numbers(stop: int, device: torch.device, start: int = 0) -> Tensor:
    """start … stop − 1, (1, 1, N)."""
    if not start and stop <= SHARED and shares(device):
        return _numbers(stop)
    return torch.arange(start, stop, device=device)[None, None]


@lru_cache(maxsize=64)
def _numbers(stop: int) -> Tensor:
    with torch.inference_mode(False):  # for any later call
        return torch.arange(stop, device="cpu")[None, None]
