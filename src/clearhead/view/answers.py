"""What is answered about a scene: for each path a function of the studio and of what is asked."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from clearhead.errors import InputError
from clearhead.observe.numbers.kept import kept
from clearhead.view.blocks import TILE, Picture
from clearhead.view.export import pixels, table
from clearhead.view.flow import FOLLOWED, Level, below, top
from clearhead.view.pages import page, script, style
from clearhead.view.pyramid import Pyramid
from clearhead.view.scene import Scene, Studio
from clearhead.view.site import Answer, Asked, Site, as_json

FOUND = 50
"""Tokens that a search names, at most."""
CELLS = 1 << 20
"""Cells of an export, at most."""
_NAMES = 4096
"""Tokens that are named at once, at most."""


@contextmanager
def looking_at(studio: Studio, asked: Asked, layer: int, head: int) -> Iterator[Pyramid]:
    """A block that computes with the pictures of a head; raises ConnectionAbortedError if it is for nobody."""
    with studio.looking_at(layer, head) as pyramid:
        asked.wait_is_over()
        yield pyramid


Answerer = Callable[[Studio, Asked], Answer]


def model(studio: Studio, asked: Asked) -> Answer:
    scene = studio.scene
    told = {
        "title": scene.title,
        "tile": TILE,
        "layers": scene.layers(),
        "statistics": scene.statistics(),
        "findings": scene.findings,
        "unseen": scene.seen.unseen,
    }
    return as_json(told)


def tokens(studio: Studio, asked: Asked) -> Answer:
    layer, start, stop = asked.numbers("layer", "from", "to")
    if stop - start > _NAMES:
        raise InputError(f"{stop - start} tokens were asked for: ask for {_NAMES} at a time")
    return as_json({"from": start, "names": studio.scene.tokens(layer, asked.text("side"), start, stop)})


def search(studio: Studio, asked: Asked) -> Answer:
    """Tokens that hold a text, whatever its case, from a place on."""
    layer, after, wanted = asked.number("layer"), asked.number("after", 0), asked.text("text").casefold()
    if not wanted:
        raise InputError("text is empty: write what to search for")
    names = studio.scene.tokens(layer, asked.text("side"), 0, max(studio.scene.call(layer).shape[2:]))
    found = [(i, name) for i, name in enumerate(names) if i >= after and wanted in name.casefold()]
    told = [{"at": i, "name": name} for i, name in found[:FOUND]]
    return as_json({"found": told, "more": len(found) > FOUND})


def tile(studio: Studio, asked: Asked) -> Answer:
    """Values, or with of=error their standard errors, row by row; headers say how many and how exact."""
    layer, head, level, row, column = asked.numbers("layer", "head", "level", "row", "column")
    wanted = asked.text("of", "values")
    if wanted not in ("values", "error"):
        raise InputError(f"of is {wanted!r}: write values or error")
    with looking_at(studio, asked, layer, head) as pyramid:
        shown = pyramid.tile(level, row, column)
        progress = pyramid.progress
    values = shown.values if wanted == "values" else shown.error
    if values is None:
        values = shown.values.new_zeros(shown.values.shape)
    return Answer("application/octet-stream", _bytes(values), {**_about(shown), "X-Progress": f"{progress:.4f}"})


def marginals(studio: Studio, asked: Asked) -> Answer:
    """Statistics of the rows and what the keys received, of the blocks of a tile.

    What was not measured is not there; null: not known yet, or of a row that sees nothing.
    """
    layer, head, level, row, column = asked.numbers("layer", "head", "level", "row", "column")
    with looking_at(studio, asked, layer, head) as pyramid:
        rows, received = pyramid.marginals(level, row, column)
    return as_json({"rows": {name: _list(x) for name, x in rows.items()}, "received": _list(received)})


def row(studio: Studio, asked: Asked) -> Answer:
    """What a query attends to most; hide=first, special or both leaves such keys out."""
    layer, head, at = asked.numbers("layer", "head", "row")
    hidden = studio.scene.hidden(layer, asked.text("hide", "").split())
    with looking_at(studio, asked, layer, head) as pyramid:
        found = pyramid.keys_of(at, _few(asked), hidden)
    return as_json({"row": at, "keys": _named(studio, layer, "keys", *found)})


def line(studio: Studio, asked: Asked) -> Answer:
    """The weights that a query gives to keys, or with side=keys those that rows give to a key, in part."""
    layer, head, at, start, stop = asked.numbers("layer", "head", "at", "from", "to")
    of_key = asked.text("side") == "keys"
    if not of_key and asked.text("side") != "rows":
        raise InputError(f"side is {asked.text('side')!r}: write rows or keys")
    if stop - start > _NAMES:
        raise InputError(f"{stop - start} weights were asked for: ask for {_NAMES} at a time")
    with looking_at(studio, asked, layer, head) as pyramid:
        far, near = pyramid.shape if of_key else pyramid.shape[::-1]
        start, stop = max(0, start), min(far, stop)
        if not (0 <= at < near and start < stop):
            raise InputError(f"there is nothing at {at}, from {start} to {stop}: this map has shape {pyramid.shape}")
        mine, others = slice(at, at + 1), slice(start, stop)
        weights = pyramid.weights(others, mine) if of_key else pyramid.weights(mine, others)
    return as_json({"from": start, "weights": _list(weights.flatten())})


def flow(studio: Studio, asked: Asked) -> Answer:
    """What the output of a token rests on, level by level, from the last layer of its stack down to the input."""
    layer, at, most = asked.number("layer"), asked.number("row"), asked.number("most", FOLLOWED)
    if not 1 <= most <= 1000:
        raise InputError(f"most is {most}; it must be from 1 to 1000")
    layers, scene = studio.scene.stack(layer), studio.scene
    level = top(at, scene.call(layer).shape[3])
    levels = [_level(studio, layer, None, level)]
    for each in reversed(layers):
        with studio.alone():
            asked.wait_is_over()
            level = below(kept(scene.call(each)), level, most, scene.sample)
        levels.append(_level(studio, layer, each, level))
    return as_json({"row": at, "levels": levels})


def _level(studio: Studio, layer: int, of: int | None, found: Level) -> dict[str, Any]:
    """Before which layer it is, None: behind the last one."""
    tokens = _named(studio, layer, "keys", found.shares, found.tokens, "share")
    return {"layer": of, "followed": found.followed, "tokens": tokens, "paths": found.paths}


def column(studio: Studio, asked: Asked) -> Answer:
    """Who attends to a key most, of the rows whose logsumexp is known yet."""
    layer, head, at = asked.numbers("layer", "head", "key")
    with looking_at(studio, asked, layer, head) as pyramid:
        weights, rows, looked_at = pyramid.rows_of(at, _few(asked))
        of = pyramid.shape[0]
    named = _named(studio, layer, "rows", weights, rows)
    return as_json({"key": at, "rows": named, "looked_at": looked_at, "of": of})


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
    "/api/line": line,
    "/api/flow": flow,
    "/api/export.csv": as_csv,
    "/api/export.png": as_png,
}
PAGE: dict[str, tuple[str, Callable[[Studio], bytes]]] = {
    "/": ("text/html", lambda studio: page(studio.scene)),
    "/page.js": ("text/javascript", lambda studio: script()),
    "/page.css": ("text/css", lambda studio: style()),
}


class Explorer(Site):
    """The site of a scene: a page that asks for tiles, and computes nothing itself."""

    def __init__(self, scene: Scene) -> None:
        self.studio = Studio(scene)

    def paths(self) -> Iterable[str]:
        return [*PAGE, *ANSWERS]

    def at(self, path: str, asked: Asked) -> Answer:
        if path in ANSWERS:
            return ANSWERS[path](self.studio, asked)
        kind, made = PAGE[path]
        return Answer(f"{kind}; charset=utf-8", made(self.studio))

    def close(self) -> None:
        self.studio.close()


def _region(studio: Studio, asked: Asked) -> Picture:
    """Cells from row and column to before `to_row` and `to_column`."""
    layer, head, level, row, to_row, column, to_column = asked.numbers(
        "layer", "head", "level", "row", "to_row", "column", "to_column"
    )
    if (to_row - row) * (to_column - column) > CELLS:
        raise InputError(f"{to_row - row} × {to_column - column} cells are too many: ask for at most {CELLS}")
    with looking_at(studio, asked, layer, head) as pyramid:
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


def _named(
    studio: Studio, layer: int, side: str, weights: Tensor, index: Tensor, what: str = "weight"
) -> list[dict[str, Any]]:
    numbered = zip(weights.tolist(), index.tolist(), strict=True)
    return [{"at": i, "name": studio.scene.tokens(layer, side, i, i + 1)[0], what: w} for w, i in numbered]


def _list(x: Tensor | None) -> list[float | None] | None:
    return None if x is None else [value if math.isfinite(value) else None for value in x.tolist()]


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().numpy().astype("<f4").tobytes()


def _file(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}
