"""Similarity of heads: against Jensen-Shannon divergences of the dense weights in float64."""

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calls_made import dense, made, stack
from clearhead import Softmax
from clearhead.errors import InputError
from clearhead.observe.numbers.similarity import similarity


def kl(p, m):
    return torch.where(p > 0, p * (p / m).log2(), 0.0).sum(-1)


def by_hand(calls, rows=None, hidden=None):
    """1 - the mean divergence in bits over the rows that are no padding, pair by pair."""
    A = torch.cat([dense(call) for call in calls], 1)
    use = A.sum(-1) > 0
    if hidden is not None:
        use &= ~hidden[:, None]
    if rows is not None:
        A, use = A[:, :, rows], use[:, :, rows]
    heads = A.shape[1]
    out = torch.empty(heads, heads, dtype=torch.float64)
    for i in range(heads):
        for j in range(heads):
            p, q = A[:, i], A[:, j]
            m = (p + q) / 2
            divergence = (kl(p, m) + kl(q, m)) / 2
            out[i, j] = 1 - divergence[use[:, i] & use[:, j]].mean()
    return out


@given(seed=st.integers(0, 2**31), gain=st.sampled_from([0.1, 1.0, 20.0]), short=st.integers(1, 9))
def test_similarity_is_one_minus_the_mean_divergence(seed, gain, short):
    call = made(seed=seed, gain=gain, lengths=torch.tensor([9, short]))
    got = similarity(call)
    torch.testing.assert_close(got, by_hand([call]), atol=2e-6, rtol=0)
    assert torch.equal(got, got.T)
    assert torch.equal(got.diagonal(), torch.ones(4, dtype=torch.float64))


def test_heads_of_several_layers_follow_each_other():
    calls = [made("a", seed=1), made("b", seed=2, h=3), made("c", seed=3, h=1)]
    torch.testing.assert_close(similarity(calls), by_hand(calls), atol=2e-6, rtol=0)
    seen = stack(2)
    torch.testing.assert_close(similarity(seen), by_hand(seen), atol=2e-6, rtol=0)


def test_rows_are_taken_in_strips_and_may_be_a_sample(monkeypatch):
    call = made(lengths=torch.tensor([9, 4]))
    whole = similarity(call)
    rows = [0, 3, -2]
    sampled = by_hand([call], rows)
    monkeypatch.setattr(sys.modules["clearhead.observe.numbers.similarity"], "HELD", 1)
    torch.testing.assert_close(similarity(call), whole)
    torch.testing.assert_close(similarity(call, rows), sampled, atol=2e-6, rtol=0)
    torch.testing.assert_close(similarity(call, torch.tensor(rows)), sampled, atol=2e-6, rtol=0)
    torch.testing.assert_close(similarity(call, range(0, 9, 4)), by_hand([call], [0, 4, 8]), atol=2e-6, rtol=0)


def test_padding_is_left_out():
    hidden = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    call = replace(made(), padding=hidden)
    torch.testing.assert_close(similarity(call), by_hand([call], hidden=hidden), atol=2e-6, rtol=0)


def test_heads_that_share_no_key_are_not_alike():
    q = torch.tensor([[30.0, 0.0], [0.0, 30.0]])[None, :, None].expand(1, 2, 3, 2)
    k = torch.tensor([[30.0, 0.0], [0.0, 30.0]])[None, None].expand(1, 2, 2, 2)
    expected = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(similarity(Softmax()(q, k)), expected, atol=1e-6, rtol=0)


def test_wrong_input_is_one_line_that_says_what_to_write():
    call = made("a")
    with pytest.raises(InputError, match="keep_maps=True"):
        similarity(replace(call, map=None))
    with pytest.raises(InputError, match=r"b has \(samples, queries, keys\) \(2, 7, 7\), the first \(2, 9, 9\)"):
        similarity([call, made("b", nq=7)])
    with pytest.raises(InputError, match="row 9 is outside 0 … 8"):
        similarity(call, [9])
    with pytest.raises(InputError, match="at least one"):
        similarity([])
