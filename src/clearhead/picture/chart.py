"""A line chart as static SVG, which takes its colours from the page it stands in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clearhead.picture.page import Markup, join, tag

WIDTH, HEIGHT = 480, 246
LEFT, RIGHT, TOP, BOTTOM = 54, 468, 12, 208  # of the plot within it
SPARSE = 40  # points of a line up to which each is marked

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One quantity: its points (step, value), all finite, and how many more were not."""

    label: str
    points: list[Point]
    lost: int = 0


@dataclass(frozen=True)
class Frame:
    """From steps and values to coordinates, and the round numbers along the edges."""

    steps: Point
    values: Point
    x_ticks: list[float]
    y_ticks: list[float]

    @classmethod
    def around(cls, lines: Sequence[Line], from_zero: bool) -> Frame:
        steps, values = ([point[i] for line in lines for point in line.points] for i in (0, 1))
        low, high = min(values), max(values)
        if from_zero:
            low, high = min(low, 0.0), max(high, 0.0)
        high += 0.04 * (high - low)  # so that the highest line does not run along the edge
        first, last = min(steps), max(steps)
        return cls((first, last), (low, high), round_numbers(first, last, 6), round_numbers(low, high, 6))

    def x(self, step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * _share(step, *self.steps), 1)

    def y(self, value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * _share(value, *self.values), 1)


def draw(title: str, lines: Sequence[Line], form: str, from_zero: bool, number: int) -> tuple[Markup, dict[str, Any]]:
    """The figure of `lines` that have points, and what the page's script needs to read it out (as chart `number`)."""
    frame = Frame.around(lines, from_zero)
    words = "; ".join(f"{line.label}: {_said(line, form)}" for line in lines)
    picture = tag(
        "svg",
        _edges(frame, form),
        *(_trace(line, frame, i) for i, line in enumerate(lines)),
        tag("g", class_="cursor"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex=0,
        aria_label=f"{title} by step. {words}",
        data_chart=number,
    )
    legend = tag("ul", *(_entry(line, form, i) for i, line in enumerate(lines)), class_="legend")
    data = {
        "percent": "%" in form,
        "steps": frame.steps,
        "values": frame.values,
        "plot": [LEFT, RIGHT, TOP, BOTTOM],
        "lines": [{"label": line.label, "points": line.points} for line in lines],
    }
    return join(legend, picture), data


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """The multiples of 1, 2 or 5 (times a power of 10) between `low` and `high`: about `most`, or fewer."""
    spread = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(spread / most))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= spread / most * 0.999)
    return [float(f"{i * step:.12g}") for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _edges(frame: Frame, form: str) -> Markup:
    """The grid of round values with their names on the left, and the steps below."""
    marks = [tag("line", x1=LEFT, x2=RIGHT, y1=frame.y(v), y2=frame.y(v), class_="rule") for v in frame.y_ticks]
    marks += [tag("text", _tick(v, form), x=LEFT - 8, y=frame.y(v) + 4, class_="end") for v in frame.y_ticks]
    marks += [tag("text", _tick(s, "{:g}"), x=frame.x(s), y=BOTTOM + 18, class_="middle") for s in frame.x_ticks]
    return join(*marks, tag("text", "step", x=(LEFT + RIGHT) / 2, y=HEIGHT - 4, class_="middle axis"))


def _tick(value: float, form: str) -> str:
    if "%" in form:
        return f"{100 * value:g} %"
    if abs(value) >= 1000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"  # 8e-4: short enough to stand beside the plot
    return f"{value:g}"


def _trace(line: Line, frame: Frame, i: int) -> Markup:
    points = [(frame.x(step), frame.y(value)) for step, value in line.points]
    path = tag("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in points), class_="line")
    dots = [tag("circle", cx=x, cy=y, r=2.6) for x, y in points] if len(points) <= SPARSE else []
    return tag("g", path, *dots, class_=f"series s{i % 4}")


def _entry(line: Line, form: str, i: int) -> Markup:
    sample = tag(
        "svg", tag("line", x1=1, x2=21, y1=5, y2=5, class_="line"), class_=f"series s{i % 4}", viewBox="0 0 22 10"
    )
    return tag("li", sample, f"{line.label} ", tag("span", _said(line, form), class_="muted"))


def _said(line: Line, form: str) -> str:
    """The last value, and what could not be drawn."""
    last = form.format(line.points[-1][1]) if line.points else "never finite"
    return f"{last} ({line.lost} not finite)" if line.lost else last
