"""The compiled pass over a tile says what its twin in PyTorch says, and what the equations say in float64."""

import ctypes
import logging
import math
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import clearhead
from clearhead.kernels import Score, Statistics, Task, Visible, compiler, fused
from clearhead.kernels.rows import RAW
from clearhead.kernels.stream import backward, forward, how, misfit
from clearhead.patterns import Pattern, causal, everything, window

EMPTY = {"softcap": None, "bias": None, "pattern": everything(), "lengths": None, "mask": None}
CALLS = {
    "plain": {},
    "one key": {"keys": 1},
    "a chunk and a bit": {"queries": 3, "keys": 530},
    "more rows than a block": {"queries": 700, "keys": 40},
    "grouped heads": {"heads": 6, "kv_heads": 2},
    "wide values": {"value_width": 80},
    "no values": {"value_width": 0},
    "soft cap": {"softcap": 3.0},
    "bias": {"bias": (1, 4, 90, 77)},
    "bias of heads": {"bias": (1, 4, 1, 77)},
    "bias of rows": {"bias": (2, 1, 90, 1)},
    "causal": {"pattern": causal()},
    "window": {"pattern": window(9), "queries": 600, "keys": 600},
    "lengths": {"lengths": (50, 77), "queries": 77},
    "mask": {"mask": (2, 1, 90, 77)},
    "mask of rows": {"mask": (2, 4, 90, 1)},
    "everything": {
        "softcap": 5.0,
        "bias": (2, 4, 640, 640),
        "pattern": causal(),
        "lengths": (333, 640),
        "queries": 640,
        "keys": 640,
        "mask": (1, 4, 1, 640),
    },
}


def problem(name: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Task]:
    """Queries, keys, values and the task of one of CALLS, drawn in float64."""
    given = {"heads": 4, "kv_heads": 4, "queries": 90, "keys": 77, "value_width": 16, **EMPTY, **CALLS[name]}
    draw = torch.Generator().manual_seed(len(name))
    normal = lambda *shape: torch.randn(shape, generator=draw, dtype=torch.float64)  # noqa: E731
    q, k = normal(2, given["heads"], given["queries"], 24), normal(2, given["kv_heads"], given["keys"], 24)
    v = normal(2, given["kv_heads"], given["keys"], given["value_width"])
    bias = mask = lengths = None
    if given["bias"] is not None:
        bias = normal(*given["bias"])
        bias = bias.masked_fill(bias > 1.5, -math.inf).float().to(dtype)
    if given["mask"] is not None:
        mask = normal(*given["mask"]) < 0.7
    if given["lengths"] is not None:
        lengths = torch.tensor(given["lengths"])
    pattern: Pattern = given["pattern"]
    visible = Visible(pattern, given["queries"], given["keys"], q.device, mask, lengths, lengths)
    sinks = torch.tensor([0, given["keys"] // 2, given["keys"] - 1]).unique()[None]
    task = Task(visible, Score(0.4, given["softcap"], bias), sinks=sinks, distance=True, received=True)
    return *(x.float().to(dtype) for x in (q, k, v)), task


def twin(monkeypatch) -> None:
    monkeypatch.setattr(fused, "_library", lambda: "not compiled: asked for the twin")


def as_the_equations(q, k, v, task: Task) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, raw statistics and received weights from the whole matrix."""
    see, group = task.visible, q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    s = q @ k.mT * task.score.scale
    s = s if task.score.softcap is None else torch.tanh(s / task.score.softcap) * task.score.softcap
    seen = torch.ones_like(s, dtype=torch.bool)
    if (pairs := see.dense(*s.shape[:2])) is not None:
        seen = seen & pairs
    if task.score.bias is not None:
        s = s + task.score.bias
        seen = seen & (task.score.bias != -math.inf)
    s = s.masked_fill(~seen, -1e9)  # finite, for the sake of gradients
    blank = ~seen.any(-1)
    weights = s.softmax(-1).masked_fill(blank[..., None], 0)
    far = (see.positions_of_queries()[..., :, None] - see.positions_of_keys()[..., None, :]).abs()
    sink = task.sinks[0]
    measured = {
        "logsumexp": s.logsumexp(-1).masked_fill(blank, -math.inf),
        "max_logit": s.amax(-1).masked_fill(blank, -math.inf),
        "entropy": -(weights * s.log_softmax(-1)).sum(-1),
        "sink": weights[..., sink].sum(-1).masked_fill(~seen[..., sink].any(-1), math.nan),
        "distance": (weights * far).sum(-1),
        "log_total": (s.logsumexp(-1) - s.amax(-1)).masked_fill(blank, 0),
        "visible": seen.sum(-1).double(),
    }
    return weights @ v, torch.stack([measured[name] for name in RAW]), weights.sum(-2)


@pytest.mark.parametrize("name", CALLS)
def test_it_says_what_the_equations_say(name):
    q, k, v, task = problem(name)
    assert misfit(q, k, v, task) is None
    exact = problem(name, torch.float64)
    for got, want in zip(forward(q, k, v, task), as_the_equations(*exact), strict=True):
        seen = want.isfinite()
        assert torch.equal(got.isfinite(), seen)
        torch.testing.assert_close(got[seen].double(), want[seen], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", CALLS)
def test_so_does_its_twin(name, monkeypatch):
    twin(monkeypatch)
    q, k, v, task = problem(name)
    assert "twin" in str(misfit(q, k, v, task))
    exact = problem(name, torch.float64)
    for got, want in zip(forward(q, k, v, task), as_the_equations(*exact), strict=True):
        seen = want.isfinite()
        torch.testing.assert_close(got[seen].double(), want[seen], rtol=1e-5, atol=2e-5)


def asked(q, v, k, task: Task, sinks: bool = True) -> list[torch.Tensor]:
    """Gradients in what `forward` returns."""
    draw = torch.Generator().manual_seed(5)
    normal = lambda *shape: torch.randn(shape, generator=draw, dtype=torch.float64).to(q.dtype)  # noqa: E731
    g_raw = normal(len(RAW) if sinks else 1, *q.shape[:3])
    return [normal(*q.shape[:3], v.shape[-1]), g_raw, normal(*q.shape[:2], k.shape[2] if task.received else 0)]


def gradients_of_the_equations(q, k, v, task: Task, wanted: list[torch.Tensor]) -> list[torch.Tensor]:
    """By autograd through the whole matrix, in float64."""
    bias = None if task.score.bias is None else task.score.bias.requires_grad_()
    leaves = [q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), *([] if bias is None else [bias])]
    loss = torch.zeros((), dtype=q.dtype)
    for got, g in zip(as_the_equations(q, k, v, task), wanted, strict=True):
        loss = loss + (torch.where(got.isfinite(), got, 0) * g).sum()
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
    return found if bias is not None else [*found, torch.zeros(0, dtype=q.dtype)]


def returned(q, k, v, task: Task, wanted: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    lse = forward(q, k, v, task)[1][0]
    return backward(*wanted, q, k, v, lse, task)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_its_gradients_are_those_of_the_equations(name, compiled, monkeypatch):
    if not compiled:
        twin(monkeypatch)
    q, k, v, task = problem(name)
    assert (misfit(q, k, v, task) is None) == compiled
    got = returned(q, k, v, task, asked(q, v, k, task))
    q, k, v, task = problem(name, torch.float64)
    want = gradients_of_the_equations(q, k, v, task, asked(q, v, k, task))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=3e-5 * max([1.0, *b.abs().flatten().tolist()]))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6, 1e8, 1e10, -1e10, 1e30, -1e30])
def test_statistics_keep_their_digits_where_logits_are_large(offset, learned, compiled, monkeypatch):
    """Logits that are all far from 0; float32 holds each of them exactly."""
    if not compiled:
        twin(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.zeros(1, 2, 70, 8), torch.zeros(1, 2, 530, 8)
    steps = torch.randint(-6, 1, (1, 2, 70, 530), generator=generator)
    bias = (torch.tensor(offset) + steps * max(1.0, abs(offset) * 2.0**-22)).float()
    logits, mechanism = bias.double(), clearhead.Softmax(bias=bias)
    if learned:
        mechanism = clearhead.Softmax(bias=bias, sinks=torch.tensor([offset, offset]))
        logits = torch.cat([logits, torch.full((1, 2, 70, 1), float(torch.tensor(offset)), dtype=torch.float64)], -1)
    A = mechanism(q, k)
    _, found = A.apply(torch.randn(1, 2, 530, 4, generator=generator), statistics=True)
    W = logits.softmax(-1)[..., :530]
    torch.testing.assert_close(found.max_weight.double(), W.amax(-1), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.entropy.double(), torch.special.entr(W).sum(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logsumexp.double(), logits.logsumexp(-1), rtol=1e-6, atol=1e-5)
    assert torch.equal(found.max_logit, bias.amax(-1))


@pytest.mark.parametrize("which", RAW[:-1])
def test_each_statistic_has_its_gradient(which):
    """Alone, so that no other one hides it."""
    got, want = [], []
    for dtype, found in ((torch.float32, got), (torch.float64, want)):
        q, k, v, task = problem("soft cap", dtype)
        g_out, g_raw, g_received = asked(q, v, k, task)
        g_raw[[i for i, name in enumerate(RAW) if name != which]] = 0
        call = (q, k, v, task, [torch.zeros_like(g_out), g_raw, torch.zeros_like(g_received)])
        found += returned(*call) if dtype == torch.float32 else gradients_of_the_equations(*call)
    assert want[0].abs().max() > 0.05
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "grouped heads", "everything"])
def test_gradients_of_the_output_alone(name):
    q, k, v, task = problem(name)
    task = replace(task, sinks=None, distance=False, received=False)
    got = returned(q, k, v, task, asked(q, v, k, task, sinks=False))
    wanted = asked(*(x.double() for x in (q, v, k)), task, sinks=False)
    statistics = torch.zeros(len(RAW), *wanted[1].shape[1:], dtype=torch.float64)
    statistics[0], received = wanted[1][0], torch.zeros(*q.shape[:2], k.shape[2], dtype=torch.float64)
    exact = problem(name, torch.float64)
    want = gradients_of_the_equations(*exact, [wanted[0], statistics, received])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradients_of_what_is_not_finite_are_its_twins(value, monkeypatch):
    q, k, v, task = problem("a chunk and a bit")
    q[0, 1, 2, 3] = value
    k[1, 2, 520, 4] = value
    v[1, 0, 5, 6] = value
    wanted = asked(q, v, k, task)
    first = returned(q, k, v, task, wanted)
    twin(monkeypatch)
    for compiled, eager in zip(first, returned(q, k, v, task, wanted), strict=True):
        assert torch.equal(compiled.isnan(), eager.isnan())
        finite = eager.isfinite()
        torch.testing.assert_close(compiled[finite], eager[finite], rtol=1e-5, atol=2e-4)


def test_gradients_that_are_not_side_by_side():
    q, k, v, task = problem("grouped heads")
    g_out, g_raw, g_received = asked(q, v, k, task)
    g_out, g_raw, g_received = (x[..., :1].expand(x.shape) for x in (g_out, g_raw, g_received))
    want = returned(q, k, v, task, [x.contiguous() for x in (g_out, g_raw, g_received)])
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    for a, b in zip(returned(*apart, task, [g_out, g_raw, g_received]), want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_write_over_one_another(threads):
    """Shares of keys that are theirs alone, and gradients of their own, summed."""
    q, k, v, task = problem("everything")
    wanted = asked(q, v, k, task)
    want = returned(q, k, v, task, wanted)
    alone = replace(task, score=replace(task.score, bias=None))
    want_alone = returned(q, k, v, alone, wanted)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for call, expected in ((task, want), (alone, want_alone)):
            for a, b in zip(returned(q, k, v, call, wanted), expected, strict=True):
                # sums in another order differ in their last digits; without a write, in the first
                if b.numel():
                    assert (a - b).abs().max() <= 2e-6 * b.abs().max()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["plain", "causal", "everything"])
def test_without_statistics_it_finds_the_same_output(name):
    q, k, v, task = problem(name)
    out, raw, _ = forward(q, k, v, task)
    alone, lse, received = forward(q, k, v, replace(task, sinks=None, distance=False, received=False))
    assert torch.equal(alone, out)
    assert torch.equal(lse, raw[:1])
    assert received.shape[-1] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_where_it_was_brought(value, monkeypatch):
    """Both twins: in the rows of that query, or of the head of that key, and nowhere else."""
    q, k, v, task = problem("a chunk and a bit")
    q[0, 1, 2, 3] = value
    k[1, 2, 520, 4] = value
    first = forward(q, k, v, task)
    twin(monkeypatch)
    second = forward(q, k, v, task)
    for compiled, eager in zip(first, second, strict=True):
        assert torch.equal(compiled.isnan(), eager.isnan())
        finite = eager.isfinite()
        torch.testing.assert_close(compiled[finite], eager[finite], rtol=1e-5, atol=2e-5)
    assert first[0][0, 1, 2].isnan().all()
    assert not first[0][0, 0].isnan().any()


@pytest.mark.parametrize("name", ["plain", "causal", "everything"])
def test_what_is_told_of_rows_is_what_its_twin_tells(name, monkeypatch):
    _, raw, received = forward(*problem(name))
    raw[2, 0, 0, 0], raw[0, 1, 2, 3] = math.nan, math.inf
    told = Statistics.of(raw, received, distance=True)
    twin(monkeypatch)
    expected = Statistics.of(raw, received, distance=True)
    for field in fields(Statistics):
        got, want = getattr(told, field.name), getattr(expected, field.name)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, equal_nan=True)
        assert got.dtype == want.dtype
    assert Statistics.of(raw, None, distance=False).distance is None


def test_what_is_told_keeps_its_gradient():
    _, raw, _ = forward(*problem("plain"))
    raw.requires_grad_()
    Statistics.of(raw, None, distance=True).max_weight.sum().backward()
    assert raw.grad is not None


@pytest.mark.parametrize("compiles", [True, False])
def test_no_entropy_is_negative(compiles, monkeypatch):
    if not compiles:
        twin(monkeypatch)
    q, k, v, task = problem("window")
    raw = forward(q * 40, k, v, task)[1]
    entropy = raw[RAW.index("entropy")]
    assert entropy.min() == 0
    assert (entropy < 1e-6).float().mean() > 0.5


def test_collapsed_rows_keep_their_digits():
    """Where logits are large and one key has nearly all the weight, as alarms must see it."""
    q, k, v, task = problem("a chunk and a bit")
    q, exact = q * 30, [x.double() for x in (q * 30, k, v)]
    _, got, _ = forward(q, k, v, task)
    _, want, _ = as_the_equations(*exact, task)
    entropy = RAW.index("entropy")
    assert want[entropy].min() < 1e-3
    torch.testing.assert_close(got[entropy].double(), want[entropy], rtol=1e-3, atol=1e-6)


def test_rows_that_are_not_side_by_side():
    q, k, v, task = problem("plain")
    want = forward(q, k, v, task)
    apart = [x.mT.contiguous().mT for x in (q, k)]
    heads_last = v.transpose(1, 2).contiguous().transpose(1, 2)
    for got, expected in zip(forward(*apart, heads_last, task), want, strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)
    one = forward(q[:, :, :1].expand(-1, -1, 90, -1), k, v, task)[0]
    torch.testing.assert_close(one[:, :, 5], one[:, :, 80])


# bfloat16

units = pytest.mark.skipif(not fused._units(), reason="no matrix units on this machine")


@units
@pytest.mark.parametrize("name", CALLS)
def test_in_bfloat16_only_weights_and_outputs_are_rounded(name):
    """What is told of rows is told of logits that nobody rounded."""
    given = problem(name, torch.bfloat16)
    assert fused.halves(*given[:3]) is None
    out, raw, received = forward(*given)
    exact = [x.double() for x in given[:3]]
    task = given[3]
    if (bias := task.score.bias) is not None:
        task = replace(task, score=replace(task.score, bias=bias.double()))
    want, want_raw, want_received = as_the_equations(*exact, task)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), want, rtol=1e-2, atol=5e-3)
    seen = want_raw.isfinite()
    assert torch.equal(raw.isfinite(), seen)
    torch.testing.assert_close(raw[seen].double(), want_raw[seen], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(received.double(), want_received, rtol=1e-5, atol=2e-5)


@units
@pytest.mark.parametrize("deviation", [1, 4])
def test_in_bfloat16_it_errs_no_more_than_fused_attention(deviation):
    draw = torch.Generator().manual_seed(deviation)
    q, k, v = (torch.randn(1, 2, 700, 64, generator=draw).bfloat16() for _ in range(3))
    q = q * deviation
    want = scaled_dot_product_attention(q.double(), k.double(), v.double())
    see = Visible(everything(), 700, 700, q.device)
    out, *_ = forward(q, k, v, Task(see, Score(1 / 8)))
    error, theirs = ((x.double() - want).square().mean().sqrt() for x in (out, scaled_dot_product_attention(q, k, v)))
    assert error <= 1.1 * theirs


@units
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_in_bfloat16_what_is_not_finite_stays_where_it_was_brought(value):
    q, k, v, task = problem("a chunk and a bit", torch.bfloat16)
    q[0, 1, 2, 3] = value
    v[1, 0, 529, 6] = value
    out, raw, _ = forward(q, k, v, task)
    wide, wide_raw, _ = forward(q.float(), k.float(), v.float(), task)
    assert torch.equal(out.isfinite(), wide.isfinite())
    assert torch.equal(raw.isfinite(), wide_raw.isfinite())
    assert not out[0, 0].isnan().any()


@units
def test_what_matrix_units_do_not_take_is_computed_in_float32():
    q, k, v, task = problem("plain", torch.bfloat16)
    assert "odd" in str(fused.halves(q[..., 1:], k[..., 1:], v))
    assert "not bfloat16" in str(fused.halves(q, k.float(), v))
    got = forward(q[..., 1:], k[..., 1:], v, task)
    want = forward(q[..., 1:].float(), k[..., 1:].float(), v.float(), task)
    assert torch.equal(got[0], want[0].bfloat16())
    assert torch.equal(got[1][0], want[1][0])


@units
def test_how_a_call_is_computed_is_said_in_words(monkeypatch):
    q, k, v, task = problem("plain", torch.bfloat16)
    assert "bfloat16" in how(q, k, v, task)
    assert "odd" in how(q[..., 1:], k[..., 1:], v, task)
    assert how(q.float(), k.float(), v.float(), task) == "compiled"
    assert "random" in how(q, k, v, replace(task, dropout=0.1))
    twin(monkeypatch)
    assert "not compiled" in how(q, k, v, task)


def test_doubles_and_dropout_are_its_twins():
    q, k, v, task = problem("plain")
    assert "float32" in str(misfit(q.double(), k, v, task))
    assert "random" in str(misfit(q, k, v, replace(task, dropout=0.1)))


# the compiler


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CLEARHEAD_COMPILE", raising=False)
    file = tmp_path / "two.c"
    file.write_text("int two(void) { return 2; }\n")
    compiler.compiled.cache_clear()
    compiler._for_this_process.cache_clear()
    yield file
    compiler.compiled.cache_clear()
    compiler._for_this_process.cache_clear()


def test_libraries_are_kept(source, tmp_path):
    library = compiler.compiled(source)
    assert isinstance(library, ctypes.CDLL)
    assert library.two() == 2
    (made,) = (tmp_path / "cache").rglob("*.so")
    written = made.stat().st_mtime_ns
    compiler.compiled.cache_clear()
    compiler.compiled(source)
    assert made.stat().st_mtime_ns == written
    assert list((tmp_path / "cache").rglob("*")) == [made.parent, made]


def test_a_folder_where_others_may_write_is_not_used(source, tmp_path):
    folder = tmp_path / "cache" / "clearhead"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert compiler.compiled(source).two() == 2
    assert not list(folder.iterdir())


def test_why_nothing_is_compiled(source, monkeypatch, caplog):
    monkeypatch.setenv("CLEARHEAD_COMPILE", "0")
    assert "CLEARHEAD_COMPILE" in compiler.compiled(source)
    monkeypatch.delenv("CLEARHEAD_COMPILE")
    compiler.compiled.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler" in compiler.compiled(source)
    assert not caplog.records
    compiler.compiled.cache_clear()
    monkeypatch.delenv("CC")
    source.write_text("int two(void) { return 2 }\n")
    with caplog.at_level(logging.WARNING):
        assert "error" in compiler.compiled(source)
    assert "two.c" in caplog.text


def test_what_is_included_is_part_of_the_source(source):
    number, words = source.with_name("number.h"), source.with_name("words.h")
    source.write_text('#include <math.h>\n#include "number.h"\nint two(void) { return NUMBER; }\n')
    number.write_text('#include "words.h"\n#define NUMBER 2\n')
    words.write_text("\n")
    assert compiler.compiled(source).two() == 2
    assert compiler.parts(source) == [source, number, words]
    number.write_text("#define NUMBER 3\n")
    compiler.compiled.cache_clear()
    assert compiler.compiled(source).two() == 3


def test_every_part_of_the_source_comes_with_the_package():
    package = Path(clearhead.__file__).parent
    patterns = tomllib.loads((package.parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {file for pattern in patterns["clearhead"] for file in package.glob(pattern)}
    parts = compiler.parts(Path(fused.__file__).with_name("fused.c"))
    assert len(parts) > 1
    assert set(parts) <= shipped
