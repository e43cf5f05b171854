"""`flex`: its block masks, masks and scores, held to the laws without a GPU, and compiled where there is one."""

import importlib
import math
import subprocess
import sys
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from torch.nn.attention import flex_attention as torch_flex

import clearhead as ch
from clearhead.errors import InputError
from clearhead.kernels import Call, Score, Visible
from clearhead.kernels.kept import Kept
from reference import Problem
from test_laws import PATTERNS, close, make, problems

flex = importlib.import_module("clearhead.kernels.flex")
choosing = importlib.import_module("clearhead.kernels.choose")
CUDA = torch.device("cuda")


def by_blocks(q, k, v, score_mod, block_mask, *, scale, enable_gqa, return_aux=None):
    """What the compiled kernel computes, read from the block mask block by block, tensor by tensor."""
    rows_each, keys_each = block_mask.BLOCK_SIZE
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    assert enable_gqa or k.shape[1] == q.shape[1]
    logits = torch.full((*q.shape[:3], k.shape[2]), -math.inf, dtype=q.dtype)
    kinds = (
        (block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.mask_mod),
        (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, None),
    )
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for counts, indices, mask_mod in kinds:
                of = (b % counts.shape[0], h % counts.shape[1])
                for block in range(counts.shape[2]):
                    rows = torch.arange(block * rows_each, min((block + 1) * rows_each, q.shape[2]))[:, None]
                    for at in indices[of][block, : counts[of][block]].tolist():
                        keys = torch.arange(at * keys_each, min((at + 1) * keys_each, k.shape[2]))[None]
                        index = (torch.tensor(b), torch.tensor(h), rows, keys)
                        s = q[b, h, rows[:, 0]] @ k[b, h, keys[0]].mT * scale
                        s = s if score_mod is None else score_mod(s, *index)
                        if mask_mod is not None:
                            s = s.masked_fill(~mask_mod(*index), -math.inf)
                        s = s.masked_fill(s == -math.inf, -math.inf)  # through which no gradient goes
                        logits = logits.index_put(index, s)
    lse = logits.logsumexp(-1)
    weights = (logits - lse.masked_fill(lse == -math.inf, 0)[..., None]).exp()
    return weights @ v if return_aux is None else (weights @ v, torch_flex.AuxOutput(lse=lse))


@contextmanager
def forced(attend, block=128):
    """Within it `flex` computes every call, with `attend` in the place of what is compiled and in blocks of a size."""
    with (
        patch.object(choosing, "KERNELS", (("flex", lambda call: None),)),
        patch.object(flex, "_compiled", lambda kind: attend),
        patch.object(flex, "BLOCK", block),
        patch.object(flex, "_layouts", Kept()),
    ):
        yield


@settings(max_examples=60)
@given(problems(dtypes=(torch.float64,)))
def test_block_masks_and_scores_keep_the_laws(problem):
    """Outputs, empty rows and gradients in q, k, v, bias and sinks, from blocks of 8."""
    q, k, v = (x.requires_grad_() for x in problem.clean64())
    learned = [None if x is None else x.double().requires_grad_() for x in (problem.bias, problem.sinks)]
    leaves = [x for x in (q, k, v, *learned) if x is not None]
    want = problem.output(q, k, v, *learned)
    with forced(by_blocks, block=8):
        got = make(problem, q, k, *learned) @ v
    close(got, want, torch.float64)
    assert (got[~problem.visible().any(-1)] == 0).all()
    weight = torch.randn_like(want)
    found, wanted = (
        torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True, materialize_grads=True)
        for out in (got, want)
    )
    for g, w in zip(found, wanted, strict=True):
        close(g, w, torch.float64, factor=24)


@pytest.mark.parametrize("name", PATTERNS)
def test_flex_attention_itself_takes_every_pattern(name, monkeypatch):
    """Uncompiled, as `vmap` of one pair: with grouped queries, a soft cap, a bias and padding."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    (pattern, sees), lengths = PATTERNS[name], torch.tensor([44, 0, 17])
    q, k, v = (torch.randn(3, heads, 44, 16, dtype=torch.float64) for heads in (4, 2, 2))
    bias = torch.randn(1, 4, 1, 44, dtype=torch.float64)
    problem = Problem(q, k, v, pattern, sees, {"lengths": lengths}, None, 2.0, bias)
    with forced(torch_flex.flex_attention):
        close(make(problem) @ v, problem.output(*problem.clean64(), bias), torch.float64)


def test_the_layout_is_that_of_create_block_mask():
    """Sound, and as exact as a look at every pair, for a window that ends inside a block."""
    n, lengths = 1000, torch.tensor([1000, 300])
    visible = Visible(ch.causal() & ch.window(200), n, n, lengths.device, q_lengths=lengths, k_lengths=lengths)
    made = flex._block_mask(visible)
    known = torch_flex.create_block_mask(lambda b, h, q, k: made.mask_mod(b, h, q, k), 2, 1, n, n, device="cpu")
    parts = ("kv", "full_kv", "q", "full_q")
    for part in parts:
        counts, wanted = (getattr(x, f"{part}_num_blocks") for x in (made, known))
        assert torch.equal(counts, wanted.to(torch.int32)), part
        blocks, others = (getattr(x, f"{part}_indices") for x in (made, known))
        held = torch.arange(blocks.shape[-1]) < counts[..., None]
        assert torch.equal(blocks[held], others[held].to(torch.int32)), part
    assert flex.visited(visible) == int((made.kv_num_blocks + made.full_kv_num_blocks).sum()) * 128**2 // 2


def test_a_layout_is_made_once_and_again_where_a_tensor_changed():
    ids = torch.arange(600) // 100
    pattern = ch.documents(ids)
    visible = Visible(pattern, 600, 600, ids.device)
    with patch.object(flex, "_layouts", Kept()), patch.object(flex, "layout_of", wraps=flex.layout_of) as looked:
        first = flex._block_mask(visible)
        assert flex._block_mask(Visible(pattern, 600, 600, ids.device)).kv_indices is first.kv_indices
        assert looked.call_count == 1
        pattern.tensors()[0].fill_(0)
        second = flex._block_mask(visible)
        assert looked.call_count == 2
        assert int(second.full_kv_num_blocks.sum()) > int(first.full_kv_num_blocks.sum())


def test_what_is_kept_is_bounded_and_not_of_inference():
    kept, made = Kept(most=2), []
    x, y = torch.ones(3), torch.ones(3)
    for what, tensor in (("a", x), ("a", y), ("a", x), ("b", x), ("a", y), ("a", x[:2])):
        kept.of(what, [tensor, None], lambda what=what: made.append(what))
    assert made == ["a", "a", "b", "a", "a"]
    with torch.inference_mode():
        z = torch.ones(3)
        for _ in range(2):
            kept.of("z", [z], lambda: made.append("z"))
    assert made[-2:] == ["z", "z"]


def call(n=4096, pattern=None, heads=4, widths=(64, 64), **options):
    score = Score(0.125, options.pop("softcap", None), options.pop("bias", None))
    visible = Visible(pattern or ch.causal() & ch.window(256), n, n, CUDA)
    return Call((1, heads, n, n), widths, CUDA, visible, score, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"sinks": True}, None),
        ({"softcap": 3.0, "pattern": ch.causal()}, None),
        ({"widths": (64, 128)}, None),
        ({"statistics": True}, "returns no statistics"),
        ({"dropout": 0.1}, "drops no weights"),
        ({"dtype": torch.float64}, "computes in float32 or less"),
        ({"widths": (8, 64)}, "needs heads of width 16 or more"),
        ({"n": 512}, "is compiled for each kind of call, which 1,048,576 pairs are not worth"),
    ],
)
def test_what_flex_takes_on_a_gpu(options, reason, monkeypatch):
    monkeypatch.setattr(flex, "_has_triton", lambda: True)
    assert flex.misfit(call(**options)) == reason
    if not options.get("n"):
        assert choosing.choose(call(**options)) == ("stream" if reason else "flex")


def test_on_a_gpu_the_order_decides_until_rates_are_measured(monkeypatch):
    costs = importlib.import_module("clearhead.kernels.costs")
    monkeypatch.setattr(flex, "_has_triton", lambda: False)
    assert choosing.choose(call()) == "stream"
    assert flex.misfit(call()) == "needs Triton, which is not installed"
    monkeypatch.setattr(flex, "_has_triton", lambda: True)
    assert choosing.choose(call(pattern=ch.causal())) == "sdpa"
    assert choosing.choose(call(n=1024)) == "sdpa"
    assert costs.predicted("flex", call()).words() == ("not measured", "192 kB")
    with ch.memory_budget("100 kB"), pytest.raises(InputError, match="no kernel fits, flex needs least"):
        choosing.choose(call())


SIZES = """
import sys, torch, clearhead as ch
from clearhead.kernels import Score, Visible, flex_attend
import clearhead.kernels.flex
module = sys.modules["clearhead.kernels.flex"]
compile_ = torch.compile
torch.compile = lambda f, **options: compile_(f, backend="eager", **options)
torch._dynamo.config.recompile_limit = 2
graphs = torch._dynamo.utils.counters["stats"]
ids = torch.arange(4000) // 100
for kind, sizes in ((200, (200, 300, 999, 450)), (9, (300, 600))):
    before = graphs["unique_graphs"]
    for n in sizes:
        q, k, v = (torch.randn(2, heads, n, 16) for heads in (4, 2, 2))
        lengths = torch.tensor([n, n // 3])
        pattern = ch.causal() & ch.window(kind) & ch.documents(ids[:n])
        visible = Visible(pattern, n, n, q.device, q_lengths=lengths, k_lengths=lengths)
        out, _ = flex_attend(q, k, v, visible, Score(0.25, softcap=2.0))
        want = ch.attend(q, k, v, pattern, scale=0.25, softcap=2.0, lengths=lengths)
        torch.testing.assert_close(out.masked_fill(visible.padding()[0], 0), want)
    assert graphs["unique_graphs"] - before <= 2, (kind, graphs["unique_graphs"] - before)
print("compiled")
"""


def test_another_length_is_compiled_once_for_all_lengths():
    """In a process of its own: tracing does not get through the checks that pytest adds to every call."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SIZES], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["compiled"], done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PATTERNS)
def test_on_a_gpu_outputs_and_gradients_are_those_of_stream(name, dtype):
    """Long ones, of other lengths too, with grouped queries, a soft cap, a learned bias and padding."""
    pattern = PATTERNS[name][0]
    for n in (1500, 1100) if not pattern.tensors() else (44,):
        q, k, v = (torch.randn(2, heads, n, 64, device=CUDA, dtype=dtype).requires_grad_() for heads in (4, 2, 2))
        bias = torch.randn(4, 1, n, device=CUDA).requires_grad_()
        more = {"softcap": 4.0, "bias": bias, "lengths": torch.tensor([n, n // 3], device=CUDA)}
        results = []
        for kernel in ("flex", "stream"):
            with patch.object(choosing, "KERNELS", ((kernel, lambda call: None),)):
                x = [t.detach().double().requires_grad_() if kernel == "stream" else t for t in (q, k, v)]
                b = bias.detach().double().requires_grad_() if kernel == "stream" else bias
                out = ch.attend(*x, pattern.to("cuda"), **{**more, "bias": b})
                results.append((out, *torch.autograd.grad(out.double().square().sum(), (*x, b))))
        for got, want in zip(*results, strict=True):
            close(got.cpu(), want.cpu(), dtype, factor=32)
