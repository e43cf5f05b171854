"""Patterns made of edges: attention along a graph. Shapes: S graphs side by side, N nodes, E edges, n blocks of 32."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.errors import InputError, ShapeError
from clearhead.patterns.base import Pattern, verdict
from clearhead.patterns.given import check_size

_SIDE = 32
"""Nodes in a block: a row of it is 32 bits, one word."""


def graph(edge_index: Tensor | Sequence[Tensor], nodes: int | None = None, self_loops: bool = True) -> Pattern:
    """Each node sees the sources of its edges: graph attention (Veličković 2018), by PyTorch Geometric's convention.

    `edge_index` (2, E) holds whole numbers, a column for each edge, source above target: information flows from source
    to target, so the target attends to the source. Edges that go both ways are listed twice; an edge listed twice
    counts once. A list of them is a graph for each sample; many graphs packed in one row are one edge_index, as
    PyTorch Geometric batches them.

    Args:
        nodes: how many there are, of the largest graph; by default as many as the edges name.
        self_loops: every node sees itself too.

    Positions behind the last node have no edges. The edges are kept as bits in those 32 × 32 blocks that hold any.
    Raises InputError or ShapeError, naming the edge, where an index is negative or beyond `nodes`.
    """
    given = [edge_index] if isinstance(edge_index, Tensor) else list(edge_index)
    if not given:
        raise InputError("graph: edge_index is an empty list; give an edge_index for each sample")
    for s, edges in enumerate(given):
        _check("edge_index" if isinstance(edge_index, Tensor) else f"edge_index[{s}]", edges, nodes)
    most = max(int(edges.max()) + 1 if edges.numel() else 0 for edges in given) if nodes is None else nodes
    pairs = torch.cat([torch.stack([torch.full_like(e[0], s), e[1], e[0]]) for s, e in enumerate(given)], 1).long()
    if self_loops:
        every = torch.arange(len(given) * most, device=pairs.device)
        pairs = torch.cat([pairs, torch.stack([every // max(1, most), *[every % max(1, most)] * 2])], 1)
    return _packed(pairs, len(given), most)


def _check(name: str, edges: object, nodes: int | None) -> None:
    if not isinstance(edges, Tensor):
        raise InputError(f"graph: {name} is a {type(edges).__name__}; it must be a tensor (2, E) of whole numbers")
    if edges.is_floating_point() or edges.is_complex() or edges.dtype == torch.bool:
        raise InputError(f"graph: {name} is {edges.dtype}; it must hold whole numbers: write {name}.long()")
    if edges.dim() != 2 or edges.shape[0] != 2:
        hint = "; write edge_index.T" if edges.dim() == 2 and edges.shape[1] == 2 else ""
        raise ShapeError(f"graph: {name} has shape {tuple(edges.shape)}; expected (2, E), sources above targets{hint}")
    bad = (edges < 0).any(0) if nodes is None else ((edges < 0) | (edges >= nodes)).any(0)
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        source, target = edges[:, i].tolist()
        range_ = "at least 0" if nodes is None else f"between 0 and {nodes - 1}, or nodes larger"
        raise InputError(f"graph: {name} has edge {i} from {source} to {target}; each must be {range_}")


def _packed(pairs: Tensor, graphs: int, nodes: int) -> Pattern:
    """The pattern of `pairs` (3, E): graph, target and source of each edge."""
    blocks = -(-nodes // _SIDE)
    s, q, k = pairs
    whole = torch.unique((s * nodes + q) * nodes + k)  # each edge once
    s, q, k = whole // max(1, nodes**2), whole // max(1, nodes) % max(1, nodes), whole % max(1, nodes)
    cell = (s * blocks + q // _SIDE) * blocks + k // _SIDE
    held, number = cell.unique(return_inverse=True)
    bits = torch.zeros(len(held) + 1, _SIDE, dtype=torch.int64, device=pairs.device)
    bits.index_put_((number + 1, q % _SIDE), torch.ones_like(k) << k % _SIDE, accumulate=True)
    cells = torch.zeros(graphs * blocks * blocks, dtype=torch.int64, device=pairs.device)
    counts = cells.index_add(0, cell, torch.ones_like(cell)).view(graphs, blocks, blocks)
    cells[held] = torch.arange(1, len(held) + 1, device=pairs.device) * _SIDE
    cells = torch.nn.functional.pad(cells.view(graphs, blocks, blocks), (0, 1, 0, 1))
    before = torch.nn.functional.pad(counts.cumsum(1).cumsum(2), (1, 0, 1, 0))
    seen = (
        torch.zeros(graphs * nodes, dtype=torch.int64, device=pairs.device)
        .index_add(0, s * nodes + q, torch.ones_like(q))
        .view(graphs, nodes)
    )
    tensors = (cells, bits[None], before, seen)
    return _Graph(*(x.to(torch.int32) for x in tensors))


@dataclass(frozen=True, eq=False, repr=False)
class _Graph(Pattern):
    """The edges of S graphs, (S or 1, …) int32.

    `cells` (S, n + 1, n + 1): where the words of each block that holds edges begin, 0 for the others and for the last
    ones, where no nodes are. `words` (1, blocks + 1, 32): a block's rows, a bit for each key. `before`
    (S, n + 1, n + 1): the edges above and to the left of each corner. `seen` (S, N): how many keys each node sees.
    """

    cells: Tensor
    words: Tensor
    before: Tensor
    seen: Tensor

    def __repr__(self) -> str:
        graphs, nodes = self.seen.shape
        many = f"{graphs} graphs, " if graphs > 1 else ""
        return f"graph({many}nodes={nodes}, edges={int(self.seen.sum())})"

    def outline(self) -> str:
        return "graph()"

    def tensors(self) -> tuple[Tensor, ...]:
        return self.cells, self.words, self.before, self.seen

    def holding(self, tensors: Sequence[Tensor]) -> Pattern:
        return _Graph(*tensors)

    @property
    def extent(self) -> int:
        return int(self.seen.shape[-1])

    def check(self, samples: int, positions: int | None) -> None:
        check_size("graph", self.seen.shape, samples, positions)

    def _graph(self, b: Tensor) -> Tensor:
        return b if self.cells.shape[0] > 1 else torch.zeros_like(b)

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # flat, and 32 bits wide: these are the only lookups made for every pair
        row = (self._graph(b) * self.cells.shape[1] + self._block(q)) * self.cells.shape[2]
        begin = self.cells.flatten()[row + self._block(k)]
        word = self.words.flatten()[begin + (q % _SIDE).int()]
        return (word & (torch.ones_like(k) << k % _SIDE).int()) != 0

    def _block(self, node: Tensor) -> Tensor:
        """The block that each node lies in; the last one, which is empty, for positions that are no nodes."""
        inside = (node >= 0) & (node < self.seen.shape[-1])
        return torch.where(inside, node // _SIDE, self.cells.shape[1] - 1)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        """Exact for rectangles that begin and end at multiples of 32, or behind the last node."""
        rows, columns = self._blocks(q_lo, q_hi), self._blocks(k_lo, k_hi)
        s = self._graph(b)
        (top, bottom, fits_above), (left, right, fits_beside) = rows, columns
        edges = self.before[s, bottom, right] - self.before[s, top, right]
        edges = edges - self.before[s, bottom, left] + self.before[s, top, left]
        full = edges == (q_hi - q_lo) * (k_hi - k_lo)
        return verdict(edges > 0, full & fits_above & fits_beside & (edges > 0))

    def _blocks(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The blocks that [lo, hi) meets, [first, behind); do they hold no other nodes?"""
        n = self.seen.shape[-1]
        first, behind = lo.clamp(0, n), hi.clamp(0, n)
        begins, ends = first // _SIDE, -(-behind // _SIDE)
        exact = (first % _SIDE == 0) & ((behind % _SIDE == 0) | (behind == n))
        return begins, torch.maximum(begins, ends), exact
