"""A statistic of every head through training: lines above, a strip of all heads below, and what alarms said when.

S steps, n heads of all layers together
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator

from clearhead.picture import alarms as bells
from clearhead.picture import history
from clearhead.picture.heads import pool
from clearhead.picture.history import Head, History
from clearhead.picture.names import Names
from clearhead.picture.panel import HATCH, HIDDEN
from clearhead.picture.scale import Measure, Scale, measure, power, scale_of
from clearhead.picture.sheet import EDGE, Sheet, explained, height, inches, spread, title_height
from clearhead.picture.ticks import INK, LINE, MUTED, step

WIDTH, HIGH = 6.4, 2.4  # inches of the lines
CELLS, ROWS = 500, 400  # of the strip, at most
POINTS = 800  # of a line, at most
EACH = 200  # heads up to which all of them have a line, and not bands of them together
NAMED = 14  # heads whose lines have a name
COLORS = ("#0072b2", "#d55e00", "#009e73", "#8a3f8f", "#1c1b22", "#b37400", "#3f9ad6")  # told apart by all eyes
OTHERS, MIDDLE = "#d3d2da", "#b4b3bf"
SIZE = 8.0  # points of names


def timeline(
    values: Any,
    name: str,
    steps: Any = None,
    heads: Sequence[Head] | None = None,
    *,
    highlight: Sequence[Head] = (),
    alarms: Sequence[Mapping[str, Any]] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the statistic `name` of every head through training: lines, and below a strip with a row for each head.

    `values` is records of heads, {"step": 20, "layer": "encoder.layers.0", "head": 3, name: 0.7}; records of an
    AttentionMonitor, as its metrics.jsonl has them; or an array (S, n) at `steps` of `heads`, each (layer, head). What
    was not measured is a gap, in lines and strip.

    `alarms` are {"step": 20, "layer": ..., "head": ..., "sentence": ...}, the head None for all of a layer; if None,
    those in the monitor's records. They are marked, numbered, and written below. The heads that they name, and those of
    `highlight`, have lines in colour with their names.

    Raises ShapeError for arrays that do not fit; InputError where there is nothing to draw, for values that are no
    numbers, and for heads, layers and steps that are not there.
    """
    past, kind = history.read(values, name, steps, heads), measure(name)
    if alarms is not None:
        rung = bells.read(alarms, past)
    else:
        rung = bells.recorded(values, past) if history.is_records(values) else []
    chosen = _chosen(highlight, rung, past)
    scale, frame = scale_of(past.values, kind), _Frame.of(past, chosen, rung, title)
    sheet = Sheet(frame.total, frame.foot)
    if title is not None:
        sheet.head(title)
    curves = sheet.panel(frame.left, frame.top, WIDTH, HIGH)
    strip = sheet.panel(frame.left, frame.below, WIDTH, frame.strip)
    _draw_strip(strip, past, scale, frame)
    curves.set_xlim(strip.get_xlim())
    _draw_lines(curves, past, chosen, scale, kind)
    _name_lines(curves, past, chosen, frame)
    bells.mark(sheet, curves, strip, rung, past)
    bar = max(min(frame.strip, 4.0), inches(kind.words, 9.0) + 0.1)
    scale.show(sheet, sheet.panel(frame.left + WIDTH + 0.14, frame.below, 0.14, bar), kind.words)
    sheet.explain(frame.left, frame.end, frame.legend)
    bells.write(sheet, frame.words, frame.left, frame.end + explained(frame.legend))
    return sheet


def _chosen(highlight: Sequence[Head], rung: list[bells.Alarm], past: History) -> list[int]:
    """The heads whose lines have a colour: those that are asked for, the first ones with alarms, or all of a few."""
    asked = [past.find(str(layer), int(head), "highlight")[0] for layer, head in highlight]
    alarmed = [place for alarm in rung if alarm.head is not None for place in alarm.places]
    if not asked and not alarmed and len(past.heads) <= len(COLORS):
        return [*range(len(past.heads))]
    return [*dict.fromkeys([*asked, *alarmed])][: max(NAMED, len(asked))]


@dataclass(frozen=True)
class _Frame:
    """Where things are, in inches; the names of heads, those at the strip's rows, and what is said below all."""

    labels: list[str]
    rows: list[tuple[float, str]]
    left: float
    strip: float
    total: float
    top: float
    legend: list[Artist]
    words: list[tuple[str, str]]

    @classmethod
    def of(cls, past: History, chosen: list[int], rung: list[bells.Alarm], title: str | None) -> _Frame:
        n = len(past.heads)
        strip = min(0.2 * n, max(3.2, min(0.022 * n, 5.0)))
        labels = past.labels(1.3, SIZE)
        rows = _rows(past, labels, strip)
        left = 0.3 + height(1, 9.0) + max(0.4, max(inches(text, SIZE) for _, text in rows))
        names = max((inches(labels[head], SIZE) for head in chosen[:NAMED]), default=0.0)
        total = left + WIDTH + max(1.05, names + 0.4)
        top = title_height(title, total) + (0.2 if rung else 0.0)
        words = bells.written(rung, total - left - 0.4)
        return cls(labels, rows, left, strip, total, top, _legend(past, chosen, rung), words)

    @property
    def below(self) -> float:
        """Where the strip begins."""
        return self.top + HIGH + 0.12

    @property
    def end(self) -> float:
        """Where what is said below the strip begins."""
        return self.below + max(self.strip + 0.5, 1.6)

    @property
    def foot(self) -> float:
        return self.end + explained(self.legend) + height(len(self.words), SIZE) + 0.1


def _rows(past: History, labels: list[str], strip: float) -> list[tuple[float, str]]:
    """The names at the rows of the strip: of each head where there is room, else of each layer in its middle."""
    if strip / len(labels) >= LINE:
        return [(float(i), label) for i, label in enumerate(labels)]
    names = Names.of(past.layers, 1.7, SIZE).texts
    middle = [float(np.mean(past.find(layer, None, "heads"))) for layer in past.layers]
    return [*zip(middle, names, strict=True)][:: step(LINE * len(names) / strip)]


def _legend(past: History, chosen: list[int], rung: list[bells.Alarm]) -> list[Artist]:
    legend: list[Artist] = []
    others = len(past.heads) - len(chosen)
    if others and len(past.heads) <= EACH:
        legend.append(Line2D([], [], color=MIDDLE, label=f"the other {others} heads" if chosen else f"{others} heads"))
    elif others:
        legend.append(Patch(color=OTHERS, label=f"all {len(past.heads):,} heads, from the least to the greatest"))
        legend.append(Patch(color=MIDDLE, label="the middle half of them, and their median"))
    if rung:
        legend.append(Line2D([], [], label="alarm", **bells.SPOT))
    if np.isnan(past.cells(CELLS)[1]).any():
        legend.append(Patch(**HIDDEN, label="not measured"))
    return [*legend, *([Patch(**HATCH, label="infinite")] if np.isinf(past.values).any() else [])]


def _draw_strip(axes: Axes, past: History, scale: Scale, frame: _Frame) -> None:
    edges, cells = past.cells(CELLS)
    rows = pool(cells, min(ROWS, len(past.heads)), 1, known=True).T
    down = np.linspace(-0.5, len(past.heads) - 0.5, len(rows) + 1)
    axes.patch.set(**HIDDEN)
    axes.pcolormesh(edges, down, np.ma.masked_invalid(rows), cmap=scale.colours, norm=scale.norm)
    for i, j in np.argwhere(np.isinf(rows)):
        corner, size = (edges[j], down[i]), (edges[j + 1] - edges[j], down[i + 1] - down[i])
        axes.add_patch(Rectangle(corner, *size, **HATCH, linewidth=0))
    for i in range(1, len(past.heads)):
        if past.heads[i][0] != past.heads[i - 1][0] and len(past.layers) < 60:
            axes.axhline(i - 0.5, color="white", linewidth=1.0)
    axes.set(xlim=edges[[0, -1]], ylim=(len(past.heads) - 0.5, -0.5), yticks=[at for at, _ in frame.rows])
    axes.set_yticklabels([text for _, text in frame.rows], fontsize=SIZE, color=INK, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True) if len(past.steps) > 1 else FixedLocator([*past.steps]))
    axes.set_xlabel("step", fontsize=9, color=MUTED)


def _draw_lines(axes: Axes, past: History, chosen: list[int], scale: Scale, kind: Measure) -> None:
    if len(past.heads) <= EACH:
        others = [np.column_stack(past.line(j, POINTS)) for j in range(len(past.heads)) if j not in chosen]
        axes.add_collection(LineCollection(others, colors=MIDDLE, linewidths=0.6), autolim=False)
    else:
        at, bands = past.bands(POINTS)
        axes.fill_between(at, bands[:, 0], bands[:, 4], color=OTHERS, linewidth=0)
        axes.fill_between(at, bands[:, 1], bands[:, 3], color=MIDDLE, linewidth=0)
        axes.plot(at, bands[:, 2], color="#6b6a75", linewidth=1.0)
    for i, head in enumerate(chosen):
        axes.plot(*past.line(head, POINTS), **_style(i), marker=".", markersize=3 if len(past.steps) <= 60 else 0)
    _set_limits(axes, past.values[np.isfinite(past.values)], scale, kind)
    axes.yaxis.grid(True, color=EDGE, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.set_ylabel(kind.words, fontsize=9, color=MUTED, parse_math=False)


def _set_limits(axes: Axes, known: np.ndarray, scale: Scale, kind: Measure) -> None:
    """From the least that a statistic can be to the most, or to what was measured; compressed where colours are."""
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    low, high = low if kind.low is None else kind.low, high if kind.high is None else kind.high
    if scale.ticks is not None:
        axes.set_yscale("asinh", linear_width=scale.linear_width)
        axes.set_yticks(scale.ticks, [*map(power, scale.ticks)])
        axes.set_yticks([], minor=True)
        axes.set_ylim(min(1.3 * low, 0.0), 1.3 * high)
        return
    axes.yaxis.set_major_locator(MaxNLocator(6))
    room = 0.03 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)


def _name_lines(axes: Axes, past: History, chosen: list[int], frame: _Frame) -> None:
    """Names at the right ends of the lines, moved apart where these end together."""
    ends = []
    for i, head in enumerate(chosen[:NAMED]):
        known = np.flatnonzero(np.isfinite(past.values[:, head]))
        if len(known):
            ends.append((i, head, past.steps[known[-1]], past.values[known[-1], head]))
    inverse = axes.transAxes.inverted()
    places = [inverse.transform(axes.transData.transform((at, value))) for _, _, at, value in ends]
    moved = spread([float(y) for _, y in places], LINE / HIGH, 0.02, 0.98)
    for (i, head, _, _), (x, y), to in zip(ends, places, moved, strict=True):
        color = COLORS[i % len(COLORS)]
        link: dict[str, Any] = {"color": color, "linewidth": 0.6, "clip_on": False, "transform": axes.transAxes}
        axes.plot([x, 1.0, 1.025], [y, y, to], **link, linestyle="-" if x > 0.9 else ":")
        style: dict[str, Any] = {"va": "center", "fontsize": SIZE, "color": color, "parse_math": False}
        axes.text(1.03, to, frame.labels[head], transform=axes.transAxes, **style)


def _style(i: int) -> dict[str, Any]:
    dash: Any = "-" if i < len(COLORS) else (0, (4, 1.5))
    return {"color": COLORS[i % len(COLORS)], "linestyle": dash, "linewidth": 1.3, "zorder": 3}
