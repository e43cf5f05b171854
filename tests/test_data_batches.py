import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.data import BOS, EOS, PAD, Batches, Examples, Ragged
from clearhead.data.ragged import Writer
from clearhead.errors import InputError


def make(count: int, seed: int = 0, longest: int = 9) -> Examples:
    """Examples whose first source token is their number."""
    draw = random.Random(seed)
    source = [[3 + i, *[3] * draw.randrange(longest)] for i in range(count)]
    target = [[BOS, *[5] * draw.randrange(longest), EOS] for _ in range(count)]
    return Examples(Ragged.of(source), Ragged.of(target))


def numbers(batches) -> list[int]:
    return [row - 3 for batch in batches for row in batch.source[:, 0].tolist()]


@settings(max_examples=50, deadline=None)
@given(st.integers(8, 200), st.integers(60, 200), st.sampled_from([1, 2, 3, 4]), st.booleans())
def test_every_example_is_given_once_and_every_rank_gets_as_many_batches(count, budget, world, shuffle):
    examples = make(count)
    ranks = [Batches(examples, budget, rank=rank, world=world, shuffle=shuffle) for rank in range(world)]
    given_out = [list(rank) for rank in ranks]
    assert sorted(number for batches in given_out for number in numbers(batches)) == list(range(count))
    assert {len(batches) for batches in given_out} == {len(ranks[0])}


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 200), st.integers(1, 200))
def test_batches_hold_the_budget_and_the_examples(count, budget):
    examples = make(count)
    for batch in Batches(examples, budget):
        rows, width = batch.target.shape[0], batch.source.shape[1] + batch.target.shape[1]
        assert rows == 1 or rows * width <= budget
        for i, number in enumerate(numbers([batch])):
            for ragged, row in ((examples.source, batch.source[i]), (examples.target, batch.target[i])):
                start, length = ragged.starts[number], ragged.lengths[number]
                assert row[:length].equal(ragged.flat[start : start + length])
                assert (row[length:] == PAD).all()


def test_ranks_share_what_lies_in_files(tmp_path, monkeypatch):
    monkeypatch.setattr("clearhead.data.ragged._DROP_EVERY", 2)
    plain = make(300)
    for side in ("source", "target"):
        rows = getattr(plain, side)
        with Writer(tmp_path / f"train.{side}", np.dtype(np.uint16)) as writer:
            ends = [0, *rows.lengths.cumsum(0).tolist()]
            flat = rows.flat.numpy().astype(np.uint16)
            writer.add([flat[start:end].tobytes() for start, end in pairwise(ends)])
            writer.finish()
    stored = Examples.open(tmp_path, "train")
    for rank in range(3):
        ours, theirs = (Batches(one, 120, seed=5, rank=rank, world=3) for one in (plain, stored))
        for left, right in zip([*ours, *ours], [*theirs, *theirs], strict=True):
            assert left.source.equal(right.source)
            assert left.target.equal(right.target)


def test_lengths_come_only_with_padding():
    seen = set()
    for batch in Batches(make(200), 120):
        padded = bool((batch.source == PAD).any())
        assert (batch.source_lengths is not None) == padded
        seen.add(padded)
        if padded:
            assert batch.source_lengths.equal((batch.source != PAD).sum(1))
    assert seen == {True, False}


def test_padding_is_little_and_counted():
    batches = Batches(make(3000), 400)
    given_out = list(batches)
    size = sum(batch.source.numel() + batch.target.numel() for batch in given_out)
    padding = sum(int((part == PAD).sum()) for batch in given_out for part in (batch.source, batch.target))
    assert batches.padding == pytest.approx(padding / size)
    assert batches.tokens == size - padding
    assert batches.padding < 0.05


def test_the_order_is_of_the_seed_and_the_epoch():
    state = torch.get_rng_state()
    batches = Batches(make(300), 100, seed=1)
    first, second = numbers(batches), numbers(batches)
    assert numbers(Batches(make(300), 100, seed=1)) == first
    assert first != second
    assert numbers(Batches(make(300), 100, seed=2)) != first
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("world", [1, 2])
def test_a_state_goes_on_with_the_next_batch(world):
    def fresh() -> Batches:
        return Batches(make(100), 100, seed=3, world=world, rank=world - 1)

    whole = fresh()
    expected = [numbers([batch]) for _ in range(3) for batch in whole]
    for stop in range(1, len(whole) + 2):
        before, seen = fresh(), []
        endless = (batch for _ in range(3) for batch in before)
        seen = [numbers([next(endless)]) for _ in range(stop)]
        after = fresh()
        after.load_state_dict(before.state_dict())
        seen += [numbers([batch]) for _ in range(3) for batch in after]
        assert seen[: len(expected)] == expected


def test_at_the_last_batch_the_state_is_of_the_next_epoch():
    batches = Batches(make(100), 100)
    states = [batches.state_dict() for _ in batches]
    assert states[-2:] == [{"epoch": 0, "given": len(batches) - 1}, {"epoch": 1, "given": 0}]


def test_batches_of_one_example_cannot_be_split():
    with pytest.raises(InputError, match="4 processes cannot share 3 batches of one example: raise the budget"):
        Batches(make(3), 100, world=4)
