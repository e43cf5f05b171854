"""`packed`, documents one by one on a GPU: what its operator is told, and what is made of what it returns."""

import importlib
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

import clearhead as ch
from clearhead.kernels import Call, Score, Visible
from clearhead.kernels.kept import Kept
from reference import Problem
from test_laws import close

packed = importlib.import_module("clearhead.kernels.packed")
choosing = importlib.import_module("clearhead.kernels.choose")
CUDA = torch.device("cuda")
IDS = torch.tensor([4] * 7 + [-1] * 2 + [1] + [0] * 13 + [9] * 5 + [-3] * 3)
"""Contiguous documents, with padding between and behind them."""


def one_by_one(q, k, v, begins, begins_k, longest, longest_k, *, scale, window_size, enable_gqa):
    """What `varlen_attn` computes, document by document, from the slices that it was told."""
    assert (begins is begins_k, longest, begins.dtype) == (True, longest_k, torch.int32)
    assert int(begins.diff().max()) == longest
    assert int(begins[-1]) == q.shape[0] == k.shape[0]
    assert enable_gqa == (q.shape[1] != k.shape[1])
    found, (before, after) = [], window_size
    for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        queries, keys, values = (x[begin:end].transpose(0, 1) for x in (q, k, v))
        keys, values = (x.repeat_interleave(q.shape[1] // x.shape[0], 0) for x in (keys, values))
        far = torch.arange(end - begin)[:, None] - torch.arange(end - begin)  # positions back from a query to a key
        hidden = (far > before if before >= 0 else far < -end) | (-far > after if after >= 0 else far < -end)
        weights = (queries @ keys.mT * scale).masked_fill(hidden, -torch.inf).softmax(-1)
        found.append((weights @ values).transpose(0, 1))
    return torch.cat(found)


def seen(q, k):
    ids = IDS.tolist() + [-1] * 200
    table = torch.tensor([[a == b >= 0 for b in ids] for a in ids])
    return table[q, k]


PATTERNS = {
    "documents": (ch.documents(IDS), seen),
    "causal": (ch.causal() & ch.documents(IDS), lambda q, k: seen(q, k) & (k <= q)),
    "window": (ch.documents(IDS) & ch.window(3, 1), lambda q, k: seen(q, k) & (q - k <= 3) & (k - q <= 1)),
    "windows": (
        (ch.window(2) & ch.documents(IDS)) & (ch.window(900, 1) & ch.causal()),
        lambda q, k: seen(q, k) & (q - k <= 2) & (k <= q),
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("samples", "n"), [(1, 31), (3, 31), (2, 12)])
def test_documents_one_by_one_are_documents_together(name, samples, n):
    """Outputs and gradients, with grouped queries; padding holds what it likes."""
    pattern, sees = PATTERNS[name]
    q, k, v = (torch.randn(samples, heads, n, 8, dtype=torch.float64).requires_grad_() for heads in (4, 2, 2))
    problem = Problem(q, k, v, pattern, sees)
    visible, score = Visible(pattern, n, n, q.device), Score(8**-0.5)
    want = problem.output(q, k, v)
    padding = (IDS < 0)[:n, None]
    spoilt = (x.masked_fill(padding, torch.nan) for x in (q, k, v))
    got = packed.packed(*spoilt, visible, score, attend=one_by_one)
    close(got, want, torch.float64)
    weight = torch.randn_like(want)
    found, wanted = (torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (got, want))
    for g, w in zip(found, wanted, strict=True):
        close(g, w, torch.float64, factor=24)


def test_samples_may_hold_documents_of_their_own():
    ids = torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 3, 3, 3, 3]])
    q = torch.randn(2, 2, 6, 8, dtype=torch.float64)
    visible = Visible(ch.documents(ids), 6, 6, q.device)
    parts = packed.packing(visible, 2)
    assert parts.begins.tolist() == [0, 3, 6, 8, 12]
    assert (parts.longest, parts.pairs, parts.places) == (4, 9 + 9 + 4 + 16, None)
    got = packed.packed(q, q, q, visible, Score(1.0), attend=one_by_one)
    for b in range(2):
        want = ch.attend(q[b : b + 1], q[b : b + 1], q[b : b + 1], ch.documents(ids[b]), scale=1.0)
        close(got[b : b + 1], want, torch.float64)


def test_no_document_is_no_output_and_no_gradient():
    q = torch.randn(1, 2, 5, 8).requires_grad_()
    visible = Visible(ch.documents(torch.full((5,), -1)), 5, 5, q.device)
    out = packed.packed(q, q, q, visible, Score(1.0), attend=one_by_one)
    assert torch.equal(out, torch.zeros_like(q))
    assert torch.equal(torch.autograd.grad(out.sum(), q)[0], torch.zeros_like(q))


def test_documents_are_looked_at_once():
    pattern = ch.causal() & ch.documents(IDS)
    with patch.object(packed, "_packings", Kept()), patch.object(packed, "_packed", wraps=packed._packed) as looked:
        for _ in range(3):  # the layers of a model
            packed.packing(Visible(pattern, 31, 31, IDS.device), 1)
        assert looked.call_count == 1


def call(pattern=None, widths=(64, 64), dtype=torch.bfloat16, n=2048, **options):
    score = Score(0.125, options.pop("softcap", None), options.pop("bias", None))
    pattern = ch.causal() & ch.documents(torch.arange(n) // 100) if pattern is None else pattern
    visible = Visible(pattern, n, n, CUDA, options.pop("mask", None))
    return Call((1, 4, n, n), widths, CUDA, visible, score, dtype=dtype, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"pattern": ch.causal()}, "is for documents, alone or with causal and window"),
        (
            {"pattern": ch.documents(torch.zeros(2048, dtype=torch.int64)) | ch.first(1)},
            "is for documents, alone or with causal and window",
        ),
        ({"pattern": ch.documents(torch.arange(2048) % 100)}, "needs documents of contiguous positions"),
        ({"statistics": True}, "returns no statistics"),
        ({"sinks": True}, "gives the logsumexp no gradient, as learned sinks need"),
        ({"dropout": 0.1}, "drops no weights"),
        ({"softcap": 2.0}, "has no soft cap"),
        ({"bias": torch.zeros(1, 1, 1, 2048)}, "adds no bias"),
        ({"mask": torch.ones(1, 1, 1, 2048, dtype=torch.bool)}, "takes no mask, lengths or positions"),
        ({"dtype": torch.float32}, "computes in half precision, not float32"),
        (
            {"widths": (60, 60)},
            "needs keys and values of one width, a multiple of 8 up to 192, not 60 and 60",
        ),
    ],
)
def test_what_packed_takes_on_a_gpu(options, reason, monkeypatch):
    monkeypatch.setattr(packed, "_available", lambda: True)
    assert packed.misfit(call(**options)) == reason
    if reason is None:
        assert choosing.choose(call(**options)) == "packed"


def test_it_says_what_it_is_for_and_needs(monkeypatch):
    assert packed.misfit(replace(call(), device=torch.device("cpu"))) == "is for GPUs"
    monkeypatch.setattr(packed, "_available", lambda: False)
    assert packed.misfit(call()) == "needs a newer PyTorch, with flash attention"
    assert "window_size" in packed.inspect.signature(packed._operator()).parameters
    assert packed.visited(Visible(ch.documents(IDS), 31, 31, CUDA), 1) == 49 + 1 + 169 + 25
    assert packed.visited(Visible(ch.window(1, 0) & ch.documents(IDS), 31, 31, CUDA), 1) == 31 * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_the_operator_agrees_with_float64(name, dtype):
    pattern = PATTERNS[name][0].to("cuda")
    q, k, v = (torch.randn(2, heads, 31, 64, device=CUDA, dtype=dtype).requires_grad_() for heads in (4, 2, 2))
    results = []
    for kernel, wide in (("packed", dtype), ("stream", torch.float64)):
        x = [t.detach().to(wide).requires_grad_() for t in (q, k, v)]
        with patch.object(choosing, "KERNELS", ((kernel, lambda call: None),)):
            out = ch.attend(*x, pattern)
        results.append((out, *torch.autograd.grad(out.double().square().sum(), x)))
    for got, want in zip(*results, strict=True):
        close(got.cpu(), want.cpu(), dtype, factor=32)
