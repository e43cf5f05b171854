"""The vectors of one head for one token: which keys are drawn of many, and where everything stands.

N keys, of which n are drawn; E model width, D and Dv head widths
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import CenteredNorm
from matplotlib.patches import Patch

from clearhead.errors import ShapeError
from clearhead.picture.heads import array, check_labels, one_of
from clearhead.picture.panel import HATCH
from clearhead.picture.scale import Scale, two_sided
from clearhead.picture.sheet import explained, height, inches, lines, title_height
from clearhead.picture.ticks import visible

MOST = 12  # keys that are drawn
NUMBERED = 6  # numbers of a vector up to which they are written into its cells
ROW = 0.25  # inches of a key
BARS, NUMBER = 0.8, 0.5  # inches of bars, and of the numbers beside them
SIZE = 8.5  # points
BOLD = 1.15  # how much wider bold type is


@dataclass(frozen=True)
class Parts:
    """What is drawn: of n keys, `kept` of the N. `chosen` is the row of the token itself, `seen` what it may see."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    weights: np.ndarray
    out: np.ndarray
    x: np.ndarray | None
    scores: np.ndarray
    scale: float | None
    names: list[str]
    chosen: int | None
    seen: np.ndarray
    left_out: str

    @classmethod
    def of(
        cls,
        q: Any,
        k: Any,
        v: Any,
        weights: Any,
        out: Any,
        x: Any,
        tokens: Sequence[str] | None,
        query: int | None,
        scale: float | None,
    ) -> Parts:
        q, k, v, a, out = (array(t, n) for t, n in ((q, "q"), (k, "k"), (v, "v"), (weights, "weights"), (out, "out")))
        x = None if x is None else array(x, "x")
        _check(q, k, v, a, out, x)
        check_labels(tokens, len(k), "tokens", "keys (N)", "there are")
        token = None if query is None else one_of("query", query, len(k), "there are tokens")
        with np.errstate(all="ignore"):
            scores = k @ q * (1 / math.sqrt(len(q)) if scale is None else scale)
        kept = _kept(a, token)
        rest = np.delete(a, kept)
        share = f"{rest.sum():.1%} of the weight" if np.isfinite(rest).all() else "weights that are not all numbers"
        words = f"{len(rest):,} of {len(k):,} keys are not drawn; they have {share}" if len(rest) else ""
        names = [visible(tokens[i]) if tokens is not None else str(i) for i in kept]
        if len(rest) and tokens is not None:
            names = [f"{name} ({i:,})" for name, i in zip(names, kept, strict=True)]
        chosen = None if token is None else int(np.flatnonzero(kept == token)[0])
        seen = _seen(scores, a)[kept]
        x = None if x is None else x[kept]
        return cls(q, k[kept], v[kept], a[kept], out, x, scores[kept], scale, names, chosen, seen, words)


def _check(q: np.ndarray, k: np.ndarray, v: np.ndarray, a: np.ndarray, out: np.ndarray, x: np.ndarray | None) -> None:
    n, d, d_v = len(np.atleast_1d(k)), q.size, out.size
    wanted = {"q": (q, (d,)), "k": (k, (n, d)), "v": (v, (n, d_v)), "weights": (a, (n,)), "out": (out, (d_v,))}
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape or 0 in shape:
            sizes = f"q {q.shape}, k {k.shape}, v {v.shape}, weights {a.shape}, out {out.shape}"
            raise ShapeError(f"{name}: {sizes}, expected (D,), (N, D), (N, Dv), (N,) and (Dv,), none empty")
    if x is not None and (x.ndim != 2 or len(x) != n or not x.shape[1]):
        raise ShapeError(f"x: shape {x.shape}, expected (N, E), an input for each of the {n} keys")


def _kept(weights: np.ndarray, token: int | None) -> np.ndarray:
    """The keys that are drawn, in their order: those with the greatest weights, and the token itself."""
    order = np.argsort(-np.where(np.isnan(weights), np.inf, weights), kind="stable")[:MOST]
    if token is not None and token not in order:
        order[-1] = token
    return np.sort(order)


def _seen(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether the query may see each key: its weight is not zero, or so small that float32 has no number for it."""
    if not (weights > 0).any():
        return weights != 0
    return (weights != 0) | (scores < scores[weights > 0].max() - 80)


@dataclass(frozen=True)
class Frame:
    """Where things are, in inches: a left and a width for each column of the picture."""

    x: tuple[float, float] | None
    k: tuple[float, float]
    scores: tuple[float, float]
    weights: tuple[float, float]
    v: tuple[float, float]
    rows: int
    title: float
    total: float
    notes: list[str]
    legend: list[Patch]

    @classmethod
    def of(cls, parts: Parts, title: str | None) -> Frame:
        labels = max(inches(name, SIZE) * (BOLD if i == parts.chosen else 1.0) for i, name in enumerate(parts.names))
        at, columns = 0.15 + labels + 0.1, []
        for width, gap in (
            (0.0 if parts.x is None else _width(parts.x), 0.65 if parts.x is not None else 0.0),
            (_width(parts.k), 0.6),
            (BARS, NUMBER + 0.55),
            (BARS, NUMBER + 0.45),
            (_width(parts.v), 0.1),
        ):
            columns.append((at, width))
            at += width + gap
        total = max(at + labels + 0.15, 3.4)
        inputs, keys, scores, weights, values = columns
        tensors = [parts.q, parts.k, parts.v, parts.weights, parts.out, *([] if parts.x is None else [parts.x])]
        finite = all(np.isfinite(tensor).all() for tensor in tensors)
        legend = [] if finite else [Patch(**HATCH, label="NaN or infinite")]
        heading, notes = title_height(title, total), lines(_notes(parts), total - 0.3, 8.0)
        shown = None if parts.x is None else inputs
        return cls(shown, keys, scores, weights, values, len(parts.names), heading, total, notes, legend)

    @property
    def query(self) -> float:
        """The top of the query's strip."""
        return self.title + 0.3

    @property
    def header(self) -> float:
        """The top of the words above the columns."""
        return self.query + ROW + 0.3

    @property
    def top(self) -> float:
        """The top of the first key."""
        return self.header + 0.42

    @property
    def end(self) -> float:
        return self.top + self.rows * ROW

    @property
    def out(self) -> float:
        """The top of the output's strip."""
        return self.end + 0.45

    @property
    def notes_top(self) -> float:
        return self.out + ROW + 0.25

    @property
    def foot(self) -> float:
        return self.notes_top + height(len(self.notes), 8.0) + explained(self.legend) + 0.1


def _width(vectors: np.ndarray) -> float:
    """Of a strip: wide enough for its numbers, where these are few."""
    return max(0.38 * vectors.shape[1], 0.9) if vectors.shape[1] <= NUMBERED else 1.6


def signed(*vectors: np.ndarray) -> Scale:
    """Zero in the middle, and as much room for negative numbers as for positive ones."""
    known = np.concatenate([each[np.isfinite(each)] for each in vectors])
    return Scale(CenteredNorm(halfrange=float(abs(known).max(initial=0.0)) or 1.0), two_sided())


def _notes(parts: Parts) -> str:
    """What the colours mean, and what is not drawn."""
    ranges: dict[str, tuple[np.ndarray, ...]] = {"q and k": (parts.q, parts.k), "v and o": (parts.v, parts.out)}
    if parts.x is not None:
        ranges = {"x": (parts.x,), **ranges}
    spans = ", ".join(f"±{signed(*each).norm.vmax:.3g} for {name}" for name, each in ranges.items())
    left_out = f" {parts.left_out}." if parts.left_out else ""
    return f"Colours go from brown, negative, over white, zero, to blue, positive: {spans}.{left_out}"
