"""The flow of one token through a head: input, query, keys and values, scores, weights, output.

N keys, of which n are drawn; E model width, D and Dv head widths
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from clearhead.picture.panel import BAR, HATCH
from clearhead.picture.scale import Scale, written
from clearhead.picture.sheet import EDGE, Sheet, height, inches
from clearhead.picture.ticks import INK, MUTED
from clearhead.picture.vectors import BARS, NUMBER, NUMBERED, ROW, SIZE, Frame, Parts, signed

CHOSEN = "#c8361d"


def flow(
    q: Any,
    k: Any,
    v: Any,
    weights: Any,
    out: Any,
    *,
    x: Any = None,
    tokens: Sequence[str] | None = None,
    query: int | None = None,
    scale: float | None = None,
    title: str | None = None,
) -> Figure:
    """Draw how one head makes its output for one token, from left to right: every vector as a strip of colours.

    Shapes: query q (D,), keys k (N, D), values v (N, Dv), weights (N,), output out (Dv,); inputs x (N, E), if given.
    `tokens` names the keys, and `query` says which of them is the token itself, in self-attention. Scores are q · k
    times `scale`, 1/√D if None. A key whose weight is zero in spite of its score is one that the query may not see.

    Of more than 12 keys, those with the greatest weights are drawn, and the token itself; it says how many are not, and
    how much weight they have.

    Raises ShapeError for tensors that do not fit each other, and for tokens that are not as many as the keys;
    InputError for values that are no real numbers, and a query that is out of range.
    """
    parts = Parts.of(q, k, v, weights, out, x, tokens, query, scale)
    frame = Frame.of(parts, title)
    sheet = Sheet(frame.total, frame.foot)
    if title is not None:
        sheet.head(title)
    _draw_vectors(sheet, parts, frame)
    _draw_bars(sheet, frame.scores, frame, parts.scores, ~parts.seen)
    _draw_bars(sheet, frame.weights, frame, parts.weights, ~parts.seen)
    _draw_arrows(sheet, frame)
    _write(sheet, parts, frame)
    return sheet


def _draw_vectors(sheet: Sheet, parts: Parts, frame: Frame) -> None:
    """All vectors as strips of colours: query and keys on one scale, values and output on one, inputs on their own."""
    near, far = signed(parts.q, parts.k), signed(parts.v, parts.out)
    _strip(sheet, frame.k, frame.query, parts.q[None], near)
    _strip(sheet, frame.k, frame.top, parts.k, near)
    _strip(sheet, frame.v, frame.top, parts.v, far)
    _strip(sheet, frame.v, frame.out, parts.out[None], far)
    if parts.x is not None and frame.x is not None:
        axes = _strip(sheet, frame.x, frame.top, parts.x, signed(parts.x))
        if parts.chosen is not None:
            style: dict[str, Any] = {
                "fill": False,
                "edgecolor": CHOSEN,
                "linewidth": 1.8,
                "zorder": 5,
                "clip_on": False,
            }
            axes.add_patch(Rectangle((-0.5, parts.chosen - 0.5), parts.x.shape[1], 1, **style))


def _strip(sheet: Sheet, column: tuple[float, float], top: float, vectors: np.ndarray, scale: Scale) -> Axes:
    left, width = column
    n, d = vectors.shape
    axes = sheet.panel(left, top, width, n * ROW)
    axes.patch.set(**HATCH)
    axes.imshow(
        scale.cells(vectors),
        cmap=scale.colours.with_extremes(bad=(0, 0, 0, 0)),
        norm=scale.norm,
        aspect="auto",
        interpolation="nearest" if d <= 64 else "antialiased",
    )
    for i in range(1, n):
        axes.axhline(i - 0.5, color="white", linewidth=1.5)
    for (i, j), value in np.ndenumerate(vectors if d <= NUMBERED else vectors[:, :0]):
        ink = scale.ink(value) if np.isfinite(value) else INK
        axes.text(j, i, written(float(value)), ha="center", va="center", fontsize=7, color=ink)
    return axes


def _draw_bars(sheet: Sheet, column: tuple[float, float], frame: Frame, values: np.ndarray, unseen: np.ndarray) -> None:
    """A bar for each key, and its number beside it."""
    left, width = column
    axes = sheet.panel(left, frame.top, width, frame.rows * ROW)
    axes.spines[:].set_visible(False)
    shown = np.isfinite(values) & ~unseen
    axes.barh(np.flatnonzero(shown), values[shown], 0.62, color=BAR, linewidth=0)
    low, high = float(values[shown].min(initial=0.0)), float(values[shown].max(initial=0.0))
    axes.set(ylim=(frame.rows - 0.5, -0.5), xlim=(low, high if high > low else low + 1))
    axes.axvline(0, color=EDGE, linewidth=0.8)
    for i, value in enumerate(values):
        words = "not seen" if unseen[i] else written(float(value)) or "NaN" if not np.isinf(value) else "infinite"
        top = frame.top + (i + 0.5) * ROW
        sheet.write(left + width + 0.06, top, words, 8.0, MUTED if unseen[i] else INK, va="center_baseline")


def _draw_arrows(sheet: Sheet, frame: Frame) -> None:
    middle, query = frame.top + frame.rows * ROW / 2, frame.query + ROW / 2
    k, scores, weights, v = frame.k, frame.scores, frame.weights, frame.v
    if frame.x is not None:
        left, width = frame.x
        end, center = left + width, left + width / 2
        sheet.arrow((end + 0.05, middle), (k[0] - 0.07, middle), words="$W_k$")
        sheet.arrow((center, frame.header - 0.04), (center, query), (k[0] - 0.07, query))
        below = frame.end + 0.2
        sheet.arrow((center, frame.end + 0.05), (center, below), (v[0] + 0.2, below), (v[0] + 0.2, frame.end + 0.05))
        sheet.write(center + 0.25, query - 0.05, "$W_q$", SIZE, ha="left", va="bottom", parse_math=True)
        sheet.write(center + 0.25, below - 0.03, "$W_v$", SIZE, ha="left", va="bottom", parse_math=True)
    sheet.arrow((k[0] + k[1] + 0.05, middle), (scores[0] - 0.08, middle))
    sheet.arrow((k[0] + k[1] + 0.05, query), (scores[0] + BARS / 2, query), (scores[0] + BARS / 2, frame.header - 0.04))
    sheet.arrow((scores[0] + BARS + NUMBER + 0.12, middle), (weights[0] - 0.1, middle))
    sheet.arrow((weights[0] + BARS + NUMBER + 0.05, middle), (v[0] - 0.07, middle))
    sheet.arrow((v[0] + v[1] / 2, frame.end + 0.05), (v[0] + v[1] / 2, frame.out - 0.05))


def _write(sheet: Sheet, parts: Parts, frame: Frame) -> None:
    """What each column is, with its equation; the tokens; what the colours mean, and what is not drawn."""
    scale = r"/ \sqrt{d}" if parts.scale is None else rf"\times {parts.scale:.4g}"
    columns = [
        (frame.k, "keys", r"$k_j = x_j W_k$" if frame.x is not None else "$k_j$"),
        (frame.scores, "scores", rf"$s_j = q \cdot k_j {scale}$"),
        (frame.weights, "weights", "$a = \\mathrm{softmax}(s)$"),
        (frame.v, "values", r"$v_j = x_j W_v$" if frame.x is not None else "$v_j$"),
    ]
    for (left, _), name, equation in [*columns, *([(frame.x, "inputs", "$x_j$")] if frame.x is not None else [])]:
        sheet.write(left, frame.header, name, 9.0, INK)
        sheet.write(left, frame.header + 0.17, equation, SIZE, parse_math=True)
    whose = "query" if parts.chosen is None else f"query of {parts.names[parts.chosen]}"
    sheet.write(frame.k[0], frame.query - 0.2, whose, 9.0, INK)
    if frame.x is not None:
        after = frame.k[0] + inches(whose, 9.0) + 0.15
        sheet.write(after, frame.query - 0.2, "$q = x_i W_q$", SIZE, parse_math=True)
    words = r"output   $o = \sum_j a_j v_j$"
    sheet.write(frame.v[0] - 0.1, frame.out + ROW / 2, words, 9.0, INK, ha="right", va="center", parse_math=True)
    first = (frame.x or frame.k)[0]
    for i, name in enumerate(parts.names):
        style: dict[str, Any] = {"va": "center_baseline", "weight": "bold" if i == parts.chosen else "normal"}
        color, at = CHOSEN if i == parts.chosen else INK, frame.top + (i + 0.5) * ROW
        sheet.write(first - 0.1, at, name, SIZE, color, ha="right", **style)
        sheet.write(sum(frame.v) + 0.1, at, name, SIZE, color, **style)
    sheet.write(0.15, frame.notes_top, "\n".join(frame.notes), 8.0)
    sheet.explain(0.15, frame.notes_top + height(len(frame.notes), 8.0) + 0.05, frame.legend)
