"""Where a prediction departs from what was expected, symbol by symbol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Pair(NamedTuple):
    """A symbol of the prediction beside one of the reference; None where one of them has nothing to set against."""

    predicted: str | None
    expected: str | None

    @property
    def kind(self) -> str:
        """ "same", "substituted", "inserted" (predicted, but not expected) or "missing"."""
        if self.predicted == self.expected:
            return "same"
        return "missing" if self.predicted is None else "inserted" if self.expected is None else "substituted"


def align(prediction: Sequence[str], reference: Sequence[str]) -> list[Pair]:
    """Pairs of symbols with the fewest mistakes (Levenshtein's distance is the number of pairs that are not the same).

    >>> [pair.kind for pair in align(["K", "AE1", "T", "S"], ["K", "AH1", "T"])]
    ['same', 'substituted', 'same', 'inserted']
    """
    cost = _costs(prediction, reference)
    pairs, i, j = [], len(prediction), len(reference)
    while i or j:
        if i and j and cost[i][j] == cost[i - 1][j - 1] + (prediction[i - 1] != reference[j - 1]):
            i, j = i - 1, j - 1
            pairs.append(Pair(prediction[i], reference[j]))
        elif i and cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
            pairs.append(Pair(prediction[i], None))
        else:
            j -= 1
            pairs.append(Pair(None, reference[j]))
    return pairs[::-1]


def align_nearest(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> list[Pair]:
    """Align with that of several references which leaves the fewest mistakes."""
    return min((align(prediction, reference) for reference in references), key=mistakes)


def mistakes(pairs: Sequence[Pair]) -> int:
    return sum(pair.kind != "same" for pair in pairs)


def _costs(prediction: Sequence[str], reference: Sequence[str]) -> list[list[int]]:
    """The edit distance between every beginning of the one and every beginning of the other."""
    cost = [[*range(len(reference) + 1)]]
    for i, symbol in enumerate(prediction, 1):
        row = [i]
        for j, other in enumerate(reference, 1):
            row.append(min(cost[-1][j - 1] + (symbol != other), cost[-1][j] + 1, row[-1] + 1))
        cost.append(row)
    return cost
