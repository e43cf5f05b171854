"""What a step says about every head, as sums that add up: over the parts of a batch, and over processes.

Shapes: B samples, H heads, R measured rows, S statistics.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clearhead.kernels import Statistics
from clearhead.observe.calls import Call
from clearhead.observe.heads import KEYS, Baseline, HeadSummary, summarise
from clearhead.observe.health import Finding, Rule

MEANS = ("entropy", "normalized_entropy", "sink", "max_weight", "distance", "visible", "logsumexp")
"""Statistics of which a head's number is the mean over rows; of `max_logit` it is the greatest."""


@dataclass(frozen=True, eq=False)
class Digest:
    """A call, or several of one layer, in sums over rows. Padding, and rows that see nothing, are left out.

    Attributes:
        heads: what the rules of health judge; its `call` has no tensors.
        names: the S statistics that were measured, of MEANS.
        total, count: (S, H) float64, the sum of each statistic, and over how many rows.
        judged: (2, H), the rows behind the mean entropy and sink of `heads`.
        least: (H,), the lowest normalized entropy of those rows.
    """

    heads: HeadSummary
    names: tuple[str, ...]
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
        means = dict(zip(self.names, (self.total / self.count).tolist(), strict=True))
        means["max_logit"] = self.heads.max_logit
        found = {name: means[name] for name in names if name in means}
        return {name: values for name, values in found.items() if not all(map(math.isnan, values))}


@torch.no_grad()
def digest(call: Call) -> Digest:
    """The sums of a call, on the CPU."""
    names = tuple(name for name in MEANS if getattr(call.statistics, name) is not None)
    x = torch.stack([getattr(call.statistics, name).float() for name in names])
    x = x.reshape(len(names), call.shape[0], call.heads, -1)
    if call.padding is not None:
        x = x.masked_fill(call.padding.to(x.device)[:, None], math.nan)
    known = x.isfinite()
    judged, least = _judged(x, known, names)
    sums = torch.stack([x.masked_fill(~known, 0).sum((1, 3), dtype=torch.float64), known.sum((1, 3)).double()]).cpu()
    light = replace(call, statistics=Statistics(), rows=None, padding=None, map=None)
    return Digest(replace(summarise(call), call=light), names, sums[0], sums[1], judged.cpu(), least.cpu())


def _judged(x: Tensor, known: Tensor, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """How many rows see enough keys and have an entropy, and a sink, (2, H); and the lowest entropy of the former."""
    enough = x[names.index("visible")] >= KEYS if "visible" in names else torch.zeros_like(known[0])
    here = [enough & known[names.index(name)] if name in names else torch.zeros_like(enough) for name in _JUDGED]
    counts = torch.stack([where.sum((0, 2)) for where in here])
    if "normalized_entropy" not in names:
        return counts, x.new_full((x.shape[2],), math.inf)
    return counts, x[names.index("normalized_entropy")].masked_fill(~here[0], math.inf).amin((0, 2))


_JUDGED = ("normalized_entropy", "sink")


def together(digests: Iterable[Digest]) -> list[Digest]:
    """One digest for each layer, in the order in which layers first come."""
    layers: dict[Any, list[Digest]] = {}
    for each in digests:
        layers.setdefault((each.key, each.names), []).append(each)
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
    )
    total, count = (torch.stack([getattr(each, name) for each in group]).sum(0) for name in ("total", "count"))
    return Digest(summary, group[0].names, total, count, judged.sum(0), least.amin(0))


def _mean(means: list[list[float]], counts: Tensor) -> list[float]:
    """The mean of each head from those of several groups of rows; NaN where there is no row."""
    x = torch.tensor(means, dtype=torch.float64)
    return ((x.nan_to_num(0) * counts).sum(0) / counts.sum(0)).tolist()


def judge(digests: Iterable[Digest], rules: Sequence[Rule], baseline: Baseline) -> list[Finding]:
    """What `check` would find in one call that holds all rows of the digests."""
    found: dict[Any, Finding] = {}
    for each in digests:
        for rule in rules:
            for finding in rule.judge(each.heads, baseline):
                found.setdefault((finding.rule, finding.layer, finding.turn, finding.head), finding)
    covers = {rule.name: rule.covers for rule in rules}
    hidden = {(name, *key[1:]) for key in found for name in covers[key[0]]}
    return [finding for key, finding in found.items() if key not in hidden]


def remember(digests: Iterable[Digest], baseline: Baseline) -> None:
    """Let the baseline take in the mean entropies, as a call of one row that sees enough keys."""
    for each in digests:
        entropy = torch.tensor(each.heads.entropy, dtype=torch.float64)[None, :, None]
        seen = Statistics(normalized_entropy=entropy, visible=torch.full(entropy.shape, KEYS))
        baseline.update([replace(each.heads.call, shape=(1, entropy.shape[1], 1, KEYS), statistics=seen)])
