"""A table of short texts in sections, with notes below it: the same for a terminal, for a pipe and for a notebook."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from shutil import get_terminal_size
from typing import Any, NamedTuple

NARROW = 80
"""Characters that every table fits into."""


class Cell(NamedTuple):
    """A text, and its colour in a terminal: red, yellow, green or dim."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A column's title; numbers are aligned on the right and never broken, words may take several lines."""

    title: str
    words: bool = False


@dataclass(frozen=True)
class Section:
    """Rows under a heading."""

    heading: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Grid:
    """What a table says. `notes` are lines below it; one that begins with blanks stays indented where it is wrapped."""

    title: str
    columns: Sequence[Column] = ()
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> Any:
        """As a rich Table. Texts are taken as they are: square brackets are no markup."""
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        whole = Table.grid()
        whole.add_row(Text(self.title, style="bold"))
        widths = self._widths()
        for section in self.sections:
            whole.add_row("")
            if section.heading:
                whole.add_row(Text(section.heading, overflow="fold"))
            whole.add_row(self._rich(section, widths))
        if self.notes and self.sections:
            whole.add_row("")
        for note in self.notes:
            text = note.lstrip()
            whole.add_row(Padding(Text(text, overflow="fold"), (0, 0, 0, len(note) - len(text))))
        return whole

    def _rich(self, section: Section, widths: list[int]) -> Any:
        from rich.box import Box
        from rich.table import Table
        from rich.text import Text

        rule = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
        table = Table(box=rule, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column, width in zip(self.columns, widths, strict=True):
            least = None if column.words else width
            side: Any = "left" if column.words else "right"
            table.add_column(
                Text(column.title), justify=side, overflow="fold", no_wrap=not column.words, min_width=least
            )
        for row in section.rows:
            table.add_row(*(Text(cell.text, style=cell.style) for cell in row))
        return table

    def _widths(self) -> list[int]:
        """Of each column, over all sections."""
        lines = [[column.title for column in self.columns]]
        lines += [[cell.text for cell in row] for section in self.sections for row in section.rows]
        return [max(map(len, column)) for column in zip(*lines, strict=True)]

    def text(self, width: int | None = None) -> str:
        """As plain text of at most `width` characters a line, without colours; its rules and marks are ASCII.

        None: the terminal's width, 80 where there is none, and never less.
        """
        from rich.console import Console

        width = max(NARROW, get_terminal_size((NARROW, 0)).columns) if width is None else width
        file = io.StringIO()
        console = Console(file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False)
        console.print(self.rich())
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def html(self) -> str:
        """As HTML, for notebooks."""
        tables = "".join(map(self._html, self.sections))
        notes = "".join(f'<div style="white-space: pre-wrap">{escape(note)}</div>' for note in self.notes)
        return f'<div style="font-variant-numeric: tabular-nums"><b>{escape(self.title)}</b>{tables}{notes}</div>'

    def _html(self, section: Section) -> str:
        def line(tag: str, cells: Sequence[Cell]) -> str:
            both = zip(self.columns, cells, strict=True)
            return f"<tr>{''.join(_html_cell(tag, column, cell) for column, cell in both)}</tr>"

        head = line("th", [Cell(column.title) for column in self.columns])
        body = "".join(line("td", row) for row in section.rows)
        caption = f'<caption style="text-align: left">{escape(section.heading)}</caption>'
        return f'<table style="margin: 0.8em 0">{caption}<thead>{head}</thead><tbody>{body}</tbody></table>'


def _html_cell(tag: str, column: Column, cell: Cell) -> str:
    side, colour = "left" if column.words else "right", _HTML.get(cell.style, "inherit")
    style = f"text-align: {side}; color: {colour}; white-space: pre-line; padding: 0 0 0 1em"
    return f'<{tag} style="{style}">{escape(cell.text)}</{tag}>'


_HTML = {"red": "#d0342c", "yellow": "#a67c00", "green": "#2e8b57", "dim": "#888888"}
"""The colours of a terminal, to be read on white pages and on black ones."""
