"""A task small enough to be learnt in seconds: spell a word in capitals, with a digit behind every vowel.

    python tiny_task.py RUNS ARGUMENT...     runs the command line with this source known, for tests that need a process
"""

import itertools
import sys

from clearhead.data import sources
from clearhead.train import Config, read_config


class Tiny(sources.Source):
    """Words of two to four letters out of six; `aaaa` has two answers."""

    _SPLITS = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "valid": (8,), "test": (9,)}

    def pairs(self, split):
        words = ("".join(w) for size in (2, 3, 4) for w in itertools.product("abcdef", repeat=size))
        for number, word in enumerate(words):
            if number % 10 in self._SPLITS[split]:
                yield word, " ".join(letter.upper() + "1" * (letter in "ae") for letter in word)
                if word[0] == "f":
                    yield word, " ".join(letter.upper() + "0" * (letter in "ae") for letter in word)


sources.SOURCES["tiny"] = Tiny

SMALL = [
    "data.source=tiny",
    "data.batch_tokens=256",
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.layers=1",
    "model.max_length=12",
    "train.precision=float32",
    "train.duration=12 steps",
    "train.evaluations=3",
    "train.validation_words=5",
    "decode.beam=2",
]


def small(*settings: str) -> Config:
    """A configuration of the tiny task that trains in about a second."""
    return read_config("g2p", [*SMALL, *settings])


if __name__ == "__main__":
    from clearhead.cli import main

    main(sys.argv[1:])
