"""`blocks`: attention over what a pattern's block layout leaves, by PyTorch's own fused operators, on a CPU.

Fused attention is called on runs of keys (`runs.py`): on strided views, with masks only where a block holds some pairs
and not all. A row that sees several runs gets their outputs merged by their logsumexps; the backward pass calls the
fused one with each row's whole output and logsumexp, so that the gradients of runs add up (Dao 2022).

Shapes: q (B, H, Nq, D), k (B, Hkv, Nk, D), v (B, Hkv, Nk, D), out (B, H, Nq, D), lse (B, H, Nq).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clearhead.kernels.bands import Band, allowed
from clearhead.kernels.distances import steady
from clearhead.kernels.runs import KEYS, ROWS, plan
from clearhead.kernels.score import ByDistance, Score, working_dtype
from clearhead.kernels.stream import Task
from clearhead.kernels.tiles import Cuts
from clearhead.kernels.unwritten import begin
from clearhead.kernels.visible import Visible

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

_MASKED = 1 << 22
"""Pairs whose mask is held at a time."""
_GRADS = 1 << 20
"""Numbers in the gradients of the keys of one call: they are added up while they are in the cache."""


@dataclass(frozen=True, eq=False)
class _Share:
    """Some samples that see the same, their real queries and keys, and what they add to the logits."""

    samples: range
    visible: Visible
    bias: Tensor | ByDistance | None

    def repeats(self, band: Band) -> bool:
        """Is the bias the same in all blocks of a band? What goes by distance is, where keys move along with rows."""
        if self.bias is None or band.count == 1:
            return True
        if not isinstance(self.bias, ByDistance) or band.step != band.rows:
            return False
        given = (self.visible.q_positions, self.visible.k_positions)
        return steady(*(x for x in given if x is not None))

    def bias_in(self, band: Band) -> Tensor | None:
        """What is added to the logits of a band, (H or 1, count or 1, rows or 1, keys or 1)."""
        if not isinstance(self.bias, ByDistance):
            return None if self.bias is None else band.pairs_of(self.bias[0])
        band = band.part(0, 1) if self.repeats(band) else band
        q, k = self.visible.positions_of_queries(), self.visible.positions_of_keys()
        distance = band.pairs_of(k[0, :, None]) - band.pairs_of(q[0, :, :, None])
        return self.bias.at(distance[None])[0]


def cuts() -> Cuts:
    """Where rows, keys and pairs are cut."""
    return Cuts((ROWS,), (KEYS,), (_MASKED,))


def forward(q: Tensor, k: Tensor, v: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the logsumexp (1, B, H, Nq), and nothing for what keys received."""
    q, k, v = _rows(q), _rows(k), _rows(v)
    heads, wide = q.shape[1], working_dtype(q.dtype)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full(q.shape[:3], -math.inf, dtype=wide)
    for share, held in _shares(q, task):
        merging = any(not band.first for band in held)
        for b in share.samples:
            found = torch.zeros_like(out[b], dtype=wide) if merging else out[b]
            begin(x for band in held for x in (band.queries(found), band.queries(lse[b, ..., None])))
            for band in _parts(held, share, heads, _MASKED):
                added = _added(share, band, heads, q.dtype)
                for mine in _groups(q, k):
                    operands = band.queries(q[b, mine]), band.runs(k[b]), band.runs(v[b])
                    part = _fused(*operands, attn_mask=_some(added.mask, mine), scale=task.score.scale)
                    _merge(band, part, _some(added.blind, mine), found[mine], lse[b, mine])
            if merging:
                out[b] = found
    return out, lse[None], q.new_empty(*q.shape[:2], 0, dtype=wide)


def backward(
    g_out: Tensor,
    g_raw: Tensor,
    g_received: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    task: Task,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients in q, k and v. In half precision they are computed in float32, where the fused operator is faster."""
    q, k, v, out, g_out = (_rows(x) for x in (q, k, v, out, g_out))
    heads, wide, dtype = q.shape[1], working_dtype(q.dtype), q.dtype
    g_q, g_k, g_v = (torch.zeros_like(x, dtype=wide, memory_format=torch.contiguous_format) for x in (q, k, v))
    lse = lse.masked_fill(lse == -math.inf, 0)  # in rows that see nothing the mask alone makes all weights zero
    for share, held in _shares(q, task):
        for b in share.samples:
            for band in _parts(held, share, heads, _MASKED, _GRADS // max(1, k.shape[1] * k.shape[3])):
                added = _added(share, band, heads, wide)
                for mine in _groups(q, k):
                    rows, runs = (g_out[b, mine], q[b, mine]), (k[b], v[b])
                    operands = [band.queries(x).to(wide) for x in rows] + [band.runs(x).to(wide) for x in runs]
                    known = band.queries(out[b, mine]).to(wide), band.queries(lse[b, mine, :, None]).squeeze(-1)
                    logits = {"attn_mask": _some(added.mask, mine), "scale": task.score.scale}
                    parts = _fused_backward(*operands, *known, 0.0, False, **logits)
                    band.queries(g_q[b, mine]).add_(parts[0])
                    band.add_runs(g_k[b], parts[1])
                    band.add_runs(g_v[b], parts[2])
    bias = task.score.tensor
    g_bias = q.new_zeros(bias.shape if task.learns and bias is not None else 0, dtype=wide)
    return g_q.to(dtype), g_k.to(dtype), g_v.to(dtype), g_bias


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _shares(q: Tensor, task: Task) -> Iterator[tuple[_Share, tuple[Band, ...]]]:
    """Samples that see the same, and their bands; samples are taken one by one where they differ in anything."""
    see, score, samples = task.visible, task.score, q.shape[0]
    tensors = (see.mask, see.q_positions, see.k_positions, score.tensor, *see.pattern.tensors())
    alike = see.unpadded and all(x is None or x.shape[0] == 1 for x in tensors)
    if not samples or not q.shape[1]:
        return
    if alike:
        yield _planned(_Share(range(samples), see, score.bias))
        return
    for b in range(samples):
        yield _planned(_Share(range(b, b + 1), *_sample(see, score, b)))


def _planned(share: _Share) -> tuple[_Share, tuple[Band, ...]]:
    see = share.visible
    return share, plan(see).bands if see.n_queries and see.n_keys else ()


def _sample(see: Visible, score: Score, b: int) -> tuple[Visible, Tensor | ByDistance | None]:
    """Who sees whom in one sample, cut to its real queries and keys: the sample as it stands alone."""
    one = torch.tensor([b])
    see = see.of(one)
    n_queries = see.n_queries if see.q_lengths is None else int(see.q_lengths)
    n_keys = see.n_keys if see.k_lengths is None else int(see.k_lengths)
    alone = replace(
        see,
        n_queries=n_queries,
        n_keys=n_keys,
        mask=_cut(see.mask, n_queries, n_keys),
        q_lengths=None,
        k_lengths=None,
        q_positions=None if see.q_positions is None else _cut(see.q_positions, n_queries),
        k_positions=None if see.k_positions is None else _cut(see.k_positions, n_keys),
    )
    bias = score.changed(lambda x: x if x.shape[0] == 1 else x[b : b + 1]).bias
    return alone, bias if isinstance(bias, ByDistance) else _cut(bias, n_queries, n_keys)


def _cut(x: Tensor | None, *sizes: int) -> Tensor | None:
    """The beginnings of the last axes, unless they broadcast."""
    if x is None:
        return None
    for axis, size in enumerate(sizes, -len(sizes)):
        if x.shape[axis] != 1:
            x = x.narrow(axis, 0, size)
    return x


def _groups(q: Tensor, k: Tensor) -> Iterator[slice]:
    """The heads that have each a key of their own; grouped queries take as many calls as share a key."""
    group = q.shape[1] // k.shape[1]
    for i in range(group):
        yield slice(i, None, group)


def _parts(held: tuple[Band, ...], share: _Share, heads: int, most_masked: int, most_keys: int = 0) -> Iterator[Band]:
    """Bands in parts that hold at most so many pairs of a mask that is not the same in all blocks, or so many keys."""
    see, bias = share.visible, share.bias
    tensors = (see.mask, bias.table if isinstance(bias, ByDistance) else bias)
    several = max([1, *(x.shape[1] for x in tensors if x is not None)])
    for band in held:
        step = band.count
        if see.mask is not None or not share.repeats(band) or (band.some and band.see is None):
            step = max(1, min(step, most_masked // (several * band.rows * band.keys)))
        if most_keys:
            step = max(1, min(step, most_keys // band.keys))
        for start in range(0, band.count, step):
            yield band if step == band.count else band.part(start, min(band.count, start + step))


@dataclass(frozen=True, eq=False)
class _Added:
    """What is added to the logits, and the rows that see nothing, (count or 1, H or 1, rows, keys or 1)."""

    mask: Tensor | None = None
    blind: Tensor | None = None


def _some(x: Tensor | None, heads: slice) -> Tensor | None:
    return x if x is None or x.shape[1] == 1 else x[:, heads]


def _added(share: _Share, band: Band, heads: int, dtype: torch.dtype) -> _Added:
    if not band.some and share.visible.mask is None and share.bias is None:
        return _Added()
    see = allowed(share.visible, band, heads)
    mask = torch.zeros(see.shape, dtype=dtype).masked_fill_(~see, -math.inf)
    if (bias := share.bias_in(band)) is not None:
        mask = mask + bias.to(dtype)
        see = mask != -math.inf
    blind = ~see.any(-1, keepdim=True)
    return _Added(mask.movedim(1, 0), blind.movedim(1, 0) if blind.any() else None)


def _merge(band: Band, found: tuple[Tensor, Tensor], blind: Tensor | None, out: Tensor, lse: Tensor) -> None:
    """Add what a band found, output and logsumexp, (count, heads, rows, D) and (count, heads, rows), to its rows'."""
    part, part_lse = found[0], found[1].unsqueeze(-1)
    if blind is not None:  # fused attention calls the logsumexp of nothing 0
        part, part_lse = part.masked_fill(blind, 0), part_lse.masked_fill(blind, -math.inf)
    out, lse = band.queries(out), band.queries(lse.unsqueeze(-1))
    if not band.first:
        both = torch.logaddexp(lse, part_lse)
        seen = both.clamp(min=torch.finfo(both.dtype).min)  # -inf - -inf would be NaN
        part = out * (lse - seen).exp() + part * (part_lse - seen).exp()
        part_lse = both
    out.copy_(part)
    lse.copy_(part_lse)
