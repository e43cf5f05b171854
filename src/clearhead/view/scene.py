"""What there is to look at: a text that a model has read, every attention that ran, and the names of its tokens.

And who computes when: one at a time, with all cores, and those who wait for an answer before what is done in advance.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any

from clearhead.errors import InputError
from clearhead.inspect import Reading, open_model
from clearhead.inspect.models import Names, Question
from clearhead.maps import AttentionMap
from clearhead.observe import Call, Seen
from clearhead.view.pyramid import Pyramid

LONG = 4096
"""Tokens up to which every row's statistics are measured while the model runs; of longer texts ROWS are."""
ROWS = 256
_KEPT = 8
"""Heads whose pictures are kept."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What was seen, under a title; `names` of a call are those of its queries and of its keys, None where unknown.

    Of a batch one `sample` is looked at.
    """

    title: str
    seen: Seen
    names: Callable[[Call], tuple[Names, Names]]
    sample: int = 0

    def layers(self) -> list[dict[str, Any]]:
        """A plain record of each layer, in the order of the forward pass."""
        return [
            {"name": call.name, "turn": call.turn, "role": call.role, "heads": call.heads, "shape": call.shape[2:]}
            for call in self.seen
        ]

    def statistics(self) -> list[dict[str, Any]]:
        """The record of each head, as `Seen.to_json` has it."""
        found: list[dict[str, Any]] = json.loads(self.seen.to_json())["heads"]
        return found

    def call(self, layer: int) -> Call:
        """A layer by its number. Raises InputError where there is none."""
        if not 0 <= layer < len(self.seen):
            raise InputError(f"layer {layer} is not there: layers are 0 … {len(self.seen) - 1}")
        return self.seen[layer]

    def tokens(self, layer: int, side: str, start: int, stop: int) -> list[str]:
        """Names of a layer's "rows" or "keys", or their numbers; what does not show is spelt out."""
        call = self.call(layer)
        if side not in ("rows", "keys"):
            raise InputError(f"side is {side!r}: write rows or keys")
        n, names = call.shape[2:][side == "keys"], self.names(call)[side == "keys"]
        start, stop = max(0, start), min(n, stop)
        return [legible(name) for name in names[start:stop]] if names else [str(i) for i in range(start, stop)]


def legible(name: str) -> str:
    """A token's name with what does not show spelt out, as in \\u200b; ∅ where there is nothing, ␣ for mere spaces."""
    if not name.strip(" "):
        return "␣" * len(name) or "∅"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def read(
    path: str | Path,
    text: str | None = None,
    *,
    target: str | None = None,
    tokens: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
) -> Scene:
    """A model on disk reads a text; arguments are as for `clearhead.inspect.inspect`.

    Raises InputError, in one line, for what it cannot read, and where no attention was seen.
    """
    model = open_model(path)
    reading = model.read(Question(text, target, tokens))
    seen = model.look(reading, layers, ROWS if _length(reading) > LONG else None)
    if not len(seen):
        why = "; ".join(f"{name}: {reason}" for name, reason in seen.unseen.items())
        raise InputError(f"no attention was seen in {type(model.model).__name__}: {why or 'there is none'}")
    known = {id(call): model.names(call, reading) for call in seen}
    return Scene(f"{path}: {type(model.model).__name__}", seen, lambda call: known[id(call)])


def _length(reading: Reading) -> int:
    return max(x.shape[-1] for x in reading.inputs.values() if hasattr(x, "shape"))


class Studio:
    """The pictures of a scene's heads: made when they are asked for, the last ones kept, exact ones behind.

    Whoever asks comes first. What is computed in advance, the exact picture of the head that was asked for last, stops
    several times a second to see whether someone waits.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._kept: OrderedDict[tuple[int, int], Pyramid] = OrderedDict()
        self._computing, self._changed, self._waiting = Lock(), Condition(), 0
        self._next: Pyramid | None = None
        self._closed = False
        self._worker = Thread(target=self._work, name="exact pictures", daemon=True)
        self._worker.start()

    def close(self) -> None:
        """Stop computing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join()

    @contextmanager
    def looking_at(self, layer: int, head: int) -> Iterator[Pyramid]:
        """A block that computes with the pictures of a head, alone; its exact one is computed afterwards.

        Raises InputError for a head that is not there.
        """
        with self._changed:
            self._waiting += 1
        try:
            with self._computing:
                yield self._pyramid(layer, head)
        finally:
            with self._changed:
                self._waiting -= 1
                self._next = self._kept.get((layer, head), self._next)
                self._changed.notify_all()

    def _pyramid(self, layer: int, head: int) -> Pyramid:
        call = self.scene.call(layer)
        if call.map is None:
            raise InputError(f"the map of {call.name} was not kept")
        return self._made(call.map, (layer, head))

    def _made(self, A: AttentionMap, key: tuple[int, int]) -> Pyramid:
        if key not in self._kept:
            self._kept[key] = Pyramid(A, key[1], self.scene.sample)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._may_work)
                wanted = self._next
            if wanted is None or self._closed:
                return
            with self._computing:
                wanted.exact(lambda wanted=wanted: self._give_way(wanted))  # type: ignore[misc]

    def _may_work(self) -> bool:
        wanted = self._next
        return self._closed or (wanted is not None and not self._waiting and not wanted.finished)

    def _give_way(self, pyramid: Pyramid) -> bool:
        """Let those compute who wait; is this still what is wanted next?"""
        self._computing.release()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._waiting)
        self._computing.acquire()
        return pyramid is self._next and not self._closed
