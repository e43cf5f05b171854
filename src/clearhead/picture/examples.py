"""Predictions beside what was expected, their mistakes marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clearhead.errors import InputError
from clearhead.picture.align import Pair, align_nearest, mistakes
from clearhead.picture.page import Markup, join, tag, void

MARK = {"substituted": "≠", "inserted": "+", "missing": "−"}


def table(examples: Sequence[Mapping[str, Any]]) -> Markup:
    """A table of `examples` ({"source", "prediction", "references"}), wrong ones first, and a choice of which to see.

    Raises InputError for an example without a reference.
    """
    if not examples:
        return tag("p", "none were made", class_="absent")
    check_references(examples)
    aligned = [(example, align_nearest(example["prediction"], example["references"])) for example in examples]
    wrong = [_row(*item) for item in aligned if mistakes(item[1])]
    right = [_row(*item) for item in aligned if not mistakes(item[1])]
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in ("word", "prediction", "also right"))))
    rows = tag("table", head, tag("tbody", *wrong, *right), class_="examples")
    return join(_choice(len(wrong), len(right)), _key(), tag("div", rows, class_="wide"))


def check_references(examples: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError for an example without a reference."""
    for example in examples:
        if not example["references"]:
            raise InputError(f"examples: {example['source']!r} has no reference, expected at least one list of symbols")


def _choice(wrong: int, right: int) -> Markup:
    """Radio buttons; the style sheet hides what is not chosen, so that they work without a script."""
    counts = {"all": wrong + right, "wrong": wrong, "right": right}
    buttons = []
    for name, count in counts.items():
        checked = "" if name == "all" else None
        button = void("input", type="radio", name="show", id=f"show-{name}", checked=checked)
        buttons.append(join(button, tag("label", f"{name} ", tag("b", f"{count:,}"), for_=f"show-{name}")))
    return tag("fieldset", tag("legend", "Show"), *buttons, class_="choice")


def _key() -> Markup:
    shown = (
        (Pair("AE1", "EH1"), "said AE1 where EH1 was right"),
        (Pair("T", None), "too many"),
        (Pair(None, "N"), "missing"),
    )
    return tag("p", *(tag("span", _symbol(pair), f" {words}") for pair, words in shown), class_="key")


def _row(example: Mapping[str, Any], pairs: Sequence[Pair]) -> Markup:
    expected = [pair.expected for pair in pairs if pair.expected is not None]
    others = [list(reference) for reference in example["references"] if list(reference) != expected]
    return tag(
        "tr",
        tag("th", example["source"], scope="row"),
        tag("td", tag("span", *(join(_symbol(pair), " ") for pair in pairs), class_="symbols")),
        tag("td", " · ".join(" ".join(reference) for reference in others), class_="others"),
        class_="wrong" if mistakes(pairs) else "right",
    )


def _symbol(pair: Pair) -> Markup:
    """A symbol that is right as it stands; else the mark of its mistake, what was said, and below it what was right."""
    if pair.kind == "same":
        return tag("span", pair.predicted or "", class_="same")
    said = tag("span", pair.predicted or "–", class_="said")
    right = tag("span", pair.expected or "–", class_="expected")
    return tag("span", tag("sup", MARK[pair.kind]), said, right, class_=pair.kind, title=_title(pair))


def _title(pair: Pair) -> str:
    if pair.kind == "substituted":
        return f"{pair.predicted} instead of {pair.expected}"
    return f"{pair.predicted or pair.expected} is {'missing' if pair.predicted is None else 'too many'}"
