"""Patterns: what they allow, that their covers are proofs, and that their text reads back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clearhead as ch
from clearhead.errors import InputError
from clearhead.patterns import ALL, NONE, SOME, block_layout, parse

SHAPES = st.one_of(
    st.just(ch.everything()),
    st.just(ch.causal()),
    st.builds(ch.window, st.integers(0, 6), st.one_of(st.none(), st.integers(0, 6))),
    st.builds(ch.chunks, st.integers(1, 6)),
    st.builds(ch.first, st.integers(1, 6)),
)
COMPOSED = st.recursive(
    SHAPES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=5,
)
BOX = st.tuples(st.integers(-9, 9), st.integers(1, 7), st.integers(-9, 9), st.integers(1, 7))


def truth(pattern, box):
    """NONE, SOME or ALL, by looking at every pair."""
    q_lo, height, k_lo, width = box
    zero = torch.tensor(0)
    cells = pattern.allows(
        zero, zero, torch.arange(q_lo, q_lo + height)[:, None], torch.arange(k_lo, k_lo + width)[None]
    ).expand(height, width)
    return ALL if cells.all() else SOME if cells.any() else NONE


def cover(pattern, box):
    q_lo, height, k_lo, width = (torch.tensor(x) for x in box)
    zero = torch.tensor(0)
    return int(pattern.cover(zero, zero, q_lo, q_lo + height, k_lo, k_lo + width))


@given(SHAPES, BOX)
def test_covers_of_shapes_are_exact(pattern, box):
    assert cover(pattern, box) == truth(pattern, box)


@given(COMPOSED, BOX)
def test_covers_of_compositions_are_proofs(pattern, box):
    answer = cover(pattern, box)
    assert answer in (SOME, truth(pattern, box))


@given(COMPOSED, st.integers(-5, 30), st.integers(-5, 30))
def test_composition_is_pointwise_logic(pattern, q, k):
    zero = torch.tensor(0)
    at = (zero, zero, torch.tensor(q), torch.tensor(k))
    inner = bool(pattern.allows(*at))
    assert bool((~pattern).allows(*at)) is not inner
    assert bool((pattern & ch.causal()).allows(*at)) is (inner and k <= q)
    assert bool((pattern | ch.causal()).allows(*at)) is (inner or k <= q)


@given(COMPOSED)
def test_a_pattern_can_be_pasted_back(pattern):
    again = parse(repr(pattern))
    assert again == pattern
    assert hash(again) == hash(pattern)
    assert (
        eval(repr(pattern), {name: getattr(ch, name) for name in ("everything", "causal", "window", "chunks", "first")})
        == pattern
    )


def test_definitions():
    def row(pattern, q, n=8):
        zero = torch.tensor(0)
        seen = pattern.allows(zero, zero, torch.tensor([[q]]), torch.arange(n)[None]).expand(1, n)
        return seen[0].nonzero().flatten().tolist()

    assert row(ch.causal(), 3) == [0, 1, 2, 3]
    assert row(ch.window(2), 4) == [2, 3, 4, 5, 6]
    assert row(ch.window(2, 0), 4) == [2, 3, 4]
    assert row(ch.window(1, 3), 4) == [3, 4, 5, 6, 7]
    assert row(ch.chunks(3), 4) == [3, 4, 5]
    assert row(ch.first(2), 4) == [0, 1]
    assert row(ch.first(2), 1) == list(range(8))
    assert row(~ch.causal(), 5) == [6, 7]


def test_a_pattern_draws_itself():
    lines = str(ch.causal() & ch.window(2)).splitlines()
    assert lines[0] == "causal() & window(2)"
    assert lines[1].split() == ["■"] + ["·"] * 7
    assert lines[5].split() == ["·", "·", "■", "■", "■", "·", "·", "·"]


@given(COMPOSED, st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(-5, 5))
def test_block_layouts_miss_nothing(pattern, n_queries, n_keys, q_block, k_block, offset):
    q, k = torch.arange(n_queries)[None, None] + offset, torch.arange(n_keys)[None, None]
    layout = block_layout(pattern, q, k, q_block, k_block)
    assert layout.shape == (1, 1, -(-n_queries // q_block), -(-n_keys // k_block))
    for i in range(layout.shape[2]):
        for j in range(layout.shape[3]):
            box = (
                i * q_block + offset,
                min(q_block, n_queries - i * q_block),
                j * k_block,
                min(k_block, n_keys - j * k_block),
            )
            assert int(layout[0, 0, i, j]) in (SOME, truth(pattern, box))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ch.window(-1), "window: before is -1; it must be a whole number of at least 0"),
        (lambda: ch.window(1, 2.5), "window: after is 2.5"),
        (lambda: ch.chunks(0), "chunks: size is 0; it must be a whole number of at least 1"),
        (lambda: ch.first(True), "first: n is True"),
        (lambda: parse("windwo(3)"), "unknown shape 'windwo'; did you mean 'window'?"),
        (lambda: parse("causal"), r"write causal\(\) with its parentheses"),
        (lambda: parse("causal() + first(1)"), "is not allowed; compose shapes with &, | and ~"),
        (lambda: parse("__import__('os')"), "unknown shape '__import__'"),
        (lambda: parse("window(__import__('os'))"), "does not fit window's arguments"),
        (lambda: parse("window(1, 2, 3)"), "does not fit window's arguments"),
        (lambda: parse("causal() &"), "is not a pattern; write one as in"),
        (lambda: parse("3"), "'3' is not allowed"),
    ],
)
def test_mistakes_are_one_line(make, words, unchecked):
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
