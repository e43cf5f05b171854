"""Pictures of a map at any scale, held to its dense weights in float64: means of blocks, single weights, samples."""

import math
from threading import Thread

import pytest
import torch

import clearhead as ch
from clearhead.errors import InputError
from clearhead.view import TILE, Pyramid, pyramid
from reference import Problem

N, M = 700, 1100
BASE = 1
LEVELS = 4


def near(q, k):
    return (k >= q - 90) & (k <= q + 30)


def words(q, k):
    return (q // 130 == k // 130) & (k <= q)


PATTERNS = {
    "everything": (None, lambda q, k: torch.ones_like(q + k, dtype=torch.bool)),
    "causal": (ch.causal(), lambda q, k: k <= q),
    "window": (ch.window(90, 30), near),
    "gaps": (ch.window(90, 30) | ch.first(2), lambda q, k: near(q, k) | (q < 2) | (k < 2)),
    "chunks": (ch.chunks(130) & ch.causal(), words),
}
CALLS = {
    "plain": {},
    "padding": {"lengths": (torch.tensor([N, 610]), torch.tensor([M, 903]))},
    "keys hidden": {"mask": torch.rand(2, 1, 1, M, generator=torch.Generator().manual_seed(1)) < 0.7},
    "no keys": {"lengths": (None, torch.tensor([M, 0]))},
}


def problem(pattern, call="plain", rows=N, seed=0, **options):
    torch.manual_seed(seed)
    q, k = 2 * torch.randn(2, 2, rows, 16), torch.randn(2, 1, M, 16)
    given, sees = PATTERNS[pattern]
    return Problem(q, k, k, given, sees, CALLS[call], **options)


def mapped(made, **options):
    call = {"pattern": made.pattern} if made.pattern is not None else {}
    return ch.Softmax(**options)(made.q, made.k, **call, **made.call)


def dense(made, head=1, sample=1):
    """float64 weights, (Nq, Nk)."""
    q, k, _ = made.clean64()
    return made.weights(made.logits(q, k, made.bias))[sample, head]


def pooled(weights, level):
    """Means over blocks of 2^level, cut off at the end."""
    size = 1 << level
    rows = torch.stack([part.mean(0) * len(part) for part in weights.split(size)])
    found = torch.stack([part.sum(1) for part in rows.split(size, 1)], 1)
    held = [len(part) for part in weights.split(size)], [part.shape[1] for part in weights.split(size, 1)]
    return found / (torch.tensor(held[0])[:, None] * torch.tensor(held[1]))


def whole(shown, level):
    """All tiles of a level, put together."""
    down, across = (math.ceil(n / (TILE << level)) for n in shown.shape)
    rows = [torch.cat([shown.tile(level, i, j).values for j in range(across)], 1) for i in range(down)]
    return torch.cat(rows)


def close(found, wanted):
    torch.testing.assert_close(found.double(), wanted, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_tiles_of_every_level_are_means_of_the_weights(pattern, call):
    made = problem(pattern, call)
    weights, shown = dense(made), Pyramid(mapped(made), 1, 1, base=BASE)
    assert (shown.shape, shown.levels) == ((N, M), LEVELS)
    assert shown.exact()
    for level in range(LEVELS):
        close(whole(shown, level), pooled(weights, level))
        assert shown.tile(level, 0, 0).exact


def test_the_finest_tiles_are_single_weights_of_rows_not_asked_for_before():
    made = problem("causal", "padding")
    A, shown = mapped(made), Pyramid(mapped(made), 1, 1, base=3)
    assert not shown.finished
    tile = shown.tile(0, 2, 1)
    assert (tile.rows, tile.keys, tile.exact) == (slice(512, N), slice(256, 512), True)
    close(tile.values, dense(made)[512:, 256:512])
    rows = A.weights(range(512, N))[1, 1]
    torch.testing.assert_close(tile.values, rows[:, 256:512], rtol=1e-5, atol=1e-7)


def test_a_level_is_the_mean_of_the_one_below_weighted_by_pairs():
    shown = Pyramid(mapped(problem("window")), 1, base=BASE)
    shown.exact()
    for level in range(LEVELS - 1):
        fine, coarse = whole(shown, level).double(), whole(shown, level + 1)
        held = pairs_of(level)
        close(coarse, fours(fine * held) / fours(held))


def pairs_of(level):
    """How many pairs each cell holds."""
    rows, keys = (torch.tensor([len(part) for part in torch.arange(n).split(1 << level)]) for n in (N, M))
    return (rows[:, None] * keys).double()


def fours(x):
    """Sums over 2 × 2 cells, of those that are there."""
    down, across = (n % 2 for n in x.shape)
    return 4 * torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (0, across, 0, down))[None], 2)[0]


@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"scale": 0.7}, {"sinks": torch.tensor([0.5, 2.0])}])
def test_whatever_the_mechanism_does_to_its_logits(options):
    made = problem("causal", **options)
    weights, shown = dense(made), Pyramid(mapped(made, **options), 1, 1, base=BASE)
    shown.exact()
    close(whole(shown, 0), weights)
    close(whole(shown, 2), pooled(weights, 2))


def test_masks_biases_and_positions_of_the_call_belong_to_its_rows():
    torch.manual_seed(0)
    mask, bias = torch.rand(2, 2, N, M) < 0.6, torch.randn(1, 2, N, M)
    at = torch.arange(M - N, M).flip(0)[None, None]
    made = problem("causal", bias=bias)
    made.call = {"mask": mask, "q_positions": at, "k_positions": torch.arange(M)[None, None]}
    weights, shown = dense(made), Pyramid(mapped(made, bias=bias), 1, 1, base=BASE)
    shown.exact()
    close(whole(shown, 0), weights)
    close(whole(shown, 3), pooled(weights, 3))
    far = problem("causal", by="alibi")
    shown = Pyramid(mapped(far, bias=ch.ALiBi(2)), 1, 1, base=BASE)
    shown.exact()
    close(whole(shown, 0), dense(far))
    close(whole(shown, 3), pooled(dense(far), 3))


class Apart(ch.patterns.Pattern):
    """Someone's own, which tells heads and samples apart."""

    def allows(self, b, h, q, k):
        return k <= q - 10 * h - 100 * b

    def cover(self, b, h, q_lo, q_hi, k_lo, k_hi):
        far = 10 * h + 100 * b
        some, all_ = k_lo <= q_hi - 1 - far, k_hi - 1 <= q_lo - far
        return some.to(torch.int8) + all_.to(torch.int8)


@pytest.mark.parametrize("joined", [Apart(), Apart() & ch.window(200), ~Apart()])
def test_patterns_that_tell_heads_apart(joined):
    q, k = torch.randn(2, 2, N, 16), torch.randn(2, 2, N, 16)
    A = ch.Softmax(joined)(q, k)
    weights, shown = A.weights()[1, 1].double(), Pyramid(A, 1, 1, base=BASE)
    shown.exact()
    close(whole(shown, 0), weights)
    close(whole(shown, 2), pooled(weights, 2))


# samples of rows


@pytest.mark.parametrize("pattern", ["everything", "causal", "gaps"])
@pytest.mark.parametrize(("level", "most"), [(4, 0.65), (6, 0.85)])
def test_the_sampled_picture_is_as_far_off_as_it_says(pattern, level, most, monkeypatch):
    monkeypatch.setattr("clearhead.view.sample.PAIRS", 0)  # two rows of sixteen
    made = problem(pattern)
    exact, shown = pooled(dense(made), level), Pyramid(mapped(made), 1, 1, base=4)
    first = shown.first(level)
    off = (first.values.double() - exact).norm()
    assert 0 < off / first.values.norm() < 1.5 * first.overall_error
    assert off / first.values.norm() > first.overall_error / 2
    within = ((first.values - exact).abs() <= 3 * first.error + 1e-7).double().mean()
    assert within > most  # of cells: two rows tell their spread only roughly, and four times two better


def test_the_sample_is_unbiased_and_its_error_too(monkeypatch):
    monkeypatch.setattr("clearhead.view.sample.PAIRS", 0)
    made, times = problem("causal"), 120
    A, exact = mapped(made), pooled(dense(made), 6)
    drawn = [Pyramid(A, 1, 1, seed=seed, base=4).first(6) for seed in range(times)]
    values, errors = (torch.stack([getattr(x, name).double() for x in drawn]) for name in ("values", "error"))
    off = (values.mean(0) - exact).norm()
    assert off < 1.5 * (values.var(0).sum() / times).sqrt()
    assert float(errors.square().mean(0).sum() / values.var(0).sum()) == pytest.approx(1, abs=0.15)


def test_a_sample_of_all_rows_has_no_error():
    made = problem("window", rows=70)
    first = Pyramid(mapped(made), 1, 1, base=2).first(3)
    close(first.values, pooled(dense(made), 3))
    assert float(first.error.max()) == 0
    assert first.overall_error == 0


def test_tiles_are_sampled_until_the_exact_picture_is_there(monkeypatch):
    monkeypatch.setattr(pyramid, "_FEW", 0)
    monkeypatch.setattr("clearhead.view.sample.PAIRS", 0)
    made = problem("everything")
    shown = Pyramid(mapped(made), 1, 1, base=2)
    sampled, first = shown.tile(3, 0, 0), shown.first(3)
    assert not sampled.exact
    assert torch.equal(sampled.values, first.values)
    assert torch.equal(sampled.error, first.error)
    assert shown.received(3, slice(0, M)) is None
    assert shown.exact()
    exact = shown.tile(3, 0, 0)
    assert exact.exact
    assert exact.overall_error == 0
    close(exact.values, pooled(dense(made), 3))


# passes that are interrupted, and several at once


def test_the_exact_pass_can_be_interrupted_and_goes_on(monkeypatch):
    monkeypatch.setattr(pyramid, "_AT_ONCE", 1 << 14)
    made = problem("causal", "padding")
    shown, asked = Pyramid(mapped(made), 1, 1, base=3), []

    def five_times():
        asked.append(shown.progress)
        return len(asked) <= 5

    assert not shown.exact(five_times)
    assert asked == sorted(asked)
    assert 0 < shown.progress < 0.2
    assert shown.exact()
    assert shown.progress == 1
    close(whole(shown, 3), pooled(dense(made), 3))
    assert shown.exact(lambda: pytest.fail("all of it was there"))


def test_two_threads_count_nothing_twice(monkeypatch):
    monkeypatch.setattr(pyramid, "_AT_ONCE", 1 << 15)
    made = problem("causal")
    shown = Pyramid(mapped(made), 1, 1, base=3)
    threads = [Thread(target=shown.exact) for _ in range(2)]
    for thread in threads:
        thread.start()
    for level in (0, 1, 2):
        close(whole(shown, level), pooled(dense(made), level))
    for thread in threads:
        thread.join()
    close(shown.received(0, slice(0, M)), dense(made).sum(0))
    close(whole(shown, 3), pooled(dense(made), 3))


# rows and keys


@pytest.mark.parametrize("call", CALLS)
def test_statistics_and_what_keys_received(call):
    made = problem("causal", call)
    A, weights, shown = mapped(made), dense(made), Pyramid(mapped(made), 1, 1, base=2)
    assert shown.statistic("entropy", 3, slice(0, N)) is None
    shown.exact()
    entropy = torch.special.entr(weights).sum(-1)
    for level, rows in ((0, slice(0, N)), (3, slice(256, 600))):
        parts = entropy[rows].masked_fill(weights[rows].sum(-1) == 0, math.nan).split(1 << level)
        wanted = torch.stack([part.nanmean() for part in parts])
        torch.testing.assert_close(
            shown.statistic("entropy", level, rows).double(), wanted, rtol=1e-4, atol=1e-5, equal_nan=True
        )
        keys = slice(rows.start, M)
        received = torch.stack([part.mean() for part in weights.sum(0)[keys].split(1 << level)])
        close(shown.received(level, keys), received)
    told = A.statistics().sink[1, 1]
    torch.testing.assert_close(shown.statistic("sink", 0, slice(0, N)), told, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_the_strongest_keys_of_a_row_and_rows_of_a_key():
    made = problem("causal", "padding")
    A, weights, shown = mapped(made), dense(made), Pyramid(mapped(made), 1, 1, base=2)
    values, keys = shown.keys_of(400, 5)
    wanted, index = weights[400].topk(5)
    close(values, wanted)
    assert torch.equal(keys, index)
    torch.testing.assert_close(values, A.weights(400)[1, 1][keys])
    _, rows, looked_at = shown.rows_of(17, 5)
    assert 0 < looked_at < N  # the rows about 400
    assert set(rows.tolist()) <= set(range(400 - 4, 400 + 4))
    shown.exact()
    values, rows, looked_at = shown.rows_of(17, 5)
    wanted, index = weights[:, 17].topk(5)
    close(values, wanted)
    assert torch.equal(rows, index)
    assert looked_at == N
    assert len(shown.keys_of(650)[0]) == 0  # padding


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda x: x.tile(9, 0, 0), "level 9 is not there: this map has levels 0 … 3"),
        (lambda x: x.tile(0, 3, 0), "tile row 3 is not there: level 0 has rows 0 … 2"),
        (lambda x: x.tile(0, 0, -1), "tile column -1 is not there: level 0 has columns 0 … 4"),
        (lambda x: x.first(1), "level 1 cannot be told from a sample of rows: ask for 2 or more"),
        (lambda x: x.keys_of(N), "row 700 is not there: this map has rows 0 … 699"),
        (lambda x: x.rows_of(-1), "key -1 is not there: this map has keys 0 … 1099"),
        (lambda x: x.statistic("x", 0, slice(0, 1)), "no statistic 'x' of rows is kept; known: logsumexp, entropy"),
        (lambda x: Pyramid(mapped(problem("causal")), 2), "head 2 is not there: the map has heads 0 … 1"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(ask, says):
    with pytest.raises(InputError) as error:
        ask(Pyramid(mapped(problem("causal")), 1, 1, base=2))
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)
