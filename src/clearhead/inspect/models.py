"""A model that is looked into: what reads a text, runs on it, and names its tokens.

Shapes: N tokens of the source, M tokens that a decoder reads.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clearhead.errors import InputError
from clearhead.observe import Call, Seen, watch
from clearhead.observe.calls import under

Names = list[str] | None


class Special(str):
    """The name of a token that stands for no text, such as [CLS]."""


def special(names: Names) -> list[int]:
    """Which tokens stand for no text."""
    return [i for i, name in enumerate(names or ()) if isinstance(name, Special)]


@dataclass(frozen=True)
class Reading:
    """What a model is given, and the names of the tokens; None where they have none (patches of an image).

    Attributes:
        inputs: the arguments of the model's forward pass.
        source: names of the tokens that the model reads, (N,); of the encoder where there is one.
        target: names of the tokens that the decoder of an encoder-decoder reads, (M,).
        predicted: what each of them is to predict, (M,), which is how the rows of cross-attention are named.
    """

    inputs: dict[str, Any]
    source: Names
    target: Names = None
    predicted: Names = None

    @property
    def longest(self) -> int:
        """Tokens of the longer side; 0 for an image, of which they are unknown."""
        return max(len(self.source or ()), len(self.target or ()))


@dataclass(frozen=True)
class Question:
    """What the model is asked to read: a text, token numbers in its place, or an image; `target` for a decoder."""

    text: str | None = None
    target: str | None = None
    tokens: Sequence[int] | None = None
    image: Path | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("text", "tokens", "image") if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(f"--{name}" for name in given) + " were given" if given else "nothing to read was given"
            raise InputError(f"{what}: give one of --text, --file, --tokens and --image")
        if self.text is not None and not self.text.strip():
            raise InputError("the text is empty")
        for what, text in (("text", self.text), ("target", self.target)):
            if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"the {what} holds bytes that are no UTF-8: write it in UTF-8")


class Inspected(ABC):
    """A model with all that is needed to look into it.

    Attributes:
        path: its folder.
        model: the module, in evaluation mode.
        paired: is it an encoder-decoder?
    """

    path: Path
    model: nn.Module
    paired: bool

    @abstractmethod
    def read(self, question: Question) -> Reading:
        """What the model is given for a question. Raises InputError for what it cannot read."""

    @property
    def encoder(self) -> str:
        """The path of the encoder of an encoder-decoder."""
        return "encoder"

    def weights(self, reading: Reading, layers: Sequence[str] | None = None) -> int:
        """How many weights the attention of `layers` has at least, as far as is known before the model runs."""
        return 0

    def history(self) -> list[dict[str, Any]]:
        """What was recorded while it was trained, as for `training_report`; nothing, where nothing is known."""
        return []

    @torch.no_grad()
    def look(self, reading: Reading, layers: Sequence[str] | None = None, rows: int | None = None) -> Seen:
        """What every attention does in one forward pass, maps kept. `layers` and `rows` are as for `watch`."""
        if layers is not None and not all(layers):
            raise InputError("layers: a path is empty: give that of a module, or leave --layers out for all")
        with watch(self.model, layers=layers, rows=rows, keep_maps=True) as seen:
            self.model(**reading.inputs)
        return seen

    def side(self, call: Call) -> str:
        """Where a call belongs: "encoder", "decoder" or "cross" in an encoder-decoder, "" in other models."""
        if call.role == "cross":
            return "cross"
        if not self.paired:
            return ""
        return "encoder" if under(call.name, self.encoder) else "decoder"

    def names(self, call: Call, reading: Reading) -> tuple[Names, Names]:
        """Names of a call's queries and keys; None where there are none, or another number of them."""
        sides: dict[str, tuple[Names, Names]] = {
            "": (reading.source, reading.source),
            "encoder": (reading.source, reading.source),
            "decoder": (reading.target, reading.target),
            "cross": (reading.predicted, reading.source),
        }
        rows, columns = sides[self.side(call)]
        return _fitting(rows, call.shape[2]), _fitting(columns, call.shape[3])


def _fitting(names: Names, count: int) -> Names:
    return names if names is not None and len(names) == count else None
