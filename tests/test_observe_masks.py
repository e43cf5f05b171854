"""Which keys a number hides that is added to logits: one rule for every way in which attention is seen."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clearhead.observe import watch

N, D = 9, 8
CAUSAL = torch.ones(N, N, dtype=torch.bool).tril()
SEEN = torch.arange(1, N + 1)


def queries(seed=0):
    return torch.randn(2, 3, N, D, generator=torch.Generator().manual_seed(seed))


class Fused(nn.Module):
    def forward(self, q, k, v, added):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=added)


class Added(nn.Module):
    def forward(self, q, k, v, added):
        return torch.softmax(q @ k.mT / D**0.5 + added, -1) @ v


class Filled(nn.Module):
    def forward(self, q, k, v, added):
        return torch.softmax((q @ k.mT / D**0.5).masked_fill(added < 0, float(added.min())), -1) @ v


class MultiHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(D * 3, 3, batch_first=True)

    def forward(self, q, k, v, added):
        x = q.transpose(1, 2).flatten(2)
        return self.attention(x, x, x, attn_mask=added)[0]


def seen_by(model, added, dtype=torch.float32):
    q, k, v = (queries(i).to(dtype) for i in range(3))
    model = model().to(dtype)
    with torch.no_grad(), watch(model) as seen:
        model(q, k, v, added.to(dtype))
    assert not seen.unseen
    (call,) = seen
    return call.statistics, torch.softmax((q @ k.mT / D**0.5 + added.to(dtype)).double(), -1)


@pytest.mark.parametrize("hiding", [-1e4, -1e9, -1e30, torch.finfo(torch.float32).min, -math.inf])
@pytest.mark.parametrize("model", [Fused, Added, Filled, MultiHead])
def test_masks_hide_whatever_number_they_are_made_of(model, hiding):
    s, weights = seen_by(model, torch.zeros(N, N).masked_fill(~CAUSAL, hiding))
    assert torch.equal(s.visible, SEEN.expand(2, 3, N))
    torch.testing.assert_close(s.max_weight[..., 0], torch.ones(2, 3))
    if model is not MultiHead:
        torch.testing.assert_close(s.entropy.double(), torch.special.entr(weights).sum(-1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(s.received.double(), weights.sum(2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", [Fused, Added, MultiHead])
def test_masks_hide_in_half_precision(model, dtype):
    for hiding in (-1e4, torch.finfo(dtype).min):
        s, _ = seen_by(model, torch.zeros(N, N).masked_fill(~CAUSAL, hiding), dtype)
        assert torch.equal(s.visible, SEEN.expand(2, 3, N))


@pytest.mark.parametrize("model", [Fused, Added, MultiHead])
def test_a_bias_hides_nothing(model):
    """One that is learned, one of shifted windows (Swin's −100), and one by distance."""
    far = -0.5 * (torch.arange(N)[:, None] - torch.arange(N)).abs() * 1000
    for bias in (torch.where(CAUSAL, 0.0, -50.0), torch.where(CAUSAL, 0.0, -100.0), far, far + 3e4, far - 3e4):
        s, weights = seen_by(model, bias)
        assert bool((s.visible == N).all())
        if model is not MultiHead:
            torch.testing.assert_close(s.entropy.double(), torch.special.entr(weights).sum(-1), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("model", [Fused, Added])
@pytest.mark.parametrize("hiding", [-1e4, -1e9, torch.finfo(torch.float32).min])
def test_a_bias_beside_a_mask_stays(model, hiding):
    near = -0.7 * (torch.arange(N)[:, None] - torch.arange(N)).abs()
    s, weights = seen_by(model, near + torch.zeros(N, N).masked_fill(~CAUSAL, hiding))
    assert torch.equal(s.visible, SEEN.expand(2, 3, N))
    torch.testing.assert_close(s.entropy.double(), torch.special.entr(weights).sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hiding", [-1e4, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("model", [Fused, Added])
def test_a_row_that_is_hidden_as_a_whole_attends_to_all_and_is_reported_so(model, hiding):
    """Padding on the left under a causal mask: softmax takes away what all logits share."""
    shown = (CAUSAL & (torch.arange(N) >= torch.tensor([[3], [0]])[:, None])).unsqueeze(1)
    s, weights = seen_by(model, torch.zeros(2, 1, N, N).masked_fill(~shown, hiding))
    assert torch.equal(s.visible[0, 0], torch.tensor([9, 9, 9, 1, 2, 3, 4, 5, 6]))
    assert torch.equal(s.visible[1, 0], SEEN)
    torch.testing.assert_close(s.entropy.double(), torch.special.entr(weights).sum(-1), rtol=1e-3, atol=1e-3)
    if hiding < -1e8:
        torch.testing.assert_close(s.entropy[0, :, :3], torch.full((3, 3), math.log(N)))


@pytest.mark.parametrize("model", [Fused, Added])
@pytest.mark.parametrize("hiding", [-1e4, -1e9, torch.finfo(torch.float32).min, -math.inf])
@pytest.mark.parametrize("left", [False, True])
def test_padding_is_found_whatever_number_hides_it(model, hiding, left):
    at = torch.arange(N)
    real = at >= torch.tensor([[3], [0]]) if left else at < torch.tensor([[6], [9]])
    added = torch.zeros(2, 1, N, N).masked_fill(~(CAUSAL & real[:, None, None]), hiding)
    q, k, v = (queries(i) for i in range(3))
    one = model()
    with torch.no_grad(), watch(one) as seen:
        one(q, k, v, added)
    (call,) = seen
    assert torch.equal(~call.padding, real)
    weights = torch.softmax(q @ k.mT / D**0.5 + added, -1)
    first = real.int().argmax(-1)
    sink = torch.stack([weights[i, ..., n] for i, n in enumerate(first)])
    rows = real[:, None].expand(2, 3, N)
    torch.testing.assert_close(call.statistics.sink[rows], sink[rows], rtol=1e-4, atol=1e-5)


def test_masks_of_queries_and_of_keys_mean_what_they_mean_together():
    """nn.MultiheadAttention adds both: a row that they hide together attends to all."""
    model = nn.MultiheadAttention(D, 2, batch_first=True)
    x = torch.randn(2, N, D, generator=torch.Generator().manual_seed(0))
    pad = torch.where(torch.arange(N) < torch.tensor([[3], [0]]), -1e9, 0.0)
    added = torch.zeros(N, N).masked_fill(~CAUSAL, -1e9)
    with torch.no_grad(), watch(model) as seen:
        _, weights = model(x, x, x, attn_mask=added, key_padding_mask=pad, average_attn_weights=False)
    (call,) = seen
    assert torch.equal(call.padding, torch.arange(N) < torch.tensor([[3], [0]]))
    assert torch.equal(call.statistics.visible[0, 0], (weights[0, 0] > 0).sum(-1))
    got = call.statistics.entropy.double()
    torch.testing.assert_close(got, torch.special.entr(weights.double()).sum(-1), rtol=1e-4, atol=1e-4)
