"""A task small enough to be learnt in seconds: spell a word in capitals, with a digit behind every vowel.

python tiny_task.py RUNS ARGUMENT...     runs the command line with this source known, for tests that need a process
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clearhead.data import Batches, sources
from clearhead.train import Config, read_config


class Tiny(sources.Source):
    """Words of two to four letters out of six; where the first is f it may be silent."""

    def pairs(self, split):
        words = ("".join(w) for size in (2, 3, 4) for w in itertools.product("abcdef", repeat=size))
        for number, word in enumerate(words):
            if split == {8: "valid", 9: "test"}.get(number % 10, "train"):
                answer = " ".join(letter.upper() + "1" * (letter in "ae") for letter in word)
                yield word, answer
                if word[0] == "f":
                    yield word, answer.removeprefix("F ")


sources.SOURCES["tiny"] = Tiny

SMALL = [
    "data.source=tiny",
    "data.batch_tokens=256",
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.layers=1",
    "model.max_length=12",
    "model.dropout=0.1",
    "train.precision=float32",
    "train.duration=12 steps",
    "train.evaluations=3",
    "train.validation_samples=5",
    "monitor.examples=0",
    "decode.beam=2",
]


def small(*settings: str) -> Config:
    """A configuration of the tiny task that trains in about a second."""
    return read_config("g2p", [*SMALL, *settings])


@contextmanager
def at_batch(number: int, happens: Callable[[], object]) -> Iterator[None]:
    """Something happens while the training batch of that number is being made, counted from now."""
    collate, count = Batches.collate, itertools.count(1)

    def counted(self, rows):
        if self.shuffle and next(count) == number:  # those for validation are not shuffled
            happens()
        return collate(self, rows)

    Batches.collate = counted
    try:
        yield
    finally:
        Batches.collate = collate


if __name__ == "__main__":
    from clearhead.cli import main

    with at_batch(int(os.environ.get("BATCH", "-1")), lambda: os.kill(os.getpid(), int(os.environ["SIGNAL"]))):
        main(sys.argv[1:])
