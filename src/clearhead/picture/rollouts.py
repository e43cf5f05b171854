"""Which tokens an output rests on: relevance as bars, layer by layer, and in the text itself.

N tokens; R rows: layers on the way to the output, or several outputs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from clearhead.errors import ShapeError
from clearhead.picture.heads import ALONE, TOGETHER, array, block_count, check_labels, pool
from clearhead.picture.names import Names
from clearhead.picture.panel import BAR, HATCH
from clearhead.picture.scale import Scale, scale_of_weights, without_peaks
from clearhead.picture.sheet import EDGE, Sheet, explained, height, inches, title_height
from clearhead.picture.ticks import INK, LINE, MUTED, Ticks, step, visible

Labels = Sequence[str] | None
BARS = 1.1  # inches
NAMED = 60  # tokens up to which each has its name below its bar; more are written as a text
WRITTEN = 600  # tokens up to which the text is whole; of longer ones, the most relevant are named
MOST = 12
SIZE = 8.5  # points of a text


def rollout(
    relevance: Any, tokens: Labels = None, rows: Labels = None, *, title: str | None = None, log: bool = False
) -> Figure:
    """Draw how relevant each token is, as a bar, and in the colour of its text.

    `relevance` is (N,), or (R, N): a row for each layer on the way to an output, or for each of several outputs. Rows
    are drawn as a strip, and the bars are of the last one. `tokens` names the tokens: below their bars up to 60, as a
    text up to 600; of longer inputs the most relevant ones are named. `rows` names the rows. Axes longer than 256
    tokens and 128 rows are drawn as means of blocks. What is not finite is hatched. `log` colours by the logarithm.

    Raises ShapeError for other shapes, and labels that are not as many; InputError for values that are no real numbers,
    and for negative ones on a logarithmic scale.
    """
    values = _read(relevance, tokens, rows)
    frame = _Frame.of(values, tokens, rows, title)
    scale = scale_of_weights(values[-1], log)  # of the tokens: the longest bar has the last colour
    sheet = Sheet(frame.total, frame.foot)
    if title is not None:
        sheet.head(title)
    bars = sheet.panel(frame.left, frame.bars, frame.width, BARS)
    _draw_bars(bars, values[-1])
    _name(bars, values, tokens, scale, frame)
    if frame.chips and values.shape[1] > WRITTEN:
        sheet.write(frame.left, frame.text, f"the most relevant of {values.shape[1]:,} tokens:", SIZE)
    for chip in frame.chips:
        _draw_chip(sheet, chip, frame, values[-1], scale)
    if frame.strip:
        scale = _draw_strip(sheet.panel(frame.left, frame.top, frame.width, frame.strip), values, log, frame)
    high = max(frame.strip, inches("relevance", 9.0) + 0.1)
    scale.show(sheet, sheet.panel(frame.left + frame.width + 0.14, frame.top, 0.14, high), "relevance")
    sheet.explain(frame.left, frame.end, frame.legend)
    return sheet


def _read(relevance: Any, tokens: Labels, rows: Labels) -> np.ndarray:
    """The relevance as (R, N)."""
    values = array(relevance, "relevance")
    if values.ndim not in (1, 2) or 0 in values.shape:
        raise ShapeError(f"relevance: shape {values.shape}, expected (N,), or (R, N) with a row for each layer")
    values = values.reshape(-1, values.shape[-1])
    check_labels(tokens, values.shape[1], "tokens", "tokens (N)", "the relevance has")
    check_labels(rows, values.shape[0], "rows", "rows (R)", "the relevance has")
    return values


@dataclass(frozen=True)
class _Chip:
    """A token in its place in a text: inches from the left and from the top of the text."""

    text: str
    token: int
    left: float
    top: float


@dataclass(frozen=True)
class _Frame:
    """Where things are, in inches, and the words around them."""

    left: float
    width: float
    strip: float
    total: float
    top: float
    names: list[str]
    labels: Ticks
    chips: list[_Chip]
    legend: list[Patch]

    @classmethod
    def of(cls, values: np.ndarray, tokens: Labels, rows: Labels, title: str | None) -> _Frame:
        count, n = values.shape
        width = min(max(0.34 * n, 2.4), 8.0)
        strip = 0.0 if count == 1 else min(0.22 * count, 3.4)
        names = Names.of([*rows], 1.8, SIZE).texts if rows is not None else [f"row {i}" for i in range(count)]
        left = 0.35 + height(1, 9.0) + max(0.35, max(inches(name, SIZE) for name in names) if count > 1 else 0.0)
        total = max(left + width + 1.15, 3.4)
        labels = Ticks.of(tokens if n <= NAMED else None, n, width, vertical=False)
        chips = [] if tokens is None or n <= NAMED else _chips(_texts(tokens, values[-1]), width + 0.6)
        legend = [] if np.isfinite(values).all() else [Patch(**HATCH, label="NaN or infinite")]
        return cls(left, width, strip, total, title_height(title, total), names, labels, chips, legend)

    @property
    def bars(self) -> float:
        """Where the bars begin, below the strip."""
        return self.top + (self.strip + 0.1 if self.strip else 0.0)

    @property
    def text(self) -> float:
        """Where the text begins, below the names and words under the bars."""
        names = max(inches(text, self.labels.size) for text in self.labels.texts)
        return self.bars + BARS + (names if any(self.labels.turned) else height(1, self.labels.size)) + 0.45

    @property
    def end(self) -> float:
        return self.text + (self.chips[-1].top + 0.3 if self.chips else 0.0)

    @property
    def foot(self) -> float:
        return self.end + explained(self.legend)


def _texts(tokens: Sequence[str], values: np.ndarray) -> list[tuple[int, str]]:
    """The tokens as they are written below: all, or the most relevant of very many, with their places and numbers."""
    if len(tokens) <= WRITTEN:
        return [(i, visible(token)) for i, token in enumerate(tokens)]
    known = np.where(np.isfinite(values), values, -np.inf)
    most = np.argsort(-known, kind="stable")[:MOST]
    return [(int(i), f"{visible(tokens[i])} ({i:,}): {values[i]:.3g}") for i in most]


def _chips(texts: list[tuple[int, str]], width: float) -> list[_Chip]:
    """The texts one after the other, in lines of `width` inches; where not all are there, below words that say so."""
    chips, left, top = [], 0.0, 0.0 if len(texts) > MOST else 0.24
    for token, text in texts:
        across = inches(text, SIZE) + 0.1
        if left and left + across > width:
            left, top = 0.0, top + 0.23
        chips.append(_Chip(text, token, left, top))
        left += across
    return chips


def _draw_chip(sheet: Sheet, chip: _Chip, frame: _Frame, values: np.ndarray, scale: Scale) -> None:
    value = values[chip.token]
    fill, ink = (scale.colour(value), scale.ink(value)) if np.isfinite(value) else (HATCH["facecolor"], INK)
    sheet.chip(frame.left + chip.left, frame.text + chip.top, chip.text, SIZE, fill, ink)


def _draw_strip(axes: Axes, values: np.ndarray, log: bool, frame: _Frame) -> Scale:
    """All rows; the first layers' peak at the output's own token may be off the scale."""
    count, n = values.shape
    cells = pool(pool(values, block_count(count, TOGETHER), 0), block_count(n, ALONE), 1)
    scale = scale_of_weights(cells, log, without_peaks(cells))
    axes.patch.set(**HATCH)
    axes.imshow(
        scale.cells(cells),
        cmap=scale.colours.with_extremes(bad=(0, 0, 0, 0)),
        norm=scale.norm,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, n - 0.5, count - 0.5, -0.5),
    )
    shown = range(0, count, step(LINE * count / frame.strip))
    Ticks(shown, [frame.names[i] for i in shown], [False] * len(shown), SIZE).put(axes.yaxis)
    axes.set_xticks([])
    return scale


def _draw_bars(axes: Axes, values: np.ndarray) -> None:
    n = len(values)
    bars = pool(values, block_count(n, ALONE), 0)
    each = n / len(bars)
    at, known = (np.arange(len(bars)) + 0.5) * each - 0.5, np.isfinite(bars)
    axes.bar(at[known], bars[known], each * (0.7 if n <= NAMED else 1.0), color=BAR, linewidth=0)
    for place in at[~known]:
        axes.axvspan(place - each / 2, place + each / 2, **HATCH, linewidth=0)
    least, most = min(0.0, float(bars[known].min(initial=0.0))), float(bars[known].max(initial=0.0))
    axes.set(xlim=(-0.5, n - 0.5), ylim=(1.08 * least, 1.08 * most if most > least else 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.axhline(0, color=EDGE, linewidth=0.6)


def _name(axes: Axes, values: np.ndarray, tokens: Labels, scale: Scale, frame: _Frame) -> None:
    """The tokens below their bars, on their colours where they have names; what the axes are."""
    n = values.shape[1]
    frame.labels.put(axes.xaxis)
    if tokens is not None and n <= NAMED:
        for i, label in zip(frame.labels.shown, axes.get_xticklabels(), strict=True):
            if np.isfinite(values[-1, i]):
                label.set(color=scale.ink(values[-1, i]))
                label.set_bbox({"facecolor": scale.colour(values[-1, i]), "linewidth": 0, "pad": 1.2})
    each = -(-n // block_count(n, ALONE))
    words = ["token"] if each == 1 else ["token", f"{n:,} positions, {each} to a bar"]
    words += [f"bars of {frame.names[-1]}"] if len(values) > 1 else []
    axes.set_xlabel(" · ".join(words), fontsize=9, color=MUTED, parse_math=False)
    axes.set_ylabel("relevance", fontsize=9, color=MUTED)
