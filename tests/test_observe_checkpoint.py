"""Checkpointed attention: what is recomputed saves what it saved, so that watched steps are the unwatched ones."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import clearhead as ch
from clearhead.observe import AttentionMonitor, watch

E, H, D, N = 24, 4, 6, 9


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(E, 3 * E)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (H, D)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        s = (q @ k.mT / math.sqrt(D)).masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -1e9)
        return (F.dropout(s.softmax(-1), 0.1, self.training) @ v).transpose(1, 2).flatten(2)


class MultiHead(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.attention = nn.MultiheadAttention(E, H, 0.1, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        mask = torch.ones(N, N, dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=self.need_weights)[0]


class Fused(ByHand):
    def forward(self, x):
        q, k, v = (part.unflatten(-1, (H, D)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        bias = torch.zeros(N, N).masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -math.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        layer = nn.TransformerEncoderLayer(E, H, 32, batch_first=True)
        kinds = [MultiHead(True), MultiHead(False), layer, nn.TransformerEncoder(layer, 1), ByHand(), Fused()]
        self.parts = nn.ModuleList([*kinds, ch.nn.SelfAttention(E, H)])

    def forward(self, x):
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=self.reentrant)
        return x


def step(reentrant, around):
    """A step of training: the loss, all gradients, and the random state after it."""
    torch.manual_seed(0)
    model, x = Checkpointed(reentrant), torch.randn(2, N, E, requires_grad=True)
    with around(model) as seen:
        loss = model(x).square().mean()
        loss.backward()
    return seen, [loss.detach(), x.grad, *(p.grad for p in model.parameters()), torch.get_rng_state()]


def plain(model):
    return torch.enable_grad()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"grad": True}, {"rows": 2, "samples": 1}, {"keep_maps": True}], ids=lambda options: str(options)
)
def test_checkpointed_attention_trains_as_unwatched(reentrant, options):
    expected = step(reentrant, plain)[1]
    seen, got = step(reentrant, lambda model: watch(model, **options))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len(seen) == 7
    assert seen.unseen == {}


def test_checkpointed_attention_trains_as_unmonitored(tmp_path):
    expected = step(False, plain)[1]
    _, got = step(False, lambda model: AttentionMonitor(model, every=1, log=tmp_path / "log.jsonl").step(0))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert (tmp_path / "log.jsonl").read_text()


def test_statistics_with_gradients_have_them_through_a_checkpoint():
    def gradients(reentrant):
        torch.manual_seed(0)
        model, x = ByHand(), torch.randn(2, N, E)
        with watch(model, grad=True) as seen:
            model(x) if reentrant is None else checkpoint(model, x, use_reentrant=reentrant)
            seen[0].statistics.entropy.sum().backward()
        return model.qkv.weight.grad

    torch.testing.assert_close(gradients(False), gradients(None))
