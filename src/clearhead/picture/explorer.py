"""Attention maps of whole examples, checked and packed for the explorer in the page.

H heads, Nq queries, Nk keys
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clearhead.errors import InputError, ShapeError
from clearhead.picture.colour import DARK, LIGHT, NOT_FINITE
from clearhead.picture.heads import check_labels
from clearhead.picture.packing import NOTHING, quantised, quantum
from clearhead.picture.page import Markup, tag

COLOURS = {"light": LIGHT, "dark": DARK, "notFinite": NOT_FINITE, "nothing": NOTHING}
"""What a page's script needs to draw numbers."""


def pack(attention: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the explorer shows, as JSON will have it: the examples, and the colours; raises as `pack_examples`."""
    return {"examples": pack_examples(attention), **COLOURS}


def pack_examples(attention: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By example, kind of attention, and layer, the heads of each.

    Raises ShapeError, naming the example and the map, where a map is not (H, Nq, Nk) or its labels are not as many as
    its queries and keys.
    """
    return [{"title": str(example["title"]), "groups": _groups(example)} for example in attention]


def check_packed(examples: Any) -> None:
    """Raise InputError for what `pack_examples` would not have made, such as the content of a damaged file."""
    try:
        for example in examples:
            layers = [layer for group in example["groups"] for layer in group["layers"]]
            if not isinstance(example["title"], str) or not layers or not all(map(_is_packed, layers)):
                raise ValueError(example["title"])
    except (KeyError, TypeError, ValueError):
        raise InputError("attention: these are no packed maps of examples") from None


def _is_packed(layer: Mapping[str, Any]) -> bool:
    names = [layer["path"], layer["name"], *layer["rows"], *layer["columns"]]
    cells = len(layer["rows"]) * len(layer["columns"])
    sizes = {len(base64.b64decode(head, validate=True)) for head in layer["heads"]}
    scale = isinstance(layer["low"], int | float) and isinstance(layer["step"], int | float)
    return scale and all(isinstance(name, str) for name in names) and sizes == {2 * cells}


def shell(attention: Sequence[Mapping[str, Any]]) -> Markup:
    """What stands in the page until its script draws there, and stays where none may run."""
    words = ", ".join(str(example["title"]) for example in attention)
    note = (
        f"The maps of {words} are in this file; a script draws them, and none may run here."
        if words
        else "none was kept"
    )
    return tag("div", tag("p", note, class_="absent"), id="explorer")


def _groups(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {"Encoder": [], "Decoder": [], "Cross": [], "Attention": []}
    for path, weights in example["maps"].items():
        where = f"attention: {example['title']!r}, {path!r}"
        if path not in example["axes"]:
            raise InputError(f"{where} has no entry in 'axes', expected (row labels, column labels)")
        groups[group(path)].append(_layer(path, np.asarray(weights), example["axes"][path], where))
    return [{"name": name, "layers": layers} for name, layers in groups.items() if layers]


def group(path: str) -> str:
    """What kind of attention a module's path says that it is."""
    if "cross" in path:
        return "Cross"
    return next((name for name in ("Encoder", "Decoder") if name.lower() in path.split(".")), "Attention")


def layer_name(path: str) -> str:
    """A short name, from the first number in a module's path."""
    numbers = re.findall(r"\d+", path)
    return f"layer {numbers[0]}" if numbers else path


def _layer(path: str, weights: np.ndarray, axes: Sequence[Sequence[str]], where: str) -> dict[str, Any]:
    rows, columns = axes
    if weights.ndim != 3 or 0 in weights.shape:
        raise ShapeError(f"{where}: shape {weights.shape}, expected (H, Nq, Nk) of at least one head, query and key")
    check_labels(rows, weights.shape[1], f"{where}, rows", "queries (Nq)")
    check_labels(columns, weights.shape[2], f"{where}, columns", "keys (Nk)")
    low, step = quantum(weights)
    heads = [quantised(head, low, step) for head in weights]
    return {
        "name": layer_name(path),
        "path": path,
        "rows": [*map(str, rows)],
        "columns": [*map(str, columns)],
        "low": low,
        "step": step,
        "heads": heads,
    }
