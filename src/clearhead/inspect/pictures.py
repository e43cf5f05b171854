"""The pictures of an inspection: all heads, a number for each, the heads in trouble, and rollout.

Shapes: B samples, H heads, N tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from clearhead.errors import InputError
from clearhead.inspect.labels import label
from clearhead.inspect.models import Inspected, Names, Reading
from clearhead.inspect.ranking import ranked
from clearhead.observe import Call, Finding, Seen, rollout
from clearhead.observe.numbers.records import records
from clearhead.picture import grid, heatmap, statistic
from clearhead.picture import rollout as draw_rollout
from clearhead.picture.heads import ALONE, TOGETHER

PANELS = 160
"""Heads in one picture; more layers go to further pictures."""
TROUBLED = 8
"""Heads that rules name and that get a picture of their own, the worst first."""
WHOLE = 256
"""Tokens up to which rollout is drawn for every output."""

Picture = tuple[str, Any]
Head = tuple[Call, int]


def pictures(
    model: Inspected,
    reading: Reading,
    seen: Seen,
    findings: Sequence[Finding],
    chosen: Sequence[Head],
    *,
    whole: bool,
    notes: list[str],
) -> Iterator[Picture]:
    """File names and figures. `chosen` heads are drawn large; rollout only of the `whole` model; `notes` takes what
    could not be drawn."""
    sides: dict[str, list[Call]] = {}
    for call in seen:
        sides.setdefault(model.side(call), []).append(call)
    for side, calls in sides.items():
        yield from _grids(model, reading, side, calls)
    yield from _statistics(seen, findings)
    yield from _large(model, reading, seen, findings, chosen, notes)
    for side, calls in sides.items() if whole else ():
        if side != "cross":
            yield from _rollout(side, calls, model.names(calls[0], reading)[1], notes)


def _grids(model: Inspected, reading: Reading, side: str, calls: list[Call]) -> Iterator[Picture]:
    """Every head of every layer; layers of other shapes than their neighbours' in a picture of their own."""
    pages: list[list[Call]] = []
    for call in calls:
        last = pages[-1] if pages else []
        if not last or last[0].shape != call.shape or (len(last) + 1) * call.heads > PANELS:
            pages.append([])
        pages[-1].append(call)
    for number, page in enumerate(pages, start=1):
        maps = {label(call.name, call.turn): call.map for call in page}
        options = _options(model, reading, page[0], TOGETHER)
        yield _file("heads", side, number if len(pages) > 1 else None), grid(maps, **options)


def _options(model: Inspected, reading: Reading, call: Call, told_apart: int) -> dict[str, Any]:
    """How a map is drawn: with its tokens, or where blocks of many are drawn with positions, on a logarithmic scale,
    because the more keys there are the less weight each of them has."""
    if max(call.shape[2:]) > told_apart:
        return {"log": True}
    rows, columns = model.names(call, reading)
    return {"rows": rows, "columns": columns}


def _statistics(seen: Seen, findings: Sequence[Finding]) -> Iterator[Picture]:
    """Normalized entropy and the largest logit of every head, those with findings ringed."""
    found = records(seen)
    marks: dict[str, list[tuple[int | str, int | None]]] = {}
    for finding in findings:
        marks.setdefault(finding.rule, []).append((label(finding.layer, finding.turn), finding.head))
    for name, part, file in (("normalized_entropy", "mean", "entropy.png"), ("max_logit", "max", "max_logit.png")):
        values: dict[str, list[float]] = {}
        for record in found:
            if record[name] is not None:
                values.setdefault(label(record["name"], record["turn"]), []).append(record[name][part])
        known = {rule: [mark for mark in heads if mark[0] in values] for rule, heads in marks.items()}
        if values:
            yield file, statistic(values, name, marks={rule: heads for rule, heads in known.items() if heads})


def _large(
    model: Inspected,
    reading: Reading,
    seen: Seen,
    findings: Sequence[Finding],
    chosen: Sequence[Head],
    notes: list[str],
) -> Iterator[Picture]:
    """The chosen heads, and the worst that rules name, with their marginals."""
    why: dict[tuple[str, int, int], list[str]] = {}
    for finding in ranked(findings):
        if finding.head is not None:
            why.setdefault((finding.layer, finding.turn, finding.head), []).append(finding.rule)
    calls = {(call.name, call.turn): call for call in seen}
    troubled = [(calls[layer, turn], head) for layer, turn, head in why]
    if len(troubled) > TROUBLED:
        notes.append(f"{len(troubled) - TROUBLED} more heads that rules name are not drawn; choose some with --head")
    for call, head in dict.fromkeys([*chosen, *troubled[:TROUBLED]]):
        named = label(call.name, call.turn)
        rules = why.get((call.name, call.turn, head), [])
        title = f"{named} head {head}" + (f": {', '.join(rules)}" if rules else "")
        options = _options(model, reading, call, ALONE)
        figure = heatmap(call.map, head=head, title=title, marginals=True, **options)
        yield f"head-{named.replace(' ', '-')}-{head}.png", figure


def _rollout(side: str, calls: list[Call], names: Names, notes: list[str]) -> Iterator[Picture]:
    """What the outputs of a stack rest on: of causal attention the last one, of others all on average."""
    causal, n = _causal(calls[0]), calls[0].shape[3]
    try:
        last = rollout(calls, [-1]) if causal else rollout(calls, pool=1)
        every = rollout(calls) if n <= WHOLE else last[:, :0]
    except InputError as error:
        notes.append(f"no rollout{f' of the {side}' if side else ''}: {error}")
        return
    above = every[0] if causal else torch.cat([every, last], 1)[0]
    values = above if len(above) else last[0]
    rows = [*(names or map(str, range(n)))][: len(every[0])] + ([] if causal or not len(above) else ["mean"])
    rests = "the last output rests" if causal else "the outputs rest"
    title = "rollout" + (f" of the {side}" if side else "") + f": what {rests} on"
    yield _file("rollout", side), draw_rollout(values, names, rows if len(values) > 1 else None, title=title)


def _causal(call: Call) -> bool:
    """Does the first query see itself alone?"""
    visible = call.statistics.visible
    return visible is not None and call.shape[2] > 1 and bool((visible[..., 0] == 1).all())


def _file(name: str, side: str, number: int | None = None) -> str:
    return "-".join(str(part) for part in (name, side, number) if part not in ("", None)) + ".png"
