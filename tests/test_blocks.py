"""`blocks`: every pattern, length and dtype against dense weights in float64; leaks; the operator's contract.

Lengths reach from 1 to beyond several blocks of the kernel's, which the laws' small problems never leave.
"""

import importlib
import math
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clearhead as ch
from clearhead.kernels.operator import backward_op, forward_op
from reference import Problem

PATTERNS = {
    "everything": (ch.everything(), lambda q, k: (q == q) & (k == k)),
    "causal": (ch.causal(), lambda q, k: k <= q),
    "window": (ch.window(70), lambda q, k: abs(q - k) <= 70),
    "narrow": (ch.window(0), lambda q, k: q == k),
    "causal window": (ch.causal() & ch.window(100), lambda q, k: (q - k >= 0) & (q - k <= 100)),
    "ahead": (ch.window(0, 65), lambda q, k: (k - q >= 0) & (k - q <= 65)),
    "chunks": (ch.chunks(90), lambda q, k: q // 90 == k // 90),
    "aligned chunks": (ch.chunks(128), lambda q, k: q // 128 == k // 128),
    "global": (
        ch.window(40) | ch.first(3),
        lambda q, k: (abs(q - k) <= 40) | (q >= 0) & (q < 3) | (k >= 0) & (k < 3),
    ),
    "causal and global": (
        ch.causal() & (ch.window(30) | ch.first(130)),
        lambda q, k: (k <= q) & ((abs(q - k) <= 30) | (q >= 0) & (q < 130) | (k >= 0) & (k < 130)),
    ),
    "outside": (~ch.window(150) & ch.causal(), lambda q, k: k < q - 150),
    "far": (~ch.window(64), lambda q, k: abs(q - k) > 64),
    "stride": (ch.stride(3) & ch.causal(), lambda q, k: ((q - k) % 3 == 0) & (k <= q)),
    "prefix": (ch.causal() | ch.prefix(140), lambda q, k: (k <= q) | (q < 140) & (k >= 0) & (k < 140) & (q >= 0)),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (1, 63, 64, 65, 127, 128, 130, 257, 400)


@st.composite
def problems(draw, dtypes=DTYPES, padded=False):
    """A random call that `blocks` fits: shapes, pattern, and any of lengths, mask, positions, scale and given bias."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def rand(*shape, dtype=torch.float64):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    dtype, d = draw(st.sampled_from(dtypes)), draw(st.sampled_from([1, 8, 13]))
    b, kv, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    nq = draw(st.sampled_from(LENGTHS))
    same = draw(st.booleans())
    nk, h = nq if same else draw(st.sampled_from(LENGTHS)), kv * group
    q, k, v = (rand(b, heads, n, d, dtype=dtype) for heads, n in ((h, nq), (kv, nk), (kv, nk)))
    pattern, sees = PATTERNS[draw(st.sampled_from(sorted(PATTERNS)))]
    call: dict = {}
    kind = draw(st.sampled_from(["both", "keys", "pair"] if padded else ["none", "both", "keys", "pair"]))
    lengths = {n: torch.randint(0, n + 1, (b,), generator=generator) for n in (nq, nk)}
    if kind == "both" and same:
        call["lengths"] = lengths[nq]
    elif kind == "keys":
        call["lengths"] = (None, lengths[nk])
    elif kind == "pair" or padded:
        call["lengths"] = (lengths[nq], lengths[nk].flip(0))
    if draw(st.integers(0, 2)) == 0:
        shape = [(b, 1, 1, nk), (1, h, nq, nk), (nq, 1)][draw(st.integers(0, 2))]
        call["mask"] = torch.rand(*shape, generator=generator) < 0.7
    if draw(st.integers(0, 3)) == 0:
        call["q_positions"] = torch.randint(-40, 300, (b, 1, nq), generator=generator).sort(-1).values
        call["k_positions"] = torch.randint(-40, 300, (1, h, nk), generator=generator).sort(-1).values
    bias = None
    if draw(st.integers(0, 3)) == 0:
        bias = rand(*[(1, h, nq, nk), (b, 1, 1, nk)][draw(st.integers(0, 1))], dtype=dtype)
        bias = bias.masked_fill(torch.rand(bias.shape, generator=generator) < 0.2, -math.inf)
    return Problem(q, k, v, pattern, sees, call, draw(st.sampled_from([None, 0.7])), None, bias)


@contextmanager
def only_blocks():
    """Within the block, `blocks` runs whatever the call."""
    module = importlib.import_module("clearhead.kernels.choose")
    with patch.object(module, "KERNELS", (("blocks", lambda call: None),)):
        yield


def attended(problem, q=None, k=None, v=None):
    q, k, v = (own if given is None else given for own, given in ((problem.q, q), (problem.k, k), (problem.v, v)))
    with only_blocks():
        return ch.Softmax(problem.pattern, problem.scale, bias=problem.bias)(q, k, **problem.call) @ v


def close(got, want, dtype, factor):
    """`got` equals `want` (float64) within `factor` roundings of `dtype`."""
    got, want = got.detach().double(), want.detach()
    error = (got - want).abs()
    assert error.isfinite().all()
    bound = factor * torch.finfo(dtype).eps * max(1.0, float(want.abs().max() if want.numel() else 0))
    assert not error.numel() or float(error.max()) <= bound


@given(problems())
def test_output_and_gradients_are_those_of_dense_weights(problem):
    q64, k64, v64 = (x.requires_grad_() for x in problem.clean64())
    want = problem.output(q64, k64, v64, None if problem.bias is None else problem.bias.double())
    weight = torch.randn_like(want).to(problem.q.dtype)
    q, k, v = (x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v))
    out = attended(problem, q, k, v)
    close(out, want, problem.q.dtype, 6)
    got = torch.autograd.grad((out * weight).sum(), (q, k, v))
    for g, w in zip(got, torch.autograd.grad((want * weight.double()).sum(), (q64, k64, v64)), strict=True):
        close(g, w, problem.q.dtype, 32)
    blind = ~problem.visible().any(-1)
    assert (out[blind] == 0).all()
    assert (got[0][blind] == 0).all()


@given(problems(dtypes=(torch.float32, torch.bfloat16)))
def test_what_is_not_seen_changes_nothing(problem):
    q, k, v = problem.q, problem.k, problem.v
    hidden = ~problem.visible().unflatten(1, (k.shape[1], -1)).any(2)  # (B, Hkv, Nq, Nk)
    row = int(torch.randint(q.shape[2], ()))
    results = []
    for size in (None, 1e4):
        there = hidden[:, :, row, :, None]
        keys, values = (x if size is None else torch.where(there, torch.randn_like(x) * size, x) for x in (k, v))
        queries = q.clone().requires_grad_()
        out = attended(problem, queries, keys, values)[:, :, row]
        results.append((out, torch.autograd.grad(out.float().sum(), queries)[0][:, :, row]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@given(problems(dtypes=(torch.float32, torch.bfloat16), padded=True))
def test_padding_may_hold_anything(problem):
    q_len, k_len = problem.lengths()
    results = []
    for value in (0.0, math.nan, math.inf):
        tensors = []
        for x, n in ((problem.q, q_len), (problem.k, k_len), (problem.v, k_len)):
            padding = torch.arange(x.shape[2]) >= n[:, None]
            tensors.append(x.masked_fill(padding[:, None, :, None], value).requires_grad_())
        out = attended(problem, *tensors)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), tensors)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_a_sample_alone_is_the_sample_in_a_batch():
    torch.manual_seed(0)
    lengths = [300, 0, 129, 1]
    q, k, v = (torch.randn(4, 2, 300, 8) for _ in range(3))
    with only_blocks():
        out = ch.attend(q, k, v, ch.causal() & ch.window(50), lengths=torch.tensor(lengths))
        for i, n in enumerate(lengths):
            own = (x[i : i + 1, :, :n] for x in (q, k, v))
            assert torch.equal(ch.attend(*own, ch.causal() & ch.window(50)), out[i : i + 1, :, :n])
            assert (out[i, :, n:] == 0).all()


@pytest.mark.parametrize("rest", ["nothing", "causal", "global", "mask"])
@pytest.mark.parametrize("longest", [30, 300])
def test_documents_are_as_if_each_stood_alone(rest, longest):
    """Of lengths that fit no block: the rows are looked at one by one."""
    generator = torch.Generator().manual_seed(longest)
    lengths = torch.randint(1, longest, (12,), generator=generator)
    ids = torch.repeat_interleave(torch.arange(12), lengths)[None].repeat(2, 1)
    ids[1] = ids[1].flip(0)  # each sample has documents of its own
    n = ids.shape[1]
    q, k, v = (torch.randn(2, 2, n, 8, generator=generator).requires_grad_() for _ in range(3))
    seen, call = (ids[:, :, None] == ids[:, None, :])[:, None], {}
    at = torch.arange(n)
    pattern = ch.documents(ids)
    if rest == "causal":
        pattern, seen = pattern & ch.causal(), seen & (at <= at[:, None])
    elif rest == "global":
        pattern, seen = pattern | ch.first(5), seen | (at < 5) | (at < 5)[:, None]
    elif rest == "mask":
        call["mask"] = torch.rand(n, n, generator=generator) < 0.5
        seen = seen & call["mask"]
    q64, k64, v64 = (x.detach().double().requires_grad_() for x in (q, k, v))
    logits = (q64 @ k64.mT * 8**-0.5).masked_fill(~seen, -math.inf)
    want = logits.softmax(-1).nan_to_num(0).masked_fill(~seen, 0) @ v64
    weight = torch.randn(want.shape, generator=generator)
    with only_blocks():
        out = ch.attend(q, k, v, pattern, **call)
        close(out, want.detach(), torch.float32, 6)
        got = torch.autograd.grad((out * weight).sum(), (q, k, v))
    wanted = torch.autograd.grad((want * weight).sum(), (q64, k64, v64))
    for g, w in zip(got, wanted, strict=True):
        close(g, w.nan_to_num(0), torch.float32, 32)


def test_what_a_plan_was_made_of_may_be_written_to():
    torch.manual_seed(0)
    ids = torch.zeros(1, 300, dtype=torch.int64)
    q, k, v = (torch.randn(1, 1, 300, 8) for _ in range(3))
    found = []
    with only_blocks():
        for start in (100, 200):
            ids.numpy()[:, start:] = start  # where torch does not see it
            found.append(ch.attend(q, k, v, ch.documents(ids)))
        assert torch.equal(found[1], ch.attend(q, k, v, ch.documents(ids.clone())))
    assert not torch.equal(*found)


def test_strange_strides_are_taken():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 300, 3, 8).transpose(1, 2) for _ in range(3))
    turned = torch.randn(2, 3, 8, 300).mT
    with only_blocks():
        for keys in (k, turned, k[:, :1].expand(2, 3, 300, 8)):
            got = ch.attend(q, keys, v, ch.window(70))
            torch.testing.assert_close(got, ch.attend(q, keys.contiguous(), v.contiguous(), ch.window(70)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_holds_its_contract(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 150, 8, dtype=dtype) for h in (4, 2, 2))
    lengths = torch.tensor([150, 70])
    tensors = (q, k, v, None, None, lengths, lengths.clone(), None, None)
    pattern = ch.documents((torch.arange(150) // 40)[None]) & ch.causal()
    held = [*pattern.tensors(), *[None] * (8 - len(pattern.tensors()))]
    arguments = (
        *tensors,
        *held,
        None,
        None,
        pattern.outline(),
        0.3,
        None,
        None,
        False,
        True,
        0.0,
        False,
        False,
        "blocks",
    )
    torch.library.opcheck(forward_op, arguments)
    out, raw, received = forward_op(*arguments)
    known = (torch.randn_like(out), torch.zeros_like(raw), received, out, raw[0])
    torch.library.opcheck(backward_op, (*known, *arguments))


@pytest.mark.usefixtures("unchecked")
def test_vmap_of_grad_is_a_loop_of_grads():
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 2, 140, 4, dtype=torch.float64) for _ in range(3))

    def f(q, k, v):
        return ch.attend(q, k, v, ch.causal() & ch.window(30)).square().sum()

    with only_blocks():
        got = torch.func.vmap(torch.func.grad(f, (0, 1, 2)))(q, k, v)
        for i in range(3):
            for a, b in zip(got, torch.func.grad(f, (0, 1, 2))(q[i], k[i], v[i]), strict=True):
                torch.testing.assert_close(a[i], b)
