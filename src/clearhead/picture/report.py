"""The report of a training: scores, curves, predictions and attention, in one file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clearhead.errors import InputError
from clearhead.picture import curves as courses
from clearhead.picture import examples as predictions
from clearhead.picture import explorer, samples, strips
from clearhead.picture.diagnosis import diagnose
from clearhead.picture.page import REPORT, Markup, join, page, tag
from clearhead.writing import write

CAVEAT = "Published figures are for the same dictionary, but not on this split: compare them with care."
BETTER = {"less": "Share of mistakes; less is better.", "more": "More is better."}
ATTENTION = (
    "Each row is a query, and shows how much of its attention it gives to each key. Choose an example, then a head."
)
HEADS = (
    "Each line is a head, each column a step at which it was watched. Choose what to see; point at a head to read it."
)
SECTIONS = ("Scores", "Training", "Heads", "Attention", "Predictions")
BAR = 120  # the width of a bar that stands for 100 %

Records = Sequence[Mapping[str, Any]]


def training_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str,
    scores: Records,
    curves: Records,
    examples: Records,
    attention: Records,
) -> None:
    """Write the report to `path`: one HTML file, legible in light, in dark, on a telephone and on paper.

    - `scores`: {"name", "value", "note", "published"}; the value is a fraction, or None where it was not measured.
      "unit" is that of a hundredth ("%" if it is left out), "better" is "less" (if it is left out) or "more", "ours"
      False for what another rule reaches on the same examples.
    - `curves`: the records of metrics.jsonl, {"step", "epoch", "seconds", "train_loss", ...}; a key may be missing.
      "attention" and "alarms" are what `clearhead.observe.AttentionMonitor` records of every head.
    - `examples`: {"source", "prediction": symbols, "references": [symbols, ...]}; of texts, whose symbols are words,
      also "score" (0 to 1) and "measure" (its name): the best, those in the middle and the worst are shown.
    - `attention`: {"title", "maps": {module path: (H, Nq, Nk)}, "axes": {module path: (row labels, column labels)}}.

    Raises InputError for values that are no numbers and examples without a reference, ShapeError for maps that are not
    (H, Nq, Nk) and labels that do not fit them.
    """
    charts, points = courses.draw(curves)
    data = {"charts": points, "heads": strips.pack(curves), "attention": explorer.pack(attention)}
    body = join(
        _header(title, subtitle),
        tag(
            "main",
            _section("Scores", _scores(scores), _which_way(scores)),
            _section("Training", join(_verdict(curves), charts), courses.course(curves)),
            _section("Heads", strips.shell(curves), HEADS),
            _section("Attention", explorer.shell(attention), ATTENTION),
            _predictions(examples),
        ),
    )
    whole = page(title, body, data, REPORT)
    write(Path(path), lambda file: file.write(whole))


def _header(title: str, subtitle: str) -> Markup:
    button = tag("button", "dark", id="theme", type="button", hidden="")
    links = [tag("a", name, href=f"#{name.lower()}") for name in SECTIONS]
    return tag(
        "header", tag("div", tag("h1", title), tag("p", subtitle)), tag("nav", *links, button, aria_label="Sections")
    )


def _section(name: str, content: Markup, words: str) -> Markup:
    return tag("section", tag("h2", name), tag("p", words, class_="muted"), content, id=name.lower())


def _verdict(curves: Records) -> Markup:
    """What the losses say, in words."""
    words = diagnose(curves)
    return tag("p", words, class_="verdict") if words else Markup()


def _predictions(examples: Records) -> Markup:
    if any("score" in example for example in examples):
        return _section("Predictions", samples.table(examples), f"Of {len(examples):,} examples, by what each scores.")
    return _section("Predictions", predictions.table(examples), "The nearest of the right answers stands below.")


def _which_way(scores: Records) -> str:
    """Whether more or less is better."""
    ways = {score.get("better", "less") for score in scores} or {"less"}
    return BETTER[ways.pop()] if len(ways) == 1 else "Of error rates less is better, of all others more."


def _scores(scores: Records) -> Markup:
    if not scores:
        return tag("p", "not measured", class_="absent")
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in ("", "figure", "", "note"))))
    table = tag("table", head, tag("tbody", *map(_score, scores)), class_="scores")
    caveat = [tag("p", CAVEAT, class_="caveat")] if any(score["published"] for score in scores) else []
    return join(tag("div", table, class_="wide"), *caveat)


def _score(score: Mapping[str, Any]) -> Markup:
    value, name = score["value"], score["name"]
    if value is not None and not (isinstance(value, int | float) and value >= 0):
        raise InputError(
            f"scores: {name!r} is {value!r}, expected a fraction such as 0.328, or None where it was not measured"
        )
    ours = score.get("ours", not score["published"])
    origin = tag("span", "this model" if ours else "published" if score["published"] else "baseline", class_="origin")
    said = "not measured" if value is None else f"{100 * value:.2f} {score.get('unit', '%')}".rstrip()
    return tag(
        "tr",
        tag("th", name, " ", origin, scope="row"),
        tag("td", said, class_="number" if value is not None else "number absent"),
        tag("td", _bar(value) if value is not None else ""),
        tag("td", score["note"], class_="muted"),
        class_="ours" if ours else "published",
    )


def _bar(value: float) -> Markup:
    whole = tag("rect", width=BAR, height=8, rx=2, class_="whole")
    part = tag("rect", width=round(BAR * min(value, 1.0), 1), height=8, rx=2, class_="part")
    return tag("svg", whole, part, viewBox=f"0 0 {BAR} 8", width=BAR, height=8, class_="bar", aria_hidden="true")
