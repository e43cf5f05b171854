"""An inspection as one page: the attention of every head in one file that opens in any browser, without a network.

Shapes: H heads, Nq queries, Nk keys.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearhead.errors import InputError
from clearhead.inspect.labels import counted, label
from clearhead.inspect.models import Names, Special
from clearhead.inspect.ranking import ranked
from clearhead.observe import Call
from clearhead.observe.numbers.records import Record, records, values
from clearhead.picture.atlases import LIMIT, STATISTICS, atlas

if TYPE_CHECKING:
    from clearhead.inspect.look import Inspection

ENDINGS = (".html", ".htm")
GREATEST = frozenset({"max_logit", "received"})
"""Statistics of which the greatest is shown, and not the mean over rows."""
_MARK = b'<meta name="generator" content="Clearhead">'


class Page:
    """A file that is new, or holds an earlier page of this kind, which is replaced.

    Raises InputError for any other, and where its folder is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise InputError(f"{path} is a folder: choose another --out, or one that does not end in {path.suffix}")
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it, or choose another --out")
        try:
            if path.exists() and _MARK not in path.read_bytes():
                raise InputError(f"{path} was not written by clearhead: choose another --out")
        except OSError as error:
            raise InputError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None

    def write(self, found: "Inspection", chosen: Sequence[tuple[Call, int]], *, whole: bool) -> None:
        """Draw what was `found`, of the `whole` model or of some layers; the first `chosen` head is open.

        Raises InputError where it is too much.
        """
        count = sum(call.shape[1] * call.shape[2] * call.shape[3] for call in found.seen)
        if count > LIMIT:
            longest = max(max(call.shape[2:]) for call in found.seen)
            raise InputError(
                f"{count:,} weights of {longest} tokens are too many for one page, which holds {LIMIT:,}: shorten the "
                "text, choose some --layers, or give --out a folder, where pictures are of blocks"
            )
        try:
            atlas(
                self.path,
                title=found.model.path.resolve().name,
                subtitle=_subtitle(found),
                layers=_layers(found),
                findings=_findings(found),
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
    told: dict[tuple[str, int], list[Record]] = {}
    for record in records(found.seen):
        told.setdefault((record["name"], record["turn"]), []).append(record)
    return [_layer(found, call, told[call.name, call.turn]) for call in found.seen]


def _layer(found: "Inspection", call: Call, heads: list[Record]) -> dict[str, Any]:
    if call.map is None:
        raise InputError(f"no attention map was kept of {call.name}")
    rows, columns = found.model.names(call, found.reading)
    return {
        "path": label(call.name, call.turn),
        "group": found.model.side(call),
        "weights": call.map.weights()[0].detach().double().cpu().numpy(),
        "entropy": _measured(call, "entropy"),
        "received": _measured(call, "received"),
        "statistics": {name: [_number(head, name) for head in heads] for name in STATISTICS},
        "rows": _all(rows, call.shape[2]),
        "columns": _all(columns, call.shape[3]),
        "special": (_special(rows), _special(columns)),
    }


def _measured(call: Call, name: str) -> Any:
    """A statistic of the only sample, (H, N)."""
    x = values(call, name)
    if x is None:
        raise InputError(f"{name} was not measured in {call.name}")
    return x[0].numpy()


def _number(head: Record, name: str) -> float | None:
    return None if head[name] is None else head[name]["max" if name in GREATEST else "mean"]


def _all(names: Names, count: int) -> Sequence[str]:
    return [str(i) for i in range(count)] if names is None else names


def _special(names: Names) -> list[int]:
    return [i for i, name in enumerate(names or ()) if isinstance(name, Special)]


def _findings(found: "Inspection") -> list[dict[str, Any]]:
    """Worst first, with the place of their layer."""
    places = {(call.name, call.turn): i for i, call in enumerate(found.seen)}
    return [
        {
            "layer": places[finding.layer, finding.turn],
            "head": finding.head,
            "rule": finding.rule,
            "severity": finding.severity,
            "sentence": finding.sentence,
        }
        for finding in ranked(found.findings)
    ]


def _pairs(found: "Inspection") -> list[dict[str, int]]:
    places = {call.name: i for i, call in reversed([*enumerate(found.seen)])}
    return [
        {"layer": places[each.layer], "head": each.pair.head, "query": each.pair.query, "key": each.pair.key}
        for each in found.pairs
    ]
