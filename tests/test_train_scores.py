import sys
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clearhead.data import sources
from clearhead.errors import MissingExtra
from clearhead.train.judges import JUDGES, edit_distance, error_rates, fitting, lead, without_stress
from clearhead.train.scores import examples, headline, lines, table
from tiny_task import Tiny

SEQUENCES = st.lists(st.sampled_from("abc"), max_size=6)
SOURCES = ["One two. Three four! Is it five? Six seven eight.", "Nine ten eleven twelve. Go. Stop. Never here."]
ANSWERS = [["Two three four is five six."], ["Go eleven, stop ten now today."]]
GUESSES = ["Two three four was five Six.", "Go eleven, stop ten today now."]


@given(SEQUENCES, SEQUENCES)
def test_edit_distance_is_its_definition(left, right):
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = distance(i - 1, j - 1) + (left[i - 1] != right[j - 1])
        return min(same, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    assert edit_distance(left, right) == distance(len(left), len(right))


def judge(kind, guesses, answers, names=None):
    return JUDGES[kind]().judge(names or [""] * len(guesses), guesses, answers)


def test_a_word_is_right_if_it_equals_any_pronunciation():
    answers = [["T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2"], ["DH AH0", "DH IY0"]]
    found = judge("pronunciation", ["T AH0 M AA1 T OW2", "DH IY0"], answers)
    assert found == {"wer": 0.0, "per": 0.0, "wer_without_stress": 0.0, "per_without_stress": 0.0, "words": 2}
    found = judge("pronunciation", ["T AH0 M AA1 T OW2", "DH IY1"], answers)
    assert (found["wer"], found["per"], found["wer_without_stress"]) == (0.5, 1 / 8, 0.0)


def test_errors_are_to_the_nearest_answer():
    assert error_rates([list("ABC")], [[list("XY"), list("ABCD")]]) == (1.0, 1 / 4, 1.0)
    assert error_rates([[], ["A"]], [[["A", "B"]], [["A"]]]) == (0.5, 2 / 3, 1.0)
    with pytest.raises(ValueError, match="zip"):
        error_rates([["A"]], [[["A"]], [["B"]]])


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [(1, 1, "exact"), (60, 2, "exact"), (12, 14, "translation"), (29, 5, "translation"), (60, 20, "summary")],
)
def test_texts_say_how_they_are_to_be_judged(source, target, kind):
    odd = ("word " * 500, "word " * 500)
    assert fitting([*[("a " * source, "b " * target)] * 3, odd]) == kind


def test_stress_is_only_digits_behind_letters():
    assert without_stress("AH0 T EH1 N SH ER2") == "AH T EH N SH ER"


def test_short_outputs_are_right_to_the_letter_or_not():
    found = judge("exact", ["1999", "two", "abcd"], [["1999"], ["too", "toe"], ["abd"]])
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert (found["cer"], found["edit_distance"], found["examples"]) == (2 / 10, 2 / 3, 3)
    assert JUDGES["exact"]().one("abcd", ["abd"]) == pytest.approx(2 / 3)


def bleu(guesses, answers):
    """Corpus BLEU of texts that are split already, by its formula (Papineni 2002), without smoothing."""

    def grams(words, n):
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    logs = 0.0
    for n in range(1, 5):
        pairs = [(grams(g, n), grams(a, n)) for g, a in zip(guesses, answers, strict=True)]
        hits, total = sum((g & a).total() for g, a in pairs), sum(g.total() for g, _ in pairs)
        logs += torch.tensor(hits / total).log().item() / 4
    own, right = sum(map(len, guesses)), sum(map(len, answers))
    return 100 * min(1.0, torch.tensor(1 - right / own).exp().item()) * torch.tensor(logs).exp().item()


def test_translations_are_judged_by_bleu_with_its_signature():
    found = judge("translation", GUESSES, ANSWERS)
    split = [text.replace(".", " .").replace(",", " ,").split() for text in GUESSES]
    right = [known[0].replace(".", " .").replace(",", " ,").split() for known in ANSWERS]
    assert found["bleu"] == pytest.approx(bleu(split, right), rel=1e-4)
    lower = [[[word.lower() for word in words] for words in texts] for texts in (split, right)]
    assert found["bleu_lowercase"] == pytest.approx(bleu(*lower), rel=1e-4)
    assert found["bleu"] < found["bleu_lowercase"] < found["chrf"] < 100
    assert "case:mixed|eff:no|tok:13a" in found["signatures"]["bleu"]
    assert "case:lc|eff:no|tok:13a" in found["signatures"]["bleu_lowercase"]
    assert "nc:6|nw:0" in found["signatures"]["chrf"]
    assert JUDGES["translation"]().one(GUESSES[0], ANSWERS[0]) > JUDGES["translation"]().one("x", ANSWERS[0])


def test_summaries_are_judged_by_rouge_beside_lead_3():
    found = judge("summary", GUESSES, ANSWERS, SOURCES)
    assert lead(SOURCES[0], 3) == "One two. Three four! Is it five?"
    assert lead("No end", 3) == "No end"
    # of 6 words each, 5 and 6 are the answer's; in its order 5 and 5
    assert found["rouge1"] == pytest.approx((5 / 6 + 1) / 2)
    assert found["rougeL"] == pytest.approx(5 / 6)
    again = judge("summary", [lead(source, 3) for source in SOURCES], ANSWERS, SOURCES)
    assert found["lead3"] == {key: again[key] for key in ("rouge1", "rouge2", "rougeL")}
    rows = table("summary", {**found, "split": "test"})
    assert [row.get("ours", True) for row in rows] == [True] * 3 + [False] * 3
    assert [row["better"] for row in rows] == ["more"] * 6


def test_pairs_of_texts_are_judged_line_by_line_and_words_by_all_their_answers():
    grouped = examples(Tiny(), "test", JUDGES["pronunciation"]())
    pairs = examples(Tiny(), "test", JUDGES["translation"]())
    assert len(pairs) > len(grouped)
    assert {len(example.answers) for example in grouped} == {1, 2}
    assert [(text, answer) for text, (answer,) in pairs] == list(Tiny().pairs("test"))
    assert isinstance(Tiny(), sources.Source)


def test_scores_are_printed_in_their_own_units():
    scores = judge("translation", GUESSES, ANSWERS)
    bleu, lower, chrf = lines("translation", scores)
    assert bleu.split()[:2] == [f"{scores['bleu']:.2f}", "BLEU"]
    assert scores["signatures"]["bleu_lowercase"] in lower
    assert "2 test sentences" in chrf
    assert headline("translation", scores).startswith(f"BLEU {scores['bleu']:.1f}, BLEU, tokenised")
    words = judge("pronunciation", ["A"], [["B"]])
    assert headline("pronunciation", words).startswith("word error rate 100.0 %, ")


def test_published_figures_stand_beside_ours():
    rows = table("pronunciation", judge("pronunciation", ["A"], [["B"]]))
    published = {row["name"]: row["value"] for row in rows if row["published"]}
    assert sorted(published.values()) == [0.302, 0.3389]
    assert [row["value"] for row in rows if not row["published"]] == [1.0] * 4


@pytest.mark.parametrize(("kind", "module"), [("translation", "sacrebleu"), ("summary", "torchmetrics")])
def test_a_missing_library_is_one_line(kind, module, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    JUDGES["translation"]._metrics.cache_clear()
    with pytest.raises(MissingExtra, match=rf"'{module}.*' is not installed: pip install 'clearhead\[train\]'"):
        judge(kind, GUESSES, ANSWERS, SOURCES)
