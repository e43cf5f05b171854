"""How fast training is, in real tokens: Clearhead beside a plain loop around `torch.nn.Transformer`, Hugging Face's
Marian, and end to end its `Seq2SeqTrainer`; and where a step's time goes.

Real tokens are those of source and target that are no padding. Sentences are drawn with the lengths of captions.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from clearhead.bench.comparison import Comparison, Say, compare
from clearhead.bench.parts import where_time_goes
from clearhead.bench.trained import SAME, config_of, end_to_end
from clearhead.data import BOS, EOS, Batch, Batches, Examples, Ragged
from clearhead.errors import InputError, extra, nearest
from clearhead.train.precision import NAMES
from clearhead.train.sizes import beyond


@dataclass(frozen=True)
class TrainingCase:
    """The model, and what it is trained on: `pairs` sentences of `length` source tokens on average."""

    layers: int = 4
    embed_dim: int = 128
    ff_dim: int = 256
    heads: int = 4
    vocabulary: int = 8000
    dropout: float = 0.1
    batch_tokens: int = 4096
    pairs: int = 1000
    length: int = 16
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in NAMES:
            raise InputError(
                f"training is timed in {' or '.join(NAMES)}, not in {self.dtype!r}{nearest(self.dtype, NAMES)}"
            )

        config_of(self)  # which refuses sizes that do not fit each other, or this machine
        if (problem := beyond(64 * self.pairs * self.length, f"{self.pairs:,} pairs")) is not None:
            raise InputError(f"{problem}; write fewer")

    def examples(self) -> Examples:
        """Random tokens, in sentences whose lengths vary as those of captions do; the same each time."""
        generator = torch.Generator().manual_seed(0)

        def varied(around: Tensor, spread: float) -> Tensor:
            return (
                (around * torch.exp(spread * torch.randn(self.pairs, generator=generator))).round().long().clamp(3, 96)
            )

        sources = varied(torch.full((self.pairs,), float(self.length)), 0.35)
        rows, answers = (
            [torch.randint(3, self.vocabulary, (int(n),), generator=generator).tolist() for n in lengths]
            for lengths in (sources, varied(sources.float(), 0.2))
        )
        return Examples(Ragged.of(rows), Ragged.of([[BOS, *row, EOS] for row in answers]))


@dataclass(frozen=True)
class Training:
    """What was found: seconds of each arm for the same batches, and end to end; where the time of our step goes."""

    case: TrainingCase
    same: Comparison
    whole: Comparison
    tokens: dict[str, int]
    parts: dict[str, float]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """As tables."""
        found = [self._table(self.same, self.tokens["same"]), self._table(self.whole, self.tokens["whole"])]
        total = sum(self.parts.values())
        rows = [
            f"  {name:<34}  {1e3 * seconds:>8.1f} ms  {seconds / total:>4.0%}" for name, seconds in self.parts.items()
        ]
        return [
            *found[0],
            *found[1],
            "where a step's time goes, each part by itself",
            *rows,
            *map("  {}".format, self.notes),
        ]

    def _table(self, times: Comparison, tokens: int) -> list[str]:
        width = max(map(len, times.seconds))
        rows = []
        for arm in times.seconds:
            low, middle, high = self._speed(times, arm)
            rows.append(
                f"  {arm:<{width}}  {tokens / times.median(arm):>9,.0f} tokens/s  {middle:.2f} × ({low:.2f}–{high:.2f})"
            )
        return [f"{times.title}; × is how often as fast as {times.peer}", *rows]

    @staticmethod
    def _speed(times: Comparison, arm: str) -> tuple[float, float, float]:
        """How often as fast as the peer: lower quartile, median, upper quartile of the rounds."""
        middle, low, high = times.ratio(arm)
        return 1 / high, 1 / middle, 1 / low

    def record(self) -> dict[str, Any]:
        """For JSON."""
        speeds = {
            name: {
                arm: {
                    "tokens_per_second": self.tokens[name] / times.median(arm),
                    **dict(zip(("low", "times", "high"), self._speed(times, arm), strict=True)),
                }
                for arm in times.seconds
            }
            for name, times in (("same", self.same), ("whole", self.whole))
        }
        return {"case": asdict(self.case), "speeds": speeds, "same": self.same.record(), "whole": self.whole.record(),
                "parts": self.parts, "notes": self.notes}  # fmt: skip


def bench_training(case: TrainingCase, rounds: int = 5, steps: int = 3, say: Say | None = None) -> Training:
    """Train each arm on the same `steps` batches in turns, and then end to end on all pairs, each as its defaults are.

    In the first table every arm has the same sizes, batches, precision, optimizer (AdamW), label smoothing, clipping
    and places of dropout. In the second Clearhead's and `Seq2SeqTrainer`'s defaults decide about batches, precision and
    optimizer. Raises MissingExtra without transformers and accelerate.
    """
    extra("transformers", "bench"), extra("accelerate", "bench")
    examples = case.examples()
    batches = Batches(examples, case.batch_tokens)
    some = list(batches)[:steps]
    arms: dict[str, Callable[[], object]] = {name: _over(make(case), some) for name, make in SAME.items()}
    same = compare("the same batches", arms, "torch.nn.Transformer", rounds, say)
    runs, notes = end_to_end(case, examples)
    whole = compare("end to end, by defaults", runs, "Seq2SeqTrainer", max(1, rounds // 2), say)
    parts = where_time_goes(case, some[0])
    tokens = {"same": sum(map(_real, some)), "whole": batches.tokens}
    return Training(case, same, whole, tokens, parts, (*notes, f"padding in the same batches: {batches.padding:.1%}"))


def _over(step: Callable[[Batch], object], batches: Sequence[Batch]) -> Callable[[], None]:
    def run() -> None:
        for batch in batches:
            step(batch)

    return run


def _real(batch: Batch) -> int:
    return int((batch.source != 0).sum() + (batch.target != 0).sum())
