"""What a model's attention does with one text: seen, judged, named and drawn."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clearhead.errors import InputError, nearest
from clearhead.inspect.files import Folder
from clearhead.inspect.folders import open_model
from clearhead.inspect.models import Inspected, Question, Reading
from clearhead.inspect.pages import ENDINGS, Page
from clearhead.observe import Call, Finding, Seen, check, top_pairs
from clearhead.observe.calls import under
from clearhead.observe.heads import KEYS
from clearhead.observe.numbers.kept import visible_keys
from clearhead.observe.numbers.pairs import Pair

PAIRS = 10
"""Pairs that are named."""
CANDIDATES = 128
"""Pairs of a layer among which the strongest of each of its heads is looked for."""


@dataclass(frozen=True)
class Attended:
    """The strongest pair of a head, with the path of its layer."""

    layer: str
    pair: Pair


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """What was found.

    Attributes:
        model: what was looked into, and `reading` what it was given.
        seen: every attention that ran, with its map.
        findings: what the rules of `check` found.
        pairs: who attends to whom most, the strongest first, at most one of each head.
        files: what was written.
        notes: what could not be drawn, and why.
    """

    model: Inspected
    question: Question
    reading: Reading
    seen: Seen
    findings: list[Finding]
    pairs: list[Attended]
    files: list[Path]
    notes: list[str]

    def __repr__(self) -> str:
        heads = sum(call.heads for call in self.seen)
        layers, found = len(self.seen), len(self.findings)
        return f"Inspection({str(self.model.path)!r}: {layers} layers, {heads} heads, {found} findings)"

    def _repr_html_(self) -> str:
        return self.seen._repr_html_()

    def record(self) -> dict[str, Any]:
        """All of it but the maps, for JSON: what was read, statistics of every head, findings, pairs, files."""
        reading, asked = self.reading, self.question
        return {
            "model": {"path": str(self.model.path), "class": type(self.model.model).__name__},
            "text": asked.text,
            "tokens": {"source": reading.source, "target": reading.target, "predicted": reading.predicted},
            **json.loads(self.seen.to_json()),
            "findings": [{**asdict(each), "value": _finite(each.value)} for each in self.findings],
            "pairs": [{"layer": each.layer, **asdict(each.pair)} for each in self.pairs],
            "files": [file.name for file in self.files],
            "notes": self.notes,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def inspect(
    path: str | Path,
    text: str | None = None,
    *,
    target: str | None = None,
    tokens: Sequence[int] | None = None,
    image: str | Path | None = None,
    layers: Sequence[str] | None = None,
    heads: Sequence[str] = (),
    out: str | Path | None = None,
) -> Inspection:
    """Run a trained model on one text, and say what each of its heads does.

    Args:
        path: a run folder of `clearhead train`, or a folder that Hugging Face's `save_pretrained` wrote.
        text: what the model reads; or `tokens`, their numbers; or `image`, the file of a picture.
        target: what the decoder of an encoder-decoder reads; None: what the model predicts greedily.
        layers: paths of modules to look at, "*" stands for anything; None: all.
        heads: heads to draw, such as "encoder.layer.3:5"; those that a rule names are drawn anyhow.
        out: the folder for pictures and statistics.json; or a file that ends in .html: all of it as one page, which
            needs no network; None: nothing is written.

    Raises InputError, in one line, for a folder without a model, pickled weights, a text that the model cannot read, a
    layer or head that is not there, a folder `out` that holds other things, and a page of too many weights.
    """
    written = None if out is None else _written(Path(out))
    question = Question(text, target, tokens, None if image is None else Path(image))
    model = open_model(path)
    for head in heads:
        _check_head(model, head)
    reading = model.read(question)
    if isinstance(written, Page):
        written.check_count(model.weights(reading, layers), reading.longest)
    seen = model.look(reading, layers)
    if not len(seen):
        raise InputError(_unseen(model, seen, layers))
    if isinstance(written, Page):
        written.check_count(sum(call.shape[1] * call.shape[2] * call.shape[3] for call in seen), reading.longest)
    chosen = [choice for head in heads for choice in _chosen(seen, head)]
    findings = check(seen)
    found = Inspection(model, question, reading, seen, findings, _strongest(model, reading, seen), [], [])
    if isinstance(written, Folder):
        from clearhead.inspect.pictures import pictures  # which needs matplotlib

        drawn = pictures(model, reading, seen, findings, chosen, whole=layers is None, notes=found.notes)
        written.write(drawn, found.files, found.record)
    elif written is not None:
        written.write(found, chosen, whole=layers is None)
    return found


def _written(out: Path) -> Folder | Page:
    return Page(out) if out.suffix.lower() in ENDINGS else Folder(out)


def _unseen(model: Inspected, seen: Seen, layers: Sequence[str] | None) -> str:
    where = type(model.model).__name__ + (f" under {', '.join(layers)}" if layers else "")
    reasons = "; ".join(f"{name}: {why}" for name, why in seen.unseen.items())
    return f"no attention was seen in {where}: {reasons or 'there is none, or it computes none that can be followed'}"


def _check_head(model: Inspected, head: str) -> None:
    """Raise InputError for what is no head, as far as is known before the model runs."""
    paths = [path for path, _ in model.model.named_modules() if path]
    likely = [path for path in paths if "att" in _leaf(path) and "norm" not in _leaf(path)] or paths
    path, _, number = head.rpartition(":")
    if not path or not number.isdecimal():
        raise InputError(f"head {head!r}: write the layer and the number, such as {likely[0]}:0")
    if not any(under(each, path) for each in paths):
        raise InputError(f"head {head!r}: {type(model.model).__name__} has no module {path!r}{nearest(path, likely)}")


def _leaf(path: str) -> str:
    return path.rpartition(".")[2].lower()


def _chosen(seen: Seen, head: str) -> list[tuple[Call, int]]:
    """The calls and head that "encoder.layer.3:5" means."""
    path, _, number = head.rpartition(":")
    calls = seen[path].calls
    for call in calls:
        if int(number) >= call.heads:
            raise InputError(f"head {head!r}: {call.name} has heads 0 … {call.heads - 1}")
    return [(call, int(number)) for call in calls]


def _strongest(model: Inspected, reading: Reading, seen: Seen) -> list[Attended]:
    """Of rows that see many keys, where a layer has any: the first rows of causal attention have little choice."""
    found: list[Attended] = []
    for call in seen:
        visible = visible_keys(call)
        first: dict[int, Attended] = {}
        few = visible < min(KEYS, int(visible.max()))
        for pair in top_pairs(call, CANDIDATES, *model.names(call, reading)):
            if not few[pair.sample, pair.head, pair.query]:
                first.setdefault(pair.head, Attended(call.name, pair))
        found += first.values()
    return sorted(found, key=lambda each: -each.pair.weight)[:PAIRS]
