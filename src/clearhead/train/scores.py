"""How good a model is: predictions for a split, judged as the configuration says, beside what they compare with."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from clearhead.data import Source
from clearhead.data.sources import Split
from clearhead.errors import require
from clearhead.train.fingerprints import changed
from clearhead.train.judges import JUDGES, Judge
from clearhead.train.material import open_data

if TYPE_CHECKING:
    from clearhead.train.model import Model


class Example(NamedTuple):
    """A source text and all its right answers."""

    source: str
    answers: list[str]


def judge_of(kind: str) -> Judge:
    """The judge that a configuration names; raises MissingExtra where it lacks what it computes with."""
    require(*JUDGES[kind].needs)
    return JUDGES[kind]()


def examples(source: Source, split: Split, judge: Judge) -> list[Example]:
    """What a split is judged on, in its order."""
    if judge.grouped:
        return [Example(text, answers) for text, answers in source.references(split).items()]
    return [Example(text, [answer]) for text, answer in source.pairs(split)]


def scored(model: "Model", chosen: Sequence[Example], beam: int | None = None) -> dict[str, Any]:
    """The figures of a model on some examples."""
    sources = [example.source for example in chosen]
    predictions = model.predict(sources, beam=beam, truncate=model.config.data.truncate)
    return judge_of(model.config.score).judge(sources, predictions, [example.answers for example in chosen])


def evaluate(
    model: "Model", split: Split | None = None, beam: int | None = None, say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Score a model on a whole split of the data it was trained on, as its configuration's `score` says.

    split: None is the test split, or validation if there is no test split. say: gets a line for each file of it that
    has changed since the run was started (None: standard error). Beside the figures stand the `split` and the `beam`.
    Raises DataError, naming all of them, for files that are gone.
    """
    source = open_data(model.config.data)
    split = split or source.splits[-1]
    for words in changed(model.folder, source, split) if model.folder else ():
        (say or _say)(f"{words}: the scores are of what it holds now")
    chosen = examples(source, split, judge_of(model.config.score))
    return {**scored(model, chosen, beam), "split": split, "beam": beam or model.config.decode.beam}


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def table(kind: str, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores as rows, and below them what they compare with.

    A row has a name, a value (1.0 is the whole), a note, `better` ("less" or "more"), the unit that a hundredth of the
    whole is written in ("%" or none), `published`, and `ours`: False for what others, or a simple rule, reach.
    """
    judge = judge_of(kind)
    rows = [
        {
            "name": figure.name,
            "value": scores[figure.key] / figure.whole,
            "note": judge.note(scores, figure.key),
            "published": False,
            "better": figure.better,
            "unit": figure.unit,
        }
        for figure in judge.figures
    ]
    return [*rows, *judge.beside(scores)]


def lines(kind: str, scores: Mapping[str, Any]) -> list[str]:
    """The table as text."""
    return [f"{100 * row['value']:>6.2f}{row['unit']:<1}  {row['name']} ({row['note']})" for row in table(kind, scores)]


def headline(kind: str, scores: Mapping[str, Any]) -> str:
    """The figures in one line."""
    return ", ".join(
        f"{row['name']} {100 * row['value']:.1f}{' %' if row['unit'] else ''}"
        for row in table(kind, scores)
        if not row["published"] and row.get("ours", True)
    )
