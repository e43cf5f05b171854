"""What a page tells of layers: the numbers of their heads, and what health found, by their place."""

from collections.abc import Sequence
from typing import Any

from clearhead.inspect.ranking import ranked
from clearhead.observe import Finding, Seen
from clearhead.observe.numbers.records import Record, records
from clearhead.picture.atlases import STATISTICS

GREATEST = frozenset({"max_logit", "received"})
"""Statistics of which the greatest is shown, and not the mean over rows."""

Numbers = dict[str, list[float | None]]


def numbers(seen: Seen) -> list[Numbers]:
    """Of each call, by statistic a number for each head; None: not measured."""
    told: dict[tuple[str, str, int], list[Record]] = {}
    for record in records(seen):
        told.setdefault((record["name"], record["role"], record["turn"]), []).append(record)
    heads = [told[call.name, call.role, call.turn][: call.heads] for call in seen]
    return [{name: [_number(head, name) for head in some] for name in STATISTICS} for some in heads]


def findings(seen: Seen, found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Worst first, with the place of their layer."""
    places = {(call.name, call.turn): i for i, call in enumerate(seen)}
    return [
        {
            "layer": places[finding.layer, finding.turn],
            "head": finding.head,
            "rule": finding.rule,
            "severity": finding.severity,
            "sentence": finding.sentence,
        }
        for finding in ranked(found)
    ]


def _number(head: Record, name: str) -> float | None:
    return None if head[name] is None else head[name]["max" if name in GREATEST else "mean"]
