"""Every head through training: the monitor's records, packed for the page, and the alarms in words.

T monitored steps, H heads
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clearhead.errors import InputError
from clearhead.picture.explorer import group, layer_name
from clearhead.picture.packing import packed
from clearhead.picture.page import Markup, join, tag

MOST = 240  # columns of a strip; more steps are put together

STATISTICS = {
    "normalized_entropy": ("normalized entropy", "1: attends to all keys alike; 0: to a single one", 1.0),
    "sink": ("first key", "share of the attention that is on the first key", 1.0),
    "max_logit": ("largest logit", "the largest logit of any row; far above 100 softmax is one-hot", None),
    "max_weight": ("largest weight", "the largest weight of a row, on average", 1.0),
    "distance": ("distance", "how many tokens away it looks, on average", None),
    "entropy": ("entropy", "in nats", None),
}
"""The title of each statistic, what it says, and the upper end of its colours where that is fixed."""

Records = Sequence[Mapping[str, Any]]


@dataclass
class Alarm:
    """What a rule found: where, when it began, when it was over (None: it never was), and its first sentence."""

    rule: str
    layer: str
    head: int | None
    severity: str
    sentence: str
    since: int | float
    until: int | float | None = None


def pack(records: Records) -> dict[str, Any] | None:
    """What the page's script draws, from records with "attention"; None where there are none.

    Raises InputError for numbers that are not one for each head.
    """
    watched = [record for record in records if record.get("attention")]
    if not watched:
        return None
    groups = _together(len(watched))
    heads: dict[str, int] = {}
    for record in watched:
        for layer, numbers in record["attention"].items():
            heads[layer] = heads.get(layer) or next((len(x) for x in numbers.values() if isinstance(x, list)), 0)
    names = dict.fromkeys(name for record in watched for layer in record["attention"].values() for name in layer)
    order = [name for name in STATISTICS if name in names]
    return {
        "steps": [watched[part[-1]]["step"] for part in groups],
        "statistics": [_statistic(name) for name in order],
        "layers": [
            {
                "path": layer,
                "name": f"{group(layer)}, {layer_name(layer)}",
                "heads": count,
                "values": {name: packed(_values(watched, layer, name, count, groups)) for name in order},
            }
            for layer, count in heads.items()
        ],
        "alarms": [vars(alarm) for alarm in alarms(records)],
    }


def alarms(records: Records) -> list[Alarm]:
    """The alarms and notes of the records, in the order in which they began; alarms before notes."""
    found: list[Alarm] = []
    on: dict[Any, Alarm] = {}
    for record in records:
        for event in record.get("alarms") or ():
            place = (event["rule"], event["layer"], event.get("turn", 0), event["head"])
            layer = f"{event['layer']}#{event['turn']}" if event.get("turn") else event["layer"]
            if event["event"] == "over" and place in on:
                on.pop(place).until = record["step"]
            elif event["event"] == "began":
                on[place] = Alarm(
                    event["rule"], layer, event["head"], event["severity"], event["sentence"], record["step"]
                )
                found.append(on[place])
    return sorted(found, key=lambda alarm: alarm.severity != "alarm")


def shell(records: Records) -> Markup:
    """What stands in the page: the place where the script draws, the alarms in words, and what remedies did."""
    if not any(record.get("attention") for record in records):
        return tag("p", "not measured", class_="absent")
    note = tag("p", "The strips are in this file; a script draws them, and none may run here.", class_="absent")
    return join(tag("div", note, id="strips"), said(records))


def said(records: Records) -> Markup:
    """The alarms and what remedies did, in words."""
    return join(_listed(alarms(records)), _remedies(records))


def _listed(found: Sequence[Alarm]) -> Markup:
    if not found:
        return tag("p", "No rule of health found anything to say.", class_="muted")
    lines = [
        tag(
            "li",
            tag("b", f"{alarm.severity}, {_when(alarm)}"),
            " ",
            tag("span", alarm.sentence),
            data_alarm=i,
            class_=alarm.severity,
        )
        for i, alarm in enumerate(found)
    ]
    loud = sum(alarm.severity == "alarm" for alarm in found)
    title = ", ".join(
        f"{count} {word}{'s' * (count != 1)}" for count, word in ((loud, "alarm"), (len(found) - loud, "note")) if count
    )
    return tag("details", tag("summary", title), tag("ul", *lines, class_="alarms"), open="" if loud else None)


def _when(alarm: Alarm) -> str:
    if alarm.until is None:
        return f"from step {alarm.since:,} on"
    return f"step {alarm.since:,} to {alarm.until:,}"


def _remedies(records: Records) -> Markup:
    done = [(record["step"], line) for record in records for line in record.get("remedies") or ()]
    if not done:
        return Markup()
    lines = [tag("li", tag("b", f"step {step:,}"), " ", tag("span", line)) for step, line in done]
    times = "1 time" if len(done) == 1 else f"{len(done)} times"
    return tag("details", tag("summary", f"Remedies acted {times}"), tag("ul", *lines, class_="alarms"))


def _statistic(name: str) -> dict[str, Any]:
    title, words, high = STATISTICS[name]
    return {"key": name, "title": title, "words": words, "high": high}


def _together(count: int) -> list[range]:
    """Which of `count` steps come into each column."""
    columns = min(count, MOST)
    cuts = [i * count // columns for i in range(columns + 1)]
    return [range(cuts[i], cuts[i + 1]) for i in range(columns)]


def _values(records: Records, layer: str, name: str, heads: int, groups: list[range]) -> np.ndarray:
    """(H, columns): the mean of the steps in a column, of a largest logit the largest; NaN where none was measured."""
    table = np.full((heads, len(records)), math.nan)
    for i, record in enumerate(records):
        numbers = record["attention"].get(layer, {}).get(name)
        if numbers is None:
            continue
        if not isinstance(numbers, list) or len(numbers) != heads:
            raise InputError(f"curves: {name!r} of {layer!r} at step {record['step']} is no list of {heads} numbers")
        table[:, i] = [math.nan if x is None else x for x in numbers]
    known, starts = ~np.isnan(table), [part.start for part in groups]
    count = np.add.reduceat(known.astype(int), starts, 1)
    if name == "max_logit":
        columns = np.maximum.reduceat(np.where(known, table, -math.inf), starts, 1)
    else:
        columns = np.add.reduceat(np.where(known, table, 0.0), starts, 1) / np.maximum(count, 1)
    return np.where(count > 0, columns, math.nan)
