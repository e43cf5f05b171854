"""Names of layers, as short as still tells them apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from clearhead.picture.sheet import inches, shortened
from clearhead.picture.ticks import drawable


@dataclass(frozen=True)
class Names:
    """What is written for each name, and, where they are parts of it, what the whole looks like: "model.*.attn"."""

    texts: list[str]
    whole: str = ""

    @classmethod
    def of(cls, names: Sequence[str], width: float, size: float) -> Names:
        """`names` in at most `width` inches of type of `size` points: the parts between dots that all of them share
        are left out where room is short, and then the middle of what is still too long."""
        texts = [drawable(name) for name in names]
        if len(texts) < 2 or all(inches(text, size) <= width for text in texts):
            return cls([shortened(text, width, size) for text in texts])
        parts = [text.split(".") for text in texts]
        front, back = _shared(parts), _shared([part[::-1] for part in parts])
        if any(front + back >= len(part) for part in parts):  # nothing would be left of a name
            front, back = 0, 0
        if front and all(len(part) == front + back + 1 and part[front].isdigit() for part in parts):
            front -= 1  # "layers.3" says what 3 is
        own = [".".join(part[front : len(part) - back]) for part in parts]
        whole = ".".join([*parts[0][:front], "*", *parts[0][len(parts[0]) - back :]]) if front + back else ""
        return cls([shortened(text, width, size) for text in own], whole)


def _shared(parts: list[list[str]]) -> int:
    """How many parts all begin with."""
    return sum(1 for _ in itertools.takewhile(lambda same: len(set(same)) == 1, zip(*parts, strict=False)))
