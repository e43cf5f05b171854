"""Dropout that is quick on a CPU, and whose draws can be repeated: by a part of a batch, by a layer that is recomputed.

PyTorch draws a number for each entry, one after the other, which is a good part of a small model's training. Here one
draw of 64 bits serves four entries.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clearhead.kernels.score import traced

_LEVELS = 1 << 16
_thread = threading.local()


@contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Within the block, this thread's dropout on a CPU draws from `generator` (None: torch's own)."""
    before, _thread.generator = drawn_from(), generator
    try:
        yield
    finally:
        _thread.generator = before


def drawn_from() -> torch.Generator | None:
    """The generator of this thread's dropout; None: torch's own."""
    return getattr(_thread, "generator", None)


class Dropout(nn.Dropout):
    """`nn.Dropout` whose probability is kept to 1/65,536 on a CPU.

    On other devices, under torch.compile and within functorch's transforms it is PyTorch's own.
    """

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if not self.training or not self.p or not x.numel():
            return x
        if x.device.type != "cpu" or traced():
            return super().forward(x)
        return x * self._mask(x)

    def _mask(self, x: Tensor) -> Tensor:
        """0 where an entry is dropped, and else what keeps the mean, in the shape of x."""
        dropped = round(self.p * _LEVELS)
        if dropped == _LEVELS:
            return torch.zeros_like(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=drawn_from())
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        return (bits >= dropped - _LEVELS // 2).to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))
