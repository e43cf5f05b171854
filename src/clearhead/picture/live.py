"""A training while it goes on: the page of it, and what is drawn anew when its records have grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clearhead.picture import curves, explorer, strips
from clearhead.picture.diagnosis import diagnose
from clearhead.picture.page import LIVE, Markup, join, linked_page, script_of, style_of, tag

HEADS = (
    "Each line is a head, each column a step at which it was watched. Choose what to see; point at a head to read it."
)
ATTENTION = (
    "A few examples of the validation split, read with their answers given, so that tokens stay the same at every "
    "step. Each row is a query, and shows how much of its attention it gives to each key."
)
SECTIONS = {"Training": "", "Heads": HEADS, "Attention": ATTENTION}
VALIDATIONS = 3  # below which there is nothing to say about how it learns

Records = Sequence[Mapping[str, Any]]


def drawn(records: Records) -> dict[str, Any]:
    """What the page shows of the records of metrics.jsonl: markup by place, data of charts and strips, count of alarms.

    Raises InputError for values that are no numbers.
    """
    charts, points = curves.draw(records)
    loud = [alarm for alarm in strips.alarms(records) if alarm.severity == "alarm"]
    waiting = tag("p", "Nothing has been written down yet.", class_="absent")
    return {
        "markup": {
            "training-drawn": join(_verdict(records), charts) if records else waiting,
            "alarms": strips.said(records) if any(record.get("attention") for record in records) else Markup(),
        },
        "charts": points,
        "heads": strips.pack(records),
        "alarms": [f"step {alarm.since:,}: {alarm.sentence}" for alarm in loud],
    }


def live_page(title: str, subtitle: str, status: str, course: Mapping[str, Any]) -> bytes:
    """The page with what was `drawn`; its script then asks api/version, api/run and api/maps for what is new."""
    theme = tag("button", "dark", id="theme", type="button", hidden="")
    links = [tag("a", name, href=f"#{name.lower()}") for name in SECTIONS]
    body = join(
        tag(
            "header",
            tag("div", tag("h1", title), tag("p", subtitle)),
            tag("nav", *links, theme, aria_label="Sections"),
        ),
        tag("p", tag("i", aria_hidden="true"), tag("span", status), id="status", class_="status"),
        tag("p", id="trouble", role="alert", class_="trouble", hidden=""),
        tag("p", id="announced", class_="unseen", aria_live="polite"),
        tag("main", *(_section(name, words, course["markup"]) for name, words in SECTIONS.items())),
    )
    palette = explorer.pack([])
    return linked_page(title, body, {**course, "title": title, "attention": palette})


def script() -> str:
    """What is at page.js."""
    return script_of(LIVE)


def style() -> str:
    """What is at page.css."""
    return style_of(("report", "live"))


def _section(name: str, words: str, markup: Mapping[str, str]) -> Markup:
    places = {
        "Training": lambda: tag("div", Markup(markup["training-drawn"]), id="training-drawn"),
        "Heads": lambda: join(_absent("strips", "not measured"), tag("div", Markup(markup["alarms"]), id="alarms")),
        "Attention": lambda: join(
            tag("div", id="slider", class_="slider", hidden=""), _absent("explorer", "none was kept")
        ),
    }
    said = tag("p", words, class_="muted") if words else Markup()
    return tag("section", tag("h2", name), said, places[name](), id=name.lower())


def _absent(place: str, words: str) -> Markup:
    return tag("div", tag("p", words, class_="absent"), id=place)


def _verdict(records: Records) -> Markup:
    """What the losses say so far."""
    enough = sum(record.get("valid_loss") is not None for record in records) >= VALIDATIONS
    return tag("p", diagnose(records), class_="verdict") if enough else Markup()
