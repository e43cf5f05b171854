"""Learned sinks beyond the laws: the statistic about them, decoding, modules, and what they cost."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

import clearhead as ch
from clearhead.maps import RingCache


def tensors(n=9, heads=4, kv=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, heads, n, 8), (2, kv, n, 8), (2, kv, n, 8), (heads,))
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]


def reference(q, k, sinks, seen):
    """The weights and each row's share of the sink, from the matrix with one column more."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    s = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    W = torch.cat([s, sinks[:, None, None].expand(*s.shape[:3], 1)], -1).softmax(-1)
    return W[..., :-1], W[..., -1]


def test_the_statistic_counts_the_learned_sink_and_the_first_key():
    """In a window a row far down does not see the first key, but the learned sink; named keys take its place."""
    q, k, v, sinks = tensors()
    at = torch.arange(9)
    seen = (at <= at[:, None]) & (at > at[:, None] - 3)
    W, mass = reference(q, k, sinks, seen)
    A = ch.Softmax(ch.window(2, 0), sinks=sinks)(q, k)
    torch.testing.assert_close(A.statistics().sink, W[..., 0] + mass)
    torch.testing.assert_close(A.apply(v, statistics=True)[1].sink, W[..., 0] + mass)
    torch.testing.assert_close(A.statistics([1, 7], sinks=[1, 6]).sink, (W[..., [1, 6]].sum(-1) + mass)[..., [1, 7]])
    lengths = torch.tensor([9, 0])
    assert A.statistics().distance.isfinite().all()
    assert ch.Softmax(sinks=sinks)(q, k, lengths=lengths).statistics().sink[1].isnan().all()


def test_gradients_through_every_answer_are_those_of_the_matrix():
    q, k, _, sinks = tensors()
    seen = torch.ones(9, 9).tril().bool()
    y = torch.randn(2, 4, 9, 3, dtype=torch.float64)
    answers = {
        "received": (lambda A: A.received(), lambda W, m: W.sum(-2)),
        "statistics received": (lambda A: A.statistics().received, lambda W, m: W.sum(-2)),
        "adjoint": (lambda A: A.T @ y, lambda W, m: W.mT @ y),
        "top": (lambda A: A.top(3)[0], lambda W, m: W.sort(-1, descending=True).values[..., :3]),
        "pool": (lambda A: A.pool(2, 4), lambda W, m: nn.functional.adaptive_avg_pool2d(W, (2, 4))),
        "sink": (lambda A: A.statistics().sink, lambda W, m: W[..., 0] + m),
        "entropy": (lambda A: A.statistics().entropy, lambda W, m: -(W * W.clamp(min=1e-300).log()).sum(-1)),
        "rows": (lambda A: A.weights([5, 2]), lambda W, m: W[..., [5, 2], :]),
    }
    for name, (answer, wanted) in answers.items():
        mine, plain = ([x.clone().requires_grad_() for x in (q, k, sinks)] for _ in range(2))
        got = answer(ch.Softmax(ch.causal(), sinks=mine[2])(*mine[:2]))
        W, mass = reference(*plain, seen)
        want = wanted(W, mass)
        torch.testing.assert_close(got, want, msg=lambda m, name=name: f"{name}: {m}")
        weight = torch.randn_like(got)
        grads = [torch.autograd.grad((x * weight).sum(), given) for x, given in ((got, mine), (want, plain))]
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("value", [-torch.inf, -1e4, 1e4, torch.inf])
def test_sinks_of_any_size(value):
    """One that is nothing leaves softmax as it is; one that is all leaves nothing, and gradients stay numbers."""
    q, k, v, _ = tensors(dtype=torch.float32)
    q.requires_grad_()
    sinks = torch.full((4,), value, requires_grad=True)
    out, stats = ch.attend(q, k, v, ch.causal(), sinks=sinks, statistics=True)
    torch.testing.assert_close(out, ch.attend(q, k, v, ch.causal()) if value < 0 else torch.zeros_like(out))
    if abs(value) < torch.inf:
        (out.sum() + stats.entropy.sum() + stats.logsumexp.sum() + stats.sink.sum()).backward()
        assert q.grad.isfinite().all()
        assert sinks.grad.isfinite().all()


@torch.no_grad()
def test_decoding_by_steps_is_one_pass():
    q, k, v, sinks = tensors(60)
    mechanism = ch.Softmax(ch.causal() & ch.window(6), sinks=sinks)
    cache, at = mechanism.cache(), torch.arange(60)
    assert isinstance(cache, RingCache)
    W, _ = reference(q, k, sinks, (at <= at[:, None]) & (at >= at[:, None] - 6))
    want = W @ v.repeat_interleave(2, 1)
    for a, b in itertools.pairwise([0, 40, *range(41, 61)]):
        torch.testing.assert_close(cache.attend(*(x[:, :, a:b] for x in (q, k, v))), want[:, :, a:b])


def test_a_layer_with_a_parameter_learns_it_and_saves_it():
    torch.manual_seed(0)
    layer = ch.nn.SelfAttention(16, 4, ch.Softmax(ch.causal(), sinks=nn.Parameter(torch.zeros(4))))
    assert "mechanism.sinks" in layer.state_dict()
    layer(torch.randn(2, 7, 16)).square().sum().backward()
    assert (layer.mechanism.sinks.grad != 0).all()
    assert "mechanism.sinks" not in ch.nn.SelfAttention(16, 4, ch.Softmax(sinks=torch.zeros(4))).state_dict()


def test_vmap_over_sinks_of_their_own():
    q, k, v, _ = tensors()
    sinks = torch.randn(3, 4, dtype=torch.float64)

    def loss(q, sinks):
        out, stats = ch.attend(q, k, v, ch.causal(), sinks=sinks, statistics=True)
        return out.square().sum() + stats.entropy.sum()

    got = vmap(grad(loss, (0, 1)), (None, 0))(q, sinks)
    for i in range(3):
        for a, b in zip(got, grad(loss, (0, 1))(q, sinks[i]), strict=True):
            torch.testing.assert_close(a[i], b)


def test_why_other_kernels_do_not_run():
    q, k, _, sinks = tensors(300)
    reasons = ch.explain(q, k, ch.window(8, 0), sinks=sinks).reasons
    assert reasons["sdpa"] == "gives the logsumexp no gradient, as learned sinks need"
    assert reasons["blocks"] == "gives the logsumexp no gradient, as learned sinks need"
    assert reasons["stream"].startswith("chosen")
