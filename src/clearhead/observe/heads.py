"""What a call says about each of its heads, in a few numbers; and how these numbers went so far.

Shapes: B samples, H heads, Nq queries, Nk keys, R measured rows, N tokens, E width.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from clearhead.errors import InputError
from clearhead.observe.calls import Call, joined

KEYS = 8
"""Means are taken over rows that see at least so many keys: early rows of causal attention see few, and say little."""

NAMES = ("entropy", "normalized_entropy", "sink", "max_weight", "distance", "visible", "logsumexp", "max_logit")
"""The S statistics that say something about a head, each by its mean over rows; `max_logit` by the greatest."""

_SIGNS = ("logsumexp", "max_logit", "max_weight", "entropy", "normalized_entropy", "distance")
"""In which NaN and Inf show: of a row that sees keys these are numbers. (Its sink is one if it sees that key.)"""
_MOST = 1 << 19
"""Rows of heads that are reduced in one go."""
TIE = 1e-6
"""Rows whose numbers are this close, relative to a number above 1, are equal: the first of them is named."""

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


class Rows:
    """The rows of several calls as arrays on the CPU, their heads side by side: one alone has so few numbers that it
    would cost hardly less than all of them.

    Attributes, H being all heads and L the most rows (B · R) that a call has:
        values: (S, H, L), the statistics named by NAMES; NaN where they were not measured, in padding, and beyond.
        seeing, judged, broken: (H, L), which rows see a key, count in means, and hold NaN or Inf though they see.

    Raises InputError for a call of no sample or no row.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        most = max(call.shape[0] * _width(call) for call in calls)
        self.values = np.full((len(NAMES), sum(call.heads for call in calls), most), math.nan)
        self.seeing = np.zeros(self.values.shape[1:], dtype=bool)
        for call, mine in self.each():
            self._take(call, mine)
        visible = self.of("visible")
        known = ~np.isnan(visible)
        self.seeing &= visible != 0  # what was never counted is not nothing
        self.judged = visible >= KEYS
        signs = self.values[[NAMES.index(name) for name in _SIGNS]]
        measured = np.array([[getattr(call.statistics, name) is not None for name in _SIGNS] for call in calls])
        measured = measured.repeat([call.heads for call in calls], 0).T[..., None]
        # a row that sees nothing is NaN, so without `visible` only Inf is a sign; of one key entropy is not normalized
        defined = np.broadcast_to(known, signs.shape).copy()
        defined[_SIGNS.index("normalized_entropy")] &= visible != 1
        self.broken = self.seeing & (measured & ~np.isfinite(signs) & (defined | (signs == math.inf))).any(0)

    def each(self) -> Iterator[tuple[Call, slice]]:
        """The calls, each with the place of its heads."""
        end = 0
        for call in self.calls:
            start, end = end, end + call.heads
            yield call, slice(start, end)

    def _take(self, call: Call, mine: slice) -> None:
        width = _width(call)
        if 0 in (*call.shape[:2], width):
            raise InputError(f"{call.name} has shape {call.shape}: there is no row to summarise")
        shape, size = (call.shape[0], call.heads, width), call.shape[0] * width
        given = {i: x.detach() for i, name in enumerate(NAMES) if (x := getattr(call.statistics, name)) is not None}
        if given:  # by one transfer from the device
            wide = torch.float64 if any(x.dtype == torch.float64 for x in given.values()) else torch.float32
            found = torch.stack([x if x.dtype == wide else x.to(wide) for x in given.values()]).cpu().numpy()
            found = found.reshape(-1, *shape).swapaxes(1, 2).reshape(-1, call.heads, size)
            self.values[[*given], mine, :size] = found
        self.seeing[mine, :size] = True
        if call.padding is not None:
            hidden = call.padding.expand(shape[0], width).flatten().cpu().numpy().nonzero()[0]
            self.values[:, mine, hidden] = math.nan
            self.seeing[mine, hidden] = False

    def of(self, name: str) -> NDArray[Any]:
        """A statistic, (H, L)."""
        return self.values[NAMES.index(name)]

    def mean(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """The mean of a statistic over the judged rows where it is finite, and how many they are, (H,); NaN over 0."""
        x = self.of(name)
        where = self.judged & np.isfinite(x)
        count = where.sum(1)
        with np.errstate(invalid="ignore"):
            return np.where(where, x, 0).sum(1) / count, count

    def summaries(self) -> list[HeadSummary]:
        """The heads of each call in a few numbers."""
        entropy, logit = self.of("normalized_entropy"), self.of("max_logit")
        usable = np.where(self.seeing & np.isfinite(logit), logit, -math.inf)
        steepest = _first_least(-usable)
        most = usable[np.arange(len(usable)), steepest]
        numbers = {
            "entropy": self.mean("normalized_entropy")[0],
            "sink": self.mean("sink")[0],
            "max_logit": np.where(np.isfinite(most), most, math.nan),
            "broken": self.broken.sum(1),
        }
        places = {
            "sharpest": _first_least(np.where(self.judged & np.isfinite(entropy), entropy, math.inf)),
            "steepest": steepest,
            "first_broken": self.broken.argmax(1),
        }
        columns, at = ({name: x.tolist() for name, x in part.items()} for part in (numbers, places))
        return [
            HeadSummary(
                call,
                **{name: column[mine] for name, column in columns.items()},
                **{name: _numbers(call, column[mine]) for name, column in at.items()},  # type: ignore[arg-type]
                broken_here=_in_sample(self.broken, call, mine, at["first_broken"]),
                rows_here=_in_sample(self.seeing, call, mine, at["first_broken"]),
                brought=[*(call.brought or (None,) * call.heads)],
                residuals=known_residuals(call),
            )
            for call, mine in self.each()
        ]


def _first_least(values: NDArray[Any]) -> NDArray[Any]:
    """The place of the least number of each row of (H, L): of those within `TIE` of it the first."""
    least = values.min(1, keepdims=True)
    return (values <= least + TIE * np.maximum(1, np.abs(least))).argmax(1)


def _width(call: Call) -> int:
    return call.shape[2] if call.rows is None else len(call.rows)


def _numbers(call: Call, places: Sequence[int]) -> list[Row]:
    """(sample, row) of some of B · R: their numbers in the batch and the call, not among those measured."""
    rows, samples = (None if x is None else x.tolist() for x in (call.rows, call.samples))
    pairs = [divmod(i, _width(call)) for i in places]
    return [(b if samples is None else samples[b], r if rows is None else rows[r]) for b, r in pairs]


def _in_sample(which: NDArray[Any], call: Call, mine: slice, places: Sequence[int]) -> list[int]:
    """For each head of a call, how many rows `which` (H, L) marks of the sample in which the head's place lies."""
    width = _width(call)
    starts = [places[head] // width * width for head in range(mine.start, mine.stop)]
    return [int(which[mine.start + i, at : at + width].sum()) for i, at in enumerate(starts)]


def summarise(call: Call) -> HeadSummary:
    """The heads of a call in a few numbers.

    Raises InputError for a call of no sample or no row.
    """
    return Rows([call]).summaries()[0]


def together(calls: Iterable[Call]) -> Iterator[Rows]:
    """The rows of the calls, of as many at once as memory allows; those without rows are passed over."""
    group: list[Call] = []
    for call in calls:
        if 0 in call.shape[:3]:
            continue
        bigger = [*group, call]
        if group and sum(x.heads for x in bigger) * max(x.shape[0] * _width(x) for x in bigger) > _MOST:
            yield Rows(group)
            bigger = [call]
        group = bigger
    if group:
        yield Rows(group)


def known_residuals(call: Call) -> list[float]:
    """Those of the samples in which it is known how much the rows differ that the layer put out."""
    residuals = [] if call.residual is None else call.residual.tolist()
    return [value for value in residuals if math.isfinite(value)]


def summaries(calls: Iterable[Call]) -> Iterator[HeadSummary]:
    """A summary of each call; the steps of a decoding are one call, and those without rows are passed over."""
    for rows in together(joined([*calls])):
        yield from rows.summaries()


@torch.no_grad()
def row_residual(call: Call) -> list[float]:
    """‖A − 1ā‖ / ‖A‖ of each head over its judged rows, ā their mean: near 0 where all rows are the same.

    NaN ("not measured") where the call keeps no map. No matrix is formed: ‖A − 1ā‖ is the adjoint's product with 16
    random vectors of mean 0, whose expected square is the Frobenius norm's, and ā its product with ones.
    """
    A, (b, h, n_queries, _) = call.map, call.shape
    if A is None or call.rows is not None:
        return [math.nan] * h
    judged = torch.from_numpy(Rows([call]).judged).view(h, b, n_queries).transpose(0, 1)[..., None].to(A.device)
    count = judged.sum(2, keepdim=True).clamp(min=1)
    # a seed that nobody takes for their data: with theirs, these vectors would be their queries
    y = torch.randn(b, h, n_queries, 16, generator=torch.Generator().manual_seed(7120210305)).to(A.device) * judged
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
    return torch.linalg.vector_norm(apart, dim=(1, 2)) / torch.linalg.vector_norm(x, dim=(1, 2))


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
