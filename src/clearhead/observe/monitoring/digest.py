"""What a step says about every head, as sums that add up: over the parts of a batch, and over processes.

Shapes: B samples, H heads, R measured rows, S statistics.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from clearhead.kernels import Statistics
from clearhead.observe.calls import Call
from clearhead.observe.heads import KEYS, HeadSummary, known_residuals, summarise

NAMES = ("entropy", "normalized_entropy", "sink", "max_weight", "distance", "visible", "logsumexp", "max_logit")
"""The S statistics. A head's number is the mean over rows; of `max_logit` it is the greatest."""
_PLACES = ("sharpest", "steepest", "first_broken")
_MOST = 1 << 19
"""Rows of heads that are reduced in one go."""


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
    total: Tensor
    count: Tensor
    judged: Tensor
    least: Tensor

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Digests of one key are of one layer, and add up."""
        call = self.heads.call
        return call.name, call.role, call.turn, call.heads

    def numbers(self, names: Iterable[str]) -> dict[str, list[float]]:
        """A number for each head and each statistic of `names` that was measured: NaN where no row defines it."""
        means = dict(zip(NAMES, (self.total / self.count).tolist(), strict=True))
        means["max_logit"] = self.heads.max_logit
        found = {name: means[name] for name in names}
        return {name: values for name, values in found.items() if not all(map(math.isnan, values))}


@torch.no_grad()
def digests(calls: Iterable[Call]) -> list[Digest]:
    """A digest of each layer, on the CPU. Calls without rows are passed over.

    Many calls are reduced in one go, their heads side by side: one alone has so few numbers that it would cost hardly
    less than all of them.
    """
    found: list[Digest] = []
    group: list[tuple[Call, Tensor]] = []
    for call in calls:
        if 0 in call.shape[:3]:
            continue
        x = _numbers(call)
        heads, rows = x.shape[1] + sum(each.shape[1] for _, each in group), max([x, *(x for _, x in group)], key=_rows)
        if group and (heads * _rows(rows) > _MOST or x.device != group[0][1].device):
            found += _digests(group)
            group = []
        group.append((call, x))
    return together(found + (_digests(group) if group else []))


def _rows(x: Tensor) -> int:
    return x.shape[2]


def _numbers(call: Call) -> Tensor:
    """The statistics of a call, (S, H, B · R), NaN in padding and where they were not measured."""
    given = [getattr(call.statistics, name) for name in NAMES]
    blank = torch.full_like(next(x for x in given if x is not None), math.nan, dtype=torch.float32)
    x = torch.stack([blank if x is None else x.float() for x in given])
    x = x.reshape(len(NAMES), call.shape[0], call.heads, -1)
    if call.padding is not None:
        x = x.masked_fill(call.padding.to(x.device)[:, None], math.nan)
    return x.transpose(1, 2).flatten(2)


def _digests(group: list[tuple[Call, Tensor]]) -> list[Digest]:
    """Those of calls with their statistics, whose heads are taken as those of one call of one sample."""
    heads, rows = sum(x.shape[1] for _, x in group), max(x.shape[2] for _, x in group)
    x = group[0][1].new_full((len(NAMES), heads, rows), math.nan)
    starts = [0]
    for _, each in group:
        x[:, starts[-1] : starts[-1] + each.shape[1], : each.shape[2]] = each
        starts.append(starts[-1] + each.shape[1])
    values = dict(zip(NAMES, x[:, None].unbind(), strict=True))
    visible = values["visible"] = values["visible"].nan_to_num(0).long()
    first = replace(group[0][0], rows=None, padding=None, residual=None, brought=None)
    whole = replace(first, shape=(1, heads, rows, 1), statistics=Statistics(**values))
    summary, known = summarise(whole), x.isfinite()
    here = [(visible[0] >= KEYS) & known[NAMES.index(name)] for name in ("normalized_entropy", "sink")]
    least = x[NAMES.index("normalized_entropy")].masked_fill(~here[0], math.inf).amin(1)
    counts = torch.cat([known.sum(2), torch.stack([where.sum(1) for where in here])])
    total = x.masked_fill_(~known, 0).sum(2, dtype=torch.float64)
    whole_sums = torch.cat([total, counts.double(), least.double()[None]]).cpu()
    found = []
    for (call, _), start in zip(group, starts, strict=False):
        mine = slice(start, start + call.heads)
        sums = whole_sums[:, mine]
        total, count, judged = sums[: len(NAMES)], sums[len(NAMES) : -3], sums[-3:-1]
        found.append(Digest(_of_call(summary, call, mine), total, count, judged, sums[-1]))
    return found


def _of_call(heads: HeadSummary, call: Call, mine: slice) -> HeadSummary:
    """Some of the heads, as those of a call: rows and samples have the numbers that they have in its batch."""
    if any(heads.broken[mine]):  # rare, and it tells how many rows of a sample are broken
        alone = summarise(call)
        values = {field.name: getattr(alone, field.name) for field in fields(HeadSummary)}
    else:
        own = ("call", "residuals")
        values = {each.name: getattr(heads, each.name)[mine] for each in fields(HeadSummary) if each.name not in own}
        width = call.shape[2] if call.rows is None else len(call.rows)
        rows = None if call.rows is None else call.rows.tolist()
        for name in _PLACES:
            at = [divmod(i, width) for _, i in values[name]]
            values[name] = [(sample, row if rows is None else rows[row]) for sample, row in at]
    if call.samples is not None:
        samples = call.samples.tolist()
        for name in _PLACES:
            values[name] = [(samples[sample], row) for sample, row in values[name]]
    nothing = {"rows": None, "samples": None, "padding": None, "residual": None, "brought": None, "map": None}
    light = replace(call, statistics=Statistics(), **nothing)  # type: ignore[arg-type]
    return HeadSummary(**{**values, "call": light, "residuals": known_residuals(call)})


def together(digests: Iterable[Digest]) -> list[Digest]:
    """One digest for each layer, in the order in which layers first come."""
    layers: dict[Any, list[Digest]] = {}
    for each in digests:
        layers.setdefault(each.key, []).append(each)
    return [group[0] if len(group) == 1 else _merged(group) for group in layers.values()]


def _merged(group: Sequence[Digest]) -> Digest:
    """Several of one layer as one. Where a row is named, its sample counts within the batch that it came from."""
    heads, judged = [each.heads for each in group], torch.stack([each.judged for each in group])
    least = torch.stack([each.least for each in group])
    logits = torch.tensor([each.max_logit for each in heads], dtype=torch.float64)
    steep = logits.nan_to_num(-math.inf).argmax(0).tolist()
    broken = torch.tensor([each.broken for each in heads])
    first = (broken > 0).int().argmax(0).tolist()
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
    total, count = (torch.stack([getattr(each, name) for each in group]).sum(0) for name in ("total", "count"))
    return Digest(summary, total, count, judged.sum(0), least.amin(0))


def _mean(means: list[list[float]], counts: Tensor) -> list[float]:
    """The mean of each head from those of several groups of rows; NaN where there is no row."""
    x = torch.tensor(means, dtype=torch.float64)
    return ((x.nan_to_num(0) * counts).sum(0) / counts.sum(0)).tolist()
