"""What is handed to be drawn, read as one array of heads.

B samples, H heads, Nq queries, Nk keys; h and w: the blocks of rows and columns that are drawn
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clearhead.errors import InputError, ShapeError

ALONE, TOGETHER = 256, 128  # positions of an axis that are told apart: by a picture of one head, and beside others


Keys = bool | int | Sequence[int]


@dataclass(frozen=True)
class Choice:
    """What of the weights is drawn, and how: the arguments that `heatmap` and `grid` share."""

    sample: int | None = None
    head: int | None = None
    hide_sinks: Keys = False
    marginals: bool = False


@dataclass(frozen=True)
class Heads:
    """The weights to draw, (H, h, w), and how many positions they stand for.

    `numbers` (H,) are the heads' own. `hidden` keys are left out of the values, and NaN where a whole block is hidden;
    they hold `share` of all weight. What keys `received` (H, w) and the rows' `entropy` (H, h) are there if asked for.
    """

    values: np.ndarray
    queries: int
    keys: int
    numbers: range = range(0)
    hidden: Sequence[int] = ()
    share: float = 0.0
    received: np.ndarray | None = None
    entropy: np.ndarray | None = None

    def _with(self, received: np.ndarray | None, entropy: np.ndarray | None) -> Heads:
        """With the marginals of all positions (H, Nk) and (H, Nq), in blocks; None: without."""
        if received is None or entropy is None:
            return self
        _, h, w = self.values.shape
        return replace(self, received=pool(received, w, -1, self.hidden), entropy=pool(entropy, h, -1, known=True))

    @property
    def blank(self) -> np.ndarray:
        """The blocks of keys (w,) of which nothing is shown, because all of their keys are hidden."""
        w = self.values.shape[-1]
        return np.array([set(range(*cut)) <= set(self.hidden) for cut in _cuts(self.keys, w)])


def read(weights: Any, name: str = "weights", alone: bool = True, choice: Choice | None = None) -> Heads:
    """Read `weights`, an AttentionMap, tensor or array: (Nq, Nk), (H, Nq, Nk) or (B, H, Nq, Nk).

    An axis of more than ALONE positions (TOGETHER, unless this one head is `alone` in its picture) becomes at most so
    many blocks, each the mean of its positions; an AttentionMap pools itself, so that its matrix is never formed.

    Raises ShapeError for other shapes and for several samples of which none is chosen, InputError for values that are
    no real numbers, and for a sample, head or key that is not there.
    """
    choice = choice or Choice()
    shape = tuple(weights.shape) if hasattr(weights, "shape") else np.shape(weights)
    kept, numbers = _chosen(shape, name, choice)
    limit = ALONE if alone and len(numbers) == 1 else TOGETHER
    size = block_count(shape[-2], limit), block_count(shape[-1], limit)

    def chosen(x: Any, axes: int) -> np.ndarray:
        """Something of all samples and heads, whose own axes are `axes`, as the chosen heads': (H, ...)."""
        x = array(x, name)
        return x.reshape(*_four(shape)[:2], *x.shape[x.ndim - axes :])[kept]

    if hasattr(weights, "pool") and size != shape[-2:]:
        return _of_map(weights, size, numbers, choice, chosen)
    matrix = chosen(weights.weights() if hasattr(weights, "pool") else weights, 2)
    if not choice.marginals:
        sums, entropy = None, None
    elif hasattr(weights, "statistics"):
        measured = weights.statistics()
        sums, entropy = chosen(measured.received, 1), chosen(measured.entropy, 1)
    else:
        sums, entropy = _sums(matrix, name)
    hidden = _hidden(choice.hide_sinks, (matrix != 0).any((0, 1)))
    rows = pool(matrix, size[0], -2)
    known = np.where(np.isfinite(rows), rows, 0.0)
    share = float(known[..., hidden].sum() / (known.sum() or 1.0))
    cells = pool(rows, size[1], -1, hidden)
    return Heads(cells, shape[-2], shape[-1], numbers, hidden, share)._with(sums, entropy)


def _of_map(
    A: Any, size: tuple[int, int], numbers: range, choice: Choice, chosen: Callable[[Any, int], np.ndarray]
) -> Heads:
    """The heads of an AttentionMap too long for its matrix."""
    cells, keys = chosen(A.pool(*size), 2), A.shape[-1]
    heads = Heads(cells, A.shape[-2], keys, numbers)
    if choice.hide_sinks is False and not choice.marginals:
        return heads
    measured = A.statistics()
    received = chosen(measured.received, 1)
    hidden = _hidden(choice.hide_sinks, (received != 0).any(0))
    cells = cells.copy()
    for j, cut in enumerate(_cuts(keys, size[1])):
        if own := [key for key in hidden if cut[0] <= key < cut[1]]:
            # the weight of named keys is a statistic of every row: what is left of the block is without it
            weight = np.nan_to_num(chosen(A.statistics(sinks=own, received=False).sink, 1))
            count, left = cut[1] - cut[0], cut[1] - cut[0] - len(own)
            rest = cells[..., j] * count - pool(weight, size[0], -1)
            cells[..., j] = np.maximum(rest, 0.0) / left if left else np.nan
    share = float(received[:, hidden].sum() / (received.sum() or 1.0))
    heads = replace(heads, values=cells, hidden=hidden, share=share)
    return heads._with(received, chosen(measured.entropy, 1)) if choice.marginals else heads


def check_labels(
    labels: Sequence[Any] | None, count: int, argument: str, axis: str, whole: str = "the weights have"
) -> None:
    """Raise ShapeError unless there is one label for each of the `count` positions of `axis` (or none at all)."""
    if labels is not None and len(labels) != count:
        raise ShapeError(f"{argument}: {len(labels)} labels, but {whole} {count} {axis}; give one label for each")


def block_count(positions: int, limit: int) -> int:
    """At most `limit` blocks, of a whole number of positions each (the last ones share, where that leaves a rest)."""
    each = -(-positions // limit)
    return -(-positions // each)


def _chosen(shape: tuple[int, ...], name: str, choice: Choice) -> tuple[tuple[int, slice], range]:
    """Which sample and heads of weights of `shape` are drawn, as an index and as the heads' numbers."""
    if len(shape) not in (2, 3, 4):
        raise ShapeError(f"{name}: shape {shape}, expected (Nq, Nk), (H, Nq, Nk) or (B, H, Nq, Nk)")
    if 0 in shape:
        raise ShapeError(f"{name}: shape {shape} is empty, expected at least one head, one query and one key")
    b, h = _four(shape)[:2]
    if b != 1 and choice.sample is None:
        raise ShapeError(
            f"{name}: shape {shape} holds {b} samples, a picture shows one; say sample=0, or pass weights[b]"
        )
    sample = one_of("sample", 0 if choice.sample is None else choice.sample, b, f"{name} has samples")
    numbers = range(h)
    if choice.head is not None:
        head = one_of("head", choice.head, h, f"{name} has heads")
        numbers = range(head, head + 1)
    return (sample, slice(numbers.start, numbers.stop)), numbers


def _four(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (4 - len(shape)) + shape


def one_of(argument: str, i: int, count: int, there: str) -> int:
    """`i`, counted from the end where it is negative; InputError unless it is one of `count`."""
    if isinstance(i, bool) or not isinstance(i, int | np.integer):
        raise InputError(f"{argument}: {i!r} is no whole number; {there} 0 … {count - 1}")
    if not -count <= i < count:
        raise InputError(f"{argument}: {i} is out of range, {there} 0 … {count - 1}")
    return int(i) % count


def _hidden(keys: Keys, seen: np.ndarray) -> list[int]:
    """The keys to hide: for True the first that is `seen` (Nk,) by any row (before it is padding)."""
    count = len(seen)
    if isinstance(keys, bool):
        given = [int(np.argmax(seen))] if keys else []
    else:
        given = [keys] if isinstance(keys, int | np.integer) else list(keys)
    hidden = sorted({one_of("hide_sinks", key, count, "there are keys") for key in given})
    if len(hidden) == count:
        raise InputError(f"hide_sinks: all {count} keys are hidden, and nothing is left to draw")
    return hidden


def _sums(weights: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What each key received, (H, Nk), and the entropy of each row, (H, Nq): NaN for a row that sees nothing."""
    if np.nanmin(weights, initial=0.0) < 0:
        raise InputError(f"marginals: {name} hold {np.nanmin(weights):.3g}, and negative weights have no entropy")
    known = np.isfinite(weights)
    logs = np.log(weights, out=np.zeros_like(weights), where=(weights > 0) & known)
    entropy = abs((np.where(known, weights, 0) * logs).sum(-1))
    rows = known.all(-1) & (weights > 0).any(-1)
    return np.where(known, weights, 0).sum(-2), np.where(rows, entropy, np.nan)


def array(values: Any, name: str) -> np.ndarray:
    """`values`, a tensor or whatever NumPy reads, as an array of floats; InputError where they are no real numbers."""
    if hasattr(values, "detach"):  # a tensor: NumPy knows no bfloat16, and takes nothing that wants a gradient
        values = values.detach().cpu()
        values = (values.float() if values.dtype.itemsize < 4 else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: values of type {array.dtype}, expected real numbers")
    return array.astype(np.float64 if array.dtype == np.float64 else np.float32)


def pool(values: np.ndarray, blocks: int, axis: int, left_out: Sequence[int] = (), known: bool = False) -> np.ndarray:
    """Means of `blocks` blocks along `axis`, cut as `adaptive_avg_pool2d` cuts them: NaN where all is `left_out`.

    With `known`, what is NaN is left out of the means too.
    """
    n = values.shape[axis]
    if n == blocks and not left_out:
        return values
    out, blank = set(left_out), np.full_like(values.take(0, axis), np.nan)
    kept = ([i for i in range(*cut) if i not in out] for cut in _cuts(n, blocks))
    mean = _known_mean if known else np.mean
    return np.stack([mean(values.take(some, axis), axis) if some else blank for some in kept], axis)


def _cuts(n: int, blocks: int) -> list[tuple[int, int]]:
    return [(i * n // blocks, -(-(i + 1) * n // blocks)) for i in range(blocks)]


def _known_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN where all is."""
    counts = (~np.isnan(values)).sum(axis)
    return np.where(counts > 0, np.nansum(values, axis) / np.maximum(counts, 1), np.nan)
