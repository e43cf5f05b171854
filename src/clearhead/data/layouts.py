"""Which columns of a file hold source and target, from its first line and from what people say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clearhead.errors import DataError, nearest

NAMES = (
    ("source", "target"),
    ("src", "tgt"),
    ("input", "output"),
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("text", "summary"),
    ("dialogue", "summary"),
)
"""Names of columns that are understood without being asked for, (source, target)."""


class Columns(NamedTuple):
    """Which columns hold source and target: their names, or their numbers from 1; None: what can only be meant.

    alone: sources are read without targets, which then need not be there.
    """

    source: str | int | None = None
    target: str | int | None = None
    alone: bool = False

    @property
    def sides(self) -> tuple[str | int | None, ...]:
        """The columns that are read."""
        return (self.source,) if self.alone else (self.source, self.target)


ANY = Columns()


@dataclass(frozen=True)
class Layout:
    """How a file of columns is laid out: all its columns, those of source and target from 0, and whether a first line
    names them."""

    names: tuple[str, ...]
    source: int
    target: int
    header: bool


def laid_out(file: str, first: Sequence[str], columns: Columns) -> Layout:
    """From the cells of a first line, which may be names or already a pair."""
    given = [column for column in columns.sides if column is not None]
    header = any(isinstance(column, str) for column in given) or (not given and _known(first, columns) is not None)
    names = tuple(cell.strip() if header else str(number) for number, cell in enumerate(first, start=1))
    return named(file, 1, names, columns, header)


def named(file: str, line: int | None, names: tuple[str, ...], columns: Columns, header: bool = True) -> Layout:
    """Which of the columns of these names hold source and target."""
    known, place = _known(names, columns) if header else None, f"{file}{'' if line is None else f':{line}'}"
    places = []
    for side, column in enumerate(columns.sides):
        key = f"data.{('source', 'target')[side]}_column"
        if len(names) == 1 and columns.alone:
            places.append(0)
        elif column is not None:
            places.append(_place(file, place, names, column, key))
        elif known:
            places.append(_only(place, [name.lower() for name in names], known[side]))
        elif len(names) == 2:
            places.append(side)
        else:
            raise DataError(
                f"{place}: {counted(len(names), 'column')}, and a pair has 2"
                f"{' (' + ', '.join(names) + ')' if header and names else ''}; say which by {key}"
            )
    if not columns.alone and places[0] == places[1]:
        other = "data.target_column" if columns.target is None else "data.source_column"
        raise DataError(f"{file}: source and target are both column {names[places[0]]!r}: set {other} too")
    return Layout(names, places[0], places[-1], header)


def _known(names: Sequence[str], columns: Columns) -> tuple[str, str] | None:
    """The names that are understood, where there are any; for sources that are read alone, the first is enough."""
    lower = {name.strip().lower() for name in names}
    both = next((pair for pair in NAMES if lower.issuperset(pair)), None)
    return both or next((pair for pair in NAMES if columns.alone and pair[0] in lower), None)


def _place(file: str, place: str, names: Sequence[str], column: str | int, key: str) -> int:
    if isinstance(column, int):
        if not 1 <= column <= len(names):
            raise DataError(f"{file}: {key} is {column}, and there are {counted(len(names), 'column')}")
        return column - 1
    if column not in names:
        raise DataError(f"{file}: there is no column {column!r}, which {key} names{nearest(column, names)}")
    return _only(place, names, column)


def _only(place: str, names: Sequence[str], name: str) -> int:
    """Where the column of that name is; raises DataError where several have it."""
    if (count := list(names).count(name)) > 1:
        raise DataError(f"{place}: {count} columns are called {name!r}; rename all but the one that is meant")
    return list(names).index(name)


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
