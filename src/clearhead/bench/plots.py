"""What benchmarks found, as pictures: bars beside a peer on a logarithmic axis, and growth with the length."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from clearhead.bench.comparison import machine, quantile, shown
from clearhead.bench.memory import Peaks
from clearhead.bench.peers import OURS
from clearhead.bench.scaling import Growth
from clearhead.bench.small import Beyond
from clearhead.bench.table import Table
from clearhead.errors import InputError
from clearhead.picture.sheet import Sheet, inches, lines, spread
from clearhead.picture.ticks import INK, MUTED
from clearhead.writing import together

OWN, OTHER = "#0072b2", "#b9bcc4"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#8a3f8f", "#1c1b22")  # told apart by all eyes
MARKS = ("o", "s", "^", "D", "v")
WIDE, ROW = 4.6, 0.27  # inches of a panel, of a bar
FAR = 15
Found = Sequence[Table | Peaks | Growth | Beyond]


@dataclass(frozen=True)
class Bar:
    """A value with its spread and what is written behind it."""

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    own: bool = False


@dataclass(frozen=True)
class Panel:
    """Bars below a title, over one axis; `one` draws the line of the peer.

    Where the largest is many times the smallest they are points on a logarithmic axis, which has no zero to begin at.
    """

    title: str
    bars: list[Bar]
    axis: str
    one: bool = False

    @property
    def log(self) -> bool:
        """Whether values are too far apart for lengths to show them."""
        values = [bar.value for bar in self.bars]
        return min(values) > 0 and max(values) / min(values) > FAR


def save(found: Found, folder: Path, name: str, device: str = "cpu") -> list[str]:
    """Write NAME.png and NAME.json into `folder`, which is made; returns what was written.

    Raises InputError where that cannot be.
    """
    record = {"machine": machine(device), "comparisons": [one.record() for one in found]}
    try:
        with together(folder) as place:
            picture(found).savefig(place / f"{name}.png", metadata={"Software": None})
            (place / f"{name}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {folder}: {(error.strerror or str(error)).lower()}") from None
    return [f"written to {folder}: {name}.png, {name}.json"]


def picture(found: Found) -> Figure:
    """Everything that one command found, on one sheet."""
    grown = [one for one in found if isinstance(one, Growth)]
    return growth(grown[0]) if grown else bars([panel(one) for one in found if not isinstance(one, Growth)])


def panel(found: Table | Peaks | Beyond) -> Panel:
    """One table as bars."""
    if isinstance(found, Table):
        return Panel(found.times.title, [_timed(found, arm) for arm in found.arms], f"time, × {found.times.peer}", True)
    if isinstance(found, Peaks):
        held = [
            Bar(arm, max(1, size) / 2**20, f"{size / 2**20:,.0f} MiB", own=arm == next(iter(found.bytes)))
            for arm, size in found.bytes.items()
        ]
        return Panel(found.title, held, "MiB held at most, beyond the arguments")
    more = {call: [1e6 * x for x in found.beyond(call)] for call in found.calls}
    calls = [Bar(call, mid, f"{mid:+.1f} µs", low, high, True) for call, (mid, low, high) in more.items()]
    return Panel(found.title, calls, "µs beyond SDPA")


def _timed(found: Table, arm: str) -> Bar:
    middle, low, high = found.times.ratio(arm)
    own = arm == OURS or arm == found.arms[0]
    return Bar(arm, middle, f"{middle:.2g} ({shown(found.times.median(arm))})", low, high, own)


def bars(panels: Sequence[Panel]) -> Sheet:
    """Panels above each other, each with an axis of its own."""
    left = 0.3 + max(inches(bar.name, 9.0) for each in panels for bar in each.bars)
    width = left + WIDE + 1.35
    titles = [lines(each.title, float(width) - 0.3, 10.0) for each in panels]
    highs = [len(each.bars) * ROW + 0.12 for each in panels]
    tops = [0.2 * len(title) + 0.12 for title in titles]
    sheet = Sheet(width, sum(highs) + sum(tops) + 0.62 * len(panels) + 0.1)
    at = 0.12
    for each, title, high, top in zip(panels, titles, highs, tops, strict=True):
        sheet.write(0.15, at, "\n".join(title), 10.0, INK)
        _bars(sheet.panel(left, at + top, WIDE, high), each)
        at += top + high + 0.62
    return sheet


def _bars(axes: Axes, each: Panel) -> None:
    least, most = _limits(each)
    axes.set(xlim=(least, most), ylim=(len(each.bars) - 0.4, -0.6))
    axes.set_yticks(range(len(each.bars)), [bar.name for bar in each.bars], fontsize=9, color=INK)
    if each.log:
        axes.set_xscale("log")
        _plain_ticks(axes, least, most)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    if each.one:
        axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    for i, bar in enumerate(each.bars):
        color = OWN if bar.own else OTHER
        if each.log:
            axes.plot([least, bar.value], [i, i], color=color, linewidth=0.8, zorder=2)
            axes.plot([bar.value], [i], color=color, marker="o", markersize=7, markeredgecolor=INK, zorder=3)
        else:
            axes.barh(i, bar.value, 0.66, color=color, zorder=2)
        if bar.low is not None and bar.high is not None and bar.high > bar.low:
            axes.plot([bar.low, bar.high], [i, i], color=INK, linewidth=1.1, solid_capstyle="butt", zorder=4)
        end = max(bar.value, bar.high or bar.value, 0)
        near = 7 if each.log else 4
        style: dict[str, Any] = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        axes.annotate(
            bar.text, (end, i), (near, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK, bbox=style
        )
    axes.set_xlabel(each.axis, fontsize=8.5, color=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _limits(each: Panel) -> tuple[float, float]:
    values = [x for bar in each.bars for x in (bar.value, bar.low, bar.high) if x is not None]
    if not each.log:
        return min(0.0, 1.05 * min(values)), 1.05 * max(values)
    return min(values) / 1.6, max(values) * 1.1


def _plain_ticks(axes: Axes, least: float, most: float) -> None:
    """1, 2 and 5 of each decade where there is room, powers of ten alone where there are many."""
    wide = most / least > 300
    axes.xaxis.set_major_locator(LogLocator(10, (1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}" if x < 1e5 else f"{x:.0e}"))


def growth(found: Growth) -> Sheet:
    """Time, and memory where it was measured, over the length; the exponents stand beside the lines."""
    both = [("time", {kind: [quantile(x, 0.5) for x in times] for kind, times in found.seconds.items()})]
    if found.memory is not None:
        both.append(("memory", {kind: [x / 2**20 for x in held] for kind, held in found.memory.items()}))
    side, left, gap = 3.3, 0.75, 1.65
    sheet = Sheet(left + len(both) * (side + gap) + 0.1, 4.35)
    sheet.write(0.15, 0.12, found.title, 10.0, INK)
    for i, (what, values) in enumerate(both):
        axes = sheet.panel(left + i * (side + gap + 0.1), 0.75, side, 3.0)
        _curves(axes, found, what, values)
    return sheet


def _curves(axes: Axes, found: Growth, what: str, values: dict[str, list[float]]) -> None:
    axes.set(xscale="log", yscale="log")
    ends = {}
    for i, (kind, ys) in enumerate(values.items()):
        style: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "marker": MARKS[i % len(MARKS)]}
        axes.plot(found.lengths, ys, linewidth=1.5, markersize=4.5, **style)
        ends[kind] = ys[-1]
    axes.set_xticks(found.lengths, [f"{n:,}" for n in found.lengths], fontsize=8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    least, most = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(10, (1.0,) if most / least > 300 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    unit = shown if what == "time" else lambda x: f"{x:,g}"
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: unit(y).replace(".00", "").replace(".0 ", " ")))
    axes.grid(True, which="major", color="#ecebf0", linewidth=0.6)
    axes.set_xlabel("tokens", fontsize=8.5, color=MUTED)
    title = "time" if what == "time" else "memory held at most, MiB"
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    _name_ends(axes, found, what, ends)


def _name_ends(axes: Axes, found: Growth, what: str, ends: dict[str, float]) -> None:
    """Names and exponents behind the last points, moved apart where they would meet."""
    kinds = list(ends)
    to_share = axes.transData + axes.transAxes.inverted()
    places = [float(to_share.transform((found.lengths[-1], ends[kind]))[1]) for kind in kinds]
    for i, (kind, place) in enumerate(zip(kinds, spread(places, 0.065, 0.02, 0.98), strict=True)):
        power = found.time_exponent(kind)[0] if what == "time" else found.memory_exponent(kind)
        words = kind if len(kind) < 14 else "pattern"
        axes.text(
            1.03,
            place,
            f"{words}: n^{round(power or 0.0, 2) + 0.0:.2f}",
            transform=axes.transAxes,
            va="center",
            fontsize=8.5,
            color=COLORS[i % len(COLORS)],
        )
