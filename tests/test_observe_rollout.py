"""Rollout: against products of dense matrices in float64."""

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calls_made import dense, made, stack
from clearhead.errors import InputError
from clearhead.observe.calls import Seen
from clearhead.observe.numbers.rollout import rollout


def by_hand(calls):
    """R in float64, (B, N, N): rows of zeros are rows of the identity."""
    total = None
    for call in calls:
        A = dense(call)
        eye = torch.eye(A.shape[-1], dtype=torch.float64)
        A = A + eye * (A.sum(-1, keepdim=True) == 0)
        step = (A.mean(1) + eye) / 2
        total = step if total is None else step @ total
    return total


@given(
    seed=st.integers(0, 2**31),
    layers=st.integers(1, 4),
    short=st.integers(1, 9),
    rows=st.lists(st.integers(-9, 8), min_size=1, max_size=5),
)
def test_rows_of_rollout_are_those_of_the_product_of_matrices(seed, layers, short, rows):
    seen = stack(layers, seed=seed, lengths=torch.tensor([9, short]), gain=3.0)
    R = by_hand(seen)
    torch.testing.assert_close(rollout(seen, rows), R[:, rows].float(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rollout(seen, rows[0]), R[:, rows[0]].float(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rollout(seen), R.float(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rollout(seen).sum(-1), torch.ones(2, 9))


def test_vectors_are_sent_down_in_parts_that_fit_into_memory(monkeypatch):
    seen = stack(2)
    whole = rollout(seen)
    monkeypatch.setattr(sys.modules["clearhead.observe.numbers.rollout"], "HELD", 2 * 4 * 9 * 2)
    torch.testing.assert_close(rollout(seen), whole)


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_blocks_of_rows_are_means_without_padding(count):
    seen = stack(3, lengths=torch.tensor([9, 5]))
    R = by_hand(seen)
    block = torch.arange(9) * count // 9
    got = rollout(seen, pool=count)
    for sample, length in enumerate((9, 5)):
        for i in range(count):
            rows = [row for row in range(length) if block[row] == i]
            if rows:
                torch.testing.assert_close(got[sample, i], R[sample, rows].mean(0).float(), atol=1e-6, rtol=1e-5)
            else:
                assert got[sample, i].isnan().all()


def test_padding_that_a_call_knows_is_left_out_of_blocks():
    padding = torch.zeros(1, 9, dtype=torch.bool)
    padding[:, :2] = True
    seen = stack(2)
    padded = Seen([replace(call, padding=padding) for call in seen])
    torch.testing.assert_close(
        rollout(padded, pool=1)[:, 0], by_hand(seen)[:, 2:].mean(1).float(), atol=1e-6, rtol=1e-5
    )


def test_no_call_needs_its_statistics():
    seen = stack(2, lengths=torch.tensor([9, 4]))
    maps = [call.map for call in seen]
    torch.testing.assert_close(rollout(maps, 8), rollout(seen, 8))
    sampled = Seen([replace(call, rows=torch.tensor([0])) for call in seen])
    torch.testing.assert_close(rollout(sampled, 8), rollout(seen, 8))


def model(n_source=9, n_target=9):
    """An encoder and a decoder with cross-attention."""
    encoder = stack(2, names="model.encoder.layers.{}.self", nq=n_source)
    decoder = stack(2, names="model.decoder.layers.{}.self", nq=n_target, seed=10)
    cross = [made(f"model.decoder.layers.{i}.cross", nq=n_target, nk=n_source, role="cross") for i in range(2)]
    return Seen([*encoder, *(call for pair in zip(decoder, cross, strict=True) for call in pair)])


def test_a_stack_is_chosen_by_its_path_and_cross_attention_is_passed_over():
    seen = model()
    for side in ("encoder", "decoder"):
        layers = [call for call in seen if side in call.name and call.role == "self"]
        torch.testing.assert_close(
            rollout(seen, 8, under=f"model.{side}"), by_hand(layers)[:, 8].float(), atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("sizes", [(9, 9), (9, 6)])
def test_two_stacks_are_never_mixed(sizes):
    with pytest.raises(InputError, match=r"several stacks: .*under='model.encoder' or under='model.decoder'"):
        rollout(model(*sizes), 0)


def test_a_forward_pass_is_chosen():
    first, second = stack(2), stack(2, seed=5)
    seen = Seen([*first, *(replace(call, step=3) for call in second)])
    torch.testing.assert_close(rollout(seen, 4, step=3), rollout(second, 4))
    with pytest.raises(InputError, match="2 forward passes were seen: choose one with step=0 … step=3"):
        rollout(seen, 4)
    with pytest.raises(InputError, match="step 1 is none"):
        rollout(seen, 4, step=1)


def test_wrong_input_is_one_line_that_says_what_to_write():
    seen = stack(2)
    bare = Seen([replace(call, map=None) for call in seen])
    with pytest.raises(InputError, match="keep_maps=True"):
        rollout(bare, 0)
    with pytest.raises(InputError, match="row 9 is outside 0 … 8"):
        rollout(seen, 9)
    with pytest.raises(InputError, match="no attention was seen under 'encode'"):
        rollout(seen, 0, under="encode")
    with pytest.raises(InputError, match="pool is 10"):
        rollout(seen, pool=10)
    with pytest.raises(InputError, match="not both"):
        rollout(seen, 1, pool=3)
    with pytest.raises(InputError, match="at least one layer"):
        rollout([], 0)
    mixed = [made("a"), made("b", nq=7)]
    with pytest.raises(InputError, match="b has 2 samples, 7 queries and 7 keys, the first layer 2 samples and 9 keys"):
        rollout(mixed, 0)


def test_a_matrix_is_given_only_where_it_is_small():
    long = made(b=1, h=1, nq=2049)
    with pytest.raises(InputError, match="rollout of 2049 tokens would be 2049 × 2049: choose row=…, or pool=64"):
        rollout([long])
    assert rollout([long], 5).shape == (1, 2049)
