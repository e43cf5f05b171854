"""Patterns that hold tensors, in attention: packed documents and graphs do what each does alone."""

import importlib
from unittest.mock import patch

import pytest
import torch

import clearhead as ch
from clearhead.errors import InputError, ShapeError
from test_laws import close

STATISTICS = ("logsumexp", "max_logit", "max_weight", "entropy", "normalized_entropy", "distance", "visible")


def kernels():
    """Each kernel in turn, where it fits, as a context: sdpa first, then those that need no dense mask, then stream."""
    module = importlib.import_module("clearhead.kernels.choose")
    names = [name for name, _ in module.KERNELS]
    for i, name in enumerate(names):
        yield name, patch.object(module, "KERNELS", module.KERNELS[i:])


def pack(lengths, seed, dtype, heads=4, kv_heads=2, width=16):
    """Random q, k, v (1, H, N, D) for documents of these lengths in one row, with three positions of padding within."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.cat([torch.full((n,), 3 + 5 * i % 7) for i, n in enumerate(lengths)] + [torch.full((3,), -1)])
    n = len(ids)
    shapes = ((1, h, n, width) for h in (heads, kv_heads, kv_heads))
    return ids, *(torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("own", [ch.everything(), ch.causal() & ch.window(40)], ids=repr)
def test_packed_documents_are_each_alone(dtype, own):
    lengths = [1, 130, 64, 0, 2, 77, 200]
    ids, q, k, v = pack(lengths, 0, dtype)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    for name, forced in kernels():
        with forced:
            packed = [x.clone().requires_grad_() for x in (q, k, v)]
            out = ch.attend(*packed, own & ch.documents(ids))
            (out.float() ** 2).sum().backward()
            assert (out[..., -3:, :] == 0).all(), name
            for n, end in zip(lengths, ends, strict=True):
                part = slice(end - n, end)
                alone = [x[..., part, :].double().requires_grad_() for x in (q, k, v)]
                want = ch.attend(*alone, own)
                (want**2).sum().backward()
                close(out[..., part, :], want, dtype, factor=8)
                for x, y in zip(packed, alone, strict=True):
                    close(x.grad[..., part, :], y.grad, dtype, factor=48)
            assert all((x.grad[..., -3:, :] == 0).all() for x in packed), name


def test_statistics_of_packed_documents_are_each_alones():
    lengths = [1, 130, 64, 2, 77]
    ids, q, k, v = pack(lengths, 1, torch.float32)
    A = ch.Softmax(ch.causal())(q, k, pattern=ch.documents(ids))
    _, fused = A.apply(v, statistics=True)
    whole, received, end = A.statistics(), A.received(), 0
    for n in lengths:
        part, end = slice(end, end + n), end + n
        B = ch.Softmax(ch.causal())(q[..., part, :], k[..., part, :])
        want = B.statistics()
        for name in STATISTICS:
            for got in (whole, fused):
                torch.testing.assert_close(getattr(got, name)[..., part], getattr(want, name), equal_nan=True)
        torch.testing.assert_close(received[..., part], want.received)
    assert whole.entropy[..., end:].isnan().all()
    sampled = A.statistics([5, 200])
    torch.testing.assert_close(sampled.entropy, whole.entropy[..., [5, 200]])


def test_samples_with_documents_of_their_own():
    """Also in parts of a batch: `of` takes each sample's ids along."""
    torch.manual_seed(0)
    ids = torch.tensor([[0] * 30 + [1] * 34, [2] * 50 + [-1] * 14, [1, 0] * 32])
    q, k, v = (torch.randn(3, 2, 64, 8) for _ in range(3))
    for softcap in (None, 4.0):
        A = ch.Softmax(ch.documents(ids), softcap=softcap)(q, k, lengths=torch.tensor([64, 60, 33]))
        out = A @ v
        for i in range(3):
            n = [64, 60, 33][i]
            mask = (ids[i][:, None] == ids[i]) & (ids[i] >= 0)
            want = ch.attend(q[i, :, :n], k[i, :, :n], v[i, :, :n], mask=mask[:n, :n], softcap=softcap) if n else None
            torch.testing.assert_close(out[i, :, :n], want)
        some = torch.tensor([2, 0])
        torch.testing.assert_close(A.of(some) @ v[some], out[some])
        torch.testing.assert_close(A.weights()[some], A.of(some).weights())


def test_no_document_leaks_into_another():
    ids, q, k, v = pack([20, 30, 9], 2, torch.float32)
    other = torch.where((ids == 3)[:, None], torch.randn(1, 2, 62, 16) * 1e4, k)
    for _, forced in kernels():
        with forced:
            a, b = (ch.attend(q, x, v, ch.documents(ids)) for x in (k, other))
            assert torch.equal(a[..., ids != 3, :], b[..., ids != 3, :])


def test_what_documents_leave_out_is_found_under_inference_and_used_with_gradients():
    ids, q, k, v = pack([20, 30, 9], 2, torch.float32)
    pattern = ch.documents(ids)
    with torch.inference_mode():
        want = ch.attend(q, k, v, pattern)
    x = [y.masked_fill((ids < 0)[:, None], torch.nan).requires_grad_() for y in (q, k, v)]
    got = ch.attend(*x, pattern)
    got.sum().backward()
    torch.testing.assert_close(got, want.clone())
    assert all(y.grad.isfinite().all() for y in x)


def graphs(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(n, (2, 4 * n), generator=generator) for n in sizes]


def test_a_graph_is_a_dense_mask():
    torch.manual_seed(0)
    n, edges = 150, graphs([150], 0)[0]
    mask = torch.eye(n, dtype=torch.bool)
    mask[edges[1], edges[0]] = True  # a target sees its source
    for _, forced in kernels():
        with forced:
            q, k, v = (torch.randn(2, 4, n, 8, requires_grad=True) for _ in range(3))
            got = ch.attend(q, k, v, ch.graph(edges))
            s = (q.double() @ k.double().mT * 8**-0.5).masked_fill(~mask, -torch.inf)
            want = s.softmax(-1) @ v.double()
            weight = torch.randn_like(want)
            a = torch.autograd.grad((got.double() * weight).sum(), (q, k, v))
            b = torch.autograd.grad((want * weight).sum(), (q, k, v))
            close(got, want, torch.float32)
            for x, y in zip(a, b, strict=True):
                close(x, y, torch.float32, factor=24)


def test_many_graphs_are_each_alone():
    """In a list, one for each sample, and packed in one row, as PyTorch Geometric batches them."""
    torch.manual_seed(0)
    sizes = [5, 70, 33]
    given = graphs(sizes, 1)
    q, k, v = (torch.randn(3, 2, max(sizes), 8) for _ in range(3))
    listed = ch.attend(q, k, v, ch.graph(given))
    starts = [0, 5, 75]
    rows = [torch.cat([x[i, :, :n] for i, n in enumerate(sizes)], 1) for x in (q, k, v)]
    packed = ch.attend(
        *(x[None] for x in rows), ch.graph(torch.cat([e + s for e, s in zip(given, starts, strict=True)], 1))
    )
    for i, n in enumerate(sizes):
        alone = ch.attend(q[i, :, :n], k[i, :, :n], v[i, :, :n], ch.graph(given[i], nodes=n))
        torch.testing.assert_close(listed[i, :, :n], alone)
        torch.testing.assert_close(packed[0, :, starts[i] : starts[i] + n], alone)


def test_decoding_step_by_step_sees_what_one_pass_sees():
    torch.manual_seed(0)
    n = 40
    ids = torch.tensor([0] * 13 + [1] * 20 + [2] * 7)
    for pattern in (
        ch.causal() & ch.scattered(3, 7, block=4),
        ch.causal() & (ch.scattered(2) | ch.window(3)),
        ch.causal() & ch.documents(ids),
        ch.causal() & ch.graph(graphs([n], 3)[0], nodes=n),
        ch.sparse_transformer(5, "fixed", 2),
        ch.causal() | ch.prefix(4),
    ):
        mechanism = ch.Softmax(pattern)
        q, k, v = (torch.randn(2, 2, n, 8) for _ in range(3))
        cache, outputs, at = mechanism.cache(), [], 0
        for step in (6, 1, 1, 9, 1, 20, 2):
            part = slice(at, at + step)
            outputs.append(cache.attend(q[:, :, part], k[:, :, part], v[:, :, part]))
            at += step
        torch.testing.assert_close(torch.cat(outputs, 2), mechanism(q, k) @ v)


def test_a_mechanism_moves_the_tensors_of_its_pattern():
    mechanism = ch.Softmax(ch.causal() & ch.documents(torch.tensor([0, 0, 1])))
    assert [name for name, _ in mechanism.named_buffers()] == ["pattern_0"]
    assert not mechanism.state_dict()
    assert repr(mechanism) == "Softmax(causal() & documents(ids=(1, 3)))"
    moved = mechanism.to("meta")
    assert moved.pattern.tensors()[0].device.type == "meta"
    assert mechanism.half().pattern.tensors()[0].dtype == torch.int64
    assert ch.documents(torch.tensor([0, 1])).to("meta").tensors()[0].device.type == "meta"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: ch.documents(torch.zeros(9, dtype=torch.int64)),
            ShapeError,
            "pattern: documents: ids is for 9 positions, but there are 12 keys; give it for every position",
        ),
        (
            lambda: ~ch.documents(torch.zeros(3, 12, dtype=torch.int64)) & ch.causal(),
            ShapeError,
            "pattern: documents: ids is for 3 samples, q has 2; give one for each, or one for all",
        ),
        (lambda: ch.graph(torch.tensor([[0], [4]])), ShapeError, "pattern: graph is for 5 positions, but there are 12"),
        (
            lambda: ch.documents(torch.zeros(12, dtype=torch.int64)).to("meta"),
            InputError,
            r"pattern holds tensors on meta, q is on cpu; write pattern.to\('cpu'\)",
        ),
    ],
)
def test_a_pattern_for_another_call_is_one_line(make, error, words, unchecked):
    q = torch.randn(2, 1, 12, 4)
    for call in (lambda p: ch.attend(q, q, q, p), lambda p: ch.Softmax(p)(q, q), lambda p: ch.explain(q, q, p)):
        with pytest.raises(error, match=words) as caught:
            call(make())
        assert "\n" not in str(caught.value)
