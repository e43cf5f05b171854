"""A learning-rate range test (Smith 2017): the rate rises with each step, and is good where the loss falls fastest."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from torch import nn

from clearhead.data import PAD, Batches
from clearhead.train import parts
from clearhead.train.config import Config
from clearhead.train.material import gather
from clearhead.train.model import build
from clearhead.train.optimizers import make_optimizer
from clearhead.train.settings import read_config
from clearhead.train.task import summed_loss

_MEMORY = 0.9
_DIVERGED = 1.5  # times the lowest smoothed loss


@dataclass(frozen=True)
class RangeTest:
    """The rates that were tried, the smoothed loss at each, and the one to begin with; None where no loss fell."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None

    def lines(self, rows: int = 12) -> list[str]:
        """As a table: the rate, the loss, and a bar."""
        step = max(1, len(self.rates) // rows)
        high = max(self.losses)
        shown = [
            f"  {rate:.2e}  {loss:7.3f}  {'█' * round(40 * loss / high)}"
            for rate, loss in list(zip(self.rates, self.losses, strict=True))[::step]
        ]
        if self.suggestion is None:
            return ["  rate      loss", *shown, "no loss fell: nothing to suggest"]
        return [
            "  rate      loss",
            *shown,
            f"the loss falls fastest at {self.suggestion:.2g}: --set train.learning_rate={self.suggestion:.2g}",
        ]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"rates": self.rates, "losses": self.losses, "suggestion": self.suggestion}


def find_learning_rate(
    task: str | Config,
    settings: Sequence[str] = (),
    *,
    steps: int = 100,
    lowest: float = 1e-5,
    highest: float = 1.0,
    say: Callable[[str], None] | None = None,
) -> RangeTest:
    """Train a model of the configuration for some steps, with rates that rise evenly on a logarithmic scale.

    Nothing is written, and torch's random numbers are left as they were. It ends early when the loss is half as large
    again as it was at its lowest. In float32, unless `train.precision` is bfloat16.
    """
    config = read_config(task, settings) if isinstance(task, str) else task
    material = gather(config, say or (lambda _: None))
    count = config.train.parts or parts.decide(config, torch.device("cpu"))
    with torch.random.fork_rng(devices=[]), parts.threads(count):
        torch.manual_seed(config.seed)
        module = build(config, material.source_tokenizer, material.target_tokenizer).train()
        batches = Batches(material.train, config.data.batch_tokens, seed=config.seed)
        return _test(
            module,
            batches,
            config.model_copy(update={"train": config.train.model_copy(update={"parts": count})}),
            steps,
            lowest,
            highest,
        )


def _test(module: Any, batches: Batches, config: Config, steps: int, lowest: float, highest: float) -> RangeTest:
    half = config.train.precision == "bfloat16"
    optimizer = make_optimizer(module, config.train)
    running = parts.Parts(
        config.train.parts or 1, module, lambda part: summed_loss(module, part, config.train.label_smoothing), half
    )
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    endless = chain.from_iterable(repeat(batches))
    for i in range(steps):
        batch = next(endless)
        rate = lowest * (highest / lowest) ** (i / max(1, steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        tokens = int((batch.target[:, 1:] != PAD).sum())
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = summed_loss(module, running.start(batch), config.train.label_smoothing)
        loss.backward()
        total = (float(loss.detach()) + running.add()) / tokens
        torch._foreach_div_([p.grad for p in module.parameters() if p.grad is not None], float(tokens))
        nn.utils.clip_grad_norm_(module.parameters(), config.train.clip)
        mean = _MEMORY * mean + (1 - _MEMORY) * total
        smoothed = mean / (1 - _MEMORY ** (i + 1))
        if not math.isfinite(smoothed) or (losses and smoothed > _DIVERGED * min(losses)):
            break
        rates.append(rate)
        losses.append(smoothed)
        optimizer.step()
    return RangeTest(tuple(rates), tuple(losses), _steepest(rates, losses))


def _steepest(rates: Sequence[float], losses: Sequence[float], skip: int = 5) -> float | None:
    """Where the smoothed loss falls fastest; the first few are too few to be a mean."""
    falls = [(losses[i - 1] - losses[i + 1], rates[i]) for i in range(skip, len(losses) - 1)]
    most = max(falls, default=(0.0, 0.0))
    return most[1] if most[0] > 0 else None
