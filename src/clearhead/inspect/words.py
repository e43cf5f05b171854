"""An inspection as lines to read in a terminal."""

import io
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

from clearhead.inspect.look import Inspection
from clearhead.observe import Finding
from clearhead.observe.health import RULES, advice
from clearhead.observe.pairs import Pair

SENTENCES = 8
"""Findings said in full."""
TOKENS = 40
"""Tokens written out."""


def report(found: Inspection, width: int = 80, colour: bool = False) -> list[str]:
    """What was found, in lines of at most `width` characters where words allow it; with `colour` for a terminal."""
    model = found.model.model
    weights = sum(weight.numel() for weight in model.parameters())
    lines = [f"{found.model.path}: {type(model).__name__}, {weights:,} parameters", *_read(found, width), ""]
    lines += _rendered(found.seen.table(), width, colour)
    if found.findings:
        lines += ["", *_said(found.findings, width)]
    lines += ["", "strongest pairs (query -> key), one of each head:"]
    lines += [f"  {each.layer} head {each.pair.head}: {_pair(each.pair)}" for each in found.pairs]
    if found.files:
        names = ", ".join(file.name for file in found.files)
        lines += ["", *wrap(f"written to {found.files[0].parent}: {names}", width, subsequent_indent="  ")]
    return lines + [part for note in found.notes for part in wrap(note, width, subsequent_indent="  ")]


def _read(found: Inspection, width: int) -> list[str]:
    """What the model was given, by its tokens."""
    reading = found.reading
    lines = [f"reads an image as {_count(found.seen[0].shape[3])}"] if reading.source is None else []
    for what, names in (("reads", reading.source), ("target:", reading.target)):
        if names is not None:
            shown = " ".join(names[:TOKENS]) + (" ..." if len(names) > TOKENS else "")
            lines += wrap(f"{what} {_count(len(names))}: {shown}", width, subsequent_indent="  ")
    if reading.predicted is not None:
        lines += wrap("rows of cross-attention are named by the token that they are to predict", width)
    return lines


def _count(tokens: int) -> str:
    return f"{tokens} token{'' if tokens == 1 else 's'}"


def _said(findings: Sequence[Finding], width: int) -> list[str]:
    """The findings, alarms first, and what to try; what they mean stands below the table already."""
    ordered = sorted(findings, key=lambda each: each.severity != "alarm")
    meanings = {rule.name: f": {rule.meaning}" for rule in RULES}
    lines = []
    for finding in ordered[:SENTENCES]:
        sentence = finding.sentence.removesuffix(meanings[finding.rule])
        lines += wrap(f"{finding.severity}: {sentence}", width, subsequent_indent="  ")
    if len(ordered) > SENTENCES:
        lines.append(f"and {len(ordered) - SENTENCES} more, all in the JSON")
    lines += ["", "what to try:"]
    for line in advice(findings):
        lines += wrap(line, width, initial_indent="  ", subsequent_indent="    ")
    return lines


def _pair(pair: Pair) -> str:
    ends = ((pair.query, pair.query_token), (pair.key, pair.key_token))
    query, key = (str(number) if token is None else f"{token} ({number})" for number, token in ends)
    return f"{query} -> {key}, {pair.weight:.2f}"


def _rendered(table: Any, width: int, colour: bool) -> list[str]:
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, force_jupyter=False)
    console.print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]
