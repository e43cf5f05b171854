"""Which characters texts hold, and which are seldom meant: counted by whole blocks, as arrays of code points."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np

KINDS = ("control characters", "replacement characters", "unusual spaces", "words of mixed scripts")
_CONTROL, _REPLACED, _SPACE = 1, 2, 4
_JOINERS = {0x200C, 0x200D}
"""They join letters and emoji, and are meant."""
_LOOK_ALIKE = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "CHEROKEE")
"""Scripts whose letters are taken for each other's; Japanese mixes its own, and is no mistake."""


class Characters:
    """The characters of many texts, and where each was first seen."""

    def __init__(self) -> None:
        self._first: dict[int, str] = {}
        self._counts = np.zeros(0, dtype=np.int64)
        self._kinds = np.zeros(0x110000, dtype=np.uint8)
        self._scripts = np.zeros(0x110000, dtype=np.uint8)

    @property
    def count(self) -> int:
        """How many different ones."""
        return int((self._counts > 0).sum())

    def rare(self) -> list[str]:
        """Those that came once, each with its place."""
        return [f"{self._first[int(point)]}: {_named(int(point))}" for point in np.flatnonzero(self._counts == 1)]

    def read(self, texts: Sequence[str], where: Callable[[int], str]) -> Iterator[tuple[str, list[int], list[str]]]:
        """Count the characters of some texts; give each kind of finding, the texts that have it, and what it is.

        where: the place of a text, by its number.
        """
        points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
        self._count(points, ends, where)
        kinds = self._kinds[points]
        for bit, kind in zip((_CONTROL, _REPLACED, _SPACE), KINDS, strict=False):
            yield from _found(kind, points, np.flatnonzero(kinds & bit), ends)
        scripts = self._scripts[points]
        mixed = np.flatnonzero((scripts[1:] != scripts[:-1]) & (scripts[1:] > 0) & (scripts[:-1] > 0))
        inside = ~np.isin(mixed + 1, ends)
        yield from _found(KINDS[3], points, mixed[inside], ends, width=2)

    def _count(self, points: np.ndarray, ends: np.ndarray, where: Callable[[int], str]) -> None:
        counts = np.bincount(points)
        if len(counts) > len(self._counts):
            self._counts = np.pad(self._counts, (0, len(counts) - len(self._counts)))
        fresh = np.flatnonzero((counts > 0) & (self._counts[: len(counts)] == 0))
        for point in fresh.tolist():
            self._kinds[point], self._scripts[point] = _kind(point), _script(point)
            if counts[point] == 1:
                place = int(np.argmax(points == point))
                self._first[point] = where(int(np.searchsorted(ends, place, side="right")))
        self._counts[: len(counts)] += counts


def _found(
    kind: str, points: np.ndarray, places: np.ndarray, ends: np.ndarray, width: int = 1
) -> Iterator[tuple[str, list[int], list[str]]]:
    if not len(places):
        return
    rows, first = np.unique(np.searchsorted(ends, places, side="right"), return_index=True)
    shown = [" next to ".join(_named(int(point)) for point in points[at : at + width]) for at in places[first[:8]]]
    yield kind, rows.tolist(), shown


def _kind(point: int) -> int:
    category = unicodedata.category(chr(point))
    if point == 0xFFFD:
        return _REPLACED
    if (category in ("Zs", "Zl", "Zp") or point in (0x200B, 0xFEFF)) and point not in (0x20, 0x3000):
        return _SPACE
    if (
        category in ("Cc", "Cf", "Co", "Cn")
        and point not in _JOINERS
        and point != 0x0A
        and not 0xE0020 <= point <= 0xE007F
    ):
        return _CONTROL
    return 0


def _script(point: int) -> int:
    """A number for the script of a letter that can be taken for another script's, else 0."""
    name = unicodedata.name(chr(point), "").partition(" ")[0]
    return _LOOK_ALIKE.index(name) + 1 if name in _LOOK_ALIKE and chr(point).isalpha() else 0


def _named(point: int) -> str:
    """A character with its number and name."""
    character = chr(point)
    seen = f"{character} " if character.isprintable() and not character.isspace() else ""
    return f"{seen}U+{point:04X} {unicodedata.name(character, 'without a name')}"
