"""What there is to look at: a text that a model has read, every attention that ran, and the names of its tokens.

And who computes when: one at a time, with all cores, and those who wait for an answer before what is done in advance.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any

from clearhead.errors import InputError
from clearhead.inspect import Reading, open_model
from clearhead.inspect.labels import label
from clearhead.inspect.layers import Numbers, findings, numbers
from clearhead.inspect.models import Names, Question, special
from clearhead.maps import AttentionMap
from clearhead.observe import Call, Seen, check
from clearhead.picture import strips
from clearhead.picture.atlases import rounded, titled
from clearhead.picture.explorer import COLOURS, layer_name
from clearhead.picture.tokens import legible
from clearhead.view.blocks import TILE
from clearhead.view.pyramid import Pyramid

LONG = 4096
"""Tokens up to which every row's statistics are measured while the model runs; of longer texts ROWS are."""
ROWS = 256
_KEPT = 8
"""Heads whose pictures are kept."""


def _self(call: Call) -> str:
    """The stack of a call where its role is all that is known."""
    return "cross" if call.role == "cross" else ""


@dataclass(frozen=True, eq=False)
class Scene:
    """What was seen, under a title.

    Attributes:
        names: of a call's queries and of its keys, None where unknown.
        sample: which one of a batch is looked at.
        side: the stack of a call: "encoder", "decoder", "cross", or "" where there is but one.
        whole: are these all layers of the model? Only then can be told what an output rests on.
        history: the records of metrics.jsonl of a run, as for `training_report`.
    """

    title: str
    seen: Seen
    names: Callable[[Call], tuple[Names, Names]]
    sample: int = 0
    side: Callable[[Call], str] = _self
    whole: bool = True
    history: Sequence[dict[str, Any]] = ()

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

    @cached_property
    def findings(self) -> list[dict[str, Any]]:
        """What the rules of health find, worst first, with the place of their layer."""
        return findings(self.seen, check(self.seen))

    @cached_property
    def page(self) -> dict[str, Any]:
        """What the page holds before it asks: layers with the numbers of their heads, what health found, colours."""
        told = numbers(self.seen)
        layers = [self._layer(i, numbered) for i, numbered in enumerate(told)]
        axes: list[list[int]] = []
        for call, layer in zip(self.seen, layers, strict=True):
            layer["axes"] = [_place(axes, special(names)) for names in self.names(call)]
        return {
            "title": legible(self.title),
            "tile": TILE,
            "attention": COLOURS,
            "layers": layers,
            "special": axes,
            "statistics": titled(layers),
            "findings": self.findings,
            "unseen": self.seen.unseen,
            "heads": strips.pack(self.history),
        }

    def stack(self, layer: int) -> list[int]:
        """The layers of the stack that a layer is of, by their numbers, the first one first.

        Raises InputError where no token can be followed through them.
        """
        chosen = self.call(layer)
        if not self.whole:
            raise InputError("what an output rests on needs all layers, and some were left out")
        if chosen.role == "cross":
            raise InputError("cross-attention is no stack of its own: choose a head of the encoder or the decoder")
        same = ("self", self.side(chosen), chosen.step)
        found = [i for i, call in enumerate(self.seen) if (call.role, self.side(call), call.step) == same]
        if len({n for i in found for n in self.seen[i].shape[2:]}) > 1:
            raise InputError("the layers have different numbers of tokens, so that none can be followed through them")
        return found

    def _unfollowed(self, layer: int) -> str | None:
        """Why no token can be followed from here."""
        try:
            self.stack(layer)
        except InputError as error:
            return str(error)
        return None

    def _layer(self, i: int, told: Numbers) -> dict[str, Any]:
        call = self.seen[i]
        path = label(call.name, call.turn)
        return {
            "path": path,
            "name": layer_name(path),
            "group": self.side(call),
            "heads": call.heads,
            "shape": call.shape[2:],
            "statistics": {name: [*map(rounded, some)] for name, some in told.items()},
            "unfollowed": self._unfollowed(i),
        }

    def call(self, layer: int) -> Call:
        """A layer by its number. Raises InputError where there is none."""
        if not 0 <= layer < len(self.seen):
            raise InputError(f"layer {layer} is not there: layers are 0 … {len(self.seen) - 1}")
        return self.seen[layer]

    def tokens(self, layer: int, side: str, start: int, stop: int) -> list[str]:
        """Names of a layer's "rows" or "keys", or their numbers; what does not show is spelt out."""
        n, names = self.call(layer).shape[2:][side == "keys"], self._named(layer, side)
        start, stop = max(0, start), min(n, stop)
        return [legible(name) for name in names[start:stop]] if names else [str(i) for i in range(start, stop)]

    def hidden(self, layer: int, kinds: Collection[str]) -> list[int]:
        """Keys of a layer that are hidden with the "first" key, or the "special" ones, which stand for no text."""
        found = special(self._named(layer, "keys")) if "special" in kinds else []
        return sorted({0, *found}) if "first" in kinds else found

    def _named(self, layer: int, side: str) -> Names:
        if side not in ("rows", "keys"):
            raise InputError(f"side is {side!r}: write rows or keys")
        return self.names(self.call(layer))[side == "keys"]


def _place(kept: list[list[int]], some: list[int]) -> int:
    """Where a list is among those that are kept, each once."""
    if some not in kept:
        kept.append(some)
    return kept.index(some)


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
    return Scene(
        f"{path}: {type(model.model).__name__}",
        seen,
        lambda call: known[id(call)],
        side=model.side,
        whole=layers is None,
        history=model.history(),
    )


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
        with self.alone():
            yield self._pyramid(layer, head)
            self._next = self._kept.get((layer, head), self._next)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block that computes alone, before all that is done in advance."""
        with self._changed:
            self._waiting += 1
        try:
            with self._computing:
                yield
        finally:
            with self._changed:
                self._waiting -= 1
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
