"""Alarms over time: a rule finds the same at every step; told is when it begins, gets much worse, and ends.

A note that becomes an alarm begins as one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clearhead.observe.health.rules import Finding

WORSE = 2.0
"""How many times as far from its threshold a value must be before an alarm is told again."""
PATIENCE = 2
"""How many measurements in a row must find nothing before an alarm is over: near its threshold it comes and goes."""

Place = tuple[str, str, int, int | None]
"""(rule, layer, turn, head)."""
Judged = Mapping[tuple[str, int], Sequence[bool]]
"""Of each layer and turn that was seen, which heads had rows that see enough keys to be judged."""


@dataclass
class _Alarm:
    told: float
    """How far from its threshold the value was when it was last told."""
    severity: str
    judged: bool
    """Was it found in rows that see many keys? Then rows that see few say nothing about its end."""
    missed: int = 0


class Alarms:
    """The alarms that are on. `update` tells what changed, as events to be logged and recorded."""

    def __init__(self) -> None:
        self._on: dict[Place, _Alarm] = {}

    def update(self, findings: Iterable[Finding], judged: Judged) -> list[dict[str, Any]]:
        """Take in the findings of a step, and which heads could be judged in it.

        An event is {"event": "began", "worse" or "over", "rule", "layer", "turn", "head", "severity"}, with "value" and
        "sentence" unless it is over.
        """
        found = {(each.rule, each.layer, each.turn, each.head): each for each in findings}
        told = [self._found(place, each, _was_judged(place, judged)) for place, each in found.items()]
        events = [event for event in told if event is not None]
        for place, alarm in [*self._on.items()]:
            if place in found or place[1:3] not in judged or _was_judged(place, judged) < alarm.judged:
                continue
            alarm.missed += 1
            if alarm.missed >= PATIENCE:
                events.append(_event("over", place, self._on.pop(place).severity))
        return events

    def _found(self, place: Place, finding: Finding, judged: bool) -> dict[str, Any] | None:
        alarm, far = self._on.get(place), _far(finding)
        if alarm is not None:
            alarm.missed = 0
            if alarm.severity == "note" and finding.severity == "alarm":
                alarm = None
        if alarm is not None and far < alarm.told + math.log(WORSE):
            return None
        self._on[place] = _Alarm(far, finding.severity, judged)
        more = {"value": finding.value, "sentence": finding.sentence}
        return _event("began" if alarm is None else "worse", place, finding.severity, **more)

    def __len__(self) -> int:
        return len(self._on)

    def state_dict(self) -> list[list[Any]]:
        """For a checkpoint: plain lists."""
        return [[*place, a.told, a.severity, a.judged, a.missed] for place, a in self._on.items()]

    def load_state_dict(self, state: Sequence[Sequence[Any]]) -> None:
        """Go on from what `state_dict` gave."""
        self._on = {(rule, layer, turn, head): _Alarm(*alarm) for rule, layer, turn, head, *alarm in state}


def _was_judged(place: Place, judged: Judged) -> bool:
    _, layer, turn, head = place
    heads = judged.get((layer, turn), ())
    return any(heads) if head is None else bool(head < len(heads) and heads[head])


def _far(finding: Finding) -> float:
    """How far beyond its threshold a value is, as the logarithm of a ratio."""
    tiny = 1e-9
    return abs(math.log(max(abs(finding.value), tiny)) - math.log(max(abs(finding.threshold), tiny)))


def _event(kind: str, place: Place, severity: str, **more: Any) -> dict[str, Any]:
    rule, layer, turn, head = place
    return {"event": kind, "rule": rule, "layer": layer, "turn": turn, "head": head, "severity": severity, **more}


def sentence(event: dict[str, Any]) -> str:
    """An event as a line to read."""
    if event["event"] == "began":
        return event["sentence"]
    if event["event"] == "worse":
        return f"worse: {event['sentence']}"
    turn = f" (turn {event['turn']})" if event["turn"] else ""
    head = "" if event["head"] is None else f" head {event['head']}"
    return f"over: {event['rule']} of {event['layer']}{turn}{head}"
