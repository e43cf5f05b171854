"""`flex`: FlexAttention for GPUs (Dong 2024), for patterns of which the fused kernel would need a dense mask.

Its block mask is made from what the pattern says of rectangles, never from n² pairs. Blocks that a pattern leaves out
are not visited, in blocks of which it allows all no pair is asked for, and in the others the pattern itself is compiled
into the kernel.

Shapes: q (B, H, Nq, D), k (B, Hkv, Nk, D), v (B, Hkv, Nk, Dv), out (B, H, Nq, Dv).
"""

import importlib.util
from collections.abc import Callable, Hashable
from functools import lru_cache
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from clearhead.kernels.call import SMALL, Call
from clearhead.kernels.kept import Kept
from clearhead.kernels.score import ByDistance, Score, as_given, working_dtype
from clearhead.kernels.tiles import Cuts
from clearhead.kernels.visible import Visible
from clearhead.patterns import ALL, NONE, SOME, block_layout

BLOCK = 128
"""Queries and keys in a block: FlexAttention's own size."""
LEAST = 16
"""Width of keys and values that its matrix products need."""
Lookup = Callable[..., Tensor]
"""A function of sample, head, query and key, whole numbers without axes, as FlexAttention's `mask_mod`."""


def misfit(call: Call) -> str | None:
    """Why FlexAttention does not compute a call; None: it does."""
    if call.device.type != "cuda":
        return "is for GPUs"
    if not _has_triton():
        return "needs Triton, which is not installed"
    if call.pairs <= SMALL:
        return f"is compiled for each kind of call, which {call.pairs:,} pairs are not worth"
    if reason := call.lacking("statistics", "dropout"):
        return reason
    if call.dtype == torch.float64:
        return "computes in float32 or less"
    if min(call.widths) < LEAST:
        return f"needs heads of width {LEAST} or more"
    return None


def cuts() -> Cuts:
    """Where rows and keys are cut."""
    return Cuts((BLOCK,), (BLOCK,), ())


@lru_cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def flex_attend(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, score: Score, logsumexp: bool = False, attend: Any = None
) -> tuple[Tensor, Tensor]:
    """The output, and the logsumexp of its rows, (1, B, H, Nq), or empty if not asked for, with gradients of both.

    `attend` takes what `flex_attention` takes; by default it is that, compiled for such calls.
    """
    attend = attend or _compiled((*_kind(q, k, v), *_options(visible, score), logsumexp))
    options = {"scale": score.scale, "enable_gqa": q.shape[1] != k.shape[1]}
    with as_given(q.device):
        parts = (_score_mod(score, visible, q.dtype), _block_mask(visible))
        if not logsumexp:
            return attend(q, k, v, *parts, **options), q.new_empty(0)
        out, rows = attend(q, k, v, *parts, **options, return_aux=AuxRequest(lse=True))
        return out, rows.lse[None]


def _kind(q: Tensor, k: Tensor, v: Tensor) -> tuple[object, ...]:
    """What a compiled kernel depends on, apart from sizes that vary from call to call."""
    learn = torch.is_grad_enabled() and tuple(x.requires_grad for x in (q, k, v))
    return q.dtype, q.shape[1], k.shape[1], q.shape[3], v.shape[3], learn


def _options(see: Visible, score: Score) -> tuple[object, ...]:
    """What of a call is compiled into a kernel."""
    tables = (see.mask, see.q_positions, see.k_positions, score.tensor)
    shapes = tuple(None if x is None else tuple(size == 1 for size in x.shape) for x in tables)
    by = (score.bias.first, score.bias.linear) if isinstance(score.bias, ByDistance) else None
    padded = (see.q_lengths is None, see.k_lengths is None, see.aligned)
    return see.pattern.outline(), score.scale, score.softcap, shapes, by, score.learns, padded


@lru_cache(maxsize=256)
def _compiled(kind: tuple[object, ...]) -> Any:
    """`flex_attention` compiled, once for each kind of call.

    Of one kind only batch and length vary; the second of either is compiled once more, for any.
    """
    return compiled_apart(_attend)


_apart = count()


def compiled_apart(function: Any, **options: Any) -> Any:
    """A function compiled with code of its own, without a graph break.

    The compiler counts by code how often it compiled something, and gives up after a few times, in silence:
    FlexAttention then holds n² logits. So functions written once and made often, like closures, must not share theirs.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_apart)}")
    own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    return torch.compile(own, fullgraph=True, **options)


def _attend(q: Tensor, k: Tensor, v: Tensor, score_mod: Any, block_mask: BlockMask, **options: Any) -> Any:
    return flex_attention(q, k, v, score_mod, block_mask, **options)


def _score_mod(score: Score, see: Visible, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """softcap(s) + bias, of the scaled product of a query and a key."""
    softcap, added = score.softcap, _added(score, see, dtype)
    if softcap is None and not added:
        return None

    def score_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap is not None:
            s = torch.tanh(s / softcap) * softcap
        for bias in added:
            s = s + bias(b, h, q, k)
        return s

    return score_mod


def _added(score: Score, see: Visible, dtype: torch.dtype) -> list[Lookup]:
    """What is added to the logits. Gradients of many pairs are summed, in float32 or wider."""
    score = score.changed(lambda x: x.to(working_dtype(dtype)) if x.requires_grad else x)
    if score.bias is None:
        return []
    return [_by_distance(score.bias, see) if isinstance(score.bias, ByDistance) else _lookup(score.bias)]


def _by_distance(bias: ByDistance, see: Visible) -> Lookup:
    """A bias by distance, as a function of indices."""
    table, (place_q, place_k) = _lookup(bias.table), _places(see)

    def at(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return bias.value(place_k(b, h, k) - place_q(b, h, q), lambda column: table(b, h, column))

    return at


def _lookup(x: Tensor) -> Lookup:
    """`x`, of up to four axes that broadcast to (B, H, Nq, Nk), as a function of indices."""
    axes = [i for i, size in enumerate(x.shape) if size != 1]
    table = x.reshape([x.shape[i] for i in axes])

    def at(*index: Tensor) -> Tensor:
        return table[tuple(index[i] for i in axes)] if axes else table

    return at


def _mask_mod(see: Visible) -> Lookup:
    """Which keys a query sees, by index: the pattern at their positions, the mask, and no padding."""
    place_q, place_k = _places(see)
    masked = None if see.mask is None else _lookup(see.mask)
    pattern, q_lengths, k_lengths = see.pattern, see.q_lengths, see.k_lengths

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = pattern.allows(b, h, place_q(b, h, q), place_k(b, h, k))
        if masked is not None:
            seen = seen & masked(b, h, q, k)
        if q_lengths is not None:
            seen = seen & (q < q_lengths[b])
        return seen if k_lengths is None else seen & (k < k_lengths[b])

    return mask_mod


def _places(see: Visible) -> tuple[Lookup, Lookup]:
    """Where queries and keys stand, as functions of sample, head and index."""

    def itself(b: Tensor, h: Tensor, at: Tensor) -> Tensor:
        return at

    place_k = itself if see.k_positions is None else _lookup(see.k_positions)
    return (itself if see.aligned else _lookup(see.positions_of_queries())), place_k


_layouts: Kept[dict[str, Any]] = Kept()
_visited: Kept[int] = Kept()


def visited(see: Visible) -> int:
    """The pairs in blocks that hold any, of a head of a sample. Counting them waits for the GPU, once for a layout."""

    def count() -> int:
        held = layout_of(see) != NONE
        return int(held.sum()) * BLOCK**2 // (held.shape[0] * held.shape[1])

    return _visited.of(*_described(see), count)


def _described(see: Visible) -> tuple[Hashable, tuple[Tensor | None, ...]]:
    """What a layout depends on: in words and numbers, and tensors."""
    held = (*see.pattern.tensors(), see.q_lengths, see.k_lengths, see.q_positions, see.k_positions)
    return (see.pattern.outline(), see.n_queries, see.n_keys, see.device, see.mask is None), held


def _block_mask(see: Visible) -> BlockMask:
    """The block mask of a call: which blocks hold some pairs and which hold all, and a function that tells pairs."""
    blocks = _layouts.of(*_described(see), lambda: _blocks(see))
    sizes = (see.n_queries, see.n_keys)
    return BlockMask(seq_lengths=sizes, **blocks, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=_mask_mod(see))


def _blocks(see: Visible) -> dict[str, Any]:
    """How many blocks of a row hold some pairs, and which; the same of all pairs, and of the blocks of a column."""
    layout, found = layout_of(see), {}
    for way, blocks in (("kv", layout), ("q", layout.mT)):
        for name, part in ((way, blocks == SOME), (f"full_{way}", blocks == ALL)):
            found[f"{name}_num_blocks"], found[f"{name}_indices"] = _ordered(part)
    return found


def layout_of(see: Visible) -> Tensor:
    """What the blocks of a call hold, NONE, SOME or ALL of their pairs, (B or 1, H or 1, blocks, blocks), int8."""
    layout = block_layout(see.pattern, see.positions_of_queries(), see.positions_of_keys(), BLOCK, BLOCK)
    if see.mask is not None:
        layout = layout.clamp(max=SOME)
    whole, real = _real(see.n_queries, see.q_lengths, see.device)
    layout = torch.where(real[..., None], torch.where(whole[..., None], layout, layout.clamp(max=SOME)), NONE)
    whole, real = _real(see.n_keys, see.k_lengths, see.device)
    return torch.where(real[..., None, :], torch.where(whole[..., None, :], layout, layout.clamp(max=SOME)), NONE)


def _real(n: int, lengths: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each block of `n` tokens: is it whole, without padding? Does it hold a token? (B or 1, 1, blocks)."""
    first = torch.arange(0, n, BLOCK, device=device)
    end = torch.full((1,), n, device=device) if lengths is None else lengths
    return first + BLOCK <= end[:, None, None], first < end[:, None, None]


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row holds, and which, these first; int32."""
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32).contiguous()
