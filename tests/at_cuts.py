"""Attention around the sizes at which a kernel cuts its work, as the kernel says: what is drawn, and the laws.

Of many heads the reference computes some, in float64 and with all their pairs; no result of the others may be NaN.
"""

import importlib
import math
import random
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import torch

import clearhead as ch
from clearhead.kernels import blocks, fused, stream
from clearhead.kernels.tiles import Cuts
from reference import Problem
from test_flex import by_blocks
from test_flex import forced as flex_forced
from test_laws import learned, make
from test_varlen import one_by_one

choosing, sdpa, flex, packed = (
    importlib.import_module(f"clearhead.kernels.{name}") for name in ("choose", "sdpa", "flex", "packed")
)
ALL = frozenset({"statistics", "sinks", "softcap", "mask", "lengths", "bias", "learned bias", "values", "queries"})
"""What a call may ask for: `values` of another width, `queries` of another number than keys."""
NUMBER = {"compiled": 24, "twin": 12, "sdpa": 12, "blocks": 24, "flex": 9, "packed": 9}
"""Calls in every run."""
SHORT = 17
WIDTH = 8


@dataclass(frozen=True)
class Kernel:
    """A kernel to hold to the laws: its sizes, what it takes, and a context in which it computes every call."""

    cuts: Cuts
    takes: frozenset
    forced: object
    patterns: tuple = ("everything", "window", "causal", "documents", "stride", "two runs")
    dtypes: tuple = (torch.float32,)
    pairs: int = 1 << 22  # of all heads, at most, in every run


@contextmanager
def chosen(name):
    with patch.object(choosing, "KERNELS", ((name, lambda call: None),)):
        yield


@contextmanager
def compiled():
    with chosen("stream"):
        assert fused.misfit() is None, fused.misfit()
        yield


@contextmanager
def twin():
    with chosen("stream"), patch.object(fused, "_library", lambda: "not compiled: asked for the twin"):
        yield


@contextmanager
def packed_one_by_one():
    def attend(q, k, v, see, score, dropout):
        return packed.packed(q, k, v, see, score, dropout, attend=one_by_one)

    with chosen("packed"), patch.dict(choosing.OUTPUT_ALONE, packed=attend):
        yield


KERNELS = {
    "compiled": lambda: Kernel(
        fused.cuts(), ALL, compiled, dtypes=(torch.float32, torch.float32, torch.bfloat16, torch.float16)
    ),
    "twin": lambda: Kernel(stream.cuts(), ALL, twin, dtypes=(torch.float32, torch.float64), pairs=1 << 20),
    "sdpa": lambda: Kernel(
        sdpa.cuts(),
        ALL - {"statistics", "sinks", "softcap"},
        lambda: chosen("sdpa"),
        dtypes=(torch.float32, torch.bfloat16),
        pairs=1 << 20,
    ),
    "blocks": lambda: Kernel(
        blocks.cuts(),
        frozenset({"mask", "lengths", "bias", "queries"}),
        lambda: chosen("blocks"),
        ("causal", "window", "documents", "stride", "two runs"),
        pairs=1 << 20,
    ),
    "flex": lambda: Kernel(
        flex.cuts(), ALL - {"statistics"}, lambda: flex_forced(by_blocks), dtypes=(torch.float64,), pairs=1 << 18
    ),
    "packed": lambda: Kernel(
        Cuts((), (), ()), frozenset(), packed_one_by_one, ("documents",), (torch.float64,), pairs=1 << 20
    ),
}


def near(cuts, most):
    """Sizes around multiples of cuts, up to `most`."""
    found = {times * cut + step for cut in cuts for times in (1, 2) for step in (-1, 0, 1)}
    return sorted(x for x in found if 0 < x <= most) or [x for x in (SHORT, 2 * SHORT) if x <= most] or [1]


@dataclass
class Drawn(Problem):
    """A problem around a kernel's cuts."""

    threads: int = 1
    asked: frozenset = frozenset()
    kv: list = field(default_factory=list)  # key heads that the reference computes

    def some_heads(self) -> "Drawn":
        """The problem of the heads that the reference computes."""
        heads, kv = self.heads(), torch.tensor(self.kv)
        call = dict(self.call)
        if "mask" in call and call["mask"].dim() == 4 and call["mask"].shape[1] > 1:
            call["mask"] = call["mask"][:, heads]
        bias = self.bias
        if bias is not None and (self.by or bias.shape[1] > 1):
            bias = bias[heads] if self.by else bias[:, heads]
        sinks = None if self.sinks is None else self.sinks[heads]
        q, k, v = self.q[:, heads], self.k[:, kv], self.v[:, kv]
        return replace(self, q=q, k=k, v=v, call=call, bias=bias, sinks=sinks)

    def heads(self) -> torch.Tensor:
        group = self.q.shape[1] // self.k.shape[1]
        return (torch.tensor(self.kv)[:, None] * group + torch.arange(group)).flatten()


def cases(kernel, number, wider=0):
    """So many calls, the same each time, of up to `kernel.pairs` times 2 ** `wider` pairs, of each kind in turn."""
    kinds = (_many_heads, _long, _square) if "queries" in kernel.takes else (_many_heads, _square)
    for i in range(number):
        yield _drawn(random.Random(i), kernel, kinds[i % len(kinds)], kernel.pairs << wider)


def _drawn(chance, kernel, kind, most):
    some = lambda x: chance.choice(list(x))  # noqa: E731
    wants = lambda what, odds=3: what in kernel.takes and chance.randrange(odds) == 0  # noqa: E731
    generator = torch.Generator().manual_seed(chance.randrange(1 << 31))
    (b, kv, group, nq, nk), dtype, width = kind(some, kernel, most), some(kernel.dtypes), some((4, WIDTH))
    h, value_width = kv * group, some((1, 3, 11)) if wants("values") else width

    def rand(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    q, k, v = rand(b, h, nq, width), rand(b, kv, nk, width), rand(b, kv, nk, value_width)
    pattern, sees = _pattern(some, kernel.patterns[:2] if kind is _many_heads else kernel.patterns, kernel, nq, nk)
    call = _lengths(some, kernel, b, nq, nk, apart=kind is _many_heads) if "lengths" in kernel.takes else {}
    if wants("mask"):
        shape = some([(b, 1, 1, nk), (1, h, 1, nk), (nq, nk)])
        call["mask"] = torch.rand(shape, generator=generator) < 0.7
    bias, by = None, None
    if wants("bias", 4):
        keys_alone = isinstance(call.get("lengths"), tuple)  # then nobody knows how far they are
        by = None if keys_alone else some([None, "relative"]) if "learned bias" in kernel.takes else None
        bias = rand(h, 9) if by else rand(*some([(1, h, 1, nk), (b, 1, nq, 1)]))
    softcap = some([2.0, 5.0]) if wants("softcap") else None
    sinks = rand(h) if wants("sinks") else None
    options = {"threads": some([1, 2, 4]), "asked": kernel.takes, "kv": sorted({0, kv - 1, some(range(kv))})}
    return Drawn(q, k, v, pattern, sees, call, None, softcap, bias, by, sinks, **options)


def _many_heads(some, kernel, most):
    """Samples whose heads hold about as many pairs as a cut."""
    sizes = [n for n in near((*kernel.cuts.rows, *kernel.cuts.keys), most) if 8 * n * n <= most]
    n = some(sizes or [SHORT])
    heads = {times * (p // (n * n)) + 1 for p in kernel.cuts.pairs for times in (1, 2)}
    h = some([x for x in heads if 2 < x <= most // (2 * n * n)] or [2, 3])
    group = some([x for x in (1, 1, 2, 3) if h % x == 0])
    return 2, h // group, group, n, n


def _square(some, kernel, most):
    """Few heads, of as many queries as keys."""
    n = some([n for n in near((*kernel.cuts.rows, *kernel.cuts.keys), most) if 4 * n * n <= most] or [SHORT])
    return some((1, 2)), some((1, 2)), some((1, 1, 2)), n, n


def _long(some, kernel, most):
    """A side that lies at a cut even if the other one must be short for it."""
    rows, keys = near(kernel.cuts.rows, most // SHORT), near(kernel.cuts.keys, most // SHORT)
    first = some([True, False, False])
    one = some(rows if first else keys)
    two = some([x for x in (keys if first else rows) if 2 * x * one <= most] or [SHORT])
    return some((1, 2)) if 4 * one * two <= most else 1, 1, 2, *((one, two) if first else (two, one))


def _pattern(some, names, kernel, nq, nk):
    """A pattern whose own boundaries lie at the kernel's, and its definition."""
    name, at = some(names), some(near((*kernel.cuts.keys, *kernel.cuts.rows), max(2, nk // 2)))
    if name == "window":
        return ch.window(at, 2), lambda q, k: (q - k <= at) & (k - q <= 2)
    if name == "two runs":
        seen = lambda q, k: (k <= q) & ((q - k <= SHORT) | (k >= 0) & (k < 2) | (q >= 0) & (q < 2))  # noqa: E731
        return ch.causal() & (ch.window(SHORT) | ch.first(2)), seen
    if name == "stride":
        return ch.causal() & ch.stride(3), lambda q, k: (k <= q) & ((q - k) % 3 == 0)
    if name == "documents":
        ids = torch.arange(nk) // at
        ids[nk // 2 : nk // 2 + 2] = -1
        held = torch.nn.functional.pad(ids, (nq, nq), value=-1)
        return ch.documents(ids), lambda q, k: (held[q + nq] == held[k + nq]) & (held[q + nq] >= 0)
    return {
        "everything": (ch.everything(), lambda q, k: (q == q) & (k == k)),
        "causal": (ch.causal(), lambda q, k: k <= q),
    }[name]


def _lengths(some, kernel, b, nq, nk, apart):
    """Lengths of which some are a cut's, or a token beside it; `apart`: never alike."""

    def lens(n, cuts):
        each = [some([n, n - 1, 3 * n // 4, *near(cuts, n), 1, 0]) for _ in range(b)]
        return torch.tensor(
            [n, *[some([n - n // 4, n - n // 5, some(near(cuts, n))]) for _ in each[1:]]] if apart else each
        )

    kind = some(["both", "both", "both", "keys", "pair"] + ([] if apart else ["none"]))
    if kind == "both" and nq == nk:
        return {"lengths": lens(nk, kernel.cuts.keys)}
    if kind == "keys":
        return {"lengths": (None, lens(nk, kernel.cuts.keys))}
    return {"lengths": (lens(nq, kernel.cuts.rows), lens(nk, kernel.cuts.keys))} if kind == "pair" else {}


# the laws


def hold(name, more=1, wider=0):
    """All laws of a kernel, in `more` times as many calls as in every run, of 2 ** `wider` times as many pairs."""
    kernel = KERNELS[name]()
    for problem in cases(kernel, NUMBER[name] * more, wider):
        keep_the_laws(problem, kernel)


NAMES = ("logsumexp", "max_logit", "max_weight", "entropy", "normalized_entropy")


@contextmanager
def on_threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same(what, got, want, dtype, terms=1):
    """Equal up to the rounding of `dtype`, of sums of a number of terms."""
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape, what
    assert torch.equal(got.isnan(), want.isnan()), what
    if want.numel():
        size = max(1.0, float(want.nan_to_num(0, 0, 0).abs().max()))
        error = float((got - want).nan_to_num(0, 0, 0).abs().max())
        assert error <= terms**0.5 * torch.finfo(dtype).eps * 16 * size, f"{what}: {error} of {size}"


def keep_the_laws(problem, kernel):
    """Outputs, gradients, statistics and what keys receive are those of the reference, on the problem's threads."""
    weights = _weights(problem)
    with ExitStack() as stack:
        stack.enter_context(kernel.forced())
        stack.enter_context(on_threads(problem.threads))
        got, grads = _answers(problem, weights)
    small, heads = problem.some_heads(), problem.heads()
    want, wanted = _as_the_reference(small, {name: x[:, heads] for name, x in weights.items()})
    dtype, wide = problem.q.dtype, torch.promote_types(problem.q.dtype, torch.float32)
    terms = max(problem.q.shape[2], problem.k.shape[2])
    several = (lambda times: 1) if dtype.itemsize == 2 else (lambda times: times * terms)
    for name, x in got.items():
        assert name in NAMES or not x.isnan().any(), name
        if name == "visible":
            assert torch.equal(x[:, heads], want[name])
        else:
            same(
                name,
                x[:, heads],
                want[name],
                dtype if name == "output" else wide,
                several(1) if name == "output" else 8 * terms,
            )
    if "received" in got:
        rows = small.visible().any(-1).sum(-1)
        assert torch.equal(got["received"].sum(-1).round().long()[:, heads], rows) or problem.sinks is not None
    for name, grad in grads.items():
        assert not grad.isnan().any(), f"gradient of {name}"
        if (part := _of_heads(problem, name, grad)) is not None:
            same(f"gradient of {name}", part, wanted[name], dtype, several(64))


def _of_heads(problem, name, x):
    """The part of an input's gradient that the heads of the reference make alone; None: others add to all of it."""
    heads = problem.heads()
    if name in ("k", "v"):
        return x[:, problem.kv]
    if name == "sinks" or (name == "bias" and problem.by):
        return x[heads]
    return x[:, heads] if x.shape[1] == problem.q.shape[1] else None


def _weights(problem):
    """What each number weighs in the sum whose gradient is taken, for all heads."""
    generator = torch.Generator().manual_seed(1)
    (b, h, nq, _), (nk, dv) = problem.q.shape, problem.v.shape[2:]
    shapes = {"output": (b, h, nq, dv), "received": (b, h, nk), **dict.fromkeys(NAMES, (b, h, nq))}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def _answers(problem, weights):
    """What the library answers, and the gradients of the sum of it all."""
    inputs = {name: getattr(problem, name).clone().requires_grad_() for name in "qkv"}
    inputs["bias"], inputs["sinks"] = learned(problem) if "learned bias" in problem.asked else (None, None)
    if inputs["bias"] is None and problem.bias is not None:
        problem = replace(problem, bias=problem.bias.detach())
    A = make(problem, inputs["q"], inputs["k"], inputs["bias"], inputs["sinks"])
    got = {"output": A @ inputs["v"]}
    if "statistics" in problem.asked:
        told, stats = A.apply(inputs["v"], statistics=True)
        same("output with statistics", told, got["output"], told.dtype)
        whole = A.statistics()
        got |= {name: getattr(stats, name) for name in (*NAMES, "visible")} | {"received": whole.received}
        for name in NAMES:
            same(f"{name} without an output", getattr(whole, name), getattr(stats, name), torch.float32)
    return got, _gradients(got, weights, {name: x for name, x in inputs.items() if x is not None})


def _as_the_reference(problem, weights):
    """The same of the heads of `problem`, from all their weights in float64."""
    q, k, v = (x.requires_grad_() for x in problem.clean64())
    bias, sinks = learned(problem, torch.float64)
    logits = problem.logits(q, k, bias)
    W = problem.weights(logits, sinks)
    want = {"output": W @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)}
    if "statistics" in problem.asked:
        want |= _told(problem, logits, W, sinks)
        want |= {"received": W.sum(-2), "visible": problem.visible().sum(-1)}
    inputs = {"q": q, "k": k, "v": v, "bias": bias, "sinks": sinks}
    return want, _gradients(want, weights, {name: x for name, x in inputs.items() if x is not None})


def _told(problem, s, W, sinks):
    """The statistics of rows, and NaN in those that see nothing, through which no gradient goes."""
    seen = problem.visible()
    count = seen.sum(-1)
    blank = count == 0
    s = s.masked_fill(blank[..., None], 0)
    whole = s if sinks is None else torch.cat([s, sinks[:, None, None].expand(*s.shape[:3], 1)], -1)
    lse = whole.logsumexp(-1)
    entropy = (W * (lse[..., None] - s.masked_fill(~seen, 0))).sum(-1)
    told = {"logsumexp": lse, "max_logit": s.amax(-1), "max_weight": W.amax(-1), "entropy": entropy}
    told = {name: x.masked_fill(blank, math.nan) for name, x in told.items()}
    widest = count.clamp(min=2).double().log()
    return told | {"normalized_entropy": (entropy / widest).masked_fill(count < 2, math.nan)}


def _gradients(answers, weights, inputs):
    """Those of the weighed sum of all answers, where they are numbers."""
    total = sum((answers[name].double().nan_to_num(0) * weights[name]).sum() for name in answers if name in weights)
    found = torch.autograd.grad(total, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(inputs, found, strict=True))
