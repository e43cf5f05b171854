"""What a layer puts out and what its keys received, in padded batches, without any map."""

import logging
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clearhead as ch
from clearhead.observe import AttentionMonitor, check, watch

E, H, B, N = 24, 4, 4, 14


def heads(x):
    return x.unflatten(-1, (H, -1)).transpose(1, 2)


class Masked(nn.Module):
    """Hides padded keys from all queries, but lets padded queries look, as most implementations do."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(E, 3 * E), nn.Linear(E, E)

    def split(self, x):
        return (heads(part) for part in self.qkv(x).chunk(3, -1))

    def forward(self, x, real):
        q, k, v = self.split(x)
        return self.out(
            F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None]).transpose(1, 2).flatten(2)
        )


def real_tokens(side):
    count, at = torch.tensor([N, 9, 11, 8])[:, None], torch.arange(N)
    return at < count if side == "right" else at >= N - count


def dense(q, k, real):
    logits = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    return logits.masked_fill(~real[:, None, None], -math.inf).softmax(-1)


@pytest.fixture
def x():
    return torch.randn(B, N, E, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_queries_give_no_key_anything(side, x):
    torch.manual_seed(0)
    real, model, own, torchs = real_tokens(side), Masked(), ch.nn.SelfAttention(E, H), nn.MultiheadAttention(E, H)
    torchs.batch_first = True
    with torch.no_grad():
        q, k, _ = model.split(x)
        with watch(model) as seen:
            model(x, real)
        want = (dense(q, k, real) * real[:, None, :, None]).sum(2)
        torch.testing.assert_close(seen[0].statistics.received.double(), want, rtol=1e-5, atol=1e-6)
        assert want.sum() == pytest.approx(H * int(real.sum()))

        with watch(own) as seen:
            own(x, mask=real[:, None, None])
        q, k = heads(own.query(x)), heads(own.key(x))
        want = (dense(q, k, real) * real[:, None, :, None]).sum(2)
        torch.testing.assert_close(seen[0].statistics.received.double(), want, rtol=1e-5, atol=1e-6)

        with watch(torchs) as seen:
            torchs(x, x, x, key_padding_mask=~real)
        q, k = (heads(part) for part in F.linear(x, torchs.in_proj_weight, torchs.in_proj_bias).chunk(3, -1)[:2])
        want = (dense(q, k, real) * real[:, None, :, None]).sum(2)
        torch.testing.assert_close(seen[0].statistics.received.double(), want, rtol=1e-5, atol=1e-6)


def test_lengths_give_padding_nothing_either(x):
    torch.manual_seed(0)
    layer, lengths = ch.nn.SelfAttention(E, H), torch.tensor([N, 9, 11, 8])
    with torch.no_grad(), watch(layer) as seen:
        layer(x, lengths)
    real = real_tokens("right")
    with torch.no_grad():
        want = (dense(heads(layer.query(x)), heads(layer.key(x)), real) * real[:, None, :, None]).sum(2)
    torch.testing.assert_close(seen[0].statistics.received.double(), want, rtol=1e-5, atol=1e-6)


# what brought NaN or Inf


class Given(nn.Module):
    def forward(self, q, k, **options):
        return F.scaled_dot_product_attention(q, k, k, enable_gqa=True, **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("where", "words"), [("query", "first in row 11, brought by query 11"), ("key", "by key 9")])
def test_what_is_not_finite_is_named_with_the_query_or_key_that_brought_it(where, words, bad):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(3, 4, N, 6, generator=generator), torch.randn(3, 2, N, 6, generator=generator)
    if where == "query":
        q[2, 1, 11, 3] = bad
    else:
        k[2, 0, 9, 3] = bad  # of heads 0 and 1
    for options in ({"is_causal": True}, {"attn_mask": torch.ones(3, 1, N, N, dtype=torch.bool).tril()}):
        model = Given()
        with watch(model) as seen:
            model(q, k, **options)
        found = [finding for finding in check(seen) if finding.rule == "not finite"]
        assert [finding.head for finding in found] == ([1] if where == "query" else [0, 1])
        assert all(words in finding.sentence and finding.row[0] == 2 for finding in found)
        monitor = AttentionMonitor(model, every=1, rows=13, samples=2)
        told = []
        for _ in range(6):
            with monitor.step():
                model(q, k, **options)
            told += [finding for finding in monitor.findings if finding.rule == "not finite"]
        assert told
        assert all(words.split(", ")[-1] in finding.sentence and finding.row[0] == 2 for finding in told)


def test_what_nobody_sees_is_not_blamed_nor_a_product_that_overflows():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, N, 6, generator=generator), torch.randn(1, 1, N, 6, generator=generator)
    k[0, 0, 3] = k[0, 0, 8] = math.nan
    shown = torch.arange(N) != 3
    model = Given()
    with watch(model) as seen:
        model(q, k, attn_mask=shown.expand(N, N))
    (finding,) = (finding for finding in check(seen) if finding.rule == "not finite")
    assert "brought by key 8" in finding.sentence
    q, k = torch.full((1, 1, N, 6), 1e30), torch.full((1, 1, N, 6), 1e30)
    with watch(model) as seen:
        model(q, k)
    (finding,) = (finding for finding in check(seen) if finding.rule == "not finite")
    assert "brought" not in finding.sentence


# how much the tokens of an output differ


def residual(y, real=None):
    """Of each sample, in float64: the distance of its real tokens from their mean, as a share of their size."""
    found = []
    for b, tokens in enumerate(y.double()):
        tokens = tokens if real is None else tokens[real[b]]
        found.append(float((tokens - tokens.mean(0)).norm() / tokens.norm()))
    return found


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_residual_is_that_of_the_real_tokens(side, x):
    torch.manual_seed(0)
    model, real = Masked(), real_tokens(side)
    with torch.no_grad(), watch(model) as seen:
        y = model(x, real)
    assert seen[0].residual.tolist() == pytest.approx(residual(y, real), rel=1e-5)
    with torch.no_grad(), watch(model, rows=10, samples=2) as seen:
        model(x, real)
    (call,) = seen
    some = y[call.samples][:, call.rows]
    shown = real[call.samples][:, call.rows]
    for got, want, count in zip(call.residual.tolist(), residual(some, shown), shown.sum(1), strict=True):
        assert (got == pytest.approx(want, rel=1e-5)) if count >= 8 else math.isnan(got)


def test_tokens_first_and_too_few_tokens(x):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(E, H)
    y = x.transpose(0, 1)
    with torch.no_grad(), watch(layer) as seen:
        out = layer(y, y, y)[0]
        layer(y[:7], y[:7], y[:7])
        layer(y[:, 0], y[:, 0], y[:, 0])
    assert seen[0].residual.tolist() == pytest.approx(residual(out.transpose(0, 1)), rel=1e-5)
    assert seen[1].residual.isnan().all()
    assert seen[2].residual.tolist() == pytest.approx(residual(out[:, :1].transpose(0, 1)), rel=1e-4)
    with watch(layer, statistics=()) as seen, torch.no_grad():
        layer(y, y, y)
    assert seen[0].residual is None


def collapsing():
    """Three layers, of which the second comes to look at all tokens alike while it learns."""
    torch.manual_seed(0)
    return nn.ModuleList(ch.nn.SelfAttention(E, H) for _ in range(3))


@pytest.mark.parametrize("samples", [None, 2])
def test_rank_collapse_is_found_in_a_live_training(samples, x, caplog):
    layers, real = collapsing(), torch.tensor([N, 9, 11, 8])
    monitor = AttentionMonitor(layers, every=1, rows=12, samples=samples)
    found = {}
    optimizer = torch.optim.SGD(layers.parameters(), lr=1e-3)
    with caplog.at_level(logging.WARNING, "clearhead.observe"):
        for step in range(6):
            if step == 3:
                with torch.no_grad():
                    layers[1].query.weight.mul_(1e-3)
                    layers[1].query.bias.zero_()
            with monitor.step(step):
                y = x
                for layer in layers:
                    y = y + layer(y, real)
                y.square().mean().backward()
            optimizer.step()
            found[step] = [(f.layer, f.head, f.severity) for f in monitor.findings if f.rule == "rank collapse"]
    assert found == {step: [("1", None, "alarm")] if step >= 3 else [] for step in range(6)}
    assert [r.message for r in caplog.records if "the tokens of its output differ by" in r.message]


def test_check_needs_no_maps_for_it(x):
    layers = collapsing()
    with torch.no_grad():
        layers[2].query.weight.mul_(1e-4)
        with watch(layers) as seen:
            for layer in layers:
                layer(x)
    found = [finding for finding in check(seen) if finding.severity == "alarm"]
    assert [(f.rule, f.layer) for f in found] == [("rank collapse", "2")]
    assert found[0].value == pytest.approx(sum(seen[2].residual.tolist()) / B, rel=1e-5)
