"""The laws of an AttentionMap (docs/design.md), for every mechanism, kernel, pattern, dtype and shape.

The reference is float64 and holds its matrix (tests/reference.py). The tolerance in each dtype is a multiple of what
torch's plain fused kernel reaches there on inputs of the same size.
"""

import importlib
import itertools
import math
from contextlib import contextmanager
from unittest.mock import patch

import torch
from hypothesis import given
from hypothesis import strategies as st

import clearhead as ch
from peak import Peak
from reference import Problem, statistics

IDS = [0] * 6 + [3] * 1 + [-1] * 2 + [1] * 9 + [3] * 4 + [2] * 22
EDGES = torch.randint(44, (2, 300), generator=torch.Generator().manual_seed(1))


def by_table(table):
    """A function of two positions from one of two numbers, made once for all positions that a problem may have."""
    far = 90  # padded queries lie up to 80 positions on
    seen = torch.tensor([[bool(table(q, k)) for k in range(-far, far)] for q in range(-far, far)])
    return lambda q, k: seen[q + far, k + far]


def in_one_document(q, k):
    return min(q, k) >= 0 and max(q, k) < len(IDS) and IDS[q] == IDS[k] >= 0


PAIRS = set(map(tuple, EDGES.T.tolist()))


def on_an_edge(q, k):
    return (0 <= q < 44 and q == k) or (k, q) in PAIRS


def drawn(q, k, per_row=2, seed=5, block=3):
    """Is `k` in a block that the block of `q` draws from its past? By the definition of `scattered`."""

    def mixed(x):
        x &= 0xFFFFFFFF
        for _ in range(2):
            x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
        return (x >> 16) ^ x

    row, among = q // block, q // block + 1
    for part in range(per_row):
        lo, hi = part * among // per_row, (part + 1) * among // per_row
        if hi > lo and k // block == lo + mixed(mixed(row + (seed * 0x1F123BB5 & 0xFFFFFFFF)) + part) % (hi - lo):
            return True
    return False


PATTERNS = {
    "everything": (ch.everything(), lambda q, k: (q == q) & (k == k)),
    "causal": (ch.causal(), lambda q, k: k <= q),
    "window": (ch.window(3), lambda q, k: abs(q - k) <= 3),
    "window one-sided": (ch.window(4, 0), lambda q, k: (q - k >= 0) & (q - k <= 4)),
    "window ahead": (ch.window(0, 2), lambda q, k: (k - q >= 0) & (k - q <= 2)),
    "chunks": (ch.chunks(5), lambda q, k: q // 5 == k // 5),
    "first": (ch.first(2), lambda q, k: (q >= 0) & (q < 2) | (k >= 0) & (k < 2)),
    "local and global": (
        ch.causal() & (ch.window(2) | ch.first(1)),
        lambda q, k: (k <= q) & ((abs(q - k) <= 2) | (k == 0) | (q == 0)),
    ),
    "chunks and neighbours": (ch.chunks(3, 1), lambda q, k: abs(q // 3 - k // 3) <= 1),
    "stride": (ch.stride(3), lambda q, k: (q - k) % 3 == 0),
    "prefix LM": (ch.causal() | ch.prefix(4), lambda q, k: (k <= q) | (k >= 0) & (k < 4)),
    "scattered": (ch.causal() & ch.scattered(2, 5, block=3), by_table(lambda q, k: k <= q and drawn(q, k))),
    "longformer": (
        ch.longformer(6, [0, 9]),
        lambda q, k: (abs(q - k) <= 3) | (q == 0) | (k == 0) | (q == 9) | (k == 9),
    ),
    "sparse transformer": (
        ch.sparse_transformer(5, "fixed", 2),
        lambda q, k: (k <= q) & ((q // 5 == k // 5) | (k % 5 >= 3)),
    ),
    "documents": (ch.documents(torch.tensor(IDS)), by_table(in_one_document)),
    "causal documents": (
        ch.causal() & ch.documents(torch.tensor(IDS)),
        by_table(lambda q, k: k <= q and in_one_document(q, k)),
    ),
    "graph": (ch.graph(EDGES), by_table(on_an_edge)),
    "outside": (~ch.window(2) & ch.causal(), lambda q, k: k < q - 2),
}
BY_DISTANCE = {
    "alibi": ch.ALiBi,
    "t5": lambda heads: ch.T5Bias(heads, 8, 12),
    "relative": lambda heads: ch.RelativeBias(heads, 4),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@st.composite
def problems(draw, dtypes=DTYPES, padding=True):
    """A random call: shapes, pattern, and any of mask, lengths, positions, soft cap, scale and bias."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def rand(*shape, dtype=torch.float64):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    dtype = draw(st.sampled_from(dtypes))
    b, kv, group = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    nq = draw(st.sampled_from([1, 2, 5, 17, 33]))
    same = draw(st.booleans())
    nk = nq if same else draw(st.sampled_from([1, 3, 16, 40]))
    d, dv = draw(st.sampled_from([1, 4, 8])), draw(st.sampled_from([1, 4, 8]))
    h = kv * group
    q, k, v = rand(b, h, nq, d, dtype=dtype), rand(b, kv, nk, d, dtype=dtype), rand(b, kv, nk, dv, dtype=dtype)
    pattern, sees = PATTERNS[draw(st.sampled_from(sorted(PATTERNS)))]
    call: dict = {}

    def lens(n):
        return torch.randint(0, n + 1, (b,), generator=generator)

    if padding:
        kind = draw(st.sampled_from(["none", "both", "keys", "pair"]))
        if kind == "both" and same:
            call["lengths"] = lens(nq)
        elif kind == "keys":
            call["lengths"] = (None, lens(nk))
        elif kind == "pair":
            call["lengths"] = (lens(nq), lens(nk))
    if draw(st.booleans()):
        shape = [(b, 1, 1, nk), (1, h, nq, nk), (nq, nk), (b, h, nq, nk)][draw(st.integers(0, 3))]
        call["mask"] = torch.rand(*shape, generator=generator) < 0.7
    if draw(st.integers(0, 3)) == 0:
        call["q_positions"] = torch.randint(-3, 12, (b, 1, nq), generator=generator)
        call["k_positions"] = torch.randint(-3, 12, (b, 1, nk), generator=generator)
    bias, by = None, draw(st.sampled_from([None, None, None, "tensor", "tensor", *BY_DISTANCE]))
    if by == "tensor":
        by, bias = None, rand(*[(1, h, nq, nk), (nq, nk), (b, 1, 1, nk)][draw(st.integers(0, 2))], dtype=dtype)
        if draw(st.booleans()):
            bias = bias.masked_fill(torch.rand(bias.shape, generator=generator) < 0.2, -math.inf)
    if by == "t5" or by == "relative":
        bias = rand(*[(8, h), (h, 9)][by == "relative"], dtype=draw(st.sampled_from([dtype, torch.float32])))
    if by and isinstance(call.get("lengths"), tuple) and call["lengths"][0] is None and "q_positions" not in call:
        by = bias = None  # keys alone have lengths: no one knows how far they are
    softcap = draw(st.sampled_from([None, None, 2.0]))
    scale = draw(st.sampled_from([None, None, 0.7]))
    sinks = rand(h, dtype=draw(st.sampled_from([dtype, torch.float32]))) if draw(st.integers(0, 2)) == 0 else None
    return Problem(q, k, v, pattern, sees, call, scale, softcap, bias, by, sinks)


def by_distance(kind, heads, weight):
    """A bias object whose parameter is the tensor `weight` itself, so that gradients come to that."""
    made = BY_DISTANCE[kind](heads)
    if weight is not None:
        del made.weight
        made.weight = weight
    return made


def make(problem, q=None, k=None, bias=None, sinks=None):
    bias, sinks = problem.bias if bias is None else bias, problem.sinks if sinks is None else sinks
    if problem.by:
        bias = by_distance(problem.by, problem.q.shape[1], bias)
    mechanism = ch.Softmax(problem.pattern, problem.scale, problem.softcap, bias, sinks)
    return mechanism(problem.q if q is None else q, problem.k if k is None else k, **problem.call)


@contextmanager
def _forced(reference):
    """Within the block, the reference kernel runs whatever the call, if asked for."""
    module = importlib.import_module("clearhead.kernels.choose")
    kernels = (("stream", lambda call: None),) if reference else module.KERNELS
    with patch.object(module, "KERNELS", kernels):
        yield


def close(got, want, dtype, factor=4.0):
    """`got` equals `want` (float64) within `factor` times what the plain fused kernel reaches in `dtype`."""
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    if want.numel():
        size = max(1.0, float(want.nan_to_num(0, 0, 0).abs().max()))
        error = float((got - want).nan_to_num(0, 0, 0).abs().max())
        assert error <= factor * fused_error(dtype) * size


ERRORS: dict[torch.dtype, float] = {}


def fused_error(dtype):
    """The worst error of scaled_dot_product_attention against float64, relative to the largest output, by trial."""
    if dtype not in ERRORS:
        generator, worst = torch.Generator().manual_seed(0), 0.0
        for n in (2, 17, 40):
            q, k, v = (torch.randn(3, 4, n, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
            got = torch.nn.functional.scaled_dot_product_attention(q, k, v).double()
            want = torch.softmax(q.double() @ k.double().mT * 8**-0.5, -1) @ v.double()
            worst = max(worst, float((got - want).abs().max()))
        ERRORS[dtype] = worst
    return ERRORS[dtype]


def learned(problem, dtype=None):
    """Copies of the bias and the sinks that are to learn, in a dtype if not in their own."""
    own = (None if x is None else x.detach().clone() for x in (problem.bias, problem.sinks))
    return [None if x is None else x.to(dtype or x.dtype).requires_grad_() for x in own]


def leaves(problem):
    """All of float64 that gradients come to: q, k, v, bias and sinks."""
    return *(x.clone().requires_grad_() for x in problem.clean64()), *learned(problem, torch.float64)


# 1. A @ v, A.T @ y and single rows are the matrix's


@given(problems())
def test_products_are_those_of_the_matrix(problem):
    for forced in (False, True):
        with _forced(forced):
            A = make(problem)
            want = problem.output(*problem.clean64(), problem.bias if problem.bias is None else problem.bias.double())
            close(A @ problem.v, want, problem.q.dtype)
    q, k, _ = problem.clean64()
    W = problem.weights(problem.logits(q, k, None if problem.bias is None else problem.bias.double()))
    close(A.weights(), W, problem.q.dtype)
    y = torch.randn(*problem.q.shape[:3], 3, dtype=torch.float64).to(problem.q.dtype)
    close(A.T @ y, W.mT @ y.double(), problem.q.dtype, factor=8)
    n = problem.q.shape[2]
    for i in {0, n // 2, n - 1, -1}:
        close(A.weights(i), W[..., i, :], problem.q.dtype)
    rows = [n - 1, 0]
    close(A.weights(rows), W[..., rows, :], problem.q.dtype)


# 2. linear in v, and adjoint


@given(problems(dtypes=(torch.float64,)))
def test_linear_and_adjoint(problem):
    A, v = make(problem), problem.v
    w, y = torch.randn_like(v), torch.randn(*problem.q.shape[:3], v.shape[-1], dtype=v.dtype)
    close(A @ (2 * v - 3 * w), 2 * (A @ v) - 3 * (A @ w), v.dtype, factor=100)
    h, kv = problem.q.shape[1], v.shape[1]
    back = (A.T @ y).unflatten(1, (kv, h // kv)).sum(2)  # heads that share a key add up
    close(((A @ v) * y).sum(), (v * back).sum(), v.dtype, factor=1000)


# 3. rows sum to 1; a row that sees nothing is exactly zero


@given(problems())
def test_rows_sum_to_one_or_are_nothing(problem):
    q, k, v = (x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v))
    A, seen = make(problem, q=q, k=k), problem.visible().any(-1)
    q64, k64, _ = problem.clean64()
    s = problem.logits(q64, k64, None if problem.bias is None else problem.bias.double())
    mass = torch.zeros_like(seen, dtype=torch.float64)
    if problem.sinks is not None:  # of the learned sink
        z = problem.sinks.double()[:, None].expand(mass.shape)
        mass = (z - torch.cat([s, z[..., None]], -1).logsumexp(-1)).exp() * seen
    close(A.weights().sum(-1) + mass, seen.double(), problem.q.dtype, factor=16)
    for forced in (False, True):
        with _forced(forced):
            out = make(problem, q=q, k=k) @ v
            assert not out.isnan().any()
            assert (out[~seen] == 0).all()
            grads = torch.autograd.grad(out.sum() if not seen.all() else out.square().sum(), (q, k, v))
            assert all(g.isfinite().all() for g in grads)
            assert (grads[0][~seen] == 0).all()
            if problem.sinks is not None:
                sinks = problem.sinks.clone().requires_grad_()
                A = make(problem, q=q, k=k, sinks=sinks)
                out, stats = A.apply(v, statistics=True)
                blind = torch.stack([out.float().sum(-1), stats.entropy, stats.logsumexp, stats.sink])[:, ~seen]
                (grad,) = torch.autograd.grad(blind.nan_to_num(0).sum() + 0 * sinks.sum(), sinks)
                assert (grad == 0).all()


# 4. nothing leaks


@given(problems(dtypes=(torch.float32, torch.bfloat16)))
def test_what_is_not_seen_changes_nothing(problem):
    q, k, v = problem.q, problem.k, problem.v
    seen, group = problem.visible(), problem.q.shape[1] // problem.k.shape[1]
    hidden = ~seen.unflatten(1, (-1, group)).any(2)  # (B, Hkv, Nq, Nk)
    row = int(torch.randint(q.shape[2], ()))
    unseen = hidden[:, :, row][..., None]
    other_k = torch.where(unseen, torch.randn_like(k) * 1e4, k)
    other_v = torch.where(unseen, torch.randn_like(v) * 1e4, v)
    for forced in (False, True):
        with _forced(forced):
            results = []
            for keys, values in ((k, v), (other_k, other_v)):
                queries = q.clone().requires_grad_()
                A = make(problem, q=queries, k=keys)
                out = (A @ values)[:, :, row]
                (grad,) = torch.autograd.grad(out.float().sum(), queries)
                results.append((out, grad[:, :, row]))
            assert torch.equal(results[0][0], results[1][0])
            assert torch.equal(results[0][1], results[1][1])


def spoilt(x, where, value):
    """`x` (B, H, N, D) with `value` in tokens `where`, (B or 1, H or 1, N); as it is where that is None."""
    return x.clone() if where is None else x.masked_fill(where[..., None], value)


def holds_anything(problem, queries, keys):
    """Tokens (B or 1, H or 1, N) that may hold NaN or Inf without any effect, on whatever is asked."""
    for forced in (False, True):
        with _forced(forced):
            results = []
            for value in (0.0, math.nan, math.inf):
                q, k, v = (
                    spoilt(problem.q, queries, value),
                    spoilt(problem.k, keys, value),
                    spoilt(problem.v, keys, value),
                )
                q, k, v = (x.requires_grad_() for x in (q, k, v))
                A = make(problem, q=q, k=k)
                out = A @ v
                results.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
                told, stats = A.apply(v, statistics=True)
                results[-1] += (told, A.weights(), A.received(), A.top(2)[0])
                results[-1] += (A.T @ spoilt(torch.ones_like(out[..., :1]).detach(), queries, value),)
                results[-1] += tuple(x.statistics().entropy.nan_to_num(-1) for x in (A, A.detach()))
                results[-1] += (stats.entropy.nan_to_num(-1), A.detach().received())
            for other in results[1:]:
                for a, b in zip(results[0], other, strict=True):
                    assert torch.equal(a, b)


def behind(lengths, n):
    return None if lengths is None else (torch.arange(n) >= lengths[:, None])[:, None]


@given(problems(dtypes=(torch.float32, torch.bfloat16)))
def test_padding_may_hold_anything(problem):
    lengths = problem.call.get("lengths")
    if lengths is None:
        return
    q_len, k_len = lengths if isinstance(lengths, tuple) else (lengths, lengths)
    holds_anything(problem, behind(q_len, problem.q.shape[2]), behind(k_len, problem.k.shape[2]))


@given(problems(dtypes=(torch.float32, torch.bfloat16)), st.integers(0, 2**31))
def test_what_a_mask_hides_from_all_may_hold_anything(problem, seed):
    """Keys that it hides from every query of the heads they serve, and queries that it lets see no key."""
    generator = torch.Generator().manual_seed(seed)
    (b, h, nq, _), (kv, nk) = problem.q.shape, problem.k.shape[1:3]
    heads = int(torch.randint(2, (), generator=generator))  # are heads told apart?
    queries = torch.rand(b, h if heads else 1, nq, generator=generator) < 0.3
    keys = torch.rand(b, kv if heads else 1, nk, generator=generator) < 0.3
    hidden = queries[..., :, None] | keys.repeat_interleave(h // kv if heads else 1, 1)[..., None, :]
    mask = problem.call.get("mask", torch.ones(1, 1, dtype=torch.bool))
    problem.call["mask"] = mask & ~hidden
    holds_anything(problem, queries, keys)


@given(problems(dtypes=(torch.float32, torch.bfloat16)), st.integers(0, 2**31))
def test_what_a_bias_hides_from_all_may_hold_anything(problem, seed):
    """Keys whose bias is -inf, as padding is often given: for all queries of the heads they serve."""
    generator = torch.Generator().manual_seed(seed)
    (b, h, _, _), (kv, nk) = problem.q.shape, problem.k.shape[1:3]
    keys = torch.rand(b, kv if seed % 2 else 1, nk, generator=generator) < 0.3
    bias = torch.randn(b, h if seed % 2 else 1, 1, nk, generator=generator)
    hidden = keys.repeat_interleave(h // kv if seed % 2 else 1, 1)[:, :, None]
    problem.by, problem.bias = None, bias.masked_fill(hidden, -math.inf).to(problem.q.dtype)
    holds_anything(problem, None, keys)


@given(problems(dtypes=(torch.float32, torch.bfloat16), padding=False), st.booleans())
def test_what_documents_leave_out_may_hold_anything(problem, alone):
    ids, nq, nk = torch.tensor(IDS), problem.q.shape[2], problem.k.shape[2]
    for name in ("q_positions", "k_positions"):
        problem.call.pop(name, None)
    out = torch.nn.functional.pad(ids < 0, (nq, 0), value=True)  # queries may stand before the first position
    problem.pattern = ch.documents(ids) if alone else problem.pattern & ch.documents(ids)
    holds_anything(problem, out[None, None, nk : nk + nq], (ids < 0)[None, None, :nk])


# 5. gradients are those of the float64 computation


@given(problems())
def test_gradients_are_right(problem):
    dtype = problem.q.dtype
    every = leaves(problem)
    want_out = problem.output(*every)
    weight = torch.randn_like(want_out)
    wanted = [x for x in every if x is not None]
    want = torch.autograd.grad((want_out * weight).sum(), wanted, allow_unused=True, materialize_grads=True)
    for forced in (False, True):
        with _forced(forced):
            q, k, v = (x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v))
            bias, sinks = learned(problem)
            out = make(problem, q=q, k=k, bias=bias, sinks=sinks) @ v
            leaves_ = [x for x in (q, k, v, bias, sinks) if x is not None]
            got = torch.autograd.grad((out.double() * weight).sum(), leaves_, materialize_grads=True, allow_unused=True)
            for g, w in zip(got, want, strict=True):
                close(g, w, dtype, factor=24)


# 6. pool, received, top, statistics, and gradients through them


@given(problems())
def test_questions_are_answered_as_by_the_matrix(problem):
    dtype, A = problem.q.dtype, make(problem)
    q, k, _ = problem.clean64()
    s = problem.logits(q, k, None if problem.bias is None else problem.bias.double())
    W = problem.weights(s)
    close(A.received(), W.sum(-2), dtype, factor=16)
    for height, width in ((1, 1), (2, 3), (50, 7)):
        close(A.pool(height, width), torch.nn.functional.adaptive_avg_pool2d(W, (height, width)), dtype, factor=8)
    values, keys = A.top(3)
    best = W.sort(-1, descending=True).values[..., :3]
    best = torch.nn.functional.pad(best, (0, 3 - best.shape[-1]))
    close(values, best, dtype)
    picked = torch.where(keys < 0, 0, W.gather(-1, keys.clamp(min=0)))
    close(picked, best, dtype, factor=8)
    stats, want = A.statistics(), statistics(problem, s, W)
    close(stats.received, W.sum(-2), dtype, factor=16)
    assert torch.equal(stats.visible, problem.visible().sum(-1))
    for name, value in want.items():
        got = getattr(stats, name)
        if name == "distance" and got is None:
            assert isinstance(problem.call.get("lengths"), tuple)
            continue
        close(got, value, dtype, factor=32)


@given(problems(dtypes=(torch.float64, torch.float32)))
def test_gradients_through_statistics(problem):
    dtype, names = problem.q.dtype, ("logsumexp", "entropy", "normalized_entropy", "max_weight", "max_logit")
    q64, k64, v64, bias64, sinks64 = leaves(problem)
    s = problem.logits(q64, k64, bias64)
    W = problem.weights(s, sinks64)
    want = statistics(problem, s, W, sinks64)
    weight = torch.randn(len(names), *W.shape[:3], dtype=torch.float64)
    seen = problem.visible().any(-1)
    masks = [seen & ~want[name].isnan() for name in names]
    loss = sum((want[n][m] * w[m]).sum() for n, w, m in zip(names, weight, masks, strict=True))
    loss = loss + problem.output(q64, k64, v64, bias64, sinks64).square().sum()
    wanted = [x for x in (q64, k64, v64, bias64, sinks64) if x is not None]
    if not loss.requires_grad:
        return
    want_grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    q, k, v = (x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v))
    bias, sinks = learned(problem)
    out, stats = make(problem, q=q, k=k, bias=bias, sinks=sinks).apply(v, statistics=True)
    loss = sum((getattr(stats, n)[m] * w[m]).sum() for n, w, m in zip(names, weight, masks, strict=True))
    loss = loss + out.double().square().sum()
    got = torch.autograd.grad(
        loss, [x for x in (q, k, v, bias, sinks) if x is not None], allow_unused=True, materialize_grads=True
    )
    for g, w in zip(got, want_grads, strict=True):
        # softmax of logits with an entropy gradient nearly cancels where weights are tiny
        close(g.nan_to_num(0), w.nan_to_num(0), dtype, factor=200)


def test_gradients_of_every_answer_match_the_matrix():
    torch.manual_seed(3)
    q, k = torch.randn(2, 4, 20, 8, dtype=torch.float64), torch.randn(2, 2, 20, 8, dtype=torch.float64)
    y, lengths = torch.randn(2, 4, 20, 3, dtype=torch.float64), torch.tensor([20, 9])
    answers = {
        "received": (lambda A: A.received(), lambda W: W.sum(-2)),
        "statistics received": (lambda A: A.statistics().received, lambda W: W.sum(-2)),
        "adjoint": (lambda A: A.T @ y, lambda W: W.mT @ y),
        "top": (lambda A: A.top(3)[0], lambda W: W.sort(-1, descending=True).values[..., :3]),
        "pool": (lambda A: A.pool(4, 6), lambda W: torch.nn.functional.adaptive_avg_pool2d(W, (4, 6))),
        "sink": (lambda A: A.statistics().sink.nan_to_num(0), lambda W: W[..., 0]),
        "some rows' sink": (
            lambda A: A.statistics([3, 7], sinks=[0, 2]).sink,
            lambda W: W[..., [3, 7], :][..., [0, 2]].sum(-1),
        ),
        "rows": (lambda A: A.weights([5, 2]), lambda W: W[..., [5, 2], :]),
    }
    for name, (answer, wanted) in answers.items():
        a, b = (x.clone().requires_grad_() for x in (q, k))
        A = ch.Softmax(ch.causal())(a, b, lengths=lengths)
        got = answer(A)
        weight = torch.randn_like(got)
        got_grads = torch.autograd.grad((got * weight).sum(), (a, b))
        want = wanted(ch.Softmax(ch.causal())(a, b, lengths=lengths).weights())
        want_grads = torch.autograd.grad((want * weight).sum(), (a, b))
        assert torch.allclose(got, want, atol=1e-12), name
        for g, w in zip(got_grads, want_grads, strict=True):
            assert torch.allclose(g, w, atol=1e-10), name


def test_fused_statistics_are_those_of_sampled_rows():
    torch.manual_seed(5)
    q, k, v = torch.randn(2, 4, 70, 8), torch.randn(2, 2, 70, 8), torch.randn(2, 2, 70, 5)
    A = ch.Softmax(ch.causal() & ch.window(30), softcap=3.0)(q, k, lengths=torch.tensor([70, 41]))
    _, fused = A.apply(v, statistics=True)
    rows = torch.tensor([0, 69, 40, 41, 12])
    sampled, whole = A.statistics(rows), A.statistics()
    assert fused.received is None
    assert sampled.received is None
    for name in ("logsumexp", "max_logit", "max_weight", "entropy", "normalized_entropy", "sink", "distance"):
        of_rows = getattr(whole, name)[..., rows]
        assert torch.allclose(getattr(sampled, name), of_rows, atol=1e-5, equal_nan=True), name
        assert torch.allclose(getattr(fused, name), getattr(whole, name), atol=1e-5, equal_nan=True), name


# 7. nothing but weights() holds n²


def test_long_inputs_never_hold_the_matrix():
    n, width = 6_000, 8
    tracker = Peak()
    q, k, v = (torch.randn(1, 1, n, width, requires_grad=True) for _ in range(3))
    A = ch.Softmax(ch.causal() & ch.window(64))(q, k, lengths=torch.tensor([n - 10]))
    with tracker:
        out, stats = A.apply(v, statistics=True)
        (out.sum() + stats.entropy.nansum()).backward()
        A.received().sum().backward()
        A.top(2)
        A.pool(8, 8)
    assert tracker.largest < n * n / 10


# dropout: the weights that are kept are the same in both passes


def test_dropout_keeps_the_mean_and_its_gradient():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for forced in (False, True):
        with _forced(forced):
            many = ch.Softmax(ch.causal())(*(x.detach().expand(4000, -1, -1, -1) for x in (q, k)))
            mean = many.apply(v.detach().expand(4000, -1, -1, -1), dropout=0.3).mean(0)
            A = ch.Softmax(ch.causal())(q, k)
            assert torch.allclose(mean, A @ v, atol=0.1)

            def once(*qkv):
                torch.manual_seed(1)
                return ch.attend(*qkv, ch.causal(), dropout=0.5)

            assert torch.autograd.gradcheck(once, (q, k, v))
            assert not torch.equal(once(q, k, v), A @ v)


def test_autocast_casts_what_comes_in_and_nothing_within():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 30, 8) for _ in range(3))
    half = [x.bfloat16() for x in (q, k, v)]
    for options in ({}, {"softcap": 3.0}):
        want = ch.Softmax(ch.causal(), **options)(*half[:2])
        with torch.autocast("cpu", torch.bfloat16):
            A = ch.Softmax(ch.causal(), **options)(q, half[1])
            assert (A @ v).dtype == torch.bfloat16
            assert torch.equal(A @ v, want @ half[2])
            assert torch.equal(A.weights(), want.weights())
            assert torch.equal(A.statistics().entropy, want.statistics().entropy)
            assert torch.equal(A.T @ v, want.T @ v)
            layer = ch.nn.SelfAttention(8, 2, positions=ch.nn.Rotary(4), qk_norm=True)
            layer(q[0]).sum().backward()
        assert layer.query.weight.grad.isfinite().all()


def test_an_empty_batch_no_keys_and_no_queries():
    for b, nq, nk in itertools.product((0, 2), (0, 3), (0, 4)):
        q, k, v = torch.randn(b, 2, nq, 4), torch.randn(b, 2, nk, 4), torch.randn(b, 2, nk, 5)
        for forced in (False, True):
            with _forced(forced):
                for pattern in (ch.everything(), ch.causal(), ch.window(1)):
                    A = ch.Softmax(pattern)(q, k)
                    assert (A @ v).shape == (b, 2, nq, 5)
                    assert nk or (A @ v == 0).all()
                    assert A.weights().shape == (b, 2, nq, nk)
                    assert A.statistics().entropy.shape == (b, 2, nq)
                    assert A.received().shape == (b, 2, nk)


def test_fewer_axes_are_the_same_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 7, 4), torch.randn(3, 9, 4), torch.randn(3, 9, 5)
    A = ch.Softmax(ch.causal())(q, k)
    B = ch.Softmax(ch.causal())(q[:, None], k[:, None])
    assert A.shape == (3, 7, 9)
    assert torch.equal(A @ v, (B @ v[:, None])[:, 0])
    assert torch.equal(A.weights(), B.weights()[:, 0])
    assert torch.equal(A.statistics().entropy, B.statistics().entropy[:, 0])
    assert torch.equal(A.T @ q, (B.T @ q[:, None])[:, 0])
    C = ch.Softmax(ch.causal())(q[1], k[1])
    assert C.shape == (7, 9)
    assert torch.allclose(C @ v[1], (A @ v)[1])
    assert torch.allclose(C.pool(2, 2), A.pool(2, 2)[1])
    assert torch.allclose(ch.attend(q[1], k[1], v[1]), torch.softmax(q[1] @ k[1].T / 2, -1) @ v[1], atol=1e-6)


def test_sdpa_pads_nothing_it_need_not(monkeypatch):
    """Causal self-attention of a padded batch takes the fused flag, not a mask."""
    calls, module = [], importlib.import_module("clearhead.kernels.sdpa")
    real = module.scaled_dot_product_attention
    monkeypatch.setattr(module, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or real(*a, **k))
    q = torch.randn(2, 1, 6, 4)
    ch.attend(q, q, q, ch.causal(), lengths=torch.tensor([6, 2]))
    assert calls[0]["is_causal"]
    assert calls[0].get("attn_mask") is None
