"""A line of a file of records, read with care: another program, a full disk or a kill may have written it.

What a record may hold: its step; numbers; "attention", of each layer its norms and lists of a number for each head;
"alarms" and "remedies". Whatever is something else is left out, and said.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from clearhead.picture.curves import NORMS

Record = dict[str, Any]

MOST = 2**53
"""Beyond which a step is no longer the same as a float."""
_CLOCK = ("epoch", "seconds", "progress")
_ALARM = {"rule": str, "layer": str, "event": str, "severity": str, "sentence": str}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Lines:
    """Reads one line after the other; of a layer all records have as many heads as its first."""

    def __init__(self) -> None:
        self._heads: dict[str, int] = {}

    def read(self, line: bytes) -> tuple[Record | None, list[str]]:
        """The record, None where the line holds none, and what of it was left out."""
        try:
            record = json.loads(line)
            if _SURROGATE.search(line):  # half of a character, which no page can hold
                json.dumps(record, ensure_ascii=False).encode()
        except (RecursionError, ValueError):
            return None, []
        if not isinstance(record, dict) or type(record.get("step")) is not int or not 0 <= record["step"] < MOST:
            return None, []
        left_out: list[str] = []
        kept = dict(_kept(record, left_out))
        return kept, left_out + self._without_other_heads(kept)

    def _without_other_heads(self, record: Record) -> list[str]:
        """Leave out layers of another number of heads than before; returns them."""
        others = []
        for layer, numbers in list(record.get("attention", {}).items()):
            heads = next((len(x) for x in numbers.values() if isinstance(x, list)), None)
            if heads is not None and self._heads.setdefault(layer, heads) != heads:
                del record["attention"][layer]
                others.append(f"attention.{layer}")
        return others


def _kept(record: Record, left_out: list[str]) -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if value is None:
            continue
        if key == "attention":
            yield key, dict(_layers(value, left_out))
        elif key in ("alarms", "remedies"):
            fits = _is_alarm if key == "alarms" else _is_text
            lines = value if isinstance(value, list) else [value]
            yield key, [line for line in lines if fits(line)]
            left_out += [key] * (not all(map(fits, lines)))
        elif _is_number(value) and (key not in _CLOCK or math.isfinite(value)):
            yield key, value
        else:
            left_out.append(key)


def _layers(attention: Any, left_out: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The numbers of each layer; of one layer all lists are as long as its first."""
    if not isinstance(attention, Mapping):
        left_out.append("attention")
        return
    for layer, numbers in attention.items():
        if not isinstance(numbers, Mapping):
            left_out.append(f"attention.{layer}")
            continue
        heads = next((len(x) for x in numbers.values() if _is_list(x)), 0)
        fits = {
            name: _is_number(x) if name in NORMS else _is_list(x) and len(x) == heads for name, x in numbers.items()
        }
        left_out += [f"attention.{layer}.{name}" for name, x in numbers.items() if x is not None and not fits[name]]
        yield layer, {name: x for name, x in numbers.items() if fits[name]}


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(x is None or _is_number(x) for x in value)


def _is_number(value: Any) -> bool:
    """Is it a number that a float can hold?"""
    whole = isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 1000
    return whole or isinstance(value, float)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_alarm(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(key), kind) for key, kind in _ALARM.items()):
        return False
    return all(x is None or type(x) is int for x in (value.get("head"), value.get("turn"))) and "head" in value
