"""How often the pronunciation is wrong, counted as the field counts it, beside published figures."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clearhead.data.sources import Split
from clearhead.train.material import open_data

if TYPE_CHECKING:
    from clearhead.train.model import Model

NAMES = {
    "wer": "word error rate",
    "per": "phoneme error rate",
    "wer_without_stress": "word error rate without stress",
    "per_without_stress": "phoneme error rate without stress",
}

_ELSEWHERE = "without stress, same dictionary, another split (README of cmusphinx/g2p-seq2seq)"
PUBLISHED = (
    {"name": "word error rate of Phonetisaurus", "value": 0.3389, "note": _ELSEWHERE},
    {"name": "word error rate of a transformer, 3 layers of width 256", "value": 0.302, "note": _ELSEWHERE},
)

_STRESS = re.compile(r"(?<=[A-Z])[012]\b")


def without_stress(pronunciation: str) -> str:
    """The pronunciation without the digits that mark stress: "AH0 T EH1 N" becomes "AH T EH N"."""
    return _STRESS.sub("", pronunciation)


def edit_distance(left: Sequence[str], right: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions that make one sequence the other (Levenshtein 1966)."""
    above = list(range(len(right) + 1))
    for i, one in enumerate(left, start=1):
        row = [i]
        for j, other in enumerate(right, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
        above = row
    return above[-1]


def error_rates(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> tuple[float, float]:
    """The word and the phoneme error rate, as fractions.

    A word is right if it equals any of its references. Its phoneme errors are the edit distance to the nearest
    reference; the rate is their sum, divided by the sum of those references' lengths. Every word with references
    counts: one without a prediction raises KeyError.
    """
    wrong = errors = phonemes = 0
    for word, known in references.items():
        guess = predictions[word].split()
        answers = [answer.split() for answer in known]
        distance, length = min((edit_distance(guess, answer), len(answer)) for answer in answers)
        wrong += guess not in answers
        errors += distance
        phonemes += length
    return wrong / len(references), errors / phonemes


def score(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """wer, per, wer_without_stress, per_without_stress (fractions) and the number of words."""
    plain = {word: [without_stress(answer) for answer in known] for word, known in references.items()}
    wer, per = error_rates(predictions, references)
    wer_plain, per_plain = error_rates({word: without_stress(guess) for word, guess in predictions.items()}, plain)
    return {
        "wer": wer,
        "per": per,
        "wer_without_stress": wer_plain,
        "per_without_stress": per_plain,
        "words": len(references),
    }


def evaluate(model: "Model", split: Split = "test", beam: int | None = None) -> dict[str, Any]:
    """Score a model on every word of a split of the source it was trained on; see `score`."""
    references = open_data(model.config.data).references(split)
    words = list(references)
    return score(dict(zip(words, model.predict(words, beam=beam), strict=True)), references)


def table(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores as rows of name, value (a fraction), note and whether it was published; those published come last."""
    note = f"{scores['words']:,} test words"
    rows = [{"name": name, "value": scores[key], "note": note, "published": False} for key, name in NAMES.items()]
    return [*rows, *({**other, "published": True} for other in PUBLISHED)]
