"""The course of a training, from the records of metrics.jsonl to charts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clearhead.errors import InputError
from clearhead.picture import chart
from clearhead.picture.chart import Line, Point
from clearhead.picture.page import Markup, tag

MOST = 400  # points of a line before only the smallest and largest of each stretch are kept
CLOCK = ("step", "epoch", "seconds", "progress")
NESTED = ("attention", "alarms", "remedies")  # what a monitor of attention adds to a record: no numbers

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chart:
    """What belongs into one chart: keys of the records and their names, how values are written, whether 0 is shown."""

    title: str
    keys: Mapping[str, str]
    form: str = "{:.4g}"
    from_zero: bool = True


LOSS = Chart("Loss", {"train_loss": "training", "valid_loss": "validation"}, from_zero=False)
SCORES = (
    Chart(
        "Validation error",
        {
            "valid_wer": "words",
            "valid_per": "phonemes",
            "valid_wer_without_stress": "words, without stress",
            "valid_per_without_stress": "phonemes, without stress",
        },
        form="{:.1%}",
    ),
    Chart("Validation error", {"valid_cer": "characters"}, form="{:.1%}"),
    Chart("Validation, exact matches", {"valid_exact_match": "exact match"}, form="{:.1%}"),
    Chart(
        "Validation, greedy",
        {"valid_bleu": "BLEU", "valid_bleu_lowercase": "BLEU, lower-case", "valid_chrf": "chrF"},
        form="{:.1f}",
    ),
    Chart(
        "Validation, greedy",
        {"valid_rouge1": "ROUGE-1", "valid_rouge2": "ROUGE-2", "valid_rougeL": "ROUGE-L"},
        form="{:.3f}",
    ),
)
"""By kind of task: one or two of them have values."""
PACE = (
    Chart("Learning rate", {"learning_rate": "last"}, form="{:.3g}"),
    Chart("Throughput", {"tokens_per_second": "tokens a second, last"}, form="{:,.0f}"),
)


NORMS = {"weight_norm": "Weights of attention, their norm", "gradient_norm": "Gradients of attention, their norm"}
LAYERS = 4  # up to which each has a line


def draw(records: Records) -> tuple[Markup, list[dict[str, Any]]]:
    """The charts of `records`, and what the page's script needs to read out those that have points.

    What no record holds is said to be not measured. Keys that belong to none of the charts get one each.

    Raises InputError for a record without a step, and for a value that is no number.
    """
    for i, record in enumerate(records):
        if not _is_number(record.get("step")):
            raise InputError(
                f"curves: record {i} has no number as its 'step', expected {{'step': 100, 'train_loss': 2.5, ...}}"
            )
    figures: list[Markup] = []
    data: list[dict[str, Any]] = []
    records, norms = _with_norms(records)
    for each in [LOSS, *_scores(records), *PACE, *norms, *_others(records, norms)]:
        lines = [line for key, label in each.keys.items() if (line := _line(records, key, label))]
        if any(line.points for line in lines):
            drawn, read = chart.draw(each.title, lines, each.form, each.from_zero, len(data))
            data.append(read)
        else:
            drawn = tag("p", "never finite" if lines else "not measured", class_="absent")
        figures.append(tag("figure", tag("figcaption", each.title), drawn))
    return tag("div", *figures, class_="charts"), data


def _scores(records: Records) -> list[Chart]:
    """Those charts of validation that the task has, or the first, for saying that nothing was measured."""
    known = {key for record in records for key in record}
    return [each for each in SCORES if known & set(each.keys)] or [SCORES[0]]


def course(records: Records) -> str:
    """How long the training was, as far as the records say: "1,900 steps, 6 epochs, 4 min 45 s"."""
    last = {key: record[key] for record in records for key in CLOCK if record.get(key) is not None}
    minutes, seconds = divmod(round(last.get("seconds", 0)), 60)
    parts = [f"{last['step']:,} steps"] if "step" in last else []
    parts += [f"{last['epoch']:.3g} epochs"] if "epoch" in last else []
    parts += [f"{minutes} min {seconds} s" if minutes else f"{seconds} s"] if "seconds" in last else []
    return ", ".join(parts)


def _with_norms(records: Records) -> tuple[Records, list[Chart]]:
    """The records with the norms of the layers that a monitor watched, a key each, and their charts.

    Where there are many layers, they are the smallest, the middle and the largest.
    """
    flat: list[dict[str, Any]] = []
    keys: dict[str, dict[str, str]] = {}
    for record in records:
        layers = record.get("attention") or {}
        found: dict[str, Any] = {}
        for norm in NORMS:
            values = {layer: x for layer, numbers in layers.items() if (x := numbers.get(norm)) is not None}
            if len(values) > LAYERS:
                order = sorted(values.values())
                values = {"smallest of a layer": order[0], "median": order[len(order) // 2], "largest": order[-1]}
            found |= {f"{norm} {name}": x for name, x in values.items()}
            keys.setdefault(norm, {}).update({f"{norm} {name}": name for name in values})
        flat.append({**record, **found})
    return flat, [Chart(NORMS[norm], lines, "{:.3g}") for norm, lines in keys.items() if lines]


def _others(records: Records, more: Sequence[Chart]) -> list[Chart]:
    known = {*CLOCK, *NESTED, *(key for each in [LOSS, *SCORES, *PACE, *more] for key in each.keys)}
    return [
        Chart(key, {key: "last"}) for key in dict.fromkeys(k for record in records for k in record) if key not in known
    ]


def _line(records: Records, key: str, label: str) -> Line | None:
    """What the records hold under `key`; None where they hold nothing."""
    measured = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    for step, value in measured:
        if not _is_number(value):
            raise InputError(f"curves: {key!r} at step {step} is {value!r}, expected a number")
    points = [(float(step), float(value)) for step, value in measured if math.isfinite(value)]
    return Line(label, _thin(points), len(measured) - len(points)) if measured else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _thin(points: list[Point]) -> list[Point]:
    """At most MOST points, among them every peak: the smallest and the largest of each stretch."""
    if len(points) <= MOST:
        return points
    cuts = [i * len(points) // (MOST // 2) for i in range(MOST // 2 + 1)]
    stretches = [points[start:end] for start, end in itertools.pairwise(cuts)]
    return [p for s in stretches for p in sorted({min(s, key=_value), max(s, key=_value)})]


def _value(point: Point) -> float:
    return point[1]
