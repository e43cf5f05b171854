"""What a step says about every head, as sums that add up: over the parts of a batch, and over processes.

Shapes: B samples, H heads, R measured rows, S statistics.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearhead.kernels import Statistics
from clearhead.observe.calls import Call
from clearhead.observe.heads import NAMES, HeadSummary, Rows, together


@dataclass(frozen=True, eq=False)
class Digest:
    """A call, or several of one layer, in sums over rows. Padding, and rows that see nothing, are left out.

    Attributes:
        heads: what the rules of health judge; its `call` has no tensors.
        total, count: (S, H), the sum of each statistic, and over how many rows; 0 rows where it was not measured.
        judged: (2, H), the rows behind the mean entropy and sink of `heads`.
        least: (H,), the lowest normalized entropy of those rows.
    """

    heads: HeadSummary
    total: NDArray[Any]
    count: NDArray[Any]
    judged: NDArray[Any]
    least: NDArray[Any]

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Digests of one key are of one layer, and add up."""
        call = self.heads.call
        return call.name, call.role, call.turn, call.heads

    def numbers(self, names: Iterable[str]) -> dict[str, list[float]]:
        """A number for each head and each statistic of `names` that was measured: NaN where no row defines it."""
        with np.errstate(invalid="ignore"):
            means = dict(zip(NAMES, (self.total / self.count).tolist(), strict=True))
        means["max_logit"] = self.heads.max_logit
        found = {name: means[name] for name in names}
        return {name: values for name, values in found.items() if not all(map(math.isnan, values))}


def digests(calls: Iterable[Call]) -> list[Digest]:
    """A digest of each layer, on the CPU. Calls without rows are passed over."""
    return merged(each for rows in together(calls) for each in _digests(rows))


def _digests(rows: Rows) -> Iterator[Digest]:
    known, entropy = np.isfinite(rows.values), rows.of("normalized_entropy")
    total, count = np.where(known, rows.values, 0).sum(2), known.sum(2)
    least = np.where(rows.judged & np.isfinite(entropy), entropy, math.inf).min(1)
    judged = np.stack([rows.mean(name)[1] for name in ("normalized_entropy", "sink")])
    nothing = dict.fromkeys(("rows", "samples", "padding", "residual", "brought", "map"))
    for (call, mine), heads in zip(rows.each(), rows.summaries(), strict=True):
        light = replace(call, statistics=Statistics(), **nothing)  # type: ignore[arg-type]
        yield Digest(replace(heads, call=light), total[:, mine], count[:, mine], judged[:, mine], least[mine])


def merged(digests: Iterable[Digest]) -> list[Digest]:
    """One digest for each layer, in the order in which layers first come."""
    layers: dict[Any, list[Digest]] = {}
    for each in digests:
        layers.setdefault(each.key, []).append(each)
    return [group[0] if len(group) == 1 else _merged(group) for group in layers.values()]


def _merged(group: Sequence[Digest]) -> Digest:
    """Several of one layer as one. Where a row is named, its sample counts within the batch that it came from."""
    heads, judged = [each.heads for each in group], np.stack([each.judged for each in group])
    least = np.stack([each.least for each in group])
    steep = np.nan_to_num([each.max_logit for each in heads], nan=-math.inf).argmax(0).tolist()
    broken = np.array([each.broken for each in heads])
    first = (broken > 0).argmax(0).tolist()
    b, n_queries, n_keys = (
        sum(each.call.shape[0] for each in heads),
        *(max(each.call.shape[i] for each in heads) for i in (2, 3)),
    )
    summary = HeadSummary(
        call=replace(heads[0].call, shape=(b, heads[0].call.heads, n_queries, n_keys)),
        entropy=_mean([each.entropy for each in heads], judged[:, 0]),
        sink=_mean([each.sink for each in heads], judged[:, 1]),
        max_logit=[heads[i].max_logit[head] for head, i in enumerate(steep)],
        broken=broken.sum(0).tolist(),
        sharpest=[heads[i].sharpest[head] for head, i in enumerate(least.argmin(0).tolist())],
        steepest=[heads[i].steepest[head] for head, i in enumerate(steep)],
        first_broken=[heads[i].first_broken[head] for head, i in enumerate(first)],
        broken_here=[heads[i].broken_here[head] for head, i in enumerate(first)],
        rows_here=[heads[i].rows_here[head] for head, i in enumerate(first)],
        brought=[heads[i].brought[head] for head, i in enumerate(first)],
        residuals=[value for each in heads for value in each.residuals],
    )
    total, count = (np.stack([getattr(each, name) for each in group]).sum(0) for name in ("total", "count"))
    return Digest(summary, total, count, judged.sum(0), least.min(0))


def _mean(means: list[list[float]], counts: NDArray[Any]) -> list[float]:
    """The mean of each head from those of several groups of rows; NaN where there is no row."""
    with np.errstate(invalid="ignore"):
        return ((np.nan_to_num(means) * counts).sum(0) / counts.sum(0)).tolist()
