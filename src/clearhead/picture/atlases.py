"""An atlas of a model's attention on one text: every head of every layer in one page that needs nothing else.

L layers, H heads, Nq queries, Nk keys
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.errors import InputError, ShapeError
from clearhead.picture import strips
from clearhead.picture.explorer import COLOURS, layer_name
from clearhead.picture.heads import check_labels
from clearhead.picture.packing import compressed
from clearhead.picture.page import ATLAS, Markup, join, page, tag
from clearhead.picture.tokens import legible
from clearhead.writing import write

LIMIT = 1 << 23
"""Weights in one page: 12 layers of 12 heads over 241 tokens."""
ROOMY = 1 << 18
"""Weights up to which a page has two more decimals."""
DECIMALS = 4
SUMS = 3
"""Decimals of a row's entropy and of what a key received."""

STATISTICS = {
    **strips.STATISTICS,
    "received": ("most received", "what the key that received most got from all queries together", None),
    "visible": ("visible keys", "how many keys a query sees, on average", None),
    "logsumexp": ("log-sum-exp", "the logarithm of the softmax's denominator, on average", None),
}
"""As for the strips: the title of each statistic, what it says, and the upper end of its colours if that is fixed."""

Records = Sequence[Mapping[str, Any]]


def atlas(
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str,
    layers: Records,
    findings: Records = (),
    pairs: Records = (),
    curves: Records = (),
    opened: tuple[int, int] | None = None,
    whole: bool = True,
) -> None:
    """Write the page to `path`: a dashboard of all heads, tokens linked, maps, and the flow through one token.

    - `layers`: {"path", "group", "weights": (H, Nq, Nk), "entropy": (H, Nq), "received": (H, Nk), "statistics": {name:
      H numbers, None where it was not measured}, "rows", "columns": names of tokens}, in the order in which they run.
      "special", a pair of lists, says which rows and columns stand for no text. Layers of one group, "encoder",
      "decoder", "cross" or "", are of one stack.
    - `findings`: {"layer": its place among `layers`, "head" or None, "rule", "severity", "sentence"}.
    - `pairs`: {"layer": as above, "head", "query", "key"}: who attends to whom most.
    - `curves`: the records of metrics.jsonl of a run, as for `training_report`.
    - `opened`: the layer's place and the head that is shown first; None: the first that a finding names.
    - `whole`: are these all layers of the model? Only then can be told what an output rests on.

    Weights are in the page with 4 decimals, those of fewer or longer rows with up to 6.

    Raises InputError for no layers, and for more than 2²³ weights; ShapeError for shapes and names that do not fit.
    """
    if not layers:
        raise InputError("layers: there are none, and nothing to show")
    count = sum(np.asarray(layer["weights"]).size for layer in layers)
    if count > LIMIT:
        raise InputError(f"{count:,} weights are too many for one page of at most {LIMIT:,}")
    axes = _Axes()
    packed = [_layer(layer, axes, _decimals(count, np.shape(layer["weights"])[-1])) for layer in layers]
    data = {
        "attention": COLOURS,
        "heads": strips.pack(curves),
        "layers": packed,
        "axes": axes.kept,
        "statistics": titled(layers),
        "findings": [dict(finding) for finding in findings],
        "pairs": [dict(pair) for pair in pairs],
        "sums": SUMS,
        "opened": opened,
        "whole": whole,
        "numbers": compressed(_numbers(layers, packed)),
    }
    body = join(_header(legible(title), legible(subtitle)), tag("main", *_sections(curves)))
    content = page(f"{legible(title)}: attention", body, data, ATLAS, ("report", "atlas"))
    write(Path(path), lambda file: file.write(content))


class _Axes:
    """The names of tokens along rows and columns, each list once."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def place(self, names: Sequence[str], special: Sequence[int]) -> int:
        """Where these names are kept."""
        axis = {"names": [legible(str(name)) for name in names], "special": sorted(map(int, special))}
        if axis not in self.kept:
            self.kept.append(axis)
        return self.kept.index(axis)


def _decimals(count: int, keys: int) -> int:
    """More where few weights are in the page, or where they are small because there are many keys."""
    return DECIMALS + (2 if count <= ROOMY else 1 if keys > 256 else 0)


def _layer(layer: Mapping[str, Any], axes: _Axes, decimals: int) -> dict[str, Any]:
    path, weights = str(layer["path"]), np.asarray(layer["weights"])
    where = f"layers: {path!r}"
    if weights.ndim != 3 or 0 in weights.shape:
        raise ShapeError(f"{where}: shape {weights.shape}, expected (H, Nq, Nk) of at least one head, query and key")
    heads, queries, keys = weights.shape
    for name, shape in (("entropy", (heads, queries)), ("received", (heads, keys))):
        if np.shape(layer[name]) != shape:
            raise ShapeError(f"{where}: {name} has shape {np.shape(layer[name])}, expected {shape}")
    check_labels(layer["rows"], queries, f"{where}, rows", "queries (Nq)")
    check_labels(layer["columns"], keys, f"{where}, columns", "keys (Nk)")
    for name, numbers in layer["statistics"].items():
        check_labels(numbers, heads, f"{where}, {name}", "heads (H)", "it has")
    rows, columns = layer.get("special", ((), ()))
    return {
        "path": path,
        "name": layer_name(path),
        "group": layer["group"],
        "heads": heads,
        "decimals": decimals,
        "rows": axes.place(layer["rows"], rows),
        "columns": axes.place(layer["columns"], columns),
        "statistics": {name: [*map(rounded, layer["statistics"].get(name, ()))] for name in STATISTICS},
    }


def rounded(number: float | None) -> float | None:
    """As many digits as are shown; None for what is no finite number."""
    return None if number is None or not np.isfinite(number) else float(f"{number:.6g}")


def titled(layers: Records) -> list[dict[str, Any]]:
    """The statistics that any layer has a number of, with their titles, what they say, and the end of their colours."""
    known = {name for layer in layers for name, some in layer["statistics"].items() if any(x is not None for x in some)}
    return [
        {"key": name, "title": title, "words": words, "high": high}
        for name, (title, words, high) in STATISTICS.items()
        if name in known
    ]


def _numbers(layers: Records, packed: Records) -> list[tuple[np.ndarray, int]]:
    """What the script unpacks, in this order: of each layer all weights, the rows' entropy, what keys received."""
    numbers: list[tuple[np.ndarray, int]] = []
    for layer, shape in zip(layers, packed, strict=True):
        numbers.append((np.asarray(layer["weights"]), shape["decimals"]))
        numbers += [(np.asarray(layer[name]), SUMS) for name in ("entropy", "received")]
    return numbers


def _header(title: str, subtitle: str) -> Markup:
    theme = tag("button", "dark", id="theme", type="button", hidden="")
    keys = tag("button", "keys ?", id="help", type="button", hidden="")
    return tag("header", tag("div", tag("h1", title), tag("p", subtitle)), tag("nav", keys, theme, aria_label="Page"))


def _sections(curves: Records) -> list[Markup]:
    note = "The attention of every head is in this file; a script draws it, and none may run here."
    return [tag("div", tag("p", note, class_="absent"), id="atlas"), training(curves)]


def training(curves: Records) -> Markup:
    """The section in which every head is shown through training; nothing where that was not recorded."""
    if not any(record.get("attention") for record in curves):
        return Markup()
    words = "Each line is a head, each column a step at which it was watched. Point at a head to read it."
    course = join(tag("h2", "Training"), tag("p", words, class_="muted"), strips.shell(curves))
    return tag("section", course, id="training")
