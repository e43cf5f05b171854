"""What a server serves: a site, which answers what is asked of its paths.

Numbers go out as they are, float32 with the least byte first; everything else as JSON, tokens too, never as HTML.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from clearhead.errors import InputError, nearest


@dataclass(frozen=True)
class Answer:
    """A body, its media type and further headers."""

    kind: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def as_json(what: Any) -> Answer:
    """JSON in ASCII, whatever tokens are in it."""
    return Answer("application/json", json.dumps(what, allow_nan=False, separators=(",", ":")).encode("ascii"))


class Asked:
    """The parameters of a request. Raises InputError for one that is missing, or no whole number where it must be.

    `gone` tells whether whoever asked has gone away.
    """

    def __init__(self, given: dict[str, list[str]], gone: Callable[[], bool]) -> None:
        self._given, self._gone = given, gone

    def wait_is_over(self) -> None:
        """Raise ConnectionAbortedError where what is about to be computed is for nobody."""
        if self._gone():
            raise ConnectionAbortedError("whoever asked has gone away")

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


class Site(ABC):
    """Pages, and what they ask for; called from several threads at once."""

    @abstractmethod
    def paths(self) -> Iterable[str]:
        """Where something is."""

    @abstractmethod
    def at(self, path: str, asked: Asked) -> Answer:
        """What is at one of the paths. Raises InputError for parameters that cannot work."""

    def answer(self, path: str, asked: Asked) -> Answer | None:
        """What is at any path; None: nothing."""
        return self.at(path, asked) if path in self.paths() else None

    def unknown(self, path: str) -> str:
        """A line about a path where nothing is."""
        return f"there is nothing at {path[:80]!r}{nearest(path, list(self.paths()))}"

    @abstractmethod
    def close(self) -> None:
        """Stop what works for it."""
