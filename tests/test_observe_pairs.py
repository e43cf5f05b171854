"""Who attends to whom most, and which tokens receive most: against the dense weights in float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calls_made import dense, made
from clearhead import Softmax
from clearhead.errors import InputError
from clearhead.kernels import Statistics
from clearhead.observe.numbers.pairs import Pair, Received, top_pairs, top_received

WORDS = ["the", "cat", "that", "the", "dog", "bit", "ran", "away", "again"]


def largest(x, k):
    """The k largest values of `x` and where they lie, [(place, value)], largest first."""
    flat = [(tuple(place), float(x[tuple(place)])) for place in (x > 0).nonzero().tolist()]
    return sorted(flat, key=lambda one: -one[1])[:k]


@given(seed=st.integers(0, 2**31), k=st.integers(1, 30), short=st.integers(1, 9))
def test_top_pairs_are_the_largest_weights_of_rows_that_choose(seed, k, short):
    call = made(seed=seed, lengths=torch.tensor([9, short]))
    A = dense(call)
    A[:, :, 0] = 0  # the first row sees one key
    found = top_pairs(call, k)
    expected = largest(A, k)
    assert len(found) == len(expected)
    for pair, (_, weight) in zip(found, expected, strict=True):
        assert pair.weight == pytest.approx(weight, rel=1e-5)
        assert pair.weight == pytest.approx(float(A[pair.sample, pair.head, pair.query, pair.key]), rel=1e-5)
    assert len({(pair.sample, pair.head, pair.query, pair.key) for pair in found}) == len(found)


def test_a_sample_and_a_head_can_be_chosen():
    call = made(nk=7, role="cross")
    A = dense(call)
    for pair, (place, weight) in zip(top_pairs(call, 4, sample=1, head=-1), largest(A[1, 3], 4), strict=True):
        assert (pair.sample, pair.head, pair.query, pair.key) == (1, 3, *place)
        assert pair.weight == pytest.approx(weight, rel=1e-5)


def test_pairs_name_their_tokens():
    call = made(nk=4, role="cross")
    keys = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    for pair in top_pairs(call, 20, queries=WORDS, keys=keys):
        assert pair.query_token == WORDS[pair.query]
        assert pair.key_token == keys[pair.sample][pair.key]
    assert top_pairs(call, 1)[0].query_token is None
    assert str(Pair(0, 3, 4, 1, 0.5, "dog", "cat")) == "sample 0, head 3: 'dog' (4) -> 'cat' (1), 0.500"
    assert str(Pair(0, 3, 4, 1, 0.5)) == "sample 0, head 3: 4 -> 1, 0.500"


def test_padding_attends_to_nobody():
    call = made()
    padding = torch.zeros(1, 9, dtype=torch.bool)
    padding[:, 4:] = True
    assert {pair.query for pair in top_pairs(replace(call, padding=padding), 1000)} == {1, 2, 3}
    rows = torch.tensor([1, 6])
    sampled = replace(call, rows=rows, padding=torch.tensor([[False, True]]))
    assert {pair.query for pair in top_pairs(sampled, 1000)} == {1, 2, 3, 4, 5, 7, 8}


def test_a_map_alone_and_a_map_of_fewer_axes_are_read():
    q = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    A = Softmax()(q, q)
    weights = A.weights()
    for pair, (place, weight) in zip(top_pairs(A, 5), largest(weights, 5), strict=True):
        assert (pair.sample, pair.head, pair.query, pair.key) == (0, 0, *place)
        assert pair.weight == pytest.approx(weight, rel=1e-5)
    assert [one.key for one in top_received(A, 3)] == [place[0] for place, _ in largest(weights.sum(0), 3)]


@given(seed=st.integers(0, 2**31), k=st.integers(1, 80))
def test_top_received_are_the_largest_column_sums(seed, k):
    call = made(seed=seed, lengths=torch.tensor([9, 5]))
    sums = dense(call).sum(2)
    found = top_received(call, k, keys=[WORDS, WORDS[:5]])
    for one, (_, weight) in zip(found, largest(sums, k), strict=True):
        assert one.weight == pytest.approx(weight, rel=1e-5)
        assert one.weight == pytest.approx(float(sums[one.sample, one.head, one.key]), rel=1e-5)
        assert one.token == WORDS[one.key]


def test_received_needs_no_map_where_it_was_measured():
    call = made()
    measured = top_received(replace(call, map=None), 7, head=2)
    from_map = top_received(replace(call, statistics=Statistics()), 7, head=2)
    for one, other in zip(measured, from_map, strict=True):
        assert (one.sample, one.head, one.key) == (other.sample, 2, other.key)
        assert one.weight == pytest.approx(other.weight, rel=1e-5)
    assert str(Received(1, 0, 2, 3.25, "dog")) == "sample 1, head 0: 'dog' (2), 3.250"


# wrong input


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (WORDS[:6], "queries: 6 labels for the 9 tokens of sample 0; give one for each token"),
        ([*WORDS, "more"], "queries: 10 labels for the 9 tokens of sample 0"),
        ([WORDS], "queries: 1 lists of labels for 2 samples"),
        ([WORDS, WORDS[:3]], "queries: 3 labels for the 4 tokens of sample 1"),
        ([WORDS[:8], WORDS], "queries: 8 labels for the 9 tokens of sample 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    call = made(lengths=torch.tensor([9, 4]))
    with pytest.raises(InputError, match=message):
        top_pairs(call, queries=labels)
    with pytest.raises(InputError, match=message.replace("queries", "keys")):
        top_received(call, keys=labels)


def test_labels_may_end_where_padding_begins():
    call = made(lengths=torch.tensor([9, 4]))
    labels = [WORDS, WORDS[:4]]
    assert {pair.query_token for pair in top_pairs(call, 1000, labels, labels, sample=1)} == set(WORDS[1:4])
    padding = torch.arange(9) >= torch.tensor([[9], [4]])
    assert top_pairs(replace(made(), padding=padding), queries=labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": 4}, "head 4 is outside 0 … 3"),
        ({"head": -5}, "head -5 is outside 0 … 3"),
        ({"sample": 2}, "sample 2 is outside 0 … 1"),
        ({"k": 0}, "0"),
    ],
)
def test_heads_and_samples_that_are_not_there_are_refused(options, message):
    for ask in (top_pairs, top_received):
        with pytest.raises(InputError, match=message):
            ask(made(), **options)


def test_a_call_without_its_map_says_how_to_keep_it():
    call = replace(made("encoder.0"), map=None)
    with pytest.raises(
        InputError, match=r"no attention map was kept of encoder\.0: write watch\(model, keep_maps=True\)"
    ):
        top_pairs(call)
