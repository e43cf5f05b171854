"""What a reader of a picture needs: every text inside the sheet, and none on top of another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

SLACK = 1.5  # pixels that boxes of texts may share: they are a little larger than the ink


def check_legible(figure: Figure) -> None:
    """Draw `figure`, and raise AssertionError where a text leaves it or touches another one."""
    FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure) if text.get_text().strip()]
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in boxes:
        inside = box.x0 >= -SLACK and box.y0 >= -SLACK and box.x1 <= width + SLACK and box.y1 <= height + SLACK
        assert inside, f"{text!r} leaves the sheet: {box.extents} of {width:.0f} × {height:.0f}"
    for (first, one), (second, other) in itertools.combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        down = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert across <= SLACK or down <= SLACK, f"{first!r} and {second!r} share {across:.0f} × {down:.0f} pixels"


def texts(figure: Figure) -> Iterator[Text]:
    """All texts that are drawn."""
    yield from figure.texts
    for legend in figure.legends:
        yield from legend.get_texts()
    for axes in figure.axes:
        for each in (axes, *axes.child_axes):
            yield from _of_axes(each)


def _of_axes(axes: Axes) -> Iterator[Text]:
    yield from (*axes.texts, axes.title)
    if not axes.axison:
        return
    for axis in (axes.xaxis, axes.yaxis):
        yield axis.label
        low, high = sorted(axis.get_view_interval())
        margin = 1e-6 * (high - low)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if low - margin <= tick.get_loc() <= high + margin:
                yield from (label for label in (tick.label1, tick.label2) if label.get_visible())
