"""What is handed to be drawn, read as one array of heads.

H heads, Nq queries, Nk keys; h and w: the blocks of rows and columns that are drawn
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clearhead.errors import InputError, ShapeError

ALONE, TOGETHER = 256, 128  # positions of an axis that are told apart: by a picture of one head, and beside others


@dataclass(frozen=True)
class Heads:
    """The weights to draw, (H, h, w), and how many positions they stand for."""

    values: np.ndarray
    queries: int
    keys: int


def read(weights: Any, name: str = "weights", alone: bool = True) -> Heads:
    """Read `weights`, an AttentionMap, tensor or array: (Nq, Nk), (H, Nq, Nk) or (1, H, Nq, Nk).

    An axis of more than ALONE positions (TOGETHER, unless this one head is `alone` in its picture) becomes at most so
    many blocks, each the mean of its positions; an AttentionMap pools itself, so that its matrix is never formed.

    Raises ShapeError for other shapes and for several samples, InputError for values that are no real numbers.
    """
    shape = tuple(weights.shape) if hasattr(weights, "shape") else np.shape(weights)
    _check(shape, name)
    limit = ALONE if alone and math.prod(shape[:-2]) == 1 else TOGETHER
    h, w = (_blocks(n, limit) for n in shape[-2:])
    if hasattr(weights, "pool"):
        values = _array(weights.weights() if (h, w) == shape[-2:] else weights.pool(h, w), name)
    else:
        values = _pool(_pool(_array(weights, name), h, axis=-2), w, axis=-1)
    return Heads(values.reshape(-1, h, w), *shape[-2:])


def check_labels(labels: Sequence[str] | None, count: int, argument: str, axis: str) -> None:
    """Raise ShapeError unless there is one label for each of the `count` positions of `axis` (or none at all)."""
    if labels is not None and len(labels) != count:
        raise ShapeError(
            f"{argument}: {len(labels)} labels, but the weights have {count} {axis}; give one label for each"
        )


def _blocks(positions: int, limit: int) -> int:
    """At most `limit` blocks, of a whole number of positions each (the last ones share, where that leaves a rest)."""
    each = -(-positions // limit)
    return -(-positions // each)


def _check(shape: tuple[int, ...], name: str) -> None:
    if len(shape) not in (2, 3, 4):
        raise ShapeError(f"{name}: shape {shape}, expected (Nq, Nk), (H, Nq, Nk) or (1, H, Nq, Nk)")
    if len(shape) == 4 and shape[0] != 1:
        raise ShapeError(
            f"{name}: shape {shape} holds {shape[0]} samples, a picture shows one; pass weights[b] of sample b"
        )
    if 0 in shape:
        raise ShapeError(f"{name}: shape {shape} is empty, expected at least one head, one query and one key")


def _array(values: Any, name: str) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor: NumPy knows no bfloat16, and takes nothing that wants a gradient
        values = values.detach().cpu()
        values = (values.float() if values.dtype.itemsize < 4 else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: values of type {array.dtype}, expected real numbers")
    return array.astype(np.float64 if array.dtype == np.float64 else np.float32)


def _pool(values: np.ndarray, blocks: int, axis: int) -> np.ndarray:
    """Means of `blocks` blocks along `axis`, cut as `adaptive_avg_pool2d` cuts them."""
    n = values.shape[axis]
    if n == blocks:
        return values
    cuts = ((i * n // blocks, -(-(i + 1) * n // blocks)) for i in range(blocks))
    return np.stack([values.take(range(*cut), axis).mean(axis) for cut in cuts], axis)
