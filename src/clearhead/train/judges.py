"""How predictions are judged: what the field counts for translations, summaries, short answers, pronunciations.

A judge is given sources, predictions and, for each, all its right answers; it gives the figures of scores.json.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from statistics import median
from typing import Any, ClassVar, NamedTuple

from clearhead.errors import extra

Answers = Sequence[Sequence[str]]


class Figure(NamedTuple):
    """A figure of a judge: its key in scores.json, its name, what the whole reads there, whether more or less of it is
    better, and the unit of a hundredth."""

    key: str
    name: str
    whole: float = 1.0
    better: str = "more"
    unit: str = ""


class Judge(ABC):
    """A way to judge. `grouped`: one prediction for each source text, right if it equals any of its answers; otherwise
    one for each pair, as toolkits read parallel files."""

    grouped: ClassVar[bool] = True
    counted: ClassVar[str] = "examples"
    measure: ClassVar[str | None] = None
    """What `one` measures, where outputs are texts; None where they are a few symbols."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Packages that it computes with."""
    figures: ClassVar[tuple[Figure, ...]]

    @abstractmethod
    def judge(self, sources: Sequence[str], predictions: Sequence[str], answers: Answers) -> dict[str, Any]:
        """All figures, and how many examples there were."""

    @abstractmethod
    def one(self, prediction: str, answers: Sequence[str]) -> float:
        """How good a single prediction is, 0 to 1: for choosing which to show."""

    def note(self, scores: Mapping[str, Any], key: str) -> str:
        """What must be known to compare a figure with others."""
        signature = f", {scores['signatures'][key]}" if "signatures" in scores else ""
        return f"{scores[self.counted]:,} {scores.get('split', 'test')} {self.counted}{signature}"

    def beside(self, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What stands below our figures for comparison."""
        return []


class Exact(Judge):
    """Short outputs: how many are right to the letter, and how far the others are from it."""

    measure = "% of characters"
    figures = (Figure("exact_match", "exact match", unit="%"), Figure("cer", "character error rate", 1.0, "less", "%"))

    def judge(self, sources: Sequence[str], predictions: Sequence[str], answers: Answers) -> dict[str, Any]:
        wrong, cer, edits = error_rates(predictions, answers)
        return {"exact_match": 1 - wrong, "cer": cer, "edit_distance": edits, "examples": len(predictions)}

    def one(self, prediction: str, answers: Sequence[str]) -> float:
        return closeness(prediction, answers)


class Pronunciation(Judge):
    """Phonemes, with and without stress; a word is right if it equals any of its pronunciations."""

    counted = "words"
    figures = (
        Figure("wer", "word error rate", 1.0, "less", "%"),
        Figure("per", "phoneme error rate", 1.0, "less", "%"),
        Figure("wer_without_stress", "word error rate without stress", 1.0, "less", "%"),
        Figure("per_without_stress", "phoneme error rate without stress", 1.0, "less", "%"),
    )
    _ELSEWHERE = "without stress, same dictionary, another split (README of cmusphinx/g2p-seq2seq)"
    PUBLISHED = (
        {"name": "word error rate of Phonetisaurus", "value": 0.3389, "note": _ELSEWHERE},
        {"name": "word error rate of a transformer, 3 layers of width 256", "value": 0.302, "note": _ELSEWHERE},
    )

    def judge(self, sources: Sequence[str], predictions: Sequence[str], answers: Answers) -> dict[str, Any]:
        split = [[one.split() for one in known] for known in answers]
        wer, per, _ = error_rates([guess.split() for guess in predictions], split)
        plain = [[without_stress(one).split() for one in known] for known in answers]
        wer_plain, per_plain, _ = error_rates([without_stress(guess).split() for guess in predictions], plain)
        return {
            "wer": wer,
            "per": per,
            "wer_without_stress": wer_plain,
            "per_without_stress": per_plain,
            "words": len(predictions),
        }

    def one(self, prediction: str, answers: Sequence[str]) -> float:
        return closeness(prediction.split(), [one.split() for one in answers])

    def beside(self, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{**other, "published": True, "better": "less", "unit": "%"} for other in self.PUBLISHED]


class Translation(Judge):
    """sacreBLEU's BLEU (Papineni 2002, Post 2018) and chrF (Popović 2015), with their signatures.

    `bleu_lowercase` is BLEU of lower-cased text in mteval-v13a's tokens. Multi30k's papers score lower-cased text in
    Moses's tokens; the two tokenisers differ in apostrophes and rare symbols.
    """

    grouped = False
    needs = ("sacrebleu",)
    counted = "sentences"
    measure = "chrF"
    figures = (
        Figure("bleu", "BLEU", 100.0),
        Figure("bleu_lowercase", "BLEU, tokenised and lower-case", 100.0),
        Figure("chrf", "chrF", 100.0),
    )

    def judge(self, sources: Sequence[str], predictions: Sequence[str], answers: Answers) -> dict[str, Any]:
        streams = _streams(answers)
        found: dict[str, Any] = {}
        signatures = {}
        for key, metric in self._metrics().items():
            found[key] = float(metric.corpus_score(list(predictions), streams).score)
            signatures[key] = str(metric.get_signature())
        return {**found, "signatures": signatures, "sentences": len(predictions)}

    def one(self, prediction: str, answers: Sequence[str]) -> float:
        return float(self._metrics()["chrf"].sentence_score(prediction, list(answers)).score) / 100

    @staticmethod
    @cache
    def _metrics() -> dict[str, Any]:
        metrics = extra("sacrebleu", "train").metrics
        return {
            "bleu": metrics.BLEU(),
            "bleu_lowercase": metrics.BLEU(lowercase=True, tokenize="13a"),
            "chrf": metrics.CHRF(),
        }


class Summary(Judge):
    """ROUGE-1, -2 and -L (Lin 2004), F1 as torchmetrics computes it, beside the first three sentences of the source."""

    grouped = False
    needs = ("torchmetrics",)
    counted = "documents"
    measure = "ROUGE-L"
    KEYS = ("rouge1", "rouge2", "rougeL")
    figures = tuple(Figure(key, f"ROUGE-{key[5:]}") for key in KEYS)

    def judge(self, sources: Sequence[str], predictions: Sequence[str], answers: Answers) -> dict[str, Any]:
        return {
            **self._rouge(predictions, answers),
            "lead3": self._rouge([lead(source, 3) for source in sources], answers),
            "signatures": dict.fromkeys(
                self.KEYS, f"F1, no stemming, torchmetrics {extra('torchmetrics', 'train').__version__}"
            ),
            "documents": len(predictions),
        }

    def one(self, prediction: str, answers: Sequence[str]) -> float:
        return self._rouge([prediction], [answers])["rougeL"]

    def beside(self, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
        note = "the first three sentences of the source"
        return [
            {"name": f"{name} of lead-3", "value": scores["lead3"][key], "note": note, "published": False,
             "ours": False, "better": "more", "unit": ""}
            for key, name, *_ in self.figures
        ]  # fmt: skip

    def _rouge(self, predictions: Sequence[str], answers: Answers) -> dict[str, float]:
        rouge = extra("torchmetrics.functional.text.rouge", "train").rouge_score
        found = rouge(list(predictions), [list(known) for known in answers], rouge_keys=self.KEYS)
        return {key: float(found[f"{key}_fmeasure"]) for key in self.KEYS}


JUDGES: dict[str, type[Judge]] = {
    "exact": Exact,
    "pronunciation": Pronunciation,
    "summary": Summary,
    "translation": Translation,
}

LONG, SHORT = 30, 3
"""Words: sources of at least so many may be summarised, and targets of at most so many are short answers."""


def fitting(pairs: Iterable[tuple[str, str]]) -> str:
    """The judge whose kind of texts these pairs look like, by the median of their words."""
    words = [(len(source.split()), len(target.split())) for source, target in pairs]
    source, target = (median(side) for side in zip(*words, strict=True))
    if target <= SHORT:
        return "exact"
    return "summary" if source >= max(LONG, 3 * target) else "translation"


_STRESS = re.compile(r"(?<=[A-Z])[012]\b")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+")


def without_stress(pronunciation: str) -> str:
    """The pronunciation without the digits that mark stress: "AH0 T EH1 N" becomes "AH T EH N"."""
    return _STRESS.sub("", pronunciation)


def lead(text: str, sentences: int) -> str:
    """The first sentences of a text; a sentence ends at . ! ? or … before white space."""
    ends = [match.start() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[sentences - 1]] if len(ends) >= sentences else text


def edit_distance(left: Sequence[Any], right: Sequence[Any]) -> int:
    """The fewest insertions, deletions and substitutions that make one sequence the other (Levenshtein 1966).

    A row of the table is two whole numbers, whose bits say where it rises and falls (Myers 1999, Hyyrö 2003).
    """
    where: dict[Any, int] = {}
    for i, item in enumerate(left):
        where[item] = where.get(item, 0) | 1 << i
    every, distance = (1 << len(left)) - 1, len(left)
    rises, falls, last = every, 0, 1 << len(left) >> 1
    for item in right:
        match = where.get(item, 0) | falls
        kept = ((rises + (match & rises)) ^ rises) | match
        up, down = falls | (every & ~(rises | kept)), rises & kept
        distance += bool(up & last) - bool(down & last) if left else 1
        up, down = (up << 1 | 1) & every, down << 1 & every
        rises, falls = down | (every & ~(kept | up)), up & kept
    return distance


def nearest_answer(guess: Sequence[Any], answers: Sequence[Sequence[Any]]) -> tuple[int, int]:
    """The edit distance to the nearest answer, and the length of that."""
    return min((edit_distance(guess, answer), len(answer)) for answer in answers)


def closeness(guess: Sequence[Any], answers: Sequence[Sequence[Any]]) -> float:
    """The share of the nearest answer's symbols that need no edit, 0 to 1."""
    distance, length = nearest_answer(guess, answers)
    return max(0.0, 1 - distance / max(1, length))


def error_rates(
    guesses: Sequence[Sequence[Any]], answers: Sequence[Sequence[Sequence[Any]]]
) -> tuple[float, float, float]:
    """The share of guesses that equal none of their answers, and the edits to the nearest one: per symbol, per guess.

    Edits per symbol are the sum of the edit distances over the sum of the nearest answers' lengths.
    """
    nearest = [nearest_answer(guess, known) for guess, known in zip(guesses, answers, strict=True)]
    wrong, edits = sum(distance > 0 for distance, _ in nearest), sum(distance for distance, _ in nearest)
    return wrong / len(nearest), edits / max(1, sum(length for _, length in nearest)), edits / len(nearest)


def _streams(answers: Answers) -> list[list[str | None]]:
    """sacreBLEU's references: the first of each prediction, the second of each that has one, …"""
    most = max(len(known) for known in answers)
    return [[known[i] if i < len(known) else None for known in answers] for i in range(most)]
