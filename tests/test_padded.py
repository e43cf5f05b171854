"""Samples of different length in one batch: each says what it says alone, in every kind of call and on any threads."""

import pytest
import torch

import clearhead as ch
from at_cuts import on_threads
from clearhead.kernels import Score, Visible, fused, tiles
from clearhead.patterns import everything

LENGTHS = torch.tensor([512, 399])
HEADS = 12
KINDS = {
    "plain": {},
    "soft cap": {"softcap": 3.0},
    "learned sinks": {"sinks": torch.linspace(-1, 2, HEADS)},
    "window": {"pattern": ch.window(70)},
}
OF_ROWS = ("logsumexp", "max_logit", "max_weight", "entropy", "normalized_entropy", "sink", "distance")


def drawn(kv=HEADS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    shapes = [(2, heads, int(LENGTHS[0]), 8) for heads in (HEADS, kv, kv)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def same(got, want, dtype=torch.float32, n=1):
    """Equal up to rounding; sums of n terms add up theirs."""
    got, want = got.detach().float(), want.detach().float()
    error = torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 2) * n**0.5
    torch.testing.assert_close(got, want, rtol=error, atol=error * float(want.abs().nan_to_num().max()), equal_nan=True)


def test_the_samples_of_this_batch_are_cut_into_tiles_of_different_heads():
    n = int(LENGTHS[0])
    see = Visible(everything(), n, n, LENGTHS.device, None, LENGTHS, LENGTHS)
    cut = list(tiles(see, 2, HEADS, HEADS, fused.tile_size(see, Score(1.0), 2, HEADS)))
    heads = [{(tile.h.start, tile.h.stop) for tile in cut if tile.b.start == b} for b in (0, 1)]
    assert heads[0] != heads[1]
    assert all(max(stop for _, stop in each) == HEADS for each in heads)


@pytest.mark.parametrize(
    ("kind", "kv", "workers"),
    [("plain", HEADS, 1), ("plain", 4, 2), ("soft cap", HEADS, 1), ("learned sinks", 6, 1), ("window", HEADS, 4)],
)
def test_each_sample_says_what_it_says_alone(kind, kv, workers):
    """Outputs, statistics, what keys receive, and the gradients of all of them."""
    q, k, v = drawn(kv)
    with on_threads(workers):
        A = ch.Softmax(**KINDS[kind])(q, k, lengths=LENGTHS)
        out, stats = A.apply(v, statistics=True)
        whole = A.statistics()
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        asked = (out * weight).sum() + stats.entropy.nansum() + whole.received.square().sum()
        grads = torch.autograd.grad(asked, (q, k, v))
    for b, n in enumerate(LENGTHS.tolist()):
        alone = [x[b, None, :, :n].detach().double().requires_grad_() for x in (q, k, v)]
        B = ch.Softmax(**KINDS[kind])(*alone[:2])
        want, told = B @ alone[2], B.statistics()
        same(out[b, None, :, :n], want)
        for name in OF_ROWS:
            for found in (stats, whole):
                same(getattr(found, name)[b, None, :, :n], getattr(told, name), n=10)
        assert torch.equal(stats.visible[b, :, :n], told.visible[0])
        assert (stats.visible[b, :, n:] == 0).all()
        same(whole.received[b, None, :, :n], told.received, n=n)
        asked = (want * weight[b, None, :, :n]).sum() + told.entropy.sum() + told.received.square().sum()
        for got, expected in zip(grads, torch.autograd.grad(asked, alone), strict=True):
            same(got[b, None, :, :n], expected, n=n)
            assert (got[b, :, n:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision(dtype):
    q, k, v = drawn(dtype=dtype)
    out, stats = ch.attend(q, k, v, lengths=LENGTHS, statistics=True)
    out.float().square().sum().backward()
    for b, n in enumerate(LENGTHS.tolist()):
        alone = [x[b, None, :, :n].detach().double().requires_grad_() for x in (q, k, v)]
        want, told = ch.attend(*alone, statistics=True)
        want.square().sum().backward()
        same(out[b, None, :, :n], want, dtype)
        same(stats.entropy[b, None, :, :n], told.entropy, n=10)
        for got, expected in zip((q, k, v), alone, strict=True):
            same(got.grad[b, None, :, :n], expected.grad, dtype, n)


def test_where_keys_alone_have_lengths_and_values_are_narrower():
    q, k, v = (x.detach() for x in drawn())
    v = v[..., :3]
    out, stats = ch.attend(q, k, v, lengths=(None, LENGTHS), statistics=True)
    for b, n in enumerate(LENGTHS.tolist()):
        want, told = ch.attend(q[b, None].double(), *(x[b, None, :, :n].double() for x in (k, v)), statistics=True)
        same(out[b, None], want)
        same(stats.entropy[b, None], told.entropy, n=10)
        assert (stats.visible[b] == n).all()


def test_under_a_watch():
    layer = ch.nn.SelfAttention(HEADS * 4, HEADS)
    x = torch.randn(2, int(LENGTHS[0]), HEADS * 4, generator=torch.Generator().manual_seed(2))
    with ch.watch(layer) as seen:
        layer(x, lengths=LENGTHS)
    (call,) = seen
    for b, n in enumerate(LENGTHS.tolist()):
        with ch.watch(layer) as alone:
            layer(x[b, None, :n])
        same(call.statistics.entropy[b, :, :n], alone[0].statistics.entropy[0], n=10)
