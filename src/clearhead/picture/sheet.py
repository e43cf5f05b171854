"""The sheet that a picture is drawn on: measured in inches from its top left corner, and shown by notebooks.

It is matplotlib's own figure, free of pyplot and its global state, so that it works in threads and servers too.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from clearhead.picture.fonts import fallback, properties
from clearhead.picture.ticks import INK, MUTED, drawable

EDGE = "#c9c8d1"
TITLE = 11.0  # points
LEGEND = 8.5
LEADING = 1.35  # from line to line of a text, in its sizes


class Sheet(Figure):
    """A figure of `width` by `height` inches on which things are put at places given in inches."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__((width, height), dpi=160, facecolor="white")

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place, framed thinly, without ticks."""
        across, down = self.get_size_inches()
        axes = self.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=EDGE, linewidth=0.6)
        axes.tick_params(labelsize=8, colors=MUTED, width=0.6, length=2.5, pad=2.5)
        return axes

    def write(self, left: float, top: float, text: str, size: float = 9.0, color: str = MUTED, **options: Any) -> Text:
        """Text at a place, which is its top left corner unless `ha` and `va` say otherwise."""
        across, down = self.get_size_inches()
        style: dict[str, Any] = {"ha": "left", "va": "top", "linespacing": LEADING / 1.2, "parse_math": False}
        return self.text(left / across, 1 - top / down, drawn(text), fontsize=size, color=color, **{**style, **options})

    def chip(self, left: float, top: float, text: str, size: float, fill: Any, ink: str) -> None:
        """Text on a colour, which all chips of a line fill to the same height."""
        across, down = self.get_size_inches()
        wide, high = inches(text, size) + 0.06, 1.5 * size / 72
        corner = (left / across, 1 - (top + high) / down)
        box = Rectangle(corner, wide / across, high / down, facecolor=fill, transform=self.transFigure, linewidth=0)
        self.add_artist(box)
        self.write(left + 0.03, top + high - 0.42 * size / 72, text, size, ink, va="baseline")

    def arrow(self, *places: tuple[float, float], words: str = "") -> None:
        """An arrow along `places`, with mathematics above the middle of its first part."""
        across, down = self.get_size_inches()
        points = [(left / across, 1 - top / down) for left, top in places]
        style: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "transform": self.transFigure}
        for start, stop in itertools.pairwise(points[:-1]):
            self.add_artist(Line2D(*zip(start, stop, strict=True), **style))
        head: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0}
        self.add_artist(FancyArrowPatch(points[-2], points[-1], **head, **style))
        if words:
            (left, top), (right, bottom) = places[:2]
            self.write(
                (left + right) / 2, (top + bottom) / 2 - 0.05, words, 8.5, ha="center", va="bottom", parse_math=True
            )

    def head(self, title: str) -> None:
        """The title, over the whole sheet; it needs `title_height`."""
        width, _ = self.get_size_inches()
        broken = "\n".join(lines(title, float(width) - 0.3, TITLE))
        self.write(float(width) / 2, 0.12, broken, TITLE, INK, ha="center", multialignment="center")

    def explain(self, left: float, top: float, marks: Sequence[Artist]) -> None:
        """What `marks` mean, by their labels, a line for each; they need the room that `explained` says."""
        if not marks:
            return
        across, down = self.get_size_inches()
        style: dict[str, Any] = {"borderpad": 0, "borderaxespad": 0, "labelspacing": 0.35, "handlelength": 1.6}
        at = (left / across, 1 - top / down)
        self.legend(handles=[*marks], loc="upper left", bbox_to_anchor=at, fontsize=LEGEND, frameon=False, **style)

    def draw(self, renderer: RendererBase) -> None:
        """As every figure, each text in the fonts that it needs."""
        for text in self.findobj(Text):
            needed = fallback(text.get_text())
            if needed:
                text.set_fontfamily([*dict.fromkeys([*text.get_fontfamily(), *needed])])
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure) -> bytes:
    """`figure` as a PNG file: for a web page, a log, a notebook."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def explained(marks: Sequence[Artist]) -> float:
    """The room that `marks` need below a picture, to be explained."""
    return height(len(marks), LEGEND) + 0.1 if marks else 0.05


def drawn(text: str) -> str:
    """`drawable`, line by line."""
    return "\n".join(map(drawable, text.split("\n")))


@functools.lru_cache(maxsize=4096)
def inches(text: str, size: float) -> float:
    """How wide `text` is in type of `size` points."""
    font = properties(text, size)
    return max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n")) / 72


def height(count: int, size: float) -> float:
    """How high `count` lines of type of `size` points are, in inches."""
    return count * size * LEADING / 72


def title_height(title: str | None, width: float) -> float:
    """The room above a picture of `width` inches, for its title if it has one."""
    return 0.12 if title is None else 0.22 + height(len(lines(title, width - 0.3, TITLE)), TITLE)


def lines(text: str, width: float, size: float) -> list[str]:
    """`text` broken at its spaces into lines of at most `width` inches; a longer word keeps a line of its own."""
    broken: list[str] = []
    for paragraph in drawn(text).split("\n"):
        line, end = "", 0.0
        for word in paragraph.split(" "):
            wide = inches(word, size)
            if line and end + inches(" ", size) + wide > width:
                broken.append(line)
                line, end = word, wide
            else:
                end += wide + (inches(" ", size) if line else 0.0)
                line = f"{line} {word}" if line else word
        broken.append(line)
    return broken


def spread(places: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """`places` moved as little as keeps them `apart`, and within `low` to `high` where there is room for all."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, i in zip([None, *order], order, strict=False):
        moved[i] = max(moved[i], low if before is None else moved[before] + apart)
    for i, after in zip(order[::-1], [None, *order[::-1]], strict=False):
        moved[i] = min(moved[i], high if after is None else moved[after] - apart)
    return moved


def shortened(text: str, width: float, size: float) -> str:
    """`text` with its middle left out, where it is wider than `width` inches."""
    kept = len(text)
    while kept > 2 and inches(_ends(text, kept), size) > width:
        kept -= 1
    return _ends(text, kept)


def _ends(text: str, kept: int) -> str:
    """`kept` characters of `text`, from both of its ends: what tells layers apart stands at either."""
    return text if kept >= len(text) else f"{text[: kept // 2]}…{text[len(text) - (kept - 1 - kept // 2) :]}"
