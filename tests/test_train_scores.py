from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.train.scores import edit_distance, error_rates, score, table, without_stress

SEQUENCES = st.lists(st.sampled_from("abc"), max_size=6)


@given(SEQUENCES, SEQUENCES)
def test_edit_distance_is_its_definition(left, right):
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = distance(i - 1, j - 1) + (left[i - 1] != right[j - 1])
        return min(same, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    assert edit_distance(left, right) == distance(len(left), len(right))


def test_a_word_is_right_if_it_equals_any_pronunciation():
    references = {"tomato": ["T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2"], "the": ["DH AH0", "DH IY0"]}
    right = {"tomato": "T AH0 M AA1 T OW2", "the": "DH IY0"}
    assert error_rates(right, references) == (0.0, 0.0)
    assert error_rates({**right, "the": "DH IY1"}, references) == (0.5, 1 / 8)


def test_phoneme_errors_are_to_the_nearest_reference():
    assert error_rates({"w": "A B C"}, {"w": ["X Y", "A B C D"]}) == (1.0, 1 / 4)
    assert error_rates({"w": "", "v": "A"}, {"w": ["A B"], "v": ["A"]}) == (0.5, 2 / 3)


def test_stress_is_only_digits_behind_letters():
    assert without_stress("AH0 T EH1 N SH ER2") == "AH T EH N SH ER"
    found = score({"w": "AH1 T"}, {"w": ["AH0 T"]})
    assert found == {"wer": 1.0, "per": 0.5, "wer_without_stress": 0.0, "per_without_stress": 0.0, "words": 1}


def test_every_word_counts():
    with pytest.raises(KeyError):
        error_rates({"w": "A"}, {"w": ["A"], "missing": ["B"]})


def test_published_figures_stand_beside_ours():
    rows = table(score({"w": "A"}, {"w": ["B"]}))
    published = {row["name"]: row["value"] for row in rows if row["published"]}
    assert sorted(published.values()) == [0.302, 0.3389]
    assert [row["value"] for row in rows if not row["published"]] == [1.0] * 4
