"""Which fonts write a text: matplotlib's own, and behind it any font of this machine that has the shapes it lacks."""

from __future__ import annotations

import functools

import matplotlib
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font

UNFIT = ("last resort", "lastresort", "color", "colour")
"""Parts of names of fonts that have a box for everything, or coloured pictures, which matplotlib cannot draw."""


def fallback(text: str) -> list[str]:
    """The families that `text` needs beside matplotlib's own; what no font has a shape for needs none."""
    if text.isascii():
        return []
    own = _own()
    return [*dict.fromkeys(name for c in text if not c.isascii() and (name := _family(c, own)))]


def has(character: str) -> bool:
    """Whether some font has a shape for a character."""
    return _family(character, _own()) is not None


def properties(text: str, size: float) -> FontProperties:
    """The type that writes `text`."""
    return FontProperties(family=[*_own(), *fallback(text)], size=size)


def _own() -> tuple[str, ...]:
    return tuple(FontProperties().get_family())


@functools.lru_cache(maxsize=65536)
def _family(character: str, own: tuple[str, ...]) -> str | None:
    """The first family with a shape for a character: "" for one of our `own`, None where there is none."""
    number = ord(character)
    if any(number in _shapes(findfont(FontProperties(family=[name]))) for name in own):
        return ""
    return next((font.name for font in _others() if number in _shapes(font.fname)), None)


@functools.cache
def _others() -> list[FontEntry]:
    """The upright fonts that people installed, a file for each family, plain ones without serifs first."""
    bundled = matplotlib.get_data_path()  # for mathematics, and with characters in places of their own
    fonts = [
        font
        for font in fontManager.ttflist
        if font.style == "normal"
        and not font.fname.startswith(bundled)
        and not any(part in font.name.lower() for part in UNFIT)
    ]
    best: dict[str, FontEntry] = {}
    for font in sorted(fonts, key=lambda font: ("sans" not in font.name.lower(), _boldness(font), font.name)):
        best.setdefault(font.name, font)
    return [*best.values()]


def _boldness(font: FontEntry) -> int:
    return abs(font.weight - 400) if isinstance(font.weight, int) else 0


@functools.cache
def _shapes(file: str) -> frozenset[int]:
    """The characters that a font has shapes for; none of one that cannot be read or has pixels alone."""
    try:
        font = get_font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
