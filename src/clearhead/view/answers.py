"""What the server answers: for each path a function of the studio and of what is asked.

Numbers go out as they are, float32 with the least byte first; everything else as JSON, tokens too, never as HTML.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from torch import Tensor

from clearhead.errors import InputError, nearest
from clearhead.view.blocks import TILE, Picture
from clearhead.view.export import pixels, table
from clearhead.view.pyramid import STATISTICS, Pyramid
from clearhead.view.scene import Studio

FOUND = 50
"""Tokens that a search names, at most."""
CELLS = 1 << 20
"""Cells of an export, at most."""
_NAMES = 4096
"""Tokens that are named at once, at most."""


@dataclass(frozen=True)
class Answer:
    """A body, its media type and further headers."""

    kind: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Asked:
    """The parameters of a request. Raises InputError for one that is missing, or no whole number where it must be.

    `gone` tells whether whoever asked has gone away.
    """

    def __init__(self, given: dict[str, list[str]], gone: Callable[[], bool]) -> None:
        self._given, self._gone = given, gone

    @contextmanager
    def looking_at(self, studio: Studio, layer: int, head: int) -> Iterator[Pyramid]:
        """A block that computes with the pictures of a head; raises ConnectionAbortedError if it is for nobody."""
        with studio.looking_at(layer, head) as pyramid:
            if self._gone():
                raise ConnectionAbortedError("whoever asked has gone away")
            yield pyramid

    def text(self, name: str, default: str | None = None) -> str:
        values = self._given.get(name, [] if default is None else [default])
        if len(values) != 1:
            raise InputError(f"{name} is {'missing' if not values else 'given more than once'}")
        return values[0]

    def number(self, name: str, default: int | None = None) -> int:
        text = self.text(name, None if default is None else str(default))
        if len(text) > 18 or not text.removeprefix("-").isascii() or not text.removeprefix("-").isdecimal():
            raise InputError(f"{name} is {text[:40]!r}; it must be a whole number")
        return int(text)

    def numbers(self, *names: str) -> list[int]:
        return [self.number(name) for name in names]


Answerer = Callable[[Studio, Asked], Answer]


def model(studio: Studio, asked: Asked) -> Answer:
    scene = studio.scene
    told = {
        "title": scene.title,
        "tile": TILE,
        "layers": scene.layers(),
        "statistics": scene.statistics(),
        "unseen": scene.seen.unseen,
    }
    return _json(told)


def tokens(studio: Studio, asked: Asked) -> Answer:
    layer, start, stop = asked.numbers("layer", "from", "to")
    if stop - start > _NAMES:
        raise InputError(f"{stop - start} tokens were asked for: ask for {_NAMES} at a time")
    return _json({"from": start, "names": studio.scene.tokens(layer, asked.text("side"), start, stop)})


def search(studio: Studio, asked: Asked) -> Answer:
    """Tokens that hold a text, whatever its case, from a place on."""
    layer, after, wanted = asked.number("layer"), asked.number("after", 0), asked.text("text").casefold()
    if not wanted:
        raise InputError("text is empty: write what to search for")
    names = studio.scene.tokens(layer, asked.text("side"), 0, max(studio.scene.call(layer).shape[2:]))
    found = [(i, name) for i, name in enumerate(names) if i >= after and wanted in name.casefold()]
    told = [{"at": i, "name": name} for i, name in found[:FOUND]]
    return _json({"found": told, "more": len(found) > FOUND})


def tile(studio: Studio, asked: Asked) -> Answer:
    """Values, or with of=error their standard errors, row by row; headers say how many and how exact."""
    layer, head, level, row, column = asked.numbers("layer", "head", "level", "row", "column")
    wanted = asked.text("of", "values")
    if wanted not in ("values", "error"):
        raise InputError(f"of is {wanted!r}: write values or error")
    with asked.looking_at(studio, layer, head) as pyramid:
        shown = pyramid.tile(level, row, column)
        progress = pyramid.progress
    values = shown.values if wanted == "values" else shown.error
    if values is None:
        values = shown.values.new_zeros(shown.values.shape)
    return Answer("application/octet-stream", _bytes(values), {**_about(shown), "X-Progress": f"{progress:.4f}"})


def marginals(studio: Studio, asked: Asked) -> Answer:
    """Statistics of the rows and what the keys received, of the blocks of a tile; null: not measured, or not yet."""
    layer, head, level, row, column = asked.numbers("layer", "head", "level", "row", "column")
    with asked.looking_at(studio, layer, head) as pyramid:
        shown = pyramid.tile(level, row, column)
        told = {name: _list(pyramid.statistic(name, level, shown.rows)) for name in STATISTICS}
        received = _list(pyramid.received(level, shown.keys))
    return _json({"rows": told, "received": received})


def row(studio: Studio, asked: Asked) -> Answer:
    """What a query attends to most."""
    layer, head, at = asked.numbers("layer", "head", "row")
    with asked.looking_at(studio, layer, head) as pyramid:
        found = pyramid.keys_of(at, _few(asked))
    return _json({"row": at, "keys": _named(studio, layer, "keys", *found)})


def column(studio: Studio, asked: Asked) -> Answer:
    """Who attends to a key most, of the rows whose logsumexp is known yet."""
    layer, head, at = asked.numbers("layer", "head", "key")
    with asked.looking_at(studio, layer, head) as pyramid:
        weights, rows, looked_at = pyramid.rows_of(at, _few(asked))
        of = pyramid.shape[0]
    named = _named(studio, layer, "rows", weights, rows)
    return _json({"key": at, "rows": named, "looked_at": looked_at, "of": of})


def as_csv(studio: Studio, asked: Asked) -> Answer:
    shown = _region(studio, asked)
    layer, names = asked.number("layer"), studio.scene.tokens
    rows, keys = (
        ([], [])
        if shown.level
        else (
            names(layer, "rows", shown.rows.start, shown.rows.stop),
            names(layer, "keys", shown.keys.start, shown.keys.stop),
        )
    )
    body = table(shown, rows, keys).encode("utf-8", "backslashreplace")
    return Answer("text/csv; charset=utf-8", body, _about(shown) | _file("attention.csv"))


def as_png(studio: Studio, asked: Asked) -> Answer:
    shown = _region(studio, asked)
    body = pixels(shown, dark=asked.text("theme", "light") == "dark", log=asked.text("scale", "linear") == "log")
    return Answer("image/png", body, _about(shown) | _file("attention.png"))


ANSWERS: dict[str, Answerer] = {
    "/api/model": model,
    "/api/tokens": tokens,
    "/api/search": search,
    "/api/tile": tile,
    "/api/marginals": marginals,
    "/api/row": row,
    "/api/column": column,
    "/api/export.csv": as_csv,
    "/api/export.png": as_png,
}
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}


def answer(studio: Studio, path: str, asked: Asked) -> Answer | None:
    """What is at a path; None: nothing. Raises InputError for parameters that cannot work."""
    if path in PAGE:
        name, kind = PAGE[path]
        return Answer(f"{kind}; charset=utf-8", resources.files(__package__).joinpath(name).read_bytes())
    return ANSWERS[path](studio, asked) if path in ANSWERS else None


def unknown(path: str) -> str:
    """A line about a path where nothing is."""
    return f"there is nothing at {path[:80]!r}{nearest(path, [*PAGE, *ANSWERS])}"


def _region(studio: Studio, asked: Asked) -> Picture:
    """Cells from row and column to before `to_row` and `to_column`."""
    layer, head, level, row, to_row, column, to_column = asked.numbers(
        "layer", "head", "level", "row", "to_row", "column", "to_column"
    )
    if (to_row - row) * (to_column - column) > CELLS:
        raise InputError(f"{to_row - row} × {to_column - column} cells are too many: ask for at most {CELLS}")
    with asked.looking_at(studio, layer, head) as pyramid:
        return pyramid.picture(level, slice(row, to_row), slice(column, to_column))


def _about(shown: Picture) -> dict[str, str]:
    height, width = shown.values.shape
    numbers = {"X-Rows": height, "X-Columns": width, "X-Exact": int(shown.exact)}
    return {**{name: str(number) for name, number in numbers.items()}, "X-Error": f"{shown.overall_error:.6g}"}


def _few(asked: Asked) -> int:
    most = asked.number("most", 8)
    if not 1 <= most <= 1000:
        raise InputError(f"most is {most}; it must be from 1 to 1000")
    return most


def _named(studio: Studio, layer: int, side: str, weights: Tensor, index: Tensor) -> list[dict[str, Any]]:
    numbered = zip(weights.tolist(), index.tolist(), strict=True)
    return [{"at": i, "name": studio.scene.tokens(layer, side, i, i + 1)[0], "weight": w} for w, i in numbered]


def _list(x: Tensor | None) -> list[float | None] | None:
    return None if x is None else [value if math.isfinite(value) else None for value in x.tolist()]


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().numpy().astype("<f4").tobytes()


def _json(told: Any) -> Answer:
    return Answer("application/json", json.dumps(told, allow_nan=False, separators=(",", ":")).encode("ascii"))


def _file(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}
