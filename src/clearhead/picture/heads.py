"""What is handed to be drawn, read as one array of heads.

B samples, H heads, Nq queries, Nk keys; h and w: the blocks of rows and columns that are drawn
"""

from __future__ import annotations

from collections.abc import Sequence
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
    hidden: tuple[int, ...] = ()
    share: float = 0.0
    received: np.ndarray | None = None
    entropy: np.ndarray | None = None

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
    h, w = (block_count(n, limit) for n in shape[-2:])
    pools = hasattr(weights, "pool") and (h, w) != shape[-2:]

    def three(x: Any) -> np.ndarray:
        """(..., a, b) of all samples and heads as the chosen heads' (H, a, b)."""
        x = array(x, name)
        return x.reshape(*_four(shape)[:2], *x.shape[-2:])[kept]

    if pools and choice.hide_sinks is False:
        heads = Heads(three(weights.pool(h, w)), shape[-2], shape[-1], numbers)
    else:
        matrix = weights.weights() if hasattr(weights, "pool") and not pools else weights
        rows = three(_by_row_blocks(weights, h)) if pools else pool(three(matrix), h, axis=-2)
        hidden = _hidden(choice.hide_sinks, rows)
        known = np.where(np.isfinite(rows), rows, 0.0)
        share = float(known[..., list(hidden)].sum() / (known.sum() or 1.0)) if hidden else 0.0
        heads = Heads(pool(rows, w, -1, hidden), shape[-2], shape[-1], numbers, hidden, share)
    if not choice.marginals:
        return heads
    if hasattr(weights, "statistics"):
        measured = weights.statistics()
        received, entropy = (three(x[..., None])[..., 0] for x in (measured.received, measured.entropy))
    else:
        received, entropy = _sums(three(weights), name)
    return replace(heads, received=pool(received, w, -1, heads.hidden), entropy=pool(entropy, h, -1, known=True))


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


def _hidden(keys: Keys, rows: np.ndarray) -> tuple[int, ...]:
    """The keys to hide of `rows` (H, h, Nk): for True the first to which any row attends (before it is padding)."""
    count = rows.shape[-1]
    if isinstance(keys, bool):
        given = [int(np.argmax((rows != 0).any((0, 1))))] if keys else []
    else:
        given = [keys] if isinstance(keys, int | np.integer) else list(keys)
    hidden = tuple(sorted({one_of("hide_sinks", key, count, "there are keys") for key in given}))
    if len(hidden) == count:
        raise InputError(f"hide_sinks: all {count} keys are hidden, and nothing is left to draw")
    return hidden


def _by_row_blocks(A: Any, h: int) -> Any:
    """The means of h blocks of rows of an AttentionMap, (..., h, Nk), as what its adjoint gives for these blocks."""
    import torch

    n = A.shape[-2]
    means = torch.zeros(n, h, device=A.device)
    for i, (start, stop) in enumerate(_cuts(n, h)):
        means[start:stop, i] = 1 / (stop - start)
    with torch.no_grad():
        return (A.T @ means.expand(*A.shape[:-2], n, h)).mT


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
