"""`stream`: softmax attention in chunks of rows. The reference kernel; every other one is tested equal to it.

For each tile of rows it forms the logits, their softmax, the output and the statistics of the rows, and forgets the
weights: memory is O(n). The backward pass forms them again from each row's logsumexp (Rabe & Staats 2021, Dao 2022).

Shapes: q (B, H, Nq, D), k (B, Hkv, Nk, D), v (B, Hkv, Nk, Dv), out (B, H, Nq, Dv), raw (RAW or 1, B, H, Nq).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clearhead.kernels import fused
from clearhead.kernels.distances import give_back
from clearhead.kernels.rows import Ways, apart, grad_logits, logsumexp, measure, softmax_rows
from clearhead.kernels.score import ByDistance, Score, grouped, working_dtype
from clearhead.kernels.side_by_side import side_by_side
from clearhead.kernels.tiles import FEWEST, PAIRS, Cuts, Size, Tile, tiles
from clearhead.kernels.unwritten import begin
from clearhead.kernels.visible import Visible, cut


@dataclass(eq=False)  # a frozen one takes four times as long to make
class Task:
    """What a pass over the rows is to compute, apart from q, k and v.

    Weights are dropped by the random numbers that `seed` (a whole number in a tensor) starts: both passes draw the
    same. `sinks` (B or 1, S) are the keys whose weight is the statistic `sink`; with them all RAW statistics are
    measured, without them the logsumexp alone. `received` adds up each key's column. Unless the score's bias `learns`,
    its gradient is not computed.
    """

    visible: Visible
    score: Score
    dropout: float = 0.0
    seed: Tensor | None = None
    sinks: Tensor | None = None
    distance: bool = False
    received: bool = False
    learns: bool = True


def forward(q: Tensor, k: Tensor, v: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the raw statistics, and what each key received, (B, H, Nk) or empty."""
    wide, see, out_dtype = working_dtype(q.dtype), task.visible, v.dtype
    compiled = misfit(q, k, v, task) is None
    if not (compiled and fused.plain(see)):
        task = replace(task, visible=see.placed())
    if not compiled or fused.halves(q, k, v):
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
    one_tile = q.shape[0] * q.shape[1] * see.n_queries * see.n_keys <= PAIRS  # which writes all of its rows
    whole = compiled and see.n_keys > 0 and (one_tile or (see.full and see.unpadded))
    out, raw = _to_fill(q, v, wide, task, whole)
    size = fused.tile_size(task.visible, task.score, *q.shape[:2]) if compiled else Size()
    work_at_hand = list(_tiles(q, k, task, size))
    begin(rows for _, tile in work_at_hand for rows in (out[_rows(tile)], raw[(slice(None), *_rows(tile))]))

    def work(share: Sequence[tuple[int, Tile]]) -> Tensor:
        received = torch.zeros(*q.shape[:2], k.shape[2] if task.received else 0, dtype=wide, device=q.device)
        if compiled:
            take = fused.Pass(q, k, v, task.visible, task.score, task.sinks, task.distance, out, raw, received)
            take([tile for _, tile in share])
        else:
            _eagerly(share, q, k, v, task, out, raw, received)
        return received

    parts = side_by_side(work, work_at_hand) if q.device.type == "cpu" else [work(work_at_hand)]
    return out.to(out_dtype), raw, sum(parts[1:], parts[0])


def misfit(q: Tensor, k: Tensor, v: Tensor, task: Task, *gradients: Tensor) -> str | None:
    """Why a call is not computed by `fused.c` but tensor by tensor; None: it is."""
    if task.dropout:
        return "weights are dropped by PyTorch's random numbers"
    see = task.visible
    more = (task.score.tensor, see.mask, see.q_positions, see.k_positions, task.sinks, *gradients)
    if (why := fused.misfit(q, k, v, *more)) is not None:
        return why
    return "positions too far apart for float32" if task.distance and not fused.reaches(see) else None


def cuts() -> Cuts:
    """Where rows, keys and pairs are cut, tensor by tensor; `fused.cuts` says it of the compiled pass."""
    size = Size()
    return Cuts((size.rows,), (size.pairs // size.rows, size.pairs // FEWEST), (PAIRS, size.pairs))


def how(q: Tensor, k: Tensor, v: Tensor, task: Task) -> str:
    """In words, how these are computed: for people."""
    if (why := misfit(q, k, v, task)) is not None:
        return f"tensor by tensor: {why}"
    if (why := fused.halves(q, k, v)) is None:
        return "compiled, bfloat16 products with float32 sums"
    return "compiled" if q.dtype == torch.float32 else f"compiled, in float32: {why}"


def _eagerly(
    share: Sequence[tuple[int, Tile]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    task: Task,
    out: Tensor,
    raw: Tensor,
    received: Tensor,
) -> None:
    """Some tiles tensor by tensor, their output, statistics and received weights written to the last three.

    The twin of `fused.c` for whatever that cannot take.
    """
    ways = _Ways(task, q.dtype)
    for i, tile in share:
        at = _rows(tile)
        rows = softmax_rows(tile, q[at], k[_keys(tile)], task.score, task.visible)
        if task.received:
            received[tile.b, tile.h, tile.keys] += rows.total.reciprocal().mT.matmul(rows.exp).squeeze(-2)
        if v.shape[-1]:
            values = v[_keys(tile)]
            products = grouped(_dropped(rows.exp, task, i), values).matmul(values)
            out[at] = products.view(*rows.exp.shape[:3], -1) / rows.total
        raw[(slice(None), *at)] = (
            logsumexp(rows)[None] if task.sinks is None else measure(rows, task.sinks, ways.of(tile))
        )
        del rows  # before the next tile's are made, which then lie in the same memory, still in the cache


def backward(
    g_out: Tensor, g_raw: Tensor, g_received: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, task: Task
) -> tuple[Tensor, ...]:
    """Gradients in q, k, v and the score's bias (empty if it does not learn), from those of what `forward` returned.

    `lse` (B, H, Nq) is the rows' logsumexp. On the CPU, tiles are shared out by their keys where that occupies all
    workers; else each worker adds to gradients of its own, which are summed.
    """
    wide, task = working_dtype(q.dtype), replace(task, visible=task.visible.placed())
    dtypes, (g_out, q, k, v) = [x.dtype for x in (q, k, v)], (x.to(wide) for x in (g_out, q, k, v))
    compiled = misfit(q, k, v, task, g_out, g_raw, g_received, lse) is None
    bias = task.score.tensor if task.learns and task.score.tensor is not None else q.new_zeros(0)
    g_q, *shared = (torch.zeros_like(x, dtype=wide, memory_format=torch.contiguous_format) for x in (q, k, v, bias))
    size = fused.tile_size(task.visible, task.score, *q.shape[:2]) if compiled else Size()
    shares = _by_keys(_tiles(q, k, task, size))
    # no two shares have keys in common, and where they occupy all workers these add to the same gradients
    apart = not bias.numel() and (len(shares) >= 8 or len(shares) % torch.get_num_threads() == 0)

    def work(items: Sequence[Sequence[tuple[int, Tile]]]) -> list[Tensor]:
        gradients = shared if apart else [torch.zeros_like(x) for x in shared]
        call: Any = (g_out, g_raw, g_received, q, k, v, lse, task, (g_q, *gradients))
        (_compiled_back if compiled else _eagerly_back)([numbered for item in items for numbered in item], *call)
        return gradients

    items = shares if apart else [[numbered] for share in shares for numbered in share]
    parts = side_by_side(work, items) if q.device.type == "cpu" else [work(items)]
    if not apart:
        shared = [sum(x[1:], x[0]) for x in zip(*parts, strict=True)]
    *found, g_bias = (g_q, *shared)
    return *(x.to(dtype) for x, dtype in zip(found, dtypes, strict=True)), g_bias


def _compiled_back(
    share: Sequence[tuple[int, Tile]],
    g_out: Tensor,
    g_raw: Tensor,
    g_received: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    task: Task,
    gradients: tuple[Tensor, ...],
) -> None:
    forth = (q, k, v, task.visible, task.score, task.sinks, task.distance, g_out, g_raw, g_received)
    take = fused.Return(*forth, lse=lse, gradients=gradients)
    take([tile for _, tile in share])


def _by_keys(tiles: Iterator[tuple[int, Tile]]) -> list[list[tuple[int, Tile]]]:
    """Tiles of the same samples and key heads, together."""
    shares: dict[tuple[int, int], list[tuple[int, Tile]]] = {}
    for i, tile in tiles:
        shares.setdefault((tile.b.start, tile.kv.start), []).append((i, tile))
    return list(shares.values())


def _eagerly_back(
    share: Sequence[tuple[int, Tile]],
    g_out: Tensor,
    g_raw: Tensor,
    g_received: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    task: Task,
    gradients: Sequence[Tensor],
) -> None:
    """Some tiles tensor by tensor, their gradients added to the last. The twin of `fused.Return`."""
    g_q, g_k, g_v, g_bias = gradients
    g_raw = g_raw.masked_fill(lse == -math.inf, 0)  # a row that sees nothing has no gradient, whatever is asked of it
    for i, tile in share:
        at, below = _rows(tile), _keys(tile)
        queries, keys, values, g = q[at], k[below], v[below], grouped(g_out[at], v[below])
        rows = softmax_rows(tile, queries, keys, task.score, task.visible, lse[at])
        g_v[below] += grouped(_dropped(rows.exp, task, i), values).mT.matmul(g)
        g_weights = _dropped(g.matmul(values.mT).view_as(rows.exp), task, i)
        if task.received:
            g_weights = g_weights + g_received[tile.b, tile.h, None, tile.keys]
        distance = _ways(tile, task, q.dtype)
        g_logits = grad_logits(rows, g_weights, g_raw[(slice(None), *at)], task.sinks, distance)
        if isinstance(task.score.bias, ByDistance) and g_bias.numel():
            give_back(tile, task.score.bias, task.visible, g_logits, g_bias)
        elif g_bias.numel():
            part = tile.of(g_bias)
            part += g_logits.sum_to_size(part.shape)
        g_products = grouped(task.score.grad_products(g_logits, rows.products), keys)
        g_q[at] = g_products.matmul(keys).view_as(queries)
        g_k[below] += g_products.mT.matmul(grouped(queries, keys))


def _tiles(q: Tensor, k: Tensor, task: Task, size: Size) -> Iterator[tuple[int, Tile]]:
    """The tiles, numbered; rows that see nothing lie in none, and keep what they began with."""
    yield from enumerate(tiles(task.visible, q.shape[0], q.shape[1], k.shape[1], size))


def _rows(tile: Tile) -> tuple[slice, slice, slice]:
    return tile.b, tile.h, tile.rows


def _keys(tile: Tile) -> tuple[slice, slice, slice]:
    return tile.b, tile.kv, tile.keys


def _to_fill(q: Tensor, v: Tensor, wide: torch.dtype, task: Task, whole: bool) -> tuple[Tensor, Tensor]:
    """Room for the output and for the RAW statistics, or without sinks for the logsumexp alone.

    Unless the `whole` of it will be written: filled with what is measured in rows that see nothing.
    """
    found = [-math.inf] if task.sinks is None else [-math.inf, -math.inf, 0.0, math.nan, 0.0, 0.0, 0.0]
    if whole:  # operations are what small calls cost
        out = torch.empty(*q.shape[:3], v.shape[-1], dtype=v.dtype, device=q.device)
        return out, torch.empty(len(found), *q.shape[:3], dtype=wide, device=q.device)
    column = torch.tensor(found, dtype=wide, device=q.device).view(-1, 1, 1, 1)
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=v.dtype, device=q.device)
    return out, column.expand(-1, *q.shape[:3]).contiguous()


class _Ways:
    """The ways of each tile, or None where distances are not measured; tiles of other heads often have the same."""

    def __init__(self, task: Task, wide: torch.dtype) -> None:
        self._task, self._wide = task, wide
        self._key: object = None
        self._ways: Ways | None = None

    def of(self, tile: Tile) -> Ways | None:
        if not self._task.distance:
            return None
        q, k = self._task.visible.positions_of_queries(), self._task.visible.positions_of_keys()
        key = (tile.b, tile.rows, tile.keys, tile.h if max(q.shape[1], k.shape[1]) > 1 else None)
        if key != self._key:
            at = cut(q, tile.b, tile.h, tile.rows), cut(k, tile.b, tile.h, tile.keys)
            self._key, self._ways = key, Ways(*at, self._wide)
        return self._ways


def _ways(tile: Tile, task: Task, wide: torch.dtype) -> Tensor | None:
    """|position of the query - position of the key| over the tile, or None where it is not measured."""
    if not task.distance or task.sinks is None:
        return None
    q, k = task.visible.positions_of_queries(), task.visible.positions_of_keys()
    return apart(cut(q, tile.b, tile.h, tile.rows), cut(k, tile.b, tile.h, tile.keys), wide)


def _dropped(x: Tensor, task: Task, index: int) -> Tensor:
    """`x` (b, h, r, K) with entries dropped and the rest scaled up; the same ones at each call for a tile."""
    if not task.dropout or task.seed is None:
        return x
    generator = torch.Generator(x.device).manual_seed(int(task.seed) + index)
    kept = torch.empty_like(x).bernoulli_(1 - task.dropout, generator=generator)
    return x * kept / (1 - task.dropout)
