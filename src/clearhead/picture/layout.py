"""Where the heads of a picture stand, in inches, and the words around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from clearhead.picture.heads import check_labels
from clearhead.picture.names import Names
from clearhead.picture.panel import HATCH, Bars, Panel, uneven
from clearhead.picture.sheet import Sheet, height, inches, lines, title_height
from clearhead.picture.ticks import INK, MUTED, Ticks

Labels = Sequence[str] | None
WORDS = 9.0  # points of the words around the cells
GAP = 0.14  # inches between panels, before the colour bar, and of its width
SCALE = 0.75  # inches of the colour bar's numbers and name


@dataclass(frozen=True)
class Layout:
    """Lines of panels of `width` by `height` inches each, with marginals of `bars` inches, and what is said of them."""

    lines: list[list[Panel]]
    rows: Labels
    columns: Labels
    title: str | None
    notes: list[str]
    width: float
    height: float
    bars: float

    @classmethod
    def of(
        cls, lines: list[list[Panel]], rows: Labels, columns: Labels, title: str | None, notes: Sequence[str]
    ) -> Layout:
        panels = [panel for line in lines for panel in line]
        for panel in panels:
            check_labels(rows, panel.queries, "rows", "queries (Nq)")
            check_labels(columns, panel.keys, "columns", "keys (Nk)")
        queries, keys = max(panel.queries for panel in panels), max(panel.keys for panel in panels)
        longest, alone = max(queries, keys), len(panels) == 1
        most = 8.0 if alone else 2.6 if max(map(len, lines)) <= 4 else 1.7
        side = min(max((0.34 if alone else 0.2) * longest, 1.7), most)
        width, height = (max(side * n / longest, side / 8, 0.4) for n in (keys, queries))
        bars = 0.0 if panels[0].received is None else 0.5 if alone else 0.25
        return cls(lines, rows, columns, title, [*notes], width, height, bars)

    @property
    def panels(self) -> list[Panel]:
        return [panel for line in self.lines for panel in line]

    @property
    def alone(self) -> bool:
        return len(self.panels) == 1

    def cells(self, panel: Panel) -> tuple[float, float]:
        """The inches, across and down, that the cells of a panel fill of the room that each panel has."""
        if uneven(panel):
            return self.width, self.height
        side = min(self.width / panel.keys, self.height / panel.queries)
        return side * panel.keys, side * panel.queries

    def lengths(self, panel: Panel) -> Bars:
        across, down = self.cells(panel)
        return Bars(self.bars / down, self.bars / across, self.alone)

    @cached_property
    def high(self) -> list[float]:
        """How high the cells of each line are: less where all of its heads have few queries for their keys."""
        return [max(self.cells(panel)[1] for panel in line) for line in self.lines]

    @property
    def pitch(self) -> float:
        """From one panel of a line to the next."""
        return self.width + 1.15 * self.bars + GAP

    @property
    def across(self) -> float:
        return max(map(len, self.lines)) * self.pitch - GAP

    @cached_property
    def words(self) -> tuple[list[str], list[str]]:
        """What rows and columns are, broken where there is no room for it in one line."""
        panel = self.panels[0]
        h, w = panel.values.shape
        down = [*_axis("query (attends)", panel.queries, h), *([f"of {self.names.whole}"] if self.names.whole else [])]
        across = [*_axis("key (attended to)", panel.keys, w), *self.notes]
        return _joined(down, max(self._tall, 1.4)), _joined(across, max(self.across, 3.0))

    @cached_property
    def names(self) -> Names:
        """The layers' names, at the left of their lines."""
        room = min(self.high)
        return Names.of([line[0].row for line in self.lines], room if room >= 0.8 else 1.6, WORDS)

    @cached_property
    def turned(self) -> bool:
        """Whether all layers' names are short enough to be turned and stand beside their lines."""
        return self._longest_name <= min(self.high)

    @property
    def _longest_name(self) -> float:
        return max(inches(text, WORDS) for text in self.names.texts)

    @cached_property
    def left(self) -> float:
        """From the left of the content to its cells: words for the queries, the layers' names, labels of the rows."""
        name = 0.0 if not any(self.names.texts) else 0.1 + (height(1, WORDS) if self.turned else self._longest_name)
        labels = max(_room(self._row_ticks(line[0])) for line in self.lines)
        least = 1.0 if self.bars and self.alone else 0.0  # where the marginals say what they are
        return max(0.1 + height(len(self.words[0]), WORDS) + name + labels + 0.1, least)

    @property
    def content(self) -> float:
        return self.left + self.across + GAP + GAP + SCALE

    @cached_property
    def total(self) -> float:
        """The width of the sheet; content that is narrower than its words stands in the middle."""
        return max(self.content, max(inches(text, WORDS) for text in self.words[1]) + 0.2, 3.4)

    @property
    def start(self) -> float:
        return (self.total - self.content) / 2 + self.left

    @cached_property
    def heading(self) -> float:
        """The room above the first line: for the title, and for what hatching means."""
        return title_height(self.title, self.total) + (0.2 if self._unfinite else 0.0)

    @cached_property
    def tops(self) -> list[float]:
        """Where each line of cells begins, below the heading, and where the last one ends with its names."""
        at, tops = 0.0, []
        for i, line in enumerate(self.lines):
            at += 1.15 * self.bars + (0.22 if any(panel.title for panel in line) else 0.0)
            tops.append(at)
            at += self.high[i] + max(self._below(i, j) for j in range(len(line))) + GAP
        return [*tops, at - GAP]

    @property
    def _unfinite(self) -> bool:
        return any(panel.unfinite.any() for panel in self.panels)

    def sheet(self) -> Sheet:
        tallest = max(inches(text, WORDS) for text in self.words[0]) + 0.2
        foot = self.heading + self.tops[-1] + height(len(self.words[1]), WORDS) + 0.16
        return Sheet(self.total, max(foot, self.heading + tallest))

    def place(self, sheet: Sheet, i: int, j: int) -> Axes:
        """The axes of a panel, with its names."""
        panel = self.lines[i][j]
        top = self.heading + self.tops[i]
        axes = sheet.panel(self.start + j * self.pitch, top, self.width, self.high[i])
        axes.set_title(panel.title, fontsize=WORDS, color=INK, pad=4 + 1.15 * self.bars * 72, parse_math=False)
        if j == 0:
            self._row_ticks(panel).put(axes.yaxis)
            turn = {"rotation": 90} if self.turned else {"rotation": 0, "ha": "right", "va": "center"}
            axes.set_ylabel(self.names.texts[i], fontsize=WORDS, color=INK, parse_math=False, **turn)
        if self._below(i, j):
            self._column_ticks(panel).put(axes.xaxis)
        return axes

    def place_scale(self, sheet: Sheet) -> Axes:
        """The axes of the colour bar, right of all."""
        top, high = self.heading + self.tops[0], min(self._tall, 8.0)
        return sheet.panel(self.start + self.across + GAP, top, GAP, high)

    @property
    def _tall(self) -> float:
        """From the top of the first cells to the bottom of the last ones."""
        return self.tops[-2] + self.high[-1] - self.tops[0]

    def write(self, sheet: Sheet) -> None:
        """What the picture is, what its axes mean, and what is unusual about it."""
        if self.title is not None:
            sheet.head(self.title)
        down, across = ("\n".join(words) for words in self.words)
        if self.alone:
            sheet.axes[0].set_ylabel(down, fontsize=WORDS, color=MUTED)
            sheet.axes[0].set_xlabel(across, fontsize=WORDS, color=MUTED)
        else:
            left, middle = self.start - self.left + 0.1, self.heading + self.tops[0] + self._tall / 2
            foot = self.heading + self.tops[-1] + 0.06
            sheet.write(left, middle, down, WORDS, rotation=90, va="center", multialignment="center")
            sheet.write(self.start + self.across / 2, foot, across, WORDS, ha="center", multialignment="center")
        if self._unfinite:
            patch, at = Patch(**HATCH, label="NaN or infinite"), 1 - (self.heading - 0.24) / sheet.get_figheight()
            sheet.legend(
                handles=[patch], loc="upper right", bbox_to_anchor=(1, at), fontsize=8, frameon=False, borderpad=0
            )

    def _below(self, i: int, j: int) -> float:
        """The room for the keys' names below a panel: none where one with the same keys stands below."""
        panel = self.lines[i][j]
        below = self.lines[i + 1][j] if i + 1 < len(self.lines) and j < len(self.lines[i + 1]) else None
        if below is not None and below.keys == panel.keys:
            return 0.0
        ticks = self._column_ticks(panel)
        return 0.06 + (_room(ticks) if any(ticks.turned) else height(1, ticks.size))

    def _row_ticks(self, panel: Panel) -> Ticks:
        return Ticks.of(self.rows, panel.queries, self.cells(panel)[1], vertical=True)

    def _column_ticks(self, panel: Panel) -> Ticks:
        return Ticks.of(self.columns, panel.keys, self.cells(panel)[0], vertical=False)


def _room(ticks: Ticks) -> float:
    return max(inches(text, ticks.size) for text in ticks.texts) + 0.06


def _axis(words: str, positions: int, blocks: int) -> list[str]:
    return [words] if positions == blocks else [words, f"{positions:,} positions, {-(-positions // blocks)} to a cell"]


def _joined(parts: list[str], width: float) -> list[str]:
    """`parts` with dots between them, in as few lines of `width` inches as hold them."""
    joined = [parts[0]]
    for part in parts[1:]:
        longer = f"{joined[-1]} · {part}"
        if inches(longer, WORDS) <= width:
            joined[-1] = longer
        else:
            joined += lines(part, width, WORDS)
    return joined
