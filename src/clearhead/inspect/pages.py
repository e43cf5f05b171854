"""An inspection as one page: the attention of every head in one file that opens in any browser, without a network.

Shapes: H heads, Nq queries, Nk keys.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearhead.errors import InputError
from clearhead.inspect.labels import counted, label
from clearhead.inspect.layers import Numbers, findings, numbers
from clearhead.inspect.models import Names, special
from clearhead.observe import Call
from clearhead.observe.numbers.records import values
from clearhead.picture.atlases import LIMIT, atlas
from clearhead.writing import check_place

if TYPE_CHECKING:
    from clearhead.inspect.look import Inspection

ENDINGS = (".html", ".htm")
_MARK = b'<meta name="generator" content="Clearhead">'


class Page:
    """A file that is new, or holds an earlier page of this kind, which is replaced.

    Raises InputError for any other, and where its folder is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder: choose another --out, or one that does not end in {path.suffix}")
        if not os.path.isdir(path.parent):
            raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it, or choose another --out")
        try:
            if path.exists() and _MARK not in path.read_bytes():
                raise InputError(f"{path} was not written by clearhead: choose another --out")
        except OSError as error:
            raise InputError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
        check_place(path)

    def check_count(self, count: int, tokens: int) -> None:
        """Raise InputError if a page cannot hold this number of weights; called as soon as it is known."""
        if count > LIMIT:
            raise InputError(
                f"{count:,} weights of {tokens:,} tokens are too many for one page, which holds {LIMIT:,}: shorten the "
                "text, choose some --layers, give --out a folder, where pictures are of blocks, or look at it with "
                "`clearhead view`, which shows any length"
            )

    def write(self, found: "Inspection", chosen: Sequence[tuple[Call, int]], *, whole: bool) -> None:
        """Draw what was `found`, of the `whole` model or of some layers; the first `chosen` head is open."""
        try:
            atlas(
                self.path,
                title=found.model.path.resolve().name,
                subtitle=_subtitle(found),
                layers=_layers(found),
                findings=findings(found.seen, found.findings),
                pairs=_pairs(found),
                curves=found.model.history(),
                opened=next(((found.seen.calls.index(call), head) for call, head in chosen), None),
                whole=whole,
            )
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {(error.strerror or str(error)).lower()}") from None
        found.files.append(self.path)


def _subtitle(found: "Inspection") -> str:
    model = found.model.model
    weights = sum(weight.numel() for weight in model.parameters())
    heads = sum(call.heads for call in found.seen)
    read = found.question.text or counted(found.seen[0].shape[3], "token")
    text = " ".join(read.split())
    shown = text if len(text) <= 120 else f"{text[:119]}…"
    size = f"{weights:,} parameters, {counted(len(found.seen), 'layer')}, {counted(heads, 'head')}"
    return f"{type(model).__name__}, {size} · {shown}"


def _layers(found: "Inspection") -> list[dict[str, Any]]:
    return [_layer(found, call, told) for call, told in zip(found.seen, numbers(found.seen), strict=True)]


def _layer(found: "Inspection", call: Call, told: Numbers) -> dict[str, Any]:
    if call.map is None:
        raise InputError(f"no attention map was kept of {call.name}")
    rows, columns = found.model.names(call, found.reading)
    return {
        "path": label(call.name, call.turn),
        "group": found.model.side(call),
        "weights": call.map.weights()[0].detach().double().cpu().numpy(),
        "entropy": _measured(call, "entropy"),
        "received": _measured(call, "received"),
        "statistics": told,
        "rows": _all(rows, call.shape[2]),
        "columns": _all(columns, call.shape[3]),
        "special": (special(rows), special(columns)),
    }


def _measured(call: Call, name: str) -> Any:
    """A statistic of the only sample, (H, N)."""
    x = values(call, name)
    if x is None:
        raise InputError(f"{name} was not measured in {call.name}")
    return x[0].numpy()


def _all(names: Names, count: int) -> Sequence[str]:
    return [str(i) for i in range(count)] if names is None else names


def _pairs(found: "Inspection") -> list[dict[str, int]]:
    places = {call.name: i for i, call in reversed([*enumerate(found.seen)])}
    return [
        {"layer": places[each.layer], "head": each.pair.head, "query": each.pair.query, "key": each.pair.key}
        for each in found.pairs
    ]
