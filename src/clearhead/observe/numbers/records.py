"""What was seen, as plain records: one for each head of each layer, for tables, frames and files.

Shapes: B samples, H heads, R measured rows, M of them in all samples and forward passes together.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import MissingExtra
from clearhead.kernels import Statistics
from clearhead.observe.calls import Call, Seen, joined
from clearhead.observe.health.rules import Finding, check

STATISTICS = tuple(field.name for field in fields(Statistics))
LOWEST = frozenset({"entropy", "normalized_entropy", "visible"})
"""Statistics whose worst row is the lowest; of all others it is the highest."""

GIVEN = frozenset({"entropy", "max_weight", "sink"})
"""Statistics that say nothing where a row sees a single key, whatever the head does: such a row is not the worst."""

Record = dict[str, Any]


def records(seen: Seen) -> list[Record]:
    """One record for each head of each layer, in the order of the forward pass, over all forward passes together.

    Keys of a record:
        name, role, turn, head: which head it is; `turn` counts the runs of a layer that shares its weights.
        rows: how many rows say something. Padding, and rows that see nothing, are left out of everything.
        one for each statistic: None where it was not measured, else a dictionary of `mean`, `std` (the spread of the
            rows, as a population), `min` and `max`, all NaN where no row defines it, and `worst`: the `value` that is
            lowest (entropies, visible keys) or highest (all others), with its `step` (the forward pass; the first of
            those that were joined), `sample` and `row` (for `received` its `key`). For entropy, max_weight and sink
            that row sees several keys.
        health, layer_health: what the rules of `check` found of this head, and of its layer as a whole: dictionaries of
            `rule`, `severity` and `sentence`.
    """
    findings = check(seen.calls)
    return [record for calls in _layers(seen.calls) for record in _records(calls, findings)]


def flat(record: Record) -> Record:
    """A record as one row of a frame: `entropy_mean`, …, `entropy_worst_row`; what was not measured is None."""
    out: Record = {}
    for key, value in record.items():
        if key in ("health", "layer_health"):
            out[key] = "; ".join(finding["rule"] for finding in value)
        elif key not in STATISTICS:
            out[key] = value
        else:
            out |= _flat(key, value)
    return out


def _flat(name: str, summary: Record | None) -> Record:
    summary = summary or {}
    worst = summary.get("worst") or {}
    numbers = {f"{name}_{part}": summary.get(part) for part in ("mean", "std", "min", "max")}
    return numbers | {f"{name}_worst_{part}": worst.get(part) for part in ("step", "sample", _axis(name))}


def to_pandas(seen: Seen) -> Any:
    """`records` as a pandas DataFrame, one row for each head of each layer. Raises MissingExtra without pandas."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise MissingExtra("'pandas' is not installed: pip install pandas") from None
    frame = pandas.DataFrame([flat(record) for record in records(seen)])
    return frame.astype(dict.fromkeys((name for name in frame.columns if "_worst_" in name), "Int64"))


def to_json(seen: Seen, rows: bool = False) -> str:
    """`{"heads": records, "unseen": {path: reason}}` as JSON; what is no finite number is null.

    With `rows` also `"calls"`: all statistics of each call, (B, H, R), exactly as they were measured.
    """
    whole: Record = {"heads": records(seen), "unseen": seen.unseen}
    if rows:
        whole["calls"] = [_in_full(call) for call in joined(seen.calls)]
    return json.dumps(_finite(whole), allow_nan=False)


def values(call: Call, name: str) -> Tensor | None:
    """A statistic of a call, (B, H, R) in float64, NaN where a row is padding or sees nothing; None: not measured."""
    x = getattr(call.statistics, name)
    if x is None:
        return None
    x = x.detach().to("cpu", torch.float64)
    if name == "visible":
        x = x.masked_fill(x == 0, math.nan)
    # in self-attention a query that is padding is a key that is padding, unless rows are a sample or of several steps
    hidden = None if name == "received" and (call.rows is not None or call.shape[2] != call.shape[3]) else call.padding
    return x if hidden is None else x.masked_fill(hidden.cpu()[:, None], math.nan)


def _layers(calls: Sequence[Call]) -> list[list[Call]]:
    """The calls of each layer, whose samples may be of several batches; steps of decoding are one call."""
    layers: dict[tuple[Any, ...], list[Call]] = {}
    for call in joined(calls):
        layers.setdefault((call.name, call.role, call.turn, call.heads), []).append(call)
    return list(layers.values())


def _records(calls: list[Call], findings: list[Finding]) -> list[Record]:
    """Of the heads of one layer."""
    first, measured = calls[0], {name: _summaries(calls, name) for name in STATISTICS}
    of_layer = [found for found in findings if (found.layer, found.turn) == (first.name, first.turn)]
    return [
        {
            "name": first.name,
            "role": first.role,
            "turn": first.turn,
            "head": head,
            "rows": rows,
            **{name: summary[head] for name, summary in measured.items()},
            "health": _said([found for found in of_layer if found.head == head]),
            "layer_health": _said([found for found in of_layer if found.head is None]),
        }
        for head, rows in enumerate(_counts(calls))
    ]


def _said(findings: list[Finding]) -> list[dict[str, str]]:
    return [{"rule": found.rule, "severity": found.severity, "sentence": found.sentence} for found in findings]


def _counts(calls: list[Call]) -> list[int]:
    """How many rows say something, for each head."""
    for name in ("visible", "logsumexp", "max_logit", "max_weight", "entropy", "distance"):
        if (x := _together(calls, name)) is not None:
            return (~x.isnan()).sum(-1).tolist()
    rows = sum(call.shape[0] * (call.shape[2] if call.rows is None else len(call.rows)) for call in calls)
    hidden = sum(int(call.padding.expand(call.shape[0], -1).sum()) for call in calls if call.padding is not None)
    return [rows - hidden] * calls[0].heads


def _together(calls: list[Call], name: str) -> Tensor | None:
    """A statistic of all calls of a layer, (H, M); None unless all of them have it."""
    parts = [values(call, name) for call in calls]
    known = [part.transpose(0, 1).flatten(1) for part in parts if part is not None]
    return torch.cat(known, -1) if len(known) == len(parts) else None


def _summaries(calls: list[Call], name: str) -> list[Record | None]:
    """A statistic in numbers, for each head."""
    x = _together(calls, name)
    if x is None:
        return [None] * calls[0].heads
    visible = _together(calls, "visible") if name in GIVEN else None
    choosing = x if visible is None else x.masked_fill(visible < 2, math.nan)
    summaries: list[Record | None] = []
    for head, (numbers, at) in enumerate(zip(_numbers(x), _worst(choosing, name in LOWEST), strict=True)):
        worst = None if at is None else {**_place(calls, name, at), "value": float(x[head, at])}
        summaries.append({**numbers, "worst": worst})
    return summaries


def _numbers(x: Tensor) -> list[dict[str, float]]:
    """Mean, spread and extremes of each row of `x` (H, M), NaN left out."""
    if not x.shape[-1]:
        x = x.new_full((len(x), 1), math.nan)
    blank, mean = x.isnan(), x.nanmean(-1)
    low, high = x.masked_fill(blank, math.inf).amin(-1), x.masked_fill(blank, -math.inf).amax(-1)
    parts = (mean, (x - mean[:, None]).square().nanmean(-1).sqrt(), low, high)
    rows = torch.stack(parts, -1).masked_fill(blank.all(-1, keepdim=True), math.nan).tolist()
    return [dict(zip(("mean", "std", "min", "max"), row, strict=True)) for row in rows]


def _worst(x: Tensor, lowest: bool) -> list[int | None]:
    """Where the lowest or the highest value of each row of `x` (H, M) lies; None where there is none."""
    if not x.shape[-1]:
        return [None] * len(x)
    filled = x.masked_fill(x.isnan(), math.inf if lowest else -math.inf)
    at = (filled.argmin(-1) if lowest else filled.argmax(-1)).tolist()
    return [None if nothing else i for i, nothing in zip(at, x.isnan().all(-1).tolist(), strict=True)]


def _place(calls: list[Call], name: str, at: int) -> Record:
    """Where the `at`-th of a layer's M values comes from."""
    for call in calls:
        samples, _, n = getattr(call.statistics, name).shape
        if at < samples * n:
            sample, row = divmod(at, n)
            break
        at -= samples * n
    if name != "received" and call.rows is not None:
        row = int(call.rows[row]) % call.shape[2]
    return {"step": call.step, "sample": sample, _axis(name): row}


def _axis(name: str) -> str:
    return "key" if name == "received" else "row"


def _in_full(call: Call) -> Record:
    """A call with all its values."""
    statistics = {name: None if (x := values(call, name)) is None else x.tolist() for name in STATISTICS}
    who = {"name": call.name, "role": call.role, "turn": call.turn, "step": call.step, "shape": list(call.shape)}
    return {**who, "rows": None if call.rows is None else call.rows.tolist(), "statistics": statistics}


def _finite(x: Any) -> Any:
    """`x` with None for each number that JSON cannot hold."""
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    return [_finite(value) for value in x] if isinstance(x, list) else x
