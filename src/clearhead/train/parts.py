"""A batch computed in parts side by side, each in a thread with cores of its own.

The operations of a small model are too short to be shared between cores: handing each one out costs more than it
saves, and much more where the cores are not all one's own. Whole forward and backward passes of half the batch are long
enough. PyTorch lets go of Python's lock while it computes, so threads will do, and the sum of the parts' gradients is
taken in a fixed order, and each part has a generator of its own for dropout, so that a run can be repeated bit for bit.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clearhead.data import Batch
from clearhead.nn.dropout import drawing_from
from clearhead.train.config import Config

_MOST = 4


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decide(config: Config, device: torch.device) -> int:
    """Into how many parts a batch is cut: 1 on a GPU, with several processes, and where attention drops weights: those
    are drawn from torch's generator, by threads in no fixed order."""
    return (
        1 if config.model.attention_dropout or device.type != "cpu" or config.train.devices > 1 else min(_MOST, cores())
    )


def _threads(count: int) -> int:
    """Threads within each operation, where `count` parts share the cores."""
    return torch.get_num_threads() if count == 1 else max(1, cores() // count)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block, torch's operations take a part's share of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(_threads(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Parts:
    """Gradients of the parts of a batch but the first, which is the caller's own to compute meanwhile."""

    def __init__(self, count: int, model: nn.Module, loss: Callable[[Batch], Tensor], half: bool) -> None:
        self.count, self.loss, self.half = count, loss, half
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._running: list[Future[tuple[float, Sequence[Tensor | None]]]] = []
        if count > 1:
            self._pool = ThreadPoolExecutor(count - 1, "part", torch.set_num_threads, (_threads(count),))

    def start(self, batch: Batch) -> Batch:
        """Begin with all parts but the first, and return that."""
        first, *others = batch.split(self.count)
        seeds = torch.randint(2**62, (len(others),)).tolist() if others else []
        self._running = [
            self._pool.submit(self._gradients, part, seed) for part, seed in zip(others, seeds, strict=True)
        ]
        return first

    def add(self) -> float:
        """Wait for the parts and add their gradients to the parameters'; returns the sum of their losses."""
        total = 0.0
        for future in self._running:
            loss, gradients = future.result()
            total += loss
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self._running = []
        return total

    def _gradients(self, part: Batch, seed: int) -> tuple[float, Sequence[Tensor | None]]:
        # autocast is a thread's own; its cache of cast weights is not, and each weight is used once
        own = torch.Generator().manual_seed(seed)
        with drawing_from(own), torch.autocast("cpu", torch.bfloat16, enabled=self.half, cache_enabled=False):
            loss = self.loss(part)
        return float(loss.detach()), torch.autograd.grad(loss, self.parameters, allow_unused=True)
