"""Which precision is faster, here and for this model: measured, since neither is everywhere."""

import copy
import time
from collections.abc import Sequence
from itertools import islice
from typing import Literal

import torch

from clearhead.data import Batch, Batches
from clearhead.nn import Seq2Seq
from clearhead.train.task import summed_loss

NAMES = ("float32", "bfloat16")


def lightning(name: str) -> Literal["32-true", "bf16-mixed"]:
    """What Lightning calls a precision; parameters and optimizer stay in float32 in both."""
    return "bf16-mixed" if name == "bfloat16" else "32-true"


def measure(module: Seq2Seq, batches: Batches, rounds: int = 3) -> dict[str, float]:
    """Tokens a second of forward and backward passes in each precision; the best of some rounds, taken in turn.

    Works on a copy of the module, uses up some of the batches, and leaves torch's random numbers as they were.
    """
    device = next(module.parameters()).device
    module, some = copy.deepcopy(module).train(), list(islice(batches, 2))
    speeds = dict.fromkeys(NAMES, 0.0)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(rounds):
            for name in NAMES:
                speeds[name] = max(speeds[name], _speed(module, some, name, device))
    return speeds


def _speed(module: Seq2Seq, batches: Sequence[Batch], precision: str, device: torch.device) -> float:
    start = time.perf_counter()
    for batch in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = summed_loss(module, batch.to(device), 0.1)
        loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    tokens = sum(batch.source.numel() + batch.target.numel() for batch in batches)
    return tokens / (time.perf_counter() - start)
