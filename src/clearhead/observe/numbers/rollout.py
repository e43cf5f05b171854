"""Rollout: how much of each input token has reached an output row through all layers (Abnar & Zuidema 2020).

    R_l = ½ (A_l + I) R_(l-1),  A_l the mean over the heads of layer l

Rows of R are found by sending vectors down through the transposed layers, from the last to the first; no matrix of a
layer is formed.

Shapes: B samples, H heads, N tokens, R rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from clearhead.errors import InputError, nearest
from clearhead.observe.calls import Call, Seen
from clearhead.observe.calls import under as is_under
from clearhead.observe.numbers.kept import Mapped, kept, padding_of, position, visible_keys

WHOLE = 2048
"""Tokens up to which the whole matrix is given."""

HELD = 1 << 24
"""Numbers that are sent through a layer at a time: 64 MiB in float32."""


@torch.no_grad()
def rollout(
    given: Seen | Sequence[Mapped],
    row: int | Sequence[int] | Tensor | None = None,
    *,
    pool: int | None = None,
    under: str = "",
    step: int | None = None,
) -> Tensor:
    """The relevance of every input token for chosen output rows, through all self-attention layers of one stack.

    Each row of R sums to 1. A row that sees nothing in a layer, being padding, keeps what it has: it is a row of the
    identity there.

    Args:
        given: what a watch with `keep_maps=True` has seen; or calls or maps of one stack, the first layer first.
        row: one output row, (B, N), or several, (B, R, N); None: all of at most 2048, (B, N, N).
        pool: instead of rows, means over this many blocks of rows, (B, pool, N). Padding is left out; NaN where a block
            is nothing else.
        under: the path of the stack, such as "encoder", where the model has more than one.
        step: which forward pass, where several were seen.

    Raises InputError where maps were not kept, where layers are of several stacks or forward passes and none is
    chosen, where layers differ in samples or tokens, and for rows that are not there.
    """
    if pool is not None and row is not None:
        raise InputError("rollout takes rows or a number of blocks of rows, not both: leave out row or pool")
    layers = _stack(given, under, step) if isinstance(given, Seen) else list(given)
    b, n = _size(layers)
    starts = _rows(row, n).expand(b, -1, -1) if pool is None else _blocks(layers[-1], pool)
    out = _relevance(layers, starts)
    return out[:, 0] if isinstance(row, int) else out


def _relevance(layers: Sequence[Mapped], starts: Tensor) -> Tensor:
    """`starts` (B, R, N) times R, in parts that fit into memory."""
    maps = [kept(layer) for layer in layers]
    blank = [visible_keys(layer) == 0 for layer in layers]
    dtype = max((torch.promote_types(A.dtype, torch.float32) for A in maps), key=lambda dtype: dtype.itemsize)
    b, n = starts.shape[0], starts.shape[2]
    step = max(1, HELD // max(1, b * n * max(A.full_shape[1] for A in maps)))
    parts = []
    for part in starts.to(maps[0].device, dtype).split(step, 1):
        y = part.mT
        for A, nothing in zip(reversed(maps), reversed(blank), strict=True):
            every = y[:, None].expand(*nothing.shape, -1)
            back = (A.T @ every.reshape(*A.shape[:-1], -1)).reshape(every.shape)
            y = (y + (back + every * nothing[..., None]).mean(1)) / 2
        parts.append(y.mT)
    return torch.cat(parts, 1)


def _rows(row: int | Sequence[int] | Tensor | None, n: int) -> Tensor:
    """The vectors that choose rows, (R, N)."""
    if row is None:
        if n > WHOLE:
            raise InputError(f"rollout of {n} tokens would be {n} × {n}: choose row=…, or pool=64 for blocks of rows")
        return torch.eye(n)
    wanted = [row] if isinstance(row, int) else [int(i) for i in row]
    return one_hot(torch.tensor([position(i, n, "row") for i in wanted], dtype=torch.int64), n)


def _blocks(layer: Mapped, count: int) -> Tensor:
    """The vectors that take means over blocks of rows, (B, count, N), without those that are padding in `layer`."""
    hidden = padding_of(layer) | (visible_keys(layer) == 0).all(1)
    n = hidden.shape[1]
    if not 1 <= count <= n:
        raise InputError(f"pool is {count}; it must be at least 1 and at most the {n} rows")
    block = torch.arange(n, device=hidden.device) * count // n
    inside = one_hot(block, count).T.to(torch.float64) * ~hidden[:, None]
    return inside / inside.sum(-1, keepdim=True)


def _size(layers: Sequence[Mapped]) -> tuple[int, int]:
    """(B, N), the same for all layers."""
    if not layers:
        raise InputError("rollout needs at least one layer of self-attention")
    shapes = [kept(layer).full_shape for layer in layers]
    for (b, _, n_queries, n_keys), layer in zip(shapes, layers, strict=True):
        if (b, n_queries, n_keys) != (shapes[0][0], shapes[0][3], shapes[0][3]):
            name = layer.name if isinstance(layer, Call) else "a map"
            raise InputError(
                f"rollout follows one stack of self-attention over all its tokens: {name} has {b} samples, {n_queries} "
                f"queries and {n_keys} keys, the first layer {shapes[0][0]} samples and {shapes[0][3]} keys; choose a "
                "stack with under=…"
            )
    return shapes[0][0], shapes[0][3]


def _stack(seen: Seen, under: str, step: int | None) -> list[Call]:
    """The self-attention calls of one stack in one forward pass, the first layer first."""
    inside = [call for call in seen if is_under(call.name, under)]
    if not inside:
        raise InputError(f"no attention was seen under {under!r}{nearest(under, seen.names)}")
    steps = sorted({call.step for call in inside})
    if step is None and len(steps) > 1:
        raise InputError(f"{len(steps)} forward passes were seen: choose one with step={steps[0]} … step={steps[-1]}")
    if step is not None and step not in steps:
        raise InputError(f"step {step} is none of the forward passes that were seen: {steps[0]} … {steps[-1]}")
    chosen = [call for call in inside if call.role == "self" and step in (None, call.step)]
    stacks = _stacks([call.name for call in chosen])
    if not under and len(stacks) > 1 and any(call.role == "cross" for call in inside):
        choices = " or ".join(f"under={path!r}" for path in stacks)
        raise InputError(f"the model has several stacks: choose one with {choices}")
    return chosen


def _stacks(names: Sequence[str]) -> list[str]:
    """Where the paths of layers part first, unless they part by a number: "encoder", "decoder"."""
    parts = [name.split(".") for name in names]
    at = 0
    while parts and at < min(map(len, parts)) and len({path[at] for path in parts}) == 1:
        at += 1
    numbered = any(path[at : at + 1] and path[at].isdecimal() for path in parts)
    return [] if numbered else list(dict.fromkeys(".".join(path[: at + 1]) for path in parts))
