"""What was measured of every head through training, from records or as an array.

S steps, n heads of all layers together
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clearhead.errors import InputError, ShapeError, nearest
from clearhead.picture.heads import array, check_labels, pool
from clearhead.picture.names import Names

Head = tuple[str, int]
"""The layer's name, and the head's number in it."""

HOLE = 2.5  # times the steps before and after it: an interval in which something was not measured


@dataclass(frozen=True)
class History:
    """The numbers (S, n) of heads at steps (S,), which rise; NaN where nothing was measured, and maybe infinity."""

    steps: np.ndarray
    heads: list[Head]
    values: np.ndarray

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(layer for layer, _ in self.heads))

    def labels(self, width: float, size: float) -> list[str]:
        """What each head is called, in about so many inches."""
        names = dict(zip(self.layers, Names.of(self.layers, width, size).texts, strict=True))
        return [f"{names[layer]} · head {head}" if layer else f"head {head}" for layer, head in self.heads]

    def find(self, layer: str, head: int | None, where: str) -> list[int]:
        """Which of the n heads are the head of the layer, or all of the layer's; InputError where it is not there."""
        places = [i for i, (name, _) in enumerate(self.heads) if name == layer]
        if not places:
            raise InputError(f"{where}: no layer {layer!r}{nearest(layer, self.layers)}")
        found = [i for i in places if head is None or self.heads[i][1] == head]
        if not found:
            there = ", ".join(str(self.heads[i][1]) for i in places)
            raise InputError(f"{where}: no head {head} in layer {layer!r}, which has {there}")
        return found

    def cells(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Edges of cells around the steps, and their numbers (cells, n): of at most about `most` cells, each the mean
        of its steps. A hole between steps is a cell without a number."""
        blocks = min(most, len(self.steps))
        at, values = pool(self.steps, blocks, 0), pool(self.values, blocks, 0, known=True)
        gaps, holes = np.diff(at), _holes(at)
        near = [
            min(gaps[max(i - 1, 0)], gaps[min(i + 1, len(gaps) - 1)]) / 2 if i in holes else gaps[i] / 2
            for i in range(len(gaps))
        ]
        first, last = (near[0], near[-1]) if near else (0.5, 0.5)
        between = [[at[i] + near[i], *([at[i + 1] - near[i]] if i in holes else [])] for i in range(len(gaps))]
        edges = np.concatenate([[at[0] - first], *between, [at[-1] + last]])
        return edges, np.insert(values, [i + 1 for i in holes], np.nan, axis=0)

    def line(self, head: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The course of a head, (points,) steps and (points,) numbers, NaN where there are none: of at most about
        `most` points, among them the least and the greatest of each stretch."""
        values = np.where(np.isfinite(self.values[:, head]), self.values[:, head], np.nan)
        kept = np.arange(len(values))
        if len(values) > most:
            stretches = np.array_split(kept, most // 2)
            kept = np.unique(np.concatenate([_ends(stretch, values) for stretch in stretches]))
        return _broken(self.steps[kept], values[kept])

    def bands(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps (points,), and least, quarter, half, three quarters and greatest of all heads there (points, 5)."""
        stretches = np.array_split(np.arange(len(self.steps)), min(most, len(self.steps)))
        bands = np.full((len(stretches), 5), np.nan)
        for i, stretch in enumerate(stretches):
            part = self.values[stretch]
            known = part[np.isfinite(part)]
            if len(known):
                bands[i] = np.percentile(known, [0, 25, 50, 75, 100])
        return _broken(np.array([self.steps[stretch].mean() for stretch in stretches]), bands)


def is_records(values: Any) -> bool:
    return isinstance(values, Sequence) and all(isinstance(record, Mapping) for record in values)


def read(values: Any, name: str, steps: Any, heads: Sequence[Head] | None) -> History:
    """The history of the statistic `name`: from records of heads, of a monitor, or from an array (S, n)."""
    if is_records(values):
        if steps is not None or heads is not None:
            raise InputError("steps, heads: values are records, which name their steps and heads themselves")
        return _of_records(_of_heads(values), name)
    table = array(values, "values")
    if table.ndim != 2 or 0 in table.shape:
        raise ShapeError(f"values: shape {table.shape}, expected (S, n), a number for each step and head, or records")
    at = np.arange(len(table)) if steps is None else array(steps, "steps")
    check_labels([*at], len(table), "steps", "steps (S)", "the values have")
    check_labels(heads, table.shape[1], "heads", "heads (n)", "the values have")
    if not (np.diff(at) > 0).all():
        raise InputError("steps: they must rise from each to the next")
    given = [("", i) for i in range(table.shape[1])] if heads is None else [(str(a), int(b)) for a, b in heads]
    return History(at.astype(np.float64), given, table)


def _of_heads(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records of single heads, from those of a monitor: {"step": 20, "attention": {layer: {name: [H numbers]}}}.

    What else is among them, such as a loss, is left out.
    """
    if not any("attention" in record for record in records):
        return [*records]
    return [
        {"step": record.get("step"), "layer": layer, "head": head, name: value}
        for record in records
        for layer, numbers in record.get("attention", {}).items()
        for name, values in numbers.items()
        if isinstance(values, Sequence)
        for head, value in enumerate(values)
    ]


def _of_records(records: Sequence[Mapping[str, Any]], name: str) -> History:
    for i, record in enumerate(records):
        missing = [key for key in ("step", "layer", "head") if record.get(key) is None]
        if missing:
            raise InputError(f"values: record {i} has no {missing[0]!r}, expected step, layer, head and {name!r}")
    known = [record for record in records if record.get(name) is not None]
    if not known:
        keys = {key for record in records for key in record} - {"step", "layer", "head"}
        hint = nearest(name, keys) if keys else ": there are none to draw from"
        raise InputError(f"values: no record holds {name!r}{hint}")
    steps = sorted({float(record["step"]) for record in records})
    heads = list(dict.fromkeys((str(record["layer"]), int(record["head"])) for record in records))
    order = {layer: i for i, layer in enumerate(dict.fromkeys(layer for layer, _ in heads))}
    heads.sort(key=lambda head: (order[head[0]], head[1]))
    row, column = {step: i for i, step in enumerate(steps)}, {head: j for j, head in enumerate(heads)}
    values = np.full((len(steps), len(heads)), np.nan)
    for record in known:
        value = record[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"values: {name!r} at step {record['step']} is {value!r}, expected a number")
        values[row[float(record["step"])], column[str(record["layer"]), int(record["head"])]] = value
    return History(np.array(steps), heads, values)


def _holes(steps: np.ndarray) -> list[int]:
    """The intervals between steps that are far longer than those on both of their sides."""
    gaps = np.diff(steps)
    beside = [[gaps[j] for j in (i - 1, i + 1) if 0 <= j < len(gaps)] for i in range(len(gaps))]
    return [i for i, near in enumerate(beside) if near and gaps[i] > HOLE * max(near)]


def _broken(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`steps` and `values` with NaN in holes, where lines are to break."""
    after = [i + 1 for i in _holes(steps)]
    return np.insert(steps, after, steps[after]), np.insert(values, after, np.nan, axis=0)


def _ends(stretch: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The places of the least and the greatest number of a stretch, and of one that is missing."""
    part = values[stretch]
    known, missing = stretch[~np.isnan(part)], stretch[np.isnan(part)]
    ends = [known[values[known].argmin()], known[values[known].argmax()]] if len(known) else []
    return np.array([*ends, *missing[:1]], dtype=int)
