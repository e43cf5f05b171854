"""Texts that a model wrote beside what was asked of it: the best, those in the middle, and the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clearhead.picture.align import align_nearest
from clearhead.picture.examples import check_references
from clearhead.picture.page import Markup, join, tag, void

KINDS = ("best", "middle", "worst")
KEY = (
    "Marked in the output: words that the reference does not have there; in the reference: words that the output lacks."
)


def groups(count: int, each: int) -> list[tuple[str, range]]:
    """Which places of `count` sorted samples to show, `each` of a kind: from the beginning, the middle and the end."""
    each = min(each, -(-count // 3))
    starts = (0, max(each, (count - each) // 2), max(2 * each, count - each))
    return [(kind, range(start, min(start + each, count))) for kind, start in zip(KINDS, starts, strict=True)]


def table(samples: Sequence[Mapping[str, Any]], each: int = 10) -> Markup:
    """Some of `samples` ({"source", "prediction", "references", "score": 0 to 1, "measure": its name}), best first.

    Predictions and references are lists of words. Raises InputError for a sample without a reference.
    """
    check_references(samples)
    ordered = sorted(samples, key=lambda sample: -sample["score"])
    chosen = [(kind, [ordered[i] for i in places]) for kind, places in groups(len(ordered), each)]
    shown = [_sample(sample, kind) for kind, some in chosen for sample in some]
    return join(_choice([(kind, len(some)) for kind, some in chosen]), tag("p", KEY, class_="muted"), *shown)


def _choice(counts: Sequence[tuple[str, int]]) -> Markup:
    """Radio buttons; the style sheet hides what is not chosen."""
    buttons = []
    for name, count in [("all", sum(count for _, count in counts)), *counts]:
        button = void("input", type="radio", name="show", id=f"show-{name}", checked="" if name == "all" else None)
        buttons.append(join(button, tag("label", f"{name} ", tag("b", f"{count:,}"), for_=f"show-{name}")))
    return tag("fieldset", tag("legend", "Show"), *buttons, class_="choice")


def _sample(sample: Mapping[str, Any], kind: str) -> Markup:
    pairs = align_nearest(sample["prediction"], sample["references"])
    written = [(pair.predicted, pair.kind != "same") for pair in pairs if pair.predicted is not None]
    right = [(pair.expected, pair.kind != "same") for pair in pairs if pair.expected is not None]
    lines = (("source", [(sample["source"], False)]), ("output", written), ("reference", right))
    body = [join(tag("dt", name), tag("dd", *_words(words), class_=name, dir="auto")) for name, words in lines]
    score = tag("p", tag("b", f"{100 * sample['score']:.1f}"), f" {sample['measure']}", class_="measure")
    return tag("article", score, tag("dl", *body), class_=f"sample {kind}")


def _words(words: Sequence[tuple[str, bool]]) -> list[Markup]:
    if not words:
        return [tag("span", "nothing", class_="absent")]
    return [join(tag("mark", word) if differs else word, " ") for word, differs in words]
