"""Names of positions along an axis, legible at any length: thinned where they touch, turned where they are wide."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axis import Axis

from clearhead.picture.fonts import has

INK, MUTED = "#1c1b22", "#6b6a75"
LINE = 0.125  # inches a line of text needs
LONGEST = 24  # characters of a label that are shown
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}


@dataclass(frozen=True)
class Ticks:
    """The positions that are named, their names, which of these are turned, and the size of the type in points."""

    shown: range
    texts: list[str]
    turned: list[bool]
    size: float

    @classmethod
    def of(cls, labels: Sequence[str] | None, count: int, inches: float, vertical: bool) -> Ticks:
        """Names for `count` positions along `inches`: all where there is room, else every 2nd, 5th, 10th ...

        Names wider than their place are turned, and where these are many, all are. Without labels, positions count
        from 0; numbers stay level, and get sparser instead.
        """
        texts = [visible(label) for label in labels] if labels is not None else [str(i) for i in range(count)]
        pitch = inches / count
        size = min(max(pitch * 72 * 0.7, 6.5), 9.5)
        level = vertical or labels is None
        shown = range(0, count, step((_inches(texts, size) if level and not vertical else LINE) / pitch))
        wide = [not level and _inches([texts[i]], size) > pitch for i in shown]
        turned = [True] * len(wide) if sum(wide) > len(wide) / 4 else wide
        return cls(shown, [texts[i] for i in shown], turned, size)

    @property
    def inches(self) -> float:
        """How wide the widest name is."""
        return _inches(self.texts, self.size)

    def put(self, axis: Axis) -> None:
        names = axis.set_ticks(list(self.shown), self.texts, fontsize=self.size, color=INK, parse_math=False)
        for tick, turned in zip(names, self.turned, strict=True):
            tick.label1.set_rotation(90 if turned else 0)
        axis.set_tick_params(length=0 if self.shown.step == 1 else 2.5, pad=2.5, color=MUTED, width=0.6)


def _inches(texts: list[str], size: float) -> float:
    return max(map(_columns, texts)) * size * 0.66 / 72 + 0.06


def _columns(text: str) -> float:
    """How many letters of Latin `text` is as wide as: a character of East Asia fills its square."""
    return sum(1.6 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in text)


def step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least `least`."""
    scale = 1
    while True:
        for factor in (1, 2, 5):
            if factor * scale >= least:
                return factor * scale
        scale *= 10


def visible(label: str) -> str:
    """`label` as it can be read in a picture: white space shown, unknown characters spelt out, long labels cut."""
    if not label or label.isspace():
        label = "".join(_VISIBLE.get(c, "␣") for c in label) or "∅"
    shapes = [_shape(c) for c in label]
    if sum(map(len, shapes)) <= LONGEST:
        return "".join(shapes)
    while sum(map(len, shapes)) >= LONGEST and len(shapes) > 1:
        shapes.pop()
    return "".join(shapes) + "…"


def drawable(text: str) -> str:
    """`text` with every character spelt out that no font has a shape for, as in \\u65e5 (matplotlib draws boxes)."""
    return "".join(map(_shape, text))


def _shape(c: str) -> str:
    if c.isprintable() and has(c):
        return c
    return _VISIBLE.get(c) or c.encode("unicode_escape").decode()
