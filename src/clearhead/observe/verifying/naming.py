"""What weights are, when they are not what they should be: compared with what the products q · k would give.

Shapes: B samples, H heads, N queries, M keys, D head width.
"""

import math
from typing import Any

import torch
from torch import Tensor

from clearhead.observe.verifying.reading import Reading

ELEMENTWISE = {
    "sigmoid": torch.sigmoid,
    "ReLU": torch.relu,
    "squared ReLU": lambda s: torch.relu(s).square(),
    "tanh": torch.tanh,
    "exp": torch.exp,
}


def name_weights(reading: Reading, tolerance: float) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What is wrong with weights, and what could not be told, each as (law, sentence)."""
    W, S = reading.weights, reading.products
    seen = (W != 0).any((0, 1))
    rows = W.sum(-1)[..., seen.any(-1)]
    sums = f"rows sum to {rows.min():.3g} … {rows.max():.3g}"
    if bool((-tolerance <= W).all()) and bool(((rows - 1).abs() < tolerance).all()):
        return _name_normalised(reading, seen, tolerance)
    for axis, name in ((-2, "queries (dim=-2)"), (1, "heads (dim=1)"), (0, "samples (dim=0)")):
        total = W.sum(axis)
        shown = seen.any(-2) if axis == -2 else seen
        if W.shape[axis] > 1 and bool(((total - 1).abs() < tolerance)[..., shown].all()) and bool((W >= 0).all()):
            return [("weights", f"the softmax runs over the {name}, not over the keys (dim=-1): {sums}")], []
    if S is None:
        return [("weights", f"weights do not sum to one: {sums}")], [("activation", "its products q · k are not known")]
    if _is_close(W, S, seen, tolerance):
        return [("activation", f"there is no softmax: the weights are the products q · k themselves, {sums}")], []
    for name, function in ELEMENTWISE.items():
        for scale in _scales(reading):
            if _is_close(W, function(scale * S), seen, tolerance):
                return [("activation", f"{name} in place of softmax: {sums}, not to one")], []
    slope = _slope(W, S, seen)
    if slope is not None and bool(((slope * S).softmax(-1) * seen - W).abs().max() < tolerance):
        return [("weights", f"weights are masked after the softmax and not normalised again: {sums}")], []
    return [("weights", f"weights do not sum to one: {sums}")], [("activation", "it is none of those known")]


def _name_normalised(reading: Reading, seen: Tensor, tolerance: float) -> tuple[list[Any], list[Any]]:
    W, S, width = reading.weights, reading.products, reading.width
    if S is None:
        return [], [(law, "its products q · k are not known") for law in ("activation", "scale")]
    scale = _slope(W, S, seen)
    if scale is None:
        return [], [(law, "all products q · k are the same") for law in ("activation", "scale")]
    if _gap((scale * S).masked_fill(~seen, -math.inf).softmax(-1), W, seen) < tolerance:
        return _name_scale(scale, width), []
    for name, function in ELEMENTWISE.items():
        for factor in _scales(reading):
            plain = function(factor * S) * seen
            if name != "exp" and _gap(plain / plain.sum(-1, keepdim=True), W, seen) < tolerance:
                return [("activation", f"{name}, divided by its sum, in place of softmax")], []
    why = "weights are positive and sum to one, but not by q · k alone: positions, a bias, a norm or a cap take part"
    return [], [(law, why) for law in ("activation", "scale")]


def _name_scale(scale: float, width: int) -> list[tuple[str, str]]:
    right = 1 / math.sqrt(width)
    if abs(scale / right - 1) < 0.02:
        return []
    if abs(scale - 1) < 0.02:
        return [("scale", f"the scale 1/√D is missing: logits are q · k, where D is {width}")]
    if abs(scale * width - 1) < 0.02:
        return [("scale", f"products are divided by D = {width}, not by √D")]
    return [("scale", f"products are multiplied by {scale:.3g}, not by 1/√D = {right:.3g}")]


def _scales(reading: Reading) -> tuple[float, ...]:
    return 1 / math.sqrt(reading.width), 1.0, 1 / reading.width


def _slope(W: Tensor, S: Tensor, seen: Tensor) -> float | None:
    """The c for which log W is c S, up to a constant of each row: least squares over what can be told from zero."""
    known = seen & (W > 1e-12) & S.isfinite()
    count = known.sum(-1, keepdim=True).clamp(min=1)
    centred = [
        (x.masked_fill(~known, 0) - x.masked_fill(~known, 0).sum(-1, keepdim=True) / count) * known
        for x in (S, W.clamp(min=1e-300).log())
    ]
    total = float(centred[0].square().sum())
    return None if total < 1e-12 else float((centred[0] * centred[1]).sum()) / total


def _is_close(W: Tensor, other: Tensor, seen: Tensor, tolerance: float) -> bool:
    """Is W a multiple of `other` where anything is seen?"""
    other = other * seen
    size = float(other.square().sum())
    if size == 0 or not math.isfinite(size):
        return False
    factor = float((W * other).sum()) / size
    return float((W - factor * other).abs().max()) < tolerance * float(W.abs().max())


def _gap(expected: Tensor, W: Tensor, seen: Tensor) -> float:
    """The largest difference in rows that see anything."""
    return float((expected - W)[..., seen.any(-1), :].abs().nan_to_num(math.inf).max())
