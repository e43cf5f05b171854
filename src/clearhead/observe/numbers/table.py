"""The table of what was seen: layer × head, or a line for each layer where there are many heads."""

import math
from collections.abc import Sequence
from itertools import groupby

from clearhead.errors import InputError, nearest
from clearhead.observe.calls import Seen
from clearhead.observe.health.rules import RULES
from clearhead.observe.numbers.families import families
from clearhead.observe.numbers.grid import Cell, Column, Grid, Section
from clearhead.observe.numbers.records import STATISTICS, Record, records

FEW = 40
"""Heads up to which each has a line of its own."""

SHOWN = ("normalized_entropy", "sink", "max_logit", "distance")
TITLES = {"normalized_entropy": "entropy", "entropy": "entropy (nats)"}
PEAKS = ("max_logit", "received")
"""Statistics whose greatest value is shown; of all others it is the mean over rows."""
UNITS = {"normalized_entropy": " (normalized)", "distance": " (tokens)"}
FRACTIONS = ("normalized_entropy", "entropy", "sink", "max_weight")

Layer = list[Record]


def grid(seen: Seen, heads: bool | None = None, columns: Sequence[str] | None = None) -> Grid:
    """What the table of `seen` says.

    Args:
        heads: a line for each head (True), or for each layer with the range over its heads (False); None: for each
            head if there are few.
        columns: names of statistics; None: normalized entropy, sink, max logit and distance.

    Raises InputError for a statistic of another name.
    """
    found = records(seen)
    shown, missing = _chosen(found, columns)
    by_head = len(found) <= FEW if heads is None else heads
    titles = [Column("layer"), Column("head" if by_head else "heads"), *(Column(_title(name)) for name in shown)]
    sections = [
        Section(heading, [line for label, layer in layers for line in _lines(label, layer, shown, by_head)])
        for heading, layers in _families(found).items()
    ]
    notes = _meanings(found, shown, missing, by_head) if found else []
    return Grid(_heading(found), [*titles, Column("health", words=True)], sections, notes + _unseen(seen))


def _chosen(found: list[Record], columns: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The statistics to show, and those that would be shown had they been measured."""
    for name in columns or ():
        if name not in STATISTICS:
            raise InputError(f"columns: there is no statistic {name!r}{nearest(name, STATISTICS)}")
    wanted = SHOWN if columns is None else columns
    measured = [name for name in STATISTICS if any(record[name] is not None for record in found)]
    shown = [name for name in wanted if name in measured]
    if columns is None and not shown:
        shown = measured
    return shown, [name for name in wanted if name not in measured]


def _families(found: list[Record]) -> dict[str, list[tuple[str, Layer]]]:
    """The layers of each family, with what names a layer in it; cross-attention says that it is."""
    out: dict[str, list[tuple[str, Layer]]] = {}
    for family, numbers in families([record["name"] for record in found]).items():
        members = [record for record in found if record["name"] in numbers]
        for (name, role, turn), layer in groupby(members, key=lambda r: (r["name"], r["role"], r["turn"])):
            heading = f"{family} (cross-attention)" if role == "cross" else family
            label = f"{numbers[name]} (run {turn + 1})" if turn else numbers[name]
            out.setdefault(heading, []).append((label.strip(), list(layer)))
    return out


def _lines(label: str, layer: Layer, shown: list[str], by_head: bool) -> list[list[Cell]]:
    if not by_head:
        return [_line(label, str(len(layer)), layer, shown)]
    return [_line("" if i else label, str(record["head"]), [record], shown) for i, record in enumerate(layer)]


def _line(label: str, heads: str, part: Layer, shown: list[str]) -> list[Cell]:
    return [Cell(label), Cell(heads), *(_cell(part, name) for name in shown), _health(part)]


def _cell(part: Layer, name: str) -> Cell:
    """A statistic of a head, or its range over the heads of a layer."""
    if any(record[name] is None for record in part):
        return Cell("-", "dim")
    numbers = [record[name]["max" if name in PEAKS else "mean"] for record in part]
    defined = sorted(x for x in numbers if not math.isnan(x))
    if not defined:
        return Cell("undefined", "dim")
    low, high = _number(defined[0], name), _number(defined[-1], name)
    return Cell(low if low == high else f"{low}..{high}")


def _number(x: float, name: str) -> str:
    if name in FRACTIONS:
        return f"{x:.2f}"
    return f"{x:.1f}" if abs(x) < 10_000 else f"{x:.1e}"


def _title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def _health(part: Layer) -> Cell:
    """The rules that found something, with the heads that they name where the line is of several."""
    heads: dict[str, list[int]] = {}
    for record in part:
        for finding in record["health"]:
            heads.setdefault(finding["rule"], []).append(record["head"])
    lines = [f"{finding['rule']} (layer)" for finding in part[0]["layer_health"]]
    lines += [rule if len(part) == 1 else f"{rule} {_several(numbers)}" for rule, numbers in heads.items()]
    if not lines:
        return Cell("ok", "green") if any(map(_judged, part)) else Cell("-", "dim")
    alarms = any(finding["severity"] == "alarm" for record in part for finding in _findings(record))
    return Cell("\n".join(lines), "red" if alarms else "yellow")


def _judged(record: Record) -> bool:
    """Was anything measured that rules look at?"""
    return any(record[name] is not None for name in ("normalized_entropy", "entropy", "logsumexp", "max_logit", "sink"))


def _findings(record: Record) -> list[dict[str, str]]:
    return [*record["layer_health"], *record["health"]]


def _several(heads: list[int]) -> str:
    """Numbers in few characters: 0-3,7."""
    runs: list[list[int]] = []
    for head in heads:
        if runs and head == runs[-1][-1] + 1:
            runs[-1].append(head)
        else:
            runs.append([head])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _heading(found: list[Record]) -> str:
    if not found:
        return "no attention was seen"
    layers = len({(record["name"], record["role"], record["turn"]) for record in found})
    severities = [{finding["severity"] for finding in _findings(record)} for record in found]
    ill, noted = (sum(severity in own for own in severities) for severity in ("alarm", "note"))
    health = [f"{ill} in alarm"] * bool(ill) + [f"{noted} with a note"] * bool(noted)
    if not health:
        health = ["all healthy" if any(map(_judged, found)) else "health not measured"]
    return f"{_count(layers, 'layer')}, {_count(len(found), 'head')}: {', '.join(health)}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _meanings(found: list[Record], shown: list[str], missing: list[str], by_head: bool) -> list[str]:
    """What the numbers are."""
    means = [_title(name) + UNITS.get(name, "") for name in shown if name not in PEAKS]
    peaks = [_title(name) for name in shown if name in PEAKS]
    kinds = [f"{', '.join(means)}: means"] * bool(means) + [f"{', '.join(peaks)}: greatest"] * bool(peaks)
    notes = ["; ".join(kinds)]
    if not by_head:
        numbers = "; numbers behind a rule are its heads" if any(record["health"] for record in found) else ""
        notes.append(f"a..b: the layer's lowest and highest head{numbers}")
    if any(record[name] is None for record in found for name in shown):
        notes.append("-: not measured")
    notes += [f"not measured: {', '.join(map(_title, missing))}"] * bool(missing)
    rules = {finding["rule"] for record in found for finding in _findings(record)}
    said = [f"  {rule.name}: {rule.meaning}" for rule in RULES if rule.name in rules]
    return notes + (["health:", *said] if said else [])


def _unseen(seen: Seen) -> list[str]:
    """What could not be seen, and why."""
    lines = [f"  {path}: {why}" for path, why in seen.unseen.items()]
    return ["not seen:", *lines] if lines else []
