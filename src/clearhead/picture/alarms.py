"""Alarms in a timeline: what rang when for which head, as marks in both of its parts and as words below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from clearhead.errors import InputError
from clearhead.picture.history import History
from clearhead.picture.sheet import Sheet, height, inches, lines, spread

COLOR = "#c8361d"
SPOT: dict[str, Any] = {
    "marker": "o",
    "markersize": 6,
    "markerfacecolor": "white",
    "markeredgecolor": COLOR,
    "markeredgewidth": 1.5,
    "linestyle": "",
}
LISTED = 10  # alarms that are numbered, and their words written
SIZE = 8.0  # points


@dataclass(frozen=True)
class Alarm:
    """What an alarm said at a step; `places` are those of the n heads that it means, none where it is no layer's."""

    step: float
    layer: str
    head: int | None
    sentence: str
    places: list[int]

    @property
    def words(self) -> str:
        """When it rang, and what it said: with the head, where the sentence does not begin with its layer."""
        where = " ".join([*([self.layer] if self.layer else []), *([] if self.head is None else [f"head {self.head}"])])
        known = not where or (self.layer and self.sentence.startswith(self.layer.split("#")[0]))
        return (
            f"step {self.step:,.0f}: {self.sentence}" if known else f"step {self.step:,.0f}: {where}: {self.sentence}"
        )


def read(alarms: Sequence[Mapping[str, Any]], past: History) -> list[Alarm]:
    """The alarms {"step", "layer", "head", "sentence"} in the order of their steps."""
    found = []
    for i, alarm in enumerate(alarms):
        missing = [key for key in ("step", "layer", "sentence") if alarm.get(key) is None]
        if missing:
            raise InputError(f"alarms: alarm {i} has no {missing[0]!r}, expected step, layer, head and sentence")
        at, layer, head = float(alarm["step"]), str(alarm["layer"]), alarm.get("head")
        if not past.steps[0] <= at <= past.steps[-1]:
            raise InputError(
                f"alarms: alarm {i} is at step {at:g}, and the steps are {past.steps[0]:g} … {past.steps[-1]:g}"
            )
        found.append(Alarm(at, layer, head, str(alarm["sentence"]), past.find(layer, head, f"alarms: alarm {i}")))
    return sorted(found, key=lambda alarm: alarm.step)


def recorded(records: Sequence[Mapping[str, Any]], past: History) -> list[Alarm]:
    """The alarms in the records of a monitor, {"step": 20, "alarms": [event, ...]}: those that began or became much
    worse, and no notes. Of layers whose attention the records do not have, only the words are known."""
    found = []
    for record in records:
        for event in record.get("alarms") or ():
            if event["event"] in ("began", "worse") and event["severity"] == "alarm":
                layer = f"{event['layer']}#{event['turn']}" if event.get("turn") else event["layer"]
                places = past.find(layer, event["head"], "alarms") if layer in past.layers else []
                found.append(Alarm(float(record["step"]), layer, event["head"], event["sentence"], places))
    return found


def written(alarms: list[Alarm], width: float) -> list[tuple[str, str]]:
    """Lines below the picture: the number of an alarm, and its words as far as they go into `width` inches."""
    rows = []
    for i, alarm in enumerate(alarms[:LISTED]):
        rows += [(str(i + 1) if not j else "", line) for j, line in enumerate(lines(alarm.words, width, SIZE))]
    more = len(alarms) - LISTED
    return rows + ([("", f"and {more:,} more, which have no number")] if more > 0 else [])


def write(sheet: Sheet, rows: list[tuple[str, str]], left: float, top: float) -> None:
    for i, (number, words) in enumerate(rows):
        at = top + i * height(1, SIZE)
        sheet.write(left, at, number, SIZE, COLOR, weight="bold")
        sheet.write(left + 0.25, at, words, SIZE)


def mark(sheet: Sheet, curves: Axes, strip: Axes, alarms: list[Alarm], past: History) -> None:
    """A thin line at the step of each alarm, a spot at its head in both parts, and its number above."""
    for axes in (curves, strip):
        for at in {alarm.step for alarm in alarms}:
            axes.axvline(at, color=COLOR, linewidth=0.7, alpha=0.6, zorder=2.5)
    for alarm in (alarm for alarm in alarms if alarm.places):
        first, last = alarm.places[0], alarm.places[-1]
        if alarm.head is None:
            strip.plot([alarm.step] * 2, [first - 0.4, last + 0.4], color=COLOR, linewidth=2.5, zorder=4)
            continue
        strip.plot(alarm.step, first, **SPOT, zorder=4)
        row = int(np.searchsorted(past.steps, alarm.step, side="right")) - 1
        if np.isfinite(past.values[row, first]):
            curves.plot(alarm.step, past.values[row, first], **SPOT, zorder=4)
    _number(sheet, curves, alarms[:LISTED])


def _number(sheet: Sheet, curves: Axes, alarms: list[Alarm]) -> None:
    """The numbers of the alarms above the lines, side by side where steps are the same."""
    low, high = curves.get_xlim()
    each = (inches("10", SIZE) + 0.04) / curves.get_window_extent().width * sheet.dpi
    for i, at in enumerate(spread([(alarm.step - low) / (high - low) for alarm in alarms], each, 0.0, 1.0)):
        style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": SIZE, "color": COLOR, "weight": "bold"}
        curves.text(at, 1.015, str(i + 1), transform=curves.transAxes, **style)
