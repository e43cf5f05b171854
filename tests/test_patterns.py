"""Patterns: what they allow, that their covers are proofs, and that their text reads back."""

import copy

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clearhead as ch
from clearhead.errors import InputError
from clearhead.patterns import ALL, NONE, SOME, block_layout, parse, restore
from peak import Peak


def unlooked(make):
    """`make` without the checks of types, which draw from `random` to look at sequences: strategies may not."""

    def made(*arguments):
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return make(*arguments)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    return made


SHAPES = st.one_of(
    st.just(ch.everything()),
    st.just(ch.causal()),
    st.builds(ch.window, st.integers(0, 6), st.one_of(st.none(), st.integers(0, 6))),
    st.builds(ch.chunks, st.integers(1, 6), st.integers(0, 2)),
    st.builds(ch.first, st.integers(1, 6)),
    st.builds(ch.prefix, st.integers(1, 6)),
    st.builds(ch.stride, st.integers(1, 6)),
    st.integers(1, 6).flatmap(lambda size: st.builds(ch.summaries, st.just(size), st.integers(1, size))),
    st.builds(unlooked(ch.global_tokens), st.frozensets(st.integers(0, 9), min_size=1, max_size=4)),
    st.builds(
        ch.scattered,
        st.integers(1, 4),
        st.integers(0, 99),
        st.integers(1, 4),
        st.one_of(st.none(), st.integers(1, 20)),
    ),
)


def documents_of(runs):
    """Contiguous documents, (number, length), of which -1 is padding."""
    return ch.documents(torch.tensor([i for i, n in runs for _ in range(n)], dtype=torch.int64))


def contiguous(numbers, lengths):
    return documents_of([(-1 if n < 0 else 7 * n % 31, length) for n, length in zip(numbers, lengths, strict=False)])


TABLES = st.one_of(  # with these, whole rectangles may lie outside the table
    st.builds(contiguous, st.permutations([-1, 0, 1, 2, 3]), st.lists(st.integers(0, 4), min_size=5, max_size=5)),
)
HELD = st.one_of(
    TABLES,
    st.builds(lambda ids: ch.documents(torch.tensor(ids)), st.lists(st.integers(-1, 3), min_size=1, max_size=12)),
    st.builds(
        lambda edges, loops: unlooked(ch.graph)(torch.tensor(edges).reshape(-1, 2).T.long(), 10, loops),
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30),
        st.booleans(),
    ),
)


def composed(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            st.builds(lambda a: ~a, inner),
        ),
        max_leaves=5,
    )


COMPOSED = composed(SHAPES)
ANY = composed(st.one_of(SHAPES, HELD))
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


@given(st.one_of(SHAPES, TABLES), BOX)
def test_covers_of_shapes_are_exact(pattern, box):
    assert cover(pattern, box) == truth(pattern, box)


@given(ANY, BOX)
def test_covers_of_compositions_are_proofs(pattern, box):
    answer = cover(pattern, box)
    assert answer in (SOME, truth(pattern, box))


@given(ANY, st.integers(-5, 30), st.integers(-5, 30))
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
        eval(repr(pattern), {name: getattr(ch, name) for name in ch.patterns.__all__ if hasattr(ch, name)}) == pattern
    )


@given(ANY)
def test_a_pattern_crosses_as_text_and_tensors(pattern):
    again = restore(pattern.outline(), pattern.tensors())
    assert again.equal(pattern)
    assert again.outline() == pattern.outline()
    q, k = torch.arange(12)[:, None], torch.arange(12)[None, :]
    zero = torch.tensor(0)
    assert torch.equal(again.allows(zero, zero, q, k), pattern.allows(zero, zero, q, k))


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
    assert row(ch.chunks(2, 1), 4) == [2, 3, 4, 5, 6, 7]
    assert row(ch.stride(3), 4) == [1, 4, 7]
    assert row(ch.summaries(4, 1), 0) == [3, 7]
    assert row(ch.prefix(2), 4) == row(ch.prefix(2), 0) == [0, 1]
    assert row(ch.causal() | ch.prefix(3), 1) == [0, 1, 2]
    assert row(ch.global_tokens([5, 0, 5]), 3) == [0, 5]
    assert row(ch.global_tokens(5), 5) == list(range(8))
    ids = torch.tensor([4, 4, 9, 9, 9, -1, -2, 4])
    assert [row(ch.documents(ids), q) for q in (0, 3, 5, 6)] == [[0, 1, 7], [2, 3, 4], [], []]
    edges = torch.tensor([[0, 1, 1, 3], [2, 2, 2, 0]])  # an edge twice
    assert [row(ch.graph(edges), q) for q in (0, 1, 2, 4)] == [[0, 3], [1], [0, 1, 2], []]
    assert [row(ch.graph(edges, self_loops=False), q) for q in (0, 1, 2)] == [[3], [], [0, 1]]


def dense(pattern, n, sample=0):
    at = torch.arange(n)
    b, h = torch.tensor(sample), torch.tensor(0)
    return pattern.allows(b, h, at[:, None], at[None]).expand(n, n).numpy()


def test_longformer_is_its_papers_mask():
    """Beltagy 2020, section 3.1: half the window on each side, dilated by gaps; chosen tokens attend symmetrically."""
    n = 60
    for size, chosen, gap in ((8, (0, 33), 1), (2, (), 1), (12, (5,), 3)):
        want = np.zeros((n, n), bool)
        for i in range(n):
            for j in range(-(size // 2), size // 2 + 1):
                if 0 <= i + j * gap < n:
                    want[i, i + j * gap] = True
        for i in chosen:
            want[i, :] = want[:, i] = True
        assert (dense(ch.longformer(size, chosen, gap), n) == want).all()


def test_bigbird_is_its_papers_mask():
    """Zaheer 2020: blocks of w neighbours, g first blocks, r random blocks of each row, drawn here by a hash."""
    block, n, seed = 4, 72, 3
    blocks = n // block

    def mixed(x):
        x &= 0xFFFFFFFF
        for _ in range(2):
            x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
        return (x >> 16) ^ x

    for length in (n, None):
        want = np.zeros((blocks, blocks), bool)
        for i in range(blocks):
            want[i, max(0, i - 1) : i + 2] = True
            among = blocks if length else i + 1
            for part in range(3):
                lo, hi = part * among // 3, (part + 1) * among // 3
                if hi > lo:
                    want[i, lo + mixed(mixed(i + (seed * 0x1F123BB5 & 0xFFFFFFFF)) + part) % (hi - lo)] = True
        want[:2] = want[:, :2] = True
        got = dense(ch.bigbird(block, 3, 3, 2, length, seed), n)
        assert (got == np.kron(want, np.ones((block, block), bool))).all()


def test_sparse_transformer_is_its_papers_mask():
    """Child 2019, section 4.3, with the union of the two heads."""
    n, size, c = 50, 8, 3
    i, j = np.mgrid[:n, :n]
    strided = (j >= i - size) & (j <= i) | ((i - j) % size == 0) & (j <= i)
    fixed = ((j // size == i // size) | (j % size >= size - c)) & (j <= i)
    assert (dense(ch.sparse_transformer(size), n) == strided).all()
    assert (dense(ch.sparse_transformer(size, "fixed", c), n) == fixed).all()


def test_presets_print_what_they_are_made_of():
    assert repr(ch.longformer(512, [0])) == "window(256) | global_tokens([0])"
    assert repr(ch.bigbird(64, length=4096)) == "chunks(64, 1) | scattered(3, 0, block=64, length=4096) | first(128)"
    assert repr(ch.sparse_transformer(128)) == "causal() & (window(128, 0) | stride(128))"
    for text in ("longformer(512, [0])", "bigbird(64, length=4096)", "sparse_transformer(16, 'fixed')"):
        assert parse(text) == eval(f"ch.{text}")


def test_scattered_draws_exactly_so_many_and_evenly():
    n = 400
    for pattern, among in ((ch.scattered(5, 1, length=n), np.full(n, n)), (ch.scattered(5, 1), np.arange(1, n + 1))):
        seen = dense(pattern, n)
        assert (seen.sum(1) == np.minimum(5, among)).all()
        assert (dense(pattern, n) == seen).all()
    columns = dense(ch.scattered(5, 1, length=n), n).sum(0)
    assert columns.mean() == 5
    assert 1.5 < columns.std() < 3  # independent draws: the square root of 5
    assert (dense(ch.scattered(5, 2), n) != dense(ch.scattered(5, 1), n)).any()
    assert (dense(ch.scattered(5, 1), 100) == dense(ch.scattered(5, 1), n)[:100, :100]).all()  # whatever the length
    blocks = dense(ch.scattered(2, 1, block=8, length=96), 96)
    assert (blocks == np.kron(blocks[::8, ::8], np.ones((8, 8), bool))).all()


def test_samples_have_tables_of_their_own():
    ids = torch.tensor([[0, 0, 1, 1], [5, 5, 5, -1]])
    pattern = ch.documents(ids) & ch.causal()
    alone = [ch.documents(x) & ch.causal() for x in ids]
    edges = [torch.tensor([[0, 1], [1, 2]]), torch.tensor([[4], [0]])]
    graphs = ch.graph(edges)
    assert pattern.samples == graphs.samples == 2
    for s in (0, 1):
        assert (dense(pattern, 4, s) == dense(alone[s], 4)).all()
        assert (dense(graphs, 5, s) == dense(ch.graph(edges[s], nodes=5), 5)).all()
        assert pattern.of(torch.tensor([s])).equal(alone[s])
        assert (dense(graphs.of(torch.tensor([s])), 5) == dense(graphs, 5, s)).all()
    at = torch.arange(4)[None, None]
    layout = block_layout(pattern, at, at, 2, 2)
    assert layout[:, 0].tolist() == [[[SOME, NONE], [NONE, SOME]], [[SOME, NONE], [SOME, SOME]]]
    assert layout.shape == (2, 1, 2, 2)


def test_patterns_with_tensors_are_compared_by_what_they_hold():
    one, same = ch.documents(torch.tensor([3, 3, 8])), ch.documents(torch.tensor([0, 0, 1]))
    assert one != same
    assert one.equal(same)
    assert not one.equal(ch.documents(torch.tensor([0, 1, 1])))
    assert not one.equal(ch.causal())
    assert ch.causal().equal(ch.causal())
    assert copy.deepcopy(one).equal(one)
    assert repr(one & ch.causal()) == "documents(ids=(1, 3)) & causal()"
    assert repr(ch.graph(torch.tensor([[0], [1]]))) == "graph(nodes=2, edges=3)"
    assert len({one, same, one}) == 2


def test_covers_of_graphs_are_exact_in_their_blocks():
    torch.manual_seed(0)
    for nodes, edges in ((100, 60), (96, 9216), (70, 4900), (33, 0)):
        index = (
            torch.randint(nodes, (2, edges)) if edges < nodes**2 else torch.cartesian_prod(*[torch.arange(nodes)] * 2).T
        )
        pattern = ch.graph(index, nodes=nodes)
        for q_lo, height, k_lo, width in ((0, 32, 0, 64), (32, 32, 0, 32), (64, 64, 64, 64), (0, 128, 0, 128)):
            box = (q_lo, min(height, nodes - q_lo), k_lo, min(width, nodes - k_lo))
            if min(box[1], box[3]) > 0:
                assert cover(pattern, box) == truth(pattern, box)


def test_layouts_of_long_patterns_look_at_blocks_and_not_at_pairs():
    n = 65_536
    at = torch.arange(n)[None, None]
    edges = torch.randint(n, (2, 4 * n))
    for pattern in (
        ch.longformer(512, [0, 9000]),
        ch.bigbird(64, length=n),
        ch.sparse_transformer(128),
        ch.documents(torch.arange(n) // 100),
        ch.graph(edges),
    ):
        with Peak() as tracker:
            layout = block_layout(pattern, at, at, 128, 64)
        assert layout.shape == (1, 1, 512, 1024)
        assert tracker.largest < 64 * layout.numel()  # of 8,192 pairs a block


def test_a_pattern_draws_itself():
    lines = str(ch.causal() & ch.window(2)).splitlines()
    assert lines[0] == "causal() & window(2)"
    assert lines[1].split() == ["■"] + ["·"] * 7
    assert lines[5].split() == ["·", "·", "■", "■", "■", "·", "·", "·"]


def test_a_drawing_has_the_scale_that_shows_the_pattern():
    longformer = ch.longformer(64, [0, 100]).draw().splitlines()
    assert longformer[-1] == "a cell is 4 × 4 positions: ■ all pairs, ▒ some, · none"
    assert len(longformer) == len(longformer[0].split()) + 1 == 33
    assert set(longformer[0].split()) == {"■", "▒"}
    assert longformer[20].split()[:2] == ["▒", "·"]
    documents = ch.documents(torch.tensor([1, 1, 2]))
    assert documents.draw() == "■ ■ ·\n■ ■ ·\n· · ■"
    assert ch.documents(torch.tensor([[1, 2], [1, 1]])).draw(sample=1) == "■ ■\n■ ■"
    long = ch.causal().draw(100_000, 5).splitlines()
    assert long[1] == "■ ▒ · · ·"
    assert ch.causal().draw(2000, 4).splitlines()[1] == long[1][:7]
    assert ch.causal().draw(3) == "■ · ·\n■ ■ ·\n■ ■ ■"


@given(COMPOSED, st.integers(2, 40), st.integers(1, 9))
def test_a_cell_of_a_drawing_is_the_truth_about_its_pairs(pattern, n, width):
    lines, side = pattern.draw(n, width).splitlines(), -(-n // width)
    for i, line in enumerate(lines[: -(-n // side)]):
        for j, cell in enumerate(line.split()):
            box = (i * side, min(side, n - i * side), j * side, min(side, n - j * side))
            assert "·▒■".index(cell) == truth(pattern, box)


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
        (lambda: ch.stride(0), "stride: step is 0"),
        (lambda: ch.summaries(4, 5), "summaries: count is 5; a chunk has 4 positions, write at most that"),
        (lambda: ch.prefix(0), "prefix: n is 0"),
        (lambda: ch.global_tokens([]), "indices is empty; name at least one position"),
        (lambda: ch.global_tokens([3, -1]), "an index is -1; it must be a whole number of at least 0"),
        (lambda: ch.global_tokens("0"), "indices is '0'; it must be whole numbers such as"),
        (lambda: ch.scattered(0), "scattered: per_row is 0"),
        (lambda: ch.scattered(1, block=0), "scattered: block is 0"),
        (lambda: ch.longformer(5), "window is 5; half of it lies on each side, write an even number"),
        (lambda: ch.bigbird(window=2), "window is 2; as many lie on each side, write an odd number"),
        (lambda: ch.sparse_transformer(8, "fix"), "unknown kind 'fix'; did you mean 'fixed'?"),
        (lambda: ch.documents([0, 1]), "documents: ids is a list; write torch.tensor"),
        (
            lambda: ch.documents(torch.rand(3)),
            "documents: ids is torch.float32; it must hold whole numbers: write ids.long",
        ),
        (lambda: ch.documents(torch.zeros(1, 2, 3).long()), r"ids has shape \(1, 2, 3\); expected \(N,\) or \(B, N\)"),
        (lambda: ch.graph(torch.rand(2, 3)), "graph: edge_index is torch.float32; it must hold whole numbers"),
        (lambda: ch.graph(torch.zeros(5, 2).long()), r"edge_index has shape \(5, 2\); .*; write edge_index.T"),
        (lambda: ch.graph([]), "graph: edge_index is an empty list"),
        (lambda: ch.graph([[0, 1]]), r"graph: edge_index\[0\] is a list; it must be a tensor"),
        (
            lambda: ch.graph(torch.tensor([[0, 7], [1, 2]]), nodes=5),
            "edge 1 from 7 to 2; each must be between 0 and 4, or nodes larger",
        ),
        (lambda: ch.graph(torch.tensor([[0], [-3]])), "edge 0 from 0 to -3; each must be at least 0"),
        (lambda: ch.causal().draw(0), "draw: n is 0"),
        (
            lambda: parse("documents()"),
            r"documents holds tensors, which text cannot; write it in Python, as ch.documents",
        ),
        (lambda: parse("docments()"), "unknown shape 'docments'; did you mean 'documents'?"),
        (lambda: parse("window(befor=3)"), "window has no argument 'befor'; did you mean 'before'?"),
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
