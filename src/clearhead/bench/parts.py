"""Where a training step's time goes: each part of the model runs forward and backward by itself, on what it was given.

A profiler's own work is of the size of a small model's operations; parts that run alone are timed by a clock.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clearhead.bench.comparison import quantile
from clearhead.bench.trained import SMOOTHING, config_of, model_of
from clearhead.data import Batch, Batches
from clearhead.nn import CrossAttention, Decoder, Encoder, FeedForward, SelfAttention
from clearhead.train import parts
from clearhead.train.optimizers import make_optimizer
from clearhead.train.task import summed_loss

if TYPE_CHECKING:
    from clearhead.bench.training import TrainingCase

KINDS = {
    "attention": (SelfAttention, CrossAttention),
    "feed-forward": (FeedForward,),
    "norms": (nn.LayerNorm,),
    "dropout": (nn.Dropout,),
}


def where_time_goes(case: "TrainingCase", batch: Batch, rounds: int = 5) -> dict[str, float]:
    """Seconds of each part of one step, medians; what is left of the whole step is the rest."""
    model, half = model_of(case), case.dtype == "bfloat16"
    config = config_of(case, precision=case.dtype)
    count = config.train.parts or 1
    part = batch.split(count)[0]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = summed_loss(model, part, SMOOTHING)
        loss.backward()

    with parts.threads(count):
        with _noted(model) as calls:
            step()
        optimizer = make_optimizer(model, config.train)
        whole = _median(step, rounds)
        found = dict.fromkeys(KINDS, 0.0)
        for kind, module, given in calls:
            found[kind] += _median(_alone(module, given, half), rounds)
        found["embedding, output and loss"] = whole - _median(_body(model, part, half), rounds)
        rest = whole - sum(found.values())
        found |= {"residuals and the rest": max(0.0, rest), "optimizer": _median(optimizer.step, rounds)}
    found["data"] = _data(case, rounds)
    return found


@contextmanager
def _noted(model: nn.Module) -> Iterator[list[tuple[str, nn.Module, Any]]]:
    """Every call of a part while the block runs: its kind, the module, and its arguments, without their history."""
    calls: list[tuple[str, nn.Module, Any]] = []

    def note(kind: str) -> Callable[..., None]:
        return lambda module, arguments, named: calls.append((kind, module, _detached((arguments, named))))

    handles = [
        module.register_forward_pre_hook(note(kind), with_kwargs=True)
        for module in model.modules()
        for kind, types in KINDS.items()
        if isinstance(module, types)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _detached(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.detach().requires_grad_(given.requires_grad)
    if isinstance(given, tuple):
        return tuple(map(_detached, given))
    return {key: _detached(value) for key, value in given.items()} if isinstance(given, dict) else given


def _alone(module: nn.Module, given: Any, half: bool) -> Callable[[], None]:
    arguments, named = given

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = module(*arguments, **named)
        if out.requires_grad:
            out.backward(torch.ones_like(out))

    return run


def _body(model: Any, batch: Batch, half: bool) -> Callable[[], None]:
    """The step without embeddings, output and loss."""
    encoder: Encoder = model.encoder
    decoder: Decoder = model.decoder
    source = torch.randn(*batch.source.shape, encoder.norm.normalized_shape[0], requires_grad=True)
    target = torch.randn(*batch.target[:, 1:].shape, encoder.norm.normalized_shape[0], requires_grad=True)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = decoder(target, encoder(source, batch.source_lengths), None, batch.source_lengths)
        out.backward(torch.ones_like(out))

    return run


def _data(case: "TrainingCase", rounds: int) -> float:
    """Seconds for making one batch."""
    batches = Batches(case.examples(), case.batch_tokens)
    return _median(lambda: list(batches), rounds) / len(batches)


def _median(work: Callable[[], object], rounds: int) -> float:
    work()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return quantile(seconds, 0.5)
