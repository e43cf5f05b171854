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
    """Which columns hold source and target: their names, or their numbers from 1; None: what can only be meant."""

    source: str | int | None = None
    target: str | int | None = None


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
    wanted = [column for column in columns if isinstance(column, str)]
    pair = next((pair for pair in NAMES if set(pair) <= {cell.strip().lower() for cell in first}), None)
    header = bool(wanted) or (pair is not None and columns == ANY)
    names = tuple(cell.strip() if header else str(number) for number, cell in enumerate(first, start=1))
    return named(file, 1, names, columns, header)


def named(file: str, line: int | None, names: tuple[str, ...], columns: Columns, header: bool = True) -> Layout:
    """Which of the columns of these names hold source and target."""
    lower = [name.lower() for name in names]
    known = next((pair for pair in NAMES if set(pair) <= set(lower)), None)
    places = []
    for side, column in enumerate(columns):
        key = f"data.{('source', 'target')[side]}_column"
        if column is None and known and header:
            places.append(lower.index(known[side]))
        elif column is None and len(names) == 2:
            places.append(side)
        elif column is None:
            raise DataError(
                f"{file}{'' if line is None else f':{line}'}: {counted(len(names), 'column')}, and a pair has 2"
                f"{' (' + ', '.join(names) + ')' if header else ''}; say which by {key}"
            )
        else:
            places.append(_place(file, names, column, key))
    if places[0] == places[1]:
        other = "data.target_column" if columns.target is None else "data.source_column"
        raise DataError(f"{file}: source and target are both column {names[places[0]]!r}: set {other} too")
    return Layout(names, places[0], places[1], header)


def _place(file: str, names: Sequence[str], column: str | int, key: str) -> int:
    if isinstance(column, int):
        if not 1 <= column <= len(names):
            raise DataError(f"{file}: {key} is {column}, and there are {counted(len(names), 'column')}")
        return column - 1
    if column not in names:
        raise DataError(f"{file}: there is no column {column!r}, which {key} names{nearest(column, names)}")
    return list(names).index(column)


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
