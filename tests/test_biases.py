"""Biases by distance beyond the laws: as published, in every kernel at length, decoding, layers, memory."""

import copy
import importlib
import itertools
from unittest.mock import patch

import pytest
import torch
from torch.func import functional_call, grad, vmap

import clearhead as ch
from clearhead.maps import GrowingCache, RingCache

LIKE = torch.empty(0, dtype=torch.float64)
KINDS = ("alibi", "t5", "relative")


def made(kind, heads=4, seed=0):
    torch.manual_seed(seed)
    bias = {
        "alibi": lambda: ch.ALiBi(heads),
        "t5": lambda: ch.T5Bias(heads, 16, 40),
        "relative": lambda: ch.RelativeBias(heads, 9),
    }[kind]()
    for weight in bias.parameters():
        torch.nn.init.normal_(weight)
    return bias


def dense(bias, d):
    """The bias at whole distances d (1, Nq, Nk), (1, H, Nq, Nk) in float64, from its parameters alone."""
    if isinstance(bias, ch.ALiBi):
        return -bias.slopes(LIKE)[None, :, None, None] * d.abs()
    if isinstance(bias, ch.RelativeBias):
        return bias.weight.double()[:, d.clamp(-bias.max_distance, bias.max_distance) + bias.max_distance].movedim(0, 1)
    return bias.weight.double()[bias.bucket_of(d)].movedim(-1, 1)


def reference(bias, q, k, v, pattern, q_at, k_at):
    """The output from the matrix, in float64."""
    zero, d = torch.zeros(1, 1, 1, 1, dtype=torch.int64), k_at[:, None, :] - q_at[:, :, None]
    seen = pattern.allows(zero, zero, q_at[:, None, :, None], k_at[:, None, None, :])
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return (q @ k.mT * q.shape[-1] ** -0.5 + dense(bias, d)).masked_fill(~seen, -torch.inf).softmax(-1) @ v


def tensors(n, b=2, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(b, h, n, 16, generator=generator, dtype=torch.float64).to(dtype) for h in (4, 2, 2)]


def test_slopes_are_those_of_the_paper():
    assert ch.ALiBi(8).slopes(LIKE).tolist() == [2.0**-i for i in range(1, 9)]
    wanted = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    torch.testing.assert_close(ch.ALiBi(6).slopes(LIKE), torch.tensor(wanted, dtype=torch.float64))
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    for heads in range(1, 34):
        theirs = bloom.build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)[:, 0]
        torch.testing.assert_close(
            -ch.ALiBi(heads).table(LIKE.float()).at(torch.tensor([[[-1]]]))[0, :, 0], theirs[:, 1]
        )


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (8, 20), (6, 17), (32, 17), (320, 800)])
def test_buckets_are_those_of_t5(buckets, far, both):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    d = torch.arange(-1000, 1000)
    mine = ch.T5Bias(3, buckets, far, both)
    wanted = t5.T5Attention._relative_position_bucket(d, both, buckets, far)
    assert torch.equal(mine.bucket_of(d), wanted)
    torch.nn.init.normal_(mine.weight)
    assert torch.equal(mine.table(torch.empty(0)).at(d[None, None])[0], mine.weight[wanted].T)  # at any distance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("pattern", "n", "kernel"),
    [
        (ch.everything(), 300, "stream"),
        (ch.window(100, 0), 700, "blocks"),
        (ch.causal() & (ch.window(40) | ch.first(2)), 900, "blocks"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("positions", ["none", "with gaps"])
def test_long_inputs_by_every_kernel(kind, pattern, n, kernel, positions):
    """What needs no gradient runs in `blocks`; what learns, in `stream`."""
    bias, at = made(kind), torch.arange(n)[None]
    q_at, k_at = (at, at) if positions == "none" else (at * 3 // 2, at * 3 // 2)
    if n == 900:  # given, and without gaps; with one, so that some tiles have none
        q_at, k_at = (at + 7, at + 5) if positions == "none" else (at + 2 * (at > 500), at + 2 * (at > 500))
    call = {} if q_at is at else {"q_positions": q_at, "k_positions": k_at}
    mechanism, parameters = ch.Softmax(pattern, bias=bias), list(bias.parameters())
    given = [x.requires_grad_() for x in tensors(n, b=1)]
    plain = [x.detach().double().requires_grad_() for x in given]
    want = reference(bias, *plain, pattern, q_at, k_at)
    weight = torch.randn_like(want)
    wanted = torch.autograd.grad((want * weight).sum(), [*plain, *parameters])
    module = importlib.import_module("clearhead.kernels.choose")
    frozen = copy.deepcopy(mechanism).requires_grad_(False)
    for one in (mechanism, frozen):
        for only in {"stream", "stream" if one is mechanism else kernel}:
            with patch.object(module, "KERNELS", tuple(x for x in module.KERNELS if x[0] == only)):
                A = one(*given[:2], **call)
                assert A.explain().chosen == only
                out = A @ given[2]
            torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)
            asked = [*given, *(parameters if one is mechanism else [])]
            for got, sure in zip(torch.autograd.grad((out.double() * weight).sum(), asked), wanted, strict=False):
                torch.testing.assert_close(
                    got.double(), sure.double(), rtol=1e-3, atol=1e-5 * (1 + float(sure.abs().max()))
                )


def test_small_calls_and_what_is_said_of_kernels():
    q, k, _ = tensors(40)
    assert ch.explain(q, k, bias=made("alibi")).chosen == "sdpa"
    reasons = ch.explain(q, k, bias=made("t5")).reasons
    assert reasons["sdpa"] == "gives a bias by distance its gradient pair by pair"
    q, k, _ = tensors(700)
    assert ch.explain(q, k, ch.window(30, 0), bias=made("t5")).reasons["blocks"] == "gives a bias no gradient"
    assert "mask of 1,960,000 pairs" in ch.explain(q, k, bias=made("alibi")).reasons["sdpa"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "pattern", [ch.causal(), ch.causal() & ch.window(6), ch.causal() & (ch.first(1) | ch.window(5))]
)
@torch.no_grad()
def test_decoding_by_steps_is_one_pass(kind, pattern):
    bias = made(kind)
    q, k, v = tensors(90, dtype=torch.float64)
    at, cache = torch.arange(90)[None], ch.Softmax(pattern, bias=bias).cache()
    assert type(cache) is (GrowingCache if pattern == ch.causal() else RingCache)
    want = reference(bias, q, k, v, pattern, at, at)
    for a, b in itertools.pairwise([0, 50, 51, 52, 60, *range(61, 91)]):
        torch.testing.assert_close(cache.attend(*(x[:, :, a:b] for x in (q, k, v))), want[:, :, a:b])


@torch.no_grad()
def test_samples_stand_in_a_batch_where_they_stand_alone():
    bias = made("t5")
    q, k, v = tensors(30, b=3, dtype=torch.float64)
    lengths = (torch.tensor([5, 30, 17]), torch.tensor([30, 30, 20]))
    mechanism = ch.Softmax(ch.causal(), bias=bias)
    for forced in (False, True):
        module = importlib.import_module("clearhead.kernels.choose")
        with patch.object(module, "KERNELS", module.KERNELS[2:] if forced else module.KERNELS):
            A = mechanism(q, k, lengths=lengths)
            out = A @ v
            torch.testing.assert_close(A.of(torch.tensor([2])) @ v[2:], out[2:])
            for i, (m, n) in enumerate(zip(*lengths, strict=True)):
                alone = mechanism(q[i : i + 1, :, :m], k[i : i + 1, :, :n]) @ v[i : i + 1, :, :n]
                torch.testing.assert_close(out[i : i + 1, :, :m], alone)


def test_layers_learn_a_bias_of_their_own_and_save_it():
    torch.manual_seed(0)
    attention = ch.nn.SelfAttention(16, 4, ch.Softmax(bias=ch.RelativeBias(4, 5)))
    stack = ch.nn.Encoder(ch.nn.EncoderLayer(attention), 2)
    weights = {name: p for name, p in stack.named_parameters() if name.endswith("bias.weight")}
    assert len(weights) == 2
    stack(torch.randn(2, 7, 16)).square().sum().backward()
    assert all((p.grad != 0).any() for p in weights.values())
    assert weights.keys() <= stack.state_dict().keys()
    assert repr(ch.Softmax(bias=ch.ALiBi(4)).bias) == "ALiBi(4)"


def test_a_model_in_half_precision_keeps_its_slopes():
    layer = ch.nn.SelfAttention(48, 12, ch.Softmax(ch.causal(), bias=ch.ALiBi(12))).bfloat16()
    x = torch.randn(1, 300, 48, dtype=torch.bfloat16)
    torch.testing.assert_close(layer(x).float(), copy.deepcopy(layer).float()(x.float()), rtol=0.05, atol=0.02)
    assert torch.equal(layer.mechanism.bias.slopes(torch.empty(0)), ch.ALiBi(12).slopes(torch.empty(0)))


@pytest.mark.parametrize("order", ["vmap of grad", "grad of vmap"])
def test_vmap_over_weights_of_their_own(order):
    q, k, v = tensors(9, dtype=torch.float64)
    bias, weights = made("relative").double(), torch.randn(3, 4, 19, dtype=torch.float64)
    mechanism = ch.Softmax(ch.causal(), softcap=4.0, bias=bias)

    def loss(weight, q):
        A = functional_call(mechanism, {"bias.weight": weight}, (q, k))
        out, stats = A.apply(v, statistics=True)
        return out.square().sum() + stats.entropy.sum()

    if order == "vmap of grad":
        got = vmap(grad(loss, (0, 1)), (0, None))(weights, q)
    else:
        many = q.expand(3, *q.shape)
        got = grad(lambda w, q: vmap(loss)(w, q).sum(), (0, 1))(weights, many)
    for i in range(3):
        for a, b in zip(got, grad(loss, (0, 1))(weights[i], q), strict=True):
            torch.testing.assert_close(a[i], b)


def test_no_transform_loses_the_gradient_of_a_tensor():
    """A tensor's `requires_grad` says nothing within a vmap; `blocks`, which gives a bias none, must not run then."""
    torch.manual_seed(0)
    q, bias = torch.randn(3, 1, 1, 300, 8), torch.randn(1, 1, 300, 300)

    def loss(bias, q):
        return ch.attend(q, q, q, ch.window(20, 0), bias=bias).square().sum()

    want = sum(grad(loss)(bias, x) for x in q)
    torch.testing.assert_close(grad(lambda b: vmap(loss, (None, 0))(b, q).sum())(bias), want)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_holds_all_pairs(kind, gaps):
    from peak import Peak

    n, tracker = 4_000, Peak()
    q, k, v = (torch.randn(1, 2, n, 8, requires_grad=True) for _ in range(3))
    at = torch.arange(n) * 3 // 2
    call = {"q_positions": at, "k_positions": at} if gaps else {}
    for pattern in (ch.causal() & ch.window(64), ch.causal()):
        A = ch.Softmax(pattern, bias=made(kind, 2), sinks=torch.zeros(2))(q, k, **call)
        rows = range(0, n, 1000)
        with tracker:
            out = A @ v
            if pattern != ch.causal():
                out.sum().backward()
            A.statistics(rows)
        assert tracker.largest < n * n / 10
