"""What files of pairs hold, before anything is trained on them: counts, lengths, duplicates, characters, overlaps.

`refused` is what training refuses, `noted` what it survives; of each kind the number, and where the first ones stand.
Everything is counted in one pass over each file; memory holds 40 bytes a pair.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from clearhead.data.characters import Characters
from clearhead.data.files import Files
from clearhead.data.formats import Block
from clearhead.data.sources import Split
from clearhead.errors import DataError

SHOWN = 3
"""Examples of each finding."""
APART = 3.0
"""A pair stands out whose target is so many times longer or shorter for its source than that of the median pair."""
LONG = 30
"""Characters from which on lengths are compared; the ratios of short texts say nothing."""


@dataclass
class Finding:
    """One kind of thing that was found: how often, and where the first ones are, FILE:LINE with what is there."""

    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, count: int, examples: Sequence[str]) -> None:
        self.count += count
        self.examples += examples[: SHOWN - len(self.examples)]


@dataclass(frozen=True)
class Lengths:
    """Of the texts of one side: the median, the 95th percentile, the longest."""

    median: float
    p95: float
    longest: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Lengths":
        return cls(float(np.median(values)), float(np.percentile(values, 95)), int(values.max()))


@dataclass
class Survey:
    """What one split holds. characters, words: lengths of sources and targets, None where there is no pair."""

    split: str
    files: tuple[str, ...]
    pairs: int = 0
    characters: dict[str, Lengths] = field(default_factory=dict)
    words: dict[str, Lengths] = field(default_factory=dict)
    alphabet: dict[str, int] = field(default_factory=dict)
    refused: list[Finding] = field(default_factory=list)
    noted: list[Finding] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def survey(source: Files, limit: int | None = None) -> list[Survey]:
    """What each split holds, and how much of train is found in the others.

    limit: of the tokens that a model reads; a text of more words than that cannot be read whole.
    """
    found, known = [], {}
    for split in source.splits:
        one = _Count(source, split, limit)
        found.append(one.result())
        known[split] = one.known()
    for split, report in zip(source.splits[1:], found[1:], strict=True):
        lines = known[split][0]
        for name, row in (("pairs", 1), ("sources", 2)):
            report.noted += _overlap(name, known["train"][row], known[split][row], lines, source.files[split][0])
    return found


@dataclass(frozen=True)
class _Places:
    """FILE:LINE of the texts of a block."""

    file: str
    lines: Sequence[int]

    def __call__(self, row: int) -> str:
        return f"{self.file}:{self.lines[row]}"


class _Count:
    """One pass over a split."""

    def __init__(self, source: Files, split: Split, limit: int | None) -> None:
        self.source, self.split, self.limit = source, split, limit
        self.report = Survey(split, source.files[split])
        self.findings: dict[str, Finding] = {}
        self.letters = (Characters(), Characters())
        self.numbers: list[np.ndarray] = []  # for each pair: line, hashes of pair and source, lengths

    def result(self) -> Survey:
        refused: dict[str, Finding] = {}
        try:
            for block in self.source.checked(self.split):
                for problem in block.problems:
                    refused.setdefault(problem.kind, Finding(problem.kind)).add(1, [str(problem)])
                if block.sources:
                    self._block(block)
        except DataError as error:
            refused["files"] = Finding("files that training cannot use", 1, [str(error)])
        self.report.refused = list(refused.values())
        if self.numbers:
            self._whole(np.concatenate(self.numbers, axis=1))
        return self.report

    def known(self) -> tuple[np.ndarray, ...]:
        """For each pair its line, and a hash of it and of its source."""
        if not self.numbers:
            return (np.empty(0, np.int64),) * 3
        return tuple(np.concatenate([part[row] for part in self.numbers]) for row in range(3))

    def _block(self, block: Block) -> None:
        pairs = list(zip(block.sources, block.targets, strict=True))
        columns = [
            block.lines,
            map(hash, pairs),
            map(hash, block.sources),
            map(len, block.sources),
            map(len, block.targets),
            [len(text.split()) for text in block.sources],
            [len(text.split()) for text in block.targets],
        ]
        self.numbers.append(np.array([np.fromiter(column, np.int64, len(pairs)) for column in columns]))
        for side, texts, letters in zip((0, -1), (block.sources, block.targets), self.letters, strict=True):
            places = _Places(self.report.files[side], block.lines)
            for kind, rows, shown in letters.read(texts, places):
                examples = [f"{places(row)}: {what}" for row, what in zip(rows[:SHOWN], shown, strict=False)]
                self.findings.setdefault(kind, Finding(kind)).add(len(rows), examples)

    def _whole(self, numbers: np.ndarray) -> None:
        lines, pairs, _, *lengths = numbers
        report, files = self.report, self.report.files
        report.pairs = len(lines)
        sides = ("source", "target")
        report.characters = {side: Lengths.of(values) for side, values in zip(sides, lengths[:2], strict=True)}
        report.words = {side: Lengths.of(values) for side, values in zip(sides, lengths[2:], strict=True)}
        report.alphabet = {side: letters.count for side, letters in zip(sides, self.letters, strict=True)}
        first = np.zeros(len(pairs), dtype=bool)
        first[np.unique(pairs, return_index=True)[1]] = True
        self._note("pairs that stood there before", ~first, lines, files[0])
        for side, values, file in zip(sides, lengths[2:], (files[0], files[-1]), strict=True):
            if self.limit is not None:
                words = [f"{count:,} words" for count in values[values > self.limit][:SHOWN]]
                self._refuse(
                    f"{side}s of more words than the model reads tokens ({self.limit})",
                    values > self.limit,
                    lines,
                    file,
                    words,
                )
        ratio = np.log(lengths[1]) - np.log(lengths[0])
        apart = np.abs(ratio - np.median(ratio)) > np.log(APART)
        apart &= np.maximum(lengths[0], lengths[1]) >= LONG
        shown = [
            f"{a:,} and {b:,} characters"
            for a, b in zip(lengths[0][apart][:SHOWN], lengths[1][apart][:SHOWN], strict=True)
        ]
        self._note("pairs of unusual lengths for each other", apart, lines, files[0], shown)
        report.noted += self.findings.values()
        for side, letters in zip(sides, self.letters, strict=True):
            if self.split == "train" and (rare := letters.rare()):
                report.noted.append(Finding(f"characters that {side}s hold once", len(rare), rare[:SHOWN]))

    def _note(self, kind: str, where: np.ndarray, lines: np.ndarray, file: str, shown: Sequence[str] = ()) -> None:
        self.report.noted += _finding(kind, where, lines, file, shown)

    def _refuse(self, kind: str, where: np.ndarray, lines: np.ndarray, file: str, shown: Sequence[str]) -> None:
        self.report.refused += _finding(kind, where, lines, file, shown)


def _finding(kind: str, where: np.ndarray, lines: np.ndarray, file: str, shown: Sequence[str] = ()) -> list[Finding]:
    """The finding, where there is one."""
    count, first = int(where.sum()), lines[where][:SHOWN]
    places = [f"{file}:{line}" + (f": {shown[i]}" if shown else "") for i, line in enumerate(first)]
    return [Finding(kind, count, places)] if count else []


def _overlap(name: str, train: np.ndarray, other: np.ndarray, lines: np.ndarray, file: str) -> list[Finding]:
    """How many of another split's pairs or sources are in train."""
    seen = np.isin(other, train)
    return _finding(f"{seen.mean():.1%} of its {name} are in train too", seen, lines, file) if seen.any() else []
