"""An inspection as lines to read in a terminal."""

import io
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len

from clearhead.inspect.labels import counted
from clearhead.inspect.look import Attended, Inspection
from clearhead.inspect.ranking import ranked
from clearhead.observe import Finding
from clearhead.observe.health.rules import RULES, advice
from clearhead.observe.numbers.pairs import Pair

SENTENCES = 8
"""Findings said in full."""
TOKENS = 40
"""Tokens written out."""
LONGEST = 24
"""Characters of a token that are written in a pair."""


def report(found: Inspection, width: int = 80, colour: bool = False) -> list[str]:
    """What was found, in lines of at most `width` characters where words allow it; with `colour` for a terminal."""
    model = found.model.model
    weights = sum(weight.numel() for weight in model.parameters())
    lines = _wrapped(f"{found.model.path}: {type(model).__name__}, {weights:,} parameters", width)
    lines += [*_read(found, width), ""]
    lines += _rendered(found.seen.table(), width, colour)
    if found.findings:
        lines += ["", *_said(found.findings, width)]
    if found.pairs:
        lines += ["", "strongest pairs (query -> key), one of each head, by LAYER:HEAD", *_pairs(found.pairs, width)]
    if found.files:
        names = ", ".join(file.name for file in found.files)
        alone = len(found.files) == 1  # a page; a folder holds several
        where = str(found.files[0]) if alone else f"{found.files[0].parent}: {names}"
        lines += ["", *_wrapped(f"written to {where}", width)]
    return lines + [part for note in found.notes for part in _wrapped(note, width)]


def _read(found: Inspection, width: int) -> list[str]:
    """What the model was given, by its tokens."""
    reading = found.reading
    lines = [f"reads an image as {counted(found.seen[0].shape[3], 'token')}"] if reading.source is None else []
    for what, names in (("reads", reading.source), ("target:", reading.target)):
        if names is not None:
            shown = " ".join(names[:TOKENS]) + (" ..." if len(names) > TOKENS else "")
            lines += _wrapped(f"{what} {counted(len(names), 'token')}: {shown}", width)
    if reading.predicted is not None:
        lines += _wrapped("rows of cross-attention are named by the token that they are to predict", width)
    return lines


def _said(findings: Sequence[Finding], width: int) -> list[str]:
    """The worst findings, alarms first, and what to try; what they mean stands below the table already."""
    meanings = {rule.name: f": {rule.meaning}" for rule in RULES}
    shown = ranked(findings)[:SENTENCES]
    together = dict.fromkeys((finding.severity, finding.rule) for finding in shown)
    lines = []
    for finding in sorted(shown, key=lambda each: [*together].index((each.severity, each.rule))):
        sentence = finding.sentence.removesuffix(meanings[finding.rule])
        lines += _wrapped(f"{finding.severity}: {sentence}", width)
    if len(findings) > SENTENCES:
        lines.append(f"and {len(findings) - SENTENCES} more like these, all in the JSON")
    lines += ["", "what to try:"]
    for line in advice(findings):
        lines += _wrapped(line, width, indent=2)
    return lines


def _pairs(pairs: Sequence[Attended], width: int) -> list[str]:
    """A line for each pair, the heads below each other."""
    said = [_pair(each.pair) for each in pairs]
    heads = [f"{each.layer}:{each.pair.head}" for each in pairs]
    wide = min(max(map(cell_len, said)), width - 10 - max(map(cell_len, heads)))
    lines = []
    for each, words, head in zip(pairs, said, heads, strict=True):
        line = f"  {each.pair.weight:.2f}  {words}{' ' * (wide - cell_len(words))}  {head}"
        lines += [line] if cell_len(line) <= width else _wrapped(line, width, indent=2)
    return lines


def _pair(pair: Pair) -> str:
    ends = ((pair.query, pair.query_token), (pair.key, pair.key_token))
    query, key = (str(number) if token is None else f"{_cut(token)} ({number})" for number, token in ends)
    return f"{query} -> {key}"


def _cut(token: str) -> str:
    return token if len(token) <= LONGEST else f"{token[: LONGEST - 1]}…"


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    """`text` in lines of `width` columns, broken at spaces alone; characters of East Asia and emoji fill two."""
    lines, line = [], " " * indent
    for word in text.split():
        if line.strip() and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line = " " * (indent + 2)
        line += word if not line.strip() else f" {word}"
    return [*lines, line]


def _rendered(table: Any, width: int, colour: bool) -> list[str]:
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, force_jupyter=False)
    console.print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]
