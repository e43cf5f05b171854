"""A statistic over layers and heads: a cell for each head, with its number.

L layers, H heads
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from clearhead.errors import InputError, ShapeError, nearest
from clearhead.picture.heads import array, check_labels
from clearhead.picture.names import Names
from clearhead.picture.panel import HATCH, HIDDEN
from clearhead.picture.scale import Scale, measure, scale_of, written
from clearhead.picture.sheet import EDGE, LEGEND, Sheet, explained, height, inches, title_height
from clearhead.picture.ticks import LINE, MUTED, Ticks, step

Marks = Mapping[str, Sequence[tuple[int | str, int | None]]]

RINGS: tuple[dict[str, Any], ...] = tuple(
    {"fill": False, "edgecolor": color, "linestyle": line, "linewidth": 1.6}
    for line in ("-", (0, (2.5, 1.2)))
    for color in ("#c8361d", "#7b3fa0", "#b37400", "#1c1b22")
)
HALO = withStroke(linewidth=3.2, foreground="white")  # so that rings are seen on dark cells too
NUMBER = 7.5  # points of the numbers in cells
NAME = 8.5  # points of the layers' names


def statistic(
    values: Any, name: str, layers: Sequence[str] | None = None, *, marks: Marks | None = None, title: str | None = None
) -> Figure:
    """Draw one number for each head: a row for each layer, a column for each head.

    `values` is (L, H), or {layer: (H,)}, where layers may have different numbers of heads, and None was not measured.
    `name` says which statistic they are: those of `Statistics` have their own words and scales, shares of weight from 0
    to 1; any other name is as good. `layers` names the rows of an array. What is not measured, or NaN, is hatched.

    `marks` rings heads: {"entropy collapse": [("encoder.layers.0", 3), (2, 0)]} means layers by name or row, and the
    head None all of a layer.

    Raises ShapeError for other shapes, and for layers that are not as many as the rows; InputError where there is
    nothing to draw, for values that are no real numbers, and for marks of layers or heads that are not there.
    """
    table = _read(values, layers)
    rings = _rings(marks or {}, table)
    kind, scale = measure(name), scale_of(np.concatenate(table.rows), measure(name))
    cells, names, legend = _Cells.of(table), Names.of(table.layers, 2.2, NAME), _legend(marks or {}, table)
    bar = min(max(cells.height, inches(kind.words, 9.0) + 0.1), 5.0)
    names_end = 0.25 + height(1, 9.0) + max(inches(text, NAME) for text in names.texts)
    content = names_end + cells.width + 1.05
    told = max((names_end + inches(str(patch.get_label()), LEGEND) + 0.6 for patch in legend), default=0.0)
    total = max(content, told, 3.4)
    left = (total - max(content, told)) / 2 + names_end
    top = title_height(title, total)
    foot = top + max(cells.height + 0.5, bar + 0.15)
    sheet = Sheet(total, foot + explained(legend))
    if title is not None:
        sheet.head(title)
    axes = sheet.panel(left, top, cells.width, cells.height)
    _draw(axes, table, scale, cells)
    _ring(axes, rings, table, cells)
    _name(axes, names, cells, table)
    scale.show(sheet, sheet.panel(left + cells.width + 0.14, top, 0.14, bar), kind.words)
    sheet.explain(left, foot, legend)
    return sheet


@dataclass(frozen=True)
class _Table:
    """The layers' names, and the numbers of their heads."""

    layers: list[str]
    rows: list[np.ndarray]

    @property
    def heads(self) -> int:
        return max(map(len, self.rows))


def _read(values: Any, layers: Sequence[str] | None) -> _Table:
    if not isinstance(values, Mapping):
        rows = array(values, "values")
        if rows.ndim != 2 or 0 in rows.shape:
            raise ShapeError(f"values: shape {rows.shape}, expected (L, H), a number for each head of each layer")
        check_labels(layers, len(rows), "layers", "layers (L)", "the values have")
        return _Table([*(layers or [f"layer {i}" for i in range(len(rows))])], [*rows])
    if layers is not None:
        raise InputError("layers: values are {layer: numbers} and name the layers already")
    given = {str(layer): None if row is None else array(row, f"values[{layer!r}]") for layer, row in values.items()}
    for layer, row in given.items():
        if row is not None and (row.ndim != 1 or not len(row)):
            raise ShapeError(f"values[{layer!r}]: shape {row.shape}, expected (H,), a number for each head")
    most = max((len(row) for row in given.values() if row is not None), default=0)
    if not most:
        raise InputError("values: nothing was measured, expected {layer: (H,)}")
    return _Table([*given], [np.full(most, np.nan) if row is None else row for row in given.values()])


Ring = tuple[int, int | None, int]
"""Row, head and kind."""


def _rings(marks: Marks, table: _Table) -> list[Ring]:
    if len(marks) > len(RINGS):
        raise InputError(f"marks: {len(marks)} kinds, and a picture tells at most {len(RINGS)} apart")
    found = []
    for kind, (words, heads) in enumerate(marks.items()):
        for layer, head in heads:
            i = _row(layer, table.layers, f"marks[{words!r}]")
            if head is not None and not 0 <= head < len(table.rows[i]):
                there = f"{table.layers[i]!r} has heads 0 … {len(table.rows[i]) - 1}"
                raise InputError(f"marks[{words!r}]: head {head} is out of range, {there}")
            found.append((i, head, kind))
    return found


def _row(layer: int | str, layers: list[str], where: str) -> int:
    if isinstance(layer, str):
        if layer not in layers:
            raise InputError(f"{where}: no layer {layer!r}{nearest(layer, layers)}")
        return layers.index(layer)
    if not 0 <= layer < len(layers):
        raise InputError(f"{where}: layer {layer} is out of range, there are 0 … {len(layers) - 1}")
    return layer


@dataclass(frozen=True)
class _Cells:
    """The inches of all cells together, and the numbers to write into them: none where there is no room."""

    width: float
    height: float
    numbers: list[list[str]]

    @classmethod
    def of(cls, table: _Table) -> _Cells:
        numbers = [[written(value) for value in row] for row in table.rows]
        widest = inches(max(itertools.chain(*numbers), key=len), NUMBER) + 0.12
        width = min(max(widest, 0.36), max(9.0 / table.heads, 0.1))
        height = min(0.27, max(9.0 / len(numbers), 0.1))
        room = width >= widest and height >= 0.16
        return cls(width * table.heads, height * len(numbers), numbers if room else [])


def _draw(axes: Axes, table: _Table, scale: Scale, cells: _Cells) -> None:
    at = np.array([(i, j) for i, row in enumerate(table.rows) for j in range(len(row))])
    values = np.concatenate(table.rows)
    corners = at[:, None, ::-1] + np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    thin = 0.6 if cells.numbers else 0.3
    for chosen, style in ((np.isfinite(values), {}), (np.isnan(values), HIDDEN), (np.isinf(values), HATCH)):
        squares = PolyCollection([*corners[chosen]], **{"edgecolor": EDGE, **style, "linewidth": thin})
        if not style:
            squares.set(array=values[chosen], cmap=scale.colours, norm=scale.norm)
        axes.add_collection(squares, autolim=False)
    for i, numbers in enumerate(cells.numbers):
        for j, number in enumerate(numbers):
            ink = scale.ink(table.rows[i][j]) if number else None
            axes.text(j, i, number, ha="center", va="center", fontsize=NUMBER, color=ink)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.5, table.heads - 0.5), ylim=(len(table.rows) - 0.5, -0.5))


def _ring(axes: Axes, rings: list[Ring], table: _Table, cells: _Cells) -> None:
    """Rings one within another, where a head has several marks."""
    inner: dict[tuple[int, int | None], int] = {}
    for i, head, kind in rings:
        depth = 0.02 + 0.03 * inner.get((i, head), 0)
        inner[i, head] = inner.get((i, head), 0) + 1
        x, y = depth * table.heads / cells.width, depth * len(table.rows) / cells.height
        first, count = (0, len(table.rows[i])) if head is None else (head, 1)
        ring = Rectangle((first - 0.5 + x, i - 0.5 + y), count - 2 * x, 1 - 2 * y, **RINGS[kind], zorder=3)
        ring.set_path_effects([HALO])
        axes.add_patch(ring)


def _legend(marks: Marks, table: _Table) -> list[Patch]:
    values = np.concatenate(table.rows)
    legend = [Patch(**ring, label=words) for words, ring in zip(marks, RINGS, strict=False)]
    legend += [Patch(**HIDDEN, label="not measured")] if np.isnan(values).any() else []
    return legend + ([Patch(**HATCH, label="infinite")] if np.isinf(values).any() else [])


def _name(axes: Axes, names: Names, cells: _Cells, table: _Table) -> None:
    """The layers down, the heads across."""
    shown = range(0, len(names.texts), step(LINE * len(names.texts) / cells.height))
    Ticks(shown, [names.texts[i] for i in shown], [False] * len(shown), NAME).put(axes.yaxis)
    Ticks.of(None, table.heads, cells.width, vertical=False).put(axes.xaxis)
    axes.set_xlabel("head", fontsize=9, color=MUTED)
    axes.set_ylabel(names.whole or "layer", fontsize=9, color=MUTED, parse_math=False)
