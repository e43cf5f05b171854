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
from clearhead.picture.page import Markup, tag

STEP = 1e-4  # of a packed weight: what is read out has as many decimals
NOTHING = 0xFFFF  # the packed value of what is not finite


def pack(attention: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the explorer shows, as JSON will have it: by example, kind of attention, and layer, the heads of each.

    Raises ShapeError, naming the example and the map, where a map is not (H, Nq, Nk) or its labels are not as many as
    its queries and keys.
    """
    examples = [{"title": str(example["title"]), "groups": _groups(example)} for example in attention]
    return {"examples": examples, "light": LIGHT, "dark": DARK, "notFinite": NOT_FINITE, "nothing": NOTHING}


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
        groups[_group(path)].append(_layer(path, np.asarray(weights), example["axes"][path], where))
    return [{"name": name, "layers": layers} for name, layers in groups.items() if layers]


def _group(path: str) -> str:
    if "cross" in path:
        return "Cross"
    return next((name for name in ("Encoder", "Decoder") if name.lower() in path.split(".")), "Attention")


def _layer(path: str, weights: np.ndarray, axes: Sequence[Sequence[str]], where: str) -> dict[str, Any]:
    rows, columns = axes
    if weights.ndim != 3 or 0 in weights.shape:
        raise ShapeError(f"{where}: shape {weights.shape}, expected (H, Nq, Nk) of at least one head, query and key")
    check_labels(rows, weights.shape[1], f"{where}, rows", "queries (Nq)")
    check_labels(columns, weights.shape[2], f"{where}, columns", "keys (Nk)")
    numbers = re.findall(r"\d+", path)
    name = f"layer {numbers[0]}" if numbers else path
    low, step = _quantum(weights)
    heads = [base64.b64encode(_quantised(head, low, step)).decode() for head in weights]
    return {
        "name": name,
        "path": path,
        "rows": [*map(str, rows)],
        "columns": [*map(str, columns)],
        "low": low,
        "step": step,
        "heads": heads,
    }


def _quantum(weights: np.ndarray) -> tuple[float, float]:
    """The smallest value and the step of 16 bits: decimal for shares of attention, whatever fits for anything else."""
    finite = weights[np.isfinite(weights)]
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    return (0.0, STEP) if low == 0 and high <= 1.001 else (low, (high - low) / (NOTHING - 1))


def _quantised(weights: np.ndarray, low: float, step: float) -> bytes:
    finite = np.isfinite(weights)
    steps = np.round((np.where(finite, weights, low).astype(np.float64) - low) / step)
    return np.where(finite, steps, NOTHING).astype("<u2").tobytes()
