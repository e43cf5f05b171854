"""Which precision is faster, here and for this model: measured, since neither is everywhere."""

import copy
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import median
from typing import Literal

import torch

from clearhead.data import Batch, Batches
from clearhead.nn import Seq2Seq
from clearhead.train.task import summed_loss

NAMES = ("float32", "bfloat16")
MARGIN = 1.2
"""How much faster bfloat16 must be: what else runs on a machine makes either up to a tenth faster or slower."""


def lightning(name: str) -> Literal["32-true", "bf16-mixed"]:
    """What Lightning calls a precision; parameters and optimizer stay in float32 in both."""
    return "bf16-mixed" if name == "bfloat16" else "32-true"


def measure(module: Seq2Seq, batches: Batches, rounds: int = 5) -> dict[str, list[float]]:
    """Tokens a second of forward and backward passes in each precision, in each of some rounds, taken in turn.

    On a CPU seconds are of processor time, which depends little on what else runs there. Works on a copy of the module,
    uses up some of the batches, and leaves torch's random numbers as they were.
    """
    device = next(module.parameters()).device
    module, some = copy.deepcopy(module).train(), list(islice(batches, 2))
    speeds: dict[str, list[float]] = {name: [] for name in NAMES}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for name in NAMES:
            _speed(module, some[:1], name, device)  # what is made once is made here
        for _ in range(rounds):
            for name in NAMES:
                speeds[name].append(_speed(module, some, name, device))
    return speeds


def choose(speeds: Mapping[str, Sequence[float]]) -> str:
    """bfloat16 where it was clearly faster in most rounds, else float32: a near tie goes the same way every time."""
    gains = [half / full for full, half in zip(*(speeds[name] for name in NAMES), strict=True)]
    return "bfloat16" if median(gains) >= MARGIN else "float32"


def _speed(module: Seq2Seq, batches: Sequence[Batch], precision: str, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    for batch in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = summed_loss(module, batch.to(device), 0.1)
        loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    tokens = sum(batch.source.numel() + batch.target.numel() for batch in batches)
    return tokens / (clock() - start)
