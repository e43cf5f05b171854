"""What a call says about each of its heads, in a few numbers; and how these numbers went so far.

Shapes: B samples, H heads, Nq queries, Nk keys, R measured rows, N tokens, E width.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clearhead.errors import InputError
from clearhead.observe.calls import Call, joined

KEYS = 8
"""Means are taken over rows that see at least so many keys: early rows of causal attention see few, and say little."""

Row = tuple[int, int]
"""(sample, row)."""


@dataclass(frozen=True, eq=False)
class HeadSummary:
    """A call in a few numbers for each head, taken over samples and rows without padding; NaN is "not measured".

    Attributes, each a list of H:
        entropy: mean normalized entropy of the rows that see at least 8 keys; `sharpest` is the row where it is least.
        sink: mean weight of the first key, over the same rows.
        max_logit: the greatest of any row; `steepest` is that row.
        broken: how many rows hold NaN or Inf although they see keys; `first_broken` is the first of them, and of the
            `rows_here` rows of its sample `broken_here` are broken; `brought` is what spoiled it, where that is known.

    And one of the layer:
        residuals: how much the rows that it put out differ, for each sample in which that is known (`Call.residual`).
    """

    call: Call
    entropy: list[float]
    sharpest: list[Row]
    sink: list[float]
    max_logit: list[float]
    steepest: list[Row]
    broken: list[int]
    first_broken: list[Row]
    broken_here: list[int]
    rows_here: list[int]
    brought: list[str | None]
    residuals: list[float]

    @property
    def key(self) -> str:
        """The layer's path, and its turn where it runs several times in one pass."""
        return f"{self.call.name}#{self.call.turn}" if self.call.turn else self.call.name


class _Rows:
    """The rows of a call, (H, B, R): which see a key, which are judged, which are broken."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.shape = (call.heads, call.shape[0], call.shape[2] if call.rows is None else len(call.rows))
        visible, known = self.of("visible"), call.statistics.visible is not None
        real = torch.ones(self.shape, dtype=torch.bool, device=visible.device)
        if call.padding is not None:
            real = ~call.padding.to(visible.device).expand(self.shape)
        self.seeing = (visible > 0) & real if known else real
        self.judged = (visible >= KEYS) & real
        self.broken = torch.zeros_like(real)
        for name in ("logsumexp", "max_logit", "entropy"):
            if getattr(call.statistics, name) is not None:
                x = self.of(name)
                # a row that sees nothing is NaN, so without `visible` only Inf is a sign
                self.broken |= self.seeing & (~x.isfinite() if known else x == math.inf)

    def of(self, name: str) -> Tensor:
        """A statistic; NaN everywhere where it was not measured."""
        x = getattr(self.call.statistics, name)
        if x is None:
            return torch.full(self.shape, math.nan, device=_device(self.call))
        h, b, r = self.shape
        return x.detach().reshape(b, h, r).transpose(0, 1)

    def number(self, i: int) -> Row:
        """(sample, row) of the i-th of B · R: the row's number in the call, not among those measured."""
        sample, row = divmod(i, max(1, self.shape[2]))
        return sample, row if self.call.rows is None else int(self.call.rows[row])


@torch.no_grad()
def summarise(call: Call) -> HeadSummary:
    """The heads of a call in a few numbers.

    Raises InputError for a call of no sample or no row.
    """
    rows = _Rows(call)
    if not rows.seeing.numel():
        raise InputError(f"{call.name} has shape {call.shape}: there is no row to summarise")
    entropy, sink, logit = rows.of("normalized_entropy"), rows.of("sink"), rows.of("max_logit")
    judged = rows.judged & entropy.isfinite()
    sharpest = entropy.masked_fill(~judged, math.inf).flatten(1).argmin(1)
    top = logit.masked_fill(~(rows.seeing & logit.isfinite()), -math.inf).flatten(1).max(1)
    first = rows.broken.flatten(1).int().argmax(1)
    sample = (first // rows.shape[2])[:, None]
    numbers = {
        "entropy": _mean(entropy, judged),
        "sink": _mean(sink, rows.judged & sink.isfinite()),
        "max_logit": top.values.masked_fill(top.values.isinf(), math.nan),
    }
    places = {"sharpest": sharpest, "steepest": top.indices, "first_broken": first}
    counts = {
        "broken": rows.broken.flatten(1).sum(1),
        "broken_here": rows.broken.sum(2).gather(1, sample)[:, 0],
        "rows_here": rows.seeing.sum(2).gather(1, sample)[:, 0],
    }
    values: dict[str, Any] = {**_lists(numbers), **_lists(counts)}
    values |= {name: [rows.number(i) for i in flat] for name, flat in _lists(places).items()}
    brought = [*(call.brought or (None,) * call.heads)]
    return HeadSummary(call, **values, brought=brought, residuals=known_residuals(call))


def known_residuals(call: Call) -> list[float]:
    """Those of the samples in which it is known how much the rows differ that the layer put out."""
    residuals = [] if call.residual is None else call.residual.tolist()
    return [value for value in residuals if math.isfinite(value)]


def summaries(calls: Iterable[Call]) -> Iterator[HeadSummary]:
    """A summary of each call; the steps of a decoding are one call, and those without rows are passed over."""
    for call in joined([*calls]):
        if 0 not in call.shape[:3]:
            yield summarise(call)


def _lists(columns: dict[str, Tensor]) -> dict[str, list[Any]]:
    """The columns' numbers, with one transfer from the device."""
    return dict(zip(columns, torch.stack([*columns.values()]).tolist(), strict=True))


def _mean(x: Tensor, where: Tensor) -> Tensor:
    """The mean of x (H, B, R) over samples and rows, (H,); NaN where there is nothing to average."""
    return x.masked_fill(~where, 0).sum((1, 2)) / where.sum((1, 2))


def _device(call: Call) -> torch.device | None:
    return next((x.device for x in vars(call.statistics).values() if x is not None), None)


@torch.no_grad()
def row_residual(call: Call) -> list[float]:
    """‖A − 1ā‖ / ‖A‖ of each head over its judged rows, ā their mean: near 0 where all rows are the same.

    NaN ("not measured") where the call keeps no map. No matrix is formed: ‖A − 1ā‖ is the adjoint's product with 16
    random vectors of mean 0, whose expected square is the Frobenius norm's, and ā its product with ones.
    """
    A, (b, h, n_queries, _) = call.map, call.shape
    if A is None or call.rows is not None:
        return [math.nan] * h
    judged = _Rows(call).judged.transpose(0, 1)[..., None]
    count = judged.sum(2, keepdim=True).clamp(min=1)
    # a seed that nobody takes for their data: with theirs, these vectors would be their queries
    y = torch.randn(b, h, n_queries, 16, generator=torch.Generator().manual_seed(7120210305)).to(judged.device) * judged
    y = torch.cat([(y - y.sum(2, keepdim=True) / count) * judged, judged / count.sqrt()], -1)
    given = (A.T @ y.reshape(*A.shape[:-1], -1).to(A.dtype)).float().reshape(b, h, -1, y.shape[-1])
    square = given.square().sum((0, 2))
    apart, alike = square[:, :-1].mean(-1), square[:, -1]
    return (apart / (apart + alike)).sqrt().tolist()


def rank_residual(x: Float[Tensor, "b n e"], real: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, " b"]:
    """‖x − 1x̄‖ / ‖x‖ of each sample, x̄ its mean token: 0 where all tokens are the same (Dong 2021).

    Args:
        x: (B, N, E), the output of a layer.
        real: (B, N), True where a token counts; all if None. A sample without any is NaN.
    """
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    if real is None:
        apart = x - x.mean(1, keepdim=True)
    else:
        hidden = ~real[..., None]
        x = x.masked_fill(hidden, 0)
        apart = (x - x.sum(1, keepdim=True) / real.sum(1)[:, None, None]).masked_fill_(hidden, 0)
    return apart.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)


class Baseline:
    """How the mean normalized entropy of every head went so far: a running mean, and how much it jumps.

    `mean` is exponential, with weight 1 − `decay` for the newest value (a plain average of the first few); `deviation`
    is that of the noise about it, from the differences of successive values, so that a slow trend is no noise. Both are
    lists of H for a summary's key.

    Args:
        decay: between 0 and 1; 0.9 remembers about ten updates.
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 < decay < 1:
            raise InputError(f"decay is {decay}; it must lie between 0 and 1")
        self.decay = decay
        self._heads: dict[str, list[_Course]] = {}

    def update(self, calls: Iterable[Call]) -> None:
        """Take in the calls of one step. Several of one layer, as of the parts of a batch, count as their mean."""
        parts: dict[str, list[list[float]]] = {}
        for summary in summaries(calls):
            parts.setdefault(summary.key, []).append(summary.entropy)
        for key, entropies in parts.items():
            self.take(key, torch.tensor(entropies, dtype=torch.float64).nanmean(0).tolist())

    def take(self, key: str, entropy: Sequence[float]) -> None:
        """Take in one more mean normalized entropy of each of the H heads of the layer of a summary's `key`.

        A head that was not measured, whose value is NaN, keeps what it had.
        """
        courses = self._heads.get(key, [])
        if len(courses) != len(entropy):
            courses = [_Course()] * len(entropy)
        self._heads[key] = [
            course if math.isnan(new) else course.moved(new, self.decay)
            for course, new in zip(courses, entropy, strict=True)
        ]

    def of(self, summary: HeadSummary) -> tuple[list[float], list[float], list[int]] | None:
        """(mean, deviation, updates) of the summary's heads; None where there was no update yet."""
        courses = self._heads.get(summary.key)
        if courses is None or len(courses) != len(summary.entropy):
            return None
        deviations = [math.sqrt(course.noise) for course in courses]
        return [course.mean for course in courses], deviations, [course.updates for course in courses]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: lists and numbers alone."""
        heads = {
            key: [list(row) for row in zip(*map(astuple, state), strict=True)] for key, state in self._heads.items()
        }
        return {"decay": self.decay, "heads": heads}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.decay = state["decay"]
        self._heads = {
            key: [_Course(int(updates), *rest) for updates, *rest in zip(*rows, strict=True)]
            for key, rows in state["heads"].items()
        }


@dataclass(frozen=True)
class _Course:
    """How the entropy of a head went: how many values came, their running mean, the last, and the noise about it."""

    updates: int = 0
    mean: float = math.nan
    last: float = math.nan
    noise: float = 0.0

    def moved(self, new: float, decay: float) -> "_Course":
        """After one more value."""
        if not self.updates:
            return _Course(1, new, new)
        mean = self.mean + max(1 / (self.updates + 1), 1 - decay) * (new - self.mean)
        jump = (new - self.last) ** 2 / 2  # E (x − x')² = 2 var, for independent noise about a trend
        noise = self.noise + max(1 / self.updates, 1 - decay) * (jump - self.noise)
        return _Course(self.updates + 1, mean, new, noise)
