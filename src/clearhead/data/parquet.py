"""Two columns of a Parquet file, read by row groups; rows are counted from 1."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from clearhead.data.layouts import Columns, named
from clearhead.data.lines import Problems, require_file, unreadable
from clearhead.errors import DataError, extra

_ROWS = 10_000
_TEXTS = ("string", "large_string", "string_view", "null")
KIND = "rows without texts"


def rows(file: str, columns: Columns) -> Iterator[tuple[int, list[Any], list[Any], Problems]]:
    """By blocks: the number of the first row, sources and targets, and what is wrong with those that are no texts."""
    with _opened(file) as opened:
        names = tuple(opened.schema_arrow.names)
        form, first = named(file, None, names, columns), 1
        places = form.source, form.target
        for place in places:
            _require_texts(file, names[place], opened.schema_arrow.field(place).type)
        for batch in _batches(file, opened, sorted({names[place] for place in places})):
            found = Problems()
            sources, targets = (_texts(file, batch, names, place, first, found) for place in places)
            yield first, sources, targets, found
            first += len(batch)


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    parquet = extra("pyarrow.parquet", "train")
    try:
        require_file(file)
        opened = parquet.ParquetFile(file)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{file}: {unreadable(error)}") from None
    except Exception as error:  # pyarrow's own
        raise DataError(f"{file}: not a Parquet file: {_first_line(error)}") from None
    with opened:
        yield opened


def _require_texts(file: str, name: str, kind: Any) -> None:
    held = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
    if str(held) not in _TEXTS:
        raise DataError(f"{file}: column {name!r} holds {held}, not texts")


def _batches(file: str, opened: Any, names: Sequence[str]) -> Iterator[Any]:
    row, batches = 1, opened.iter_batches(batch_size=_ROWS, columns=list(names))
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # pyarrow's own
            raise DataError(f"{file}: damaged, row {row:,} or after: {_first_line(error)}") from None
        if batch is None:
            return
        yield batch
        row += len(batch)


def _texts(file: str, batch: Any, names: Sequence[str], place: int, first: int, found: Problems) -> list[Any]:
    """The texts of a column, None for what is none. A batch may hold others: all of a name, and parts of structures."""
    name = names[place]
    same = [i for i, other in enumerate(batch.schema.names) if other == name]
    column = batch.column(same[names[:place].count(name)])
    try:
        texts = column.to_pylist()
    except UnicodeDecodeError:
        texts = [_decoded(file, column[i], first + i, name, found) for i in range(len(column))]
    for i, text in enumerate(texts):
        if text is None:
            found.add(file, first + i, KIND, f"row {first + i}: {name!r} is null; a text is needed")
    return texts


def _decoded(file: str, value: Any, row: int, name: str, found: Problems) -> str | None:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        found.add(file, row, KIND, f"row {row}: {name!r} is not UTF-8 (byte 0x{error.object[error.start]:02X})")
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].lower()
