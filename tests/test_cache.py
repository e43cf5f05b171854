"""Caches: prefill and steps give what one pass gives, for every pattern, and a window's cache stays small."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clearhead as ch
from clearhead import patterns
from clearhead.errors import InputError
from clearhead.maps import GrowingCache, RingCache

PATTERNS = (
    ch.everything() & ch.causal(),
    ch.causal() & ch.window(3),
    ch.window(5, 0),
    ch.causal() & ch.window(40),
    ch.causal() & ch.chunks(7),
    ch.causal() & (ch.first(2) | ch.window(3)),
    ch.causal() & ~ch.window(2),
    ch.window(0),
    ch.causal() & (patterns.global_tokens((0, 5)) | ch.window(4)),
    ch.causal() & (patterns.stride(5) | ch.window(3)),
    ch.causal() & (patterns.stride(3) & ch.window(9)),
    ch.causal() & (ch.window(2) | patterns.scattered(2, 0)),
    patterns.prefix(6) & ch.causal(),
)
RINGS = PATTERNS[1:6]
STATISTICS = ("logsumexp", "max_logit", "max_weight", "entropy", "normalized_entropy", "sink", "distance", "visible")


def reference(q, k, v, pattern, at=None, mask=None):
    """The output of one pass over one sample, (H, N, D), from dense weights in float64."""
    n = q.shape[1]
    at = torch.arange(n) if at is None else at
    seen = pattern.allows(torch.tensor(0), torch.tensor(0), at[:, None], at[None])
    seen = seen.expand(n, n) if mask is None else seen & mask
    k, v = (x.double().repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    logits = q.double() @ k.mT / q.shape[-1] ** 0.5
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0)
    return weights @ v


def tensors(n, b=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(b, h, n, 8, generator=generator, dtype=dtype) for h in (4, 2, 2)]


def cuts(longest):
    """Where the steps end: a prefill that may be long, then steps of one or of several tokens."""
    sizes = st.lists(st.integers(1, 6), min_size=1, max_size=30)
    return st.tuples(st.integers(1, longest), sizes).map(lambda x: [*itertools.accumulate([x[0], *x[1]])])


@given(st.sampled_from(PATTERNS), cuts(90), st.integers(0, 99))
@torch.no_grad()
def test_prefill_and_steps_are_the_full_pass_with_its_statistics(pattern, ends, seed):
    mechanism = ch.Softmax(pattern)
    q, k, v = tensors(ends[-1], seed=seed)
    full, cache = mechanism(q, k).statistics(received=False), mechanism.cache()
    wanted = torch.stack([reference(*x, pattern) for x in zip(q, k, v, strict=True)])
    for a, b in itertools.pairwise([0, *ends]):
        out = cache.attend(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b])
        torch.testing.assert_close(out, wanted[:, :, a:b], rtol=1e-9, atol=1e-9)
        assert cache.lengths.tolist() == cache.positions.tolist() == [b] * 3
        found = cache.map.statistics(received=False)
        for name in STATISTICS:
            got, want = getattr(found, name), getattr(full, name)[:, :, a:b]
            torch.testing.assert_close(got, want, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")


@given(st.sampled_from(PATTERNS), st.booleans(), st.integers(0, 9999))
@torch.no_grad()
def test_samples_of_their_own_length_reordered_and_dropped(pattern, masked, seed):
    """Padded steps; between them samples change places. Padding holds NaN."""
    generator = torch.Generator().manual_seed(seed)
    cache, rows = ch.Softmax(pattern).cache(), [[x[:, :0] for x in row] for row in zip(*tensors(1, 4), strict=True)]
    for turn in range(12):
        most = 40 if turn == 0 else 9
        lengths = torch.randint(0, most + 1, (len(rows),), generator=generator)
        q, k, v = (torch.randn(len(rows), h, most, 8, generator=generator, dtype=torch.float64) for h in (4, 2, 2))
        rows = [
            [torch.cat([old, x[:, :n]], 1) for old, x in zip(row, new, strict=True)]
            for row, n, *new in zip(rows, lengths.tolist(), q, k, v, strict=True)
        ]
        for x in (q, k, v):
            x.masked_fill_((torch.arange(most) >= lengths[:, None])[:, None, :, None], torch.nan)
        mask, dense = None, None
        if masked:  # over all tokens that ever came
            dense = torch.rand(len(rows), 1, most, max(row[0].shape[1] for row in rows), generator=generator) < 0.7
            mask = dense
        out = cache.attend(q, k, v, lengths=lengths, mask=mask)
        assert cache.lengths.tolist() == [row[0].shape[1] for row in rows]
        for i, (row, n) in enumerate(zip(rows, lengths.tolist(), strict=True)):
            total = row[0].shape[1]
            own = None
            if dense is not None:
                own = torch.ones(total, total, dtype=torch.bool)
                own[total - n :] = dense[i, 0, :n, :total]
            want = reference(*row, pattern, mask=own)[:, total - n :]
            torch.testing.assert_close(out[i, :, :n], want, rtol=1e-9, atol=1e-9)
        index = torch.randint(0, len(rows), (len(rows),), generator=generator)
        cache.reorder(index)
        rows = [rows[i] for i in index]
        if len(rows) > 2 and turn % 5 == 4:
            cache.keep(torch.arange(len(rows)) > 0)
            rows = rows[1:]


@pytest.mark.parametrize("pattern", RINGS, ids=repr)
@torch.no_grad()
def test_memory_is_that_of_the_window_however_long_the_decoding(pattern):
    cache, held = ch.Softmax(pattern).cache(), []
    assert isinstance(cache, RingCache)
    q, k, v = tensors(500, b=2, dtype=torch.float32)
    cache.attend(q[:, :, :300], k[:, :, :300], v[:, :, :300])
    for i in range(300, 500):
        cache.attend(q[:, :, i : i + 1], k[:, :, i : i + 1], v[:, :, i : i + 1])
        held.append(sum(x.untyped_storage().nbytes() for x in vars(cache).values() if isinstance(x, torch.Tensor)))
        assert cache.map.shape[-1] <= 41 + 42 + 32 + 2
    assert cache.lengths.tolist() == [500, 500]
    per_key = 2 * (2 * 2 * 8 * 4 + 2 * 8)  # samples; keys and values of two heads in float32, position and number
    assert max(held) < 1.5 * (42 + 32) * per_key + 200
    assert max(held[100:]) <= max(held[:100])


def test_the_cache_that_fits():
    for pattern in (ch.everything(), ch.causal(), ch.causal() | ch.window(3), ~ch.window(3), ch.first(2) | ch.causal()):
        assert type(ch.Softmax(pattern).cache()) is GrowingCache
    for pattern in (*RINGS, ch.chunks(3), ch.window(2, 0) & ch.chunks(9), ch.causal() & ~(~ch.window(4))):
        assert type(ch.Softmax(pattern).cache()) is RingCache
    by_column = torch.zeros(1, 1, 1, 9)
    assert type(ch.Softmax(ch.window(2, 0), bias=by_column).cache()) is GrowingCache


@torch.no_grad()
def test_positions_with_gaps_and_where_they_may_not_go():
    pattern, at = ch.causal() & ch.window(6), torch.arange(80) * 3 // 2 + 5
    q, k, v = tensors(80)
    cache = ch.Softmax(pattern).cache()
    wanted = torch.stack([reference(*x, pattern, at) for x in zip(q, k, v, strict=True)])
    for a, b in itertools.pairwise([0, 50, 51, 60, 80]):
        part = [x[:, :, a:b] for x in (q, k, v)]
        torch.testing.assert_close(cache.attend(*part, positions=at[None, a:b]), wanted[:, :, a:b])
        assert torch.equal(cache.held_positions[:, -1], at[b - 1].expand(3))
    with pytest.raises(InputError, match="positions go back behind 79 in sample 0"):
        cache.attend(q[:, :, :1], k[:, :, :1], v[:, :, :1], positions=torch.tensor([[78]]))
    with pytest.raises(InputError, match="give the queries' positions too"):
        cache.attend(q[:, :, :1])


@torch.no_grad()
def test_a_memory_is_kept_whole():
    mechanism = ch.Softmax(ch.window(3))
    q, k, v = tensors(70)
    lengths, cache = torch.tensor([70, 9, 50]), mechanism.cache()
    assert isinstance(cache, RingCache)
    cache.attend(q[:, :, :4], k, v, lengths=(None, lengths))
    for n in (2, 60):
        want = mechanism(q[:, :, :n], k, lengths=(None, lengths)) @ v
        assert torch.equal(cache.attend(q[:, :, :n]), want)
