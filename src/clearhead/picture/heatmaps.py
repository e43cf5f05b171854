"""Attention as heatmaps: one head, all heads of a layer, all layers of a model.

Figures are matplotlib's own, free of pyplot and its global state: `heatmap(A).savefig("a.png")` works in threads and
servers too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from clearhead.errors import InputError
from clearhead.picture.heads import Heads, check_labels, read
from clearhead.picture.panel import EDGE, HATCH, NUMBERED, Panel, draw, scale, write_numbers
from clearhead.picture.ticks import INK, MUTED, Ticks, drawable

Labels = Sequence[str] | None


def heatmap(
    weights: Any, rows: Labels = None, columns: Labels = None, *, title: str | None = None, log: bool = False
) -> Figure:
    """Draw attention weights; each row is a query, and shows how it spreads its attention over the keys.

    `weights` is an AttentionMap, or a tensor or array (Nq, Nk), (H, Nq, Nk) or (1, H, Nq, Nk): one head fills the
    picture, several share it and its colour scale. `rows` names the queries, `columns` the keys. Axes longer than 256
    positions (128 beside other heads) are drawn as means of blocks. `log` colours by the logarithm. What is not finite
    is hatched; a map with negative weights gets a two-sided scale.

    Raises ShapeError for other shapes, and for labels that are not as many as the positions of their axis; InputError
    for values that are no real numbers, and for negative ones on a logarithmic scale.
    """
    panels = _panels(read(weights))
    across = _columns(len(panels))
    lines = [panels[i : i + across] for i in range(0, len(panels), across)]
    return _figure(lines, rows, columns, title, log)


def grid(
    maps: Mapping[str, Any], rows: Labels = None, columns: Labels = None, *, title: str | None = None, log: bool = False
) -> Figure:
    """Draw every head of every layer, a row for each layer and a column for each head, on one colour scale.

    `maps` holds by name what `heatmap` takes. `rows` and `columns`, when given, fit every layer.

    Raises what `heatmap` raises, naming the layer; InputError when there is no layer.
    """
    if not maps:
        raise InputError("maps: no layer to draw, expected {name: weights}")
    layers = {name: read(weights, f"maps[{name!r}]", alone=False) for name, weights in maps.items()}
    lines: list[list[Panel]] = []
    for name, heads in layers.items():
        lines.append(_panels(heads, name, titled=max(map(len, lines), default=0)))
    return _figure(lines, rows, columns, title, log)


def _panels(heads: Heads, layer: str = "", titled: int = 0) -> list[Panel]:
    """A panel for each head; the first `titled` have their title already, above them."""
    named = layer or len(heads.values) > 1
    titles = [f"head {i}" if named and i >= titled else "" for i in range(len(heads.values))]
    return [
        Panel(values, heads.queries, heads.keys, titles[i], "" if i else layer) for i, values in enumerate(heads.values)
    ]


def _columns(heads: int) -> int:
    """How many heads stand side by side: rather wider than high, and without a gap where that is possible."""
    widest = min(heads, 4 if heads <= 16 else 8)
    return next((n for n in range(widest, 0, -1) if heads % n == 0 and n * n >= heads), widest)


@dataclass(frozen=True)
class Layout:
    """Where panels stand, the inches each of them gets, and the ticks along them."""

    lines: list[list[Panel]]
    rows: Labels
    columns: Labels
    width: float
    height: float

    @classmethod
    def of(cls, lines: list[list[Panel]], rows: Labels, columns: Labels) -> Layout:
        panels = [panel for line in lines for panel in line]
        for panel in panels:
            check_labels(rows, panel.queries, "rows", "queries (Nq)")
            check_labels(columns, panel.keys, "columns", "keys (Nk)")
        queries, keys = max(panel.queries for panel in panels), max(panel.keys for panel in panels)
        longest = max(queries, keys)
        most = 8.0 if len(panels) == 1 else 2.6 if max(map(len, lines)) <= 4 else 1.7
        side = min(max((0.34 if len(panels) == 1 else 0.2) * longest, 1.7), most)
        width, height = (max(side * n / longest, side / 8, 0.4) for n in (keys, queries))
        return cls(lines, rows, columns, width, height)

    def figure(self, title: str | None) -> tuple[Figure, Any]:
        """The empty figure, and its axes: (lines, longest line)."""
        down, across = len(self.lines), max(map(len, self.lines))
        rows, columns = self.row_ticks(self.lines[0][0]), self.column_ticks(self.lines[-1][0])
        width = across * (self.width + 0.1) + rows.inches + 1.4
        height = (
            down * (self.height + 0.25) + (columns.inches if any(columns.turned) else 0.2) + (0.85 if title else 0.45)
        )
        figure = Figure((max(width, 4.0), max(height, 1.4)), dpi=160, layout="compressed", facecolor="white")
        return figure, figure.subplots(down, across, squeeze=False)

    def row_ticks(self, panel: Panel) -> Ticks:
        return Ticks.of(self.rows, panel.queries, self.height, vertical=True)

    def column_ticks(self, panel: Panel) -> Ticks:
        return Ticks.of(self.columns, panel.keys, self.width, vertical=False)

    def name_positions(self, axes: Axes, i: int, j: int) -> None:
        """Name the queries on the left of a line, and the keys where no panel with the same keys stands below."""
        panel = self.lines[i][j]
        below = self.lines[i + 1][j] if i + 1 < len(self.lines) and j < len(self.lines[i + 1]) else None
        axes.set(xticks=[], yticks=[])
        if j == 0:
            self.row_ticks(panel).put(axes.yaxis)
        if below is None or below.keys != panel.keys:
            self.column_ticks(panel).put(axes.xaxis)


def _figure(lines: list[list[Panel]], rows: Labels, columns: Labels, title: str | None, log: bool) -> Figure:
    panels = [panel for line in lines for panel in line]
    layout, colours = Layout.of(lines, rows, columns), scale(panels, log)
    figure, axes = layout.figure(title)
    for i, j in np.ndindex(axes.shape):
        if j < len(lines[i]):
            image = draw(axes[i, j], lines[i][j], colours)
            layout.name_positions(axes[i, j], i, j)
        else:
            axes[i, j].set_axis_off()
    if len(panels) == 1 and max(panels[0].values.shape) <= NUMBERED:
        write_numbers(axes[0, 0], panels[0], colours)
    bar = figure.colorbar(image, ax=axes, extend=colours.extend, aspect=30, pad=0.02)
    bar.set_label("attention weight", fontsize=9, color=MUTED)
    bar.outline.set(edgecolor=EDGE, linewidth=0.6)
    bar.ax.tick_params(labelsize=8, colors=MUTED, width=0.6)
    _write_words(figure, panels, title)
    return figure


def _write_words(figure: Figure, panels: list[Panel], title: str | None) -> None:
    """What the picture is, what its axes mean, and what is unusual about it."""
    (h, w), panel = panels[0].values.shape, panels[0]
    down, across = _axis("query (attends)", panel.queries, h), _axis("key (attended to)", panel.keys, w)
    if len(panels) == 1:
        figure.axes[0].set_ylabel(down, fontsize=9, color=MUTED)
        figure.axes[0].set_xlabel(across, fontsize=9, color=MUTED)
    else:
        figure.supylabel(down, fontsize=9, color=MUTED)
        figure.supxlabel(across, fontsize=9, color=MUTED)
    if title is not None:
        figure.suptitle("\n".join(map(drawable, title.split("\n"))), fontsize=11, color=INK, parse_math=False)
    if not all(np.isfinite(panel.values).all() for panel in panels):
        figure.legend(
            handles=[Patch(**HATCH, label="NaN or infinite")], loc="outside upper right", fontsize=8, frameon=False
        )


def _axis(words: str, positions: int, blocks: int) -> str:
    return words if positions == blocks else f"{words} · {positions:,} positions, {-(-positions // blocks)} to a cell"
