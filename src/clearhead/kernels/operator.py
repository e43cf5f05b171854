"""Kernels as an operator of torch: opaque to the compiler, differentiable once, and batched by vmap.

Operators take no Python objects, so a call's pattern travels as text, and its tensors one by one, like all others. A
list of tensors has no vmap rule; there are as many places for them as a pattern may hold.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clearhead.errors import InputError
from clearhead.kernels import blocks, stream
from clearhead.kernels.call import describe
from clearhead.kernels.choose import LATER, choose
from clearhead.kernels.rows import RAW
from clearhead.kernels.score import ByDistance, Score, as_given, traced, working_dtype
from clearhead.kernels.stream import Task
from clearhead.kernels.visible import Visible
from clearhead.patterns import Pattern, restore

_PLACES = 8
"""Tensors that a pattern may hold: documents hold one, a graph four."""
_CALL = (
    "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mask, Tensor? q_lengths, Tensor? k_lengths, "
    "Tensor? q_positions, Tensor? k_positions, "
    + "".join(f"Tensor? held_{i}, " for i in range(_PLACES))
    + "Tensor? sinks, Tensor? seed, "
    "str pattern, float scale, float? softcap, int? first, bool linear, bool learns, "
    "float dropout, bool distance, bool received, str kernel"
)
_TENSORS = _CALL.count("Tensor")


_KERNELS: dict[str, ModuleType] = {"stream": stream, "blocks": blocks}
"""Modules with a `forward` and a `backward` of the same signatures, but for the output."""
_READ_OUTPUT = {"blocks", LATER}
"""Kernels whose backward pass reads the output, before the logsumexp; the others do not keep it."""


def run(q: Tensor, k: Tensor, v: Tensor, task: Task, kernel: str = "stream") -> tuple[Tensor, Tensor, Tensor]:
    """`forward` of a kernel, with gradients in q, k, v and the score's bias."""
    see, score = task.visible, task.score
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, score.tensor))
    if not (learns or _looked_on()):
        with as_given(q.device):
            return _KERNELS[kernel].forward(q, k, v, task)  # nothing that would need an operator
    lengths, positions = (see.q_lengths, see.k_lengths), (see.q_positions, see.k_positions)
    tensors: tuple[Tensor | None, ...] = (q, k, v, score.tensor, see.mask, *lengths, *positions, *_held(see.pattern))
    by = (score.bias.first, score.bias.linear) if isinstance(score.bias, ByDistance) else (None, False)
    by = (*by, score.learns)
    options = (
        see.pattern.outline(),
        score.scale,
        score.softcap,
        *by,
        task.dropout,
        task.distance,
        task.received,
        kernel,
    )
    if torch.compiler.is_compiling():
        tensors = tuple(_other(x, tensors[:i]) for i, x in enumerate(tensors))
        if not learns:
            return forward_op(*tensors, task.sinks, task.seed, *options)  # it traces no function without gradients
    return _Stream.apply(*tensors, task.sinks, task.seed, *options)


def _looked_on() -> bool:
    """Does the compiler, a transform or forward-mode differentiation, which raises here, ask what is computed?"""
    return traced() or torch.autograd.forward_ad._current_level >= 0


def _held(pattern: Pattern) -> tuple[Tensor | None, ...]:
    """The tensors of a pattern, in as many places as there are for them."""
    tensors = pattern.tensors()
    if len(tensors) > _PLACES:
        raise InputError(
            f"pattern holds {len(tensors)} tensors, at most {_PLACES}; join its documents or graphs in one"
        )
    return (*tensors, *[None] * (_PLACES - len(tensors)))


def _other(x: Tensor | None, before: tuple[Tensor | None, ...]) -> Tensor | None:
    """`x` as a tensor of its own: the compiler traces no autograd function that is given one tensor twice."""
    return x.view_as(x) if x is not None and any(x is y for y in before) else x


def _task(*call: Any) -> tuple[Tensor, Tensor, Tensor, Task]:
    """q, k, v and the rest of a call, put together again."""
    q, k, v, bias, *see, sinks, seed, outline, scale, softcap, first, linear, learns, dropout, distance, received, _ = (
        call
    )
    pattern = restore(outline, [x for x in see[-_PLACES:] if x is not None])
    visible = Visible(pattern, q.shape[2], k.shape[2], q.device, *see[:-_PLACES])
    score = Score(scale, softcap, bias if first is None else ByDistance(bias, first, linear))
    return q, k, v, Task(visible, score, dropout, seed, sinks, distance, received, learns)


def _kernel(call: tuple[Any, ...]) -> ModuleType:
    """The kernel that is named, or that is chosen now that there are tensors to read."""
    if call[-1] != LATER:
        return _KERNELS[call[-1]]
    q, k, v, task = _task(*call)
    # whether gradients are wanted is not known here, and both passes must choose alike
    at_hand = describe(q, k, v.shape[-1], task.visible, task.score, task.dropout, task.sinks is not None)
    return _KERNELS[choose(at_hand, ("blocks", "stream"))]


def _forward(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    with as_given(call[0].device):
        return _kernel(call).forward(*_task(*call))


def _backward(
    g_out: Tensor, g_raw: Tensor, g_received: Tensor, out: Tensor | None, lse: Tensor, *call: Any
) -> tuple[Tensor, ...]:
    *qkv, task = _task(*call)
    kernel = _kernel(call)
    known = (out, lse) if kernel is blocks else (lse,)  # what is chosen late keeps the output for either
    with as_given(call[0].device):
        return kernel.backward(g_out, g_raw, g_received, *qkv, *known, task)


forward_op = torch.library.custom_op(
    "clearhead::stream", _forward, mutates_args=(), schema=f"({_CALL}) -> (Tensor, Tensor, Tensor)"
)
backward_op = torch.library.custom_op(
    "clearhead::stream_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor g_out, Tensor g_raw, Tensor g_received, Tensor? out, Tensor lse, {_CALL}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


@forward_op.register_fake
def _forward_shapes(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, task = _task(*call)
    wide = working_dtype(q.dtype)
    return (
        v.new_empty(*q.shape[:3], v.shape[-1]),
        q.new_empty(1 if task.sinks is None else len(RAW), *q.shape[:3], dtype=wide),
        q.new_empty(*q.shape[:2], k.shape[2] if task.received else 0, dtype=wide),
    )


@backward_op.register_fake
def _backward_shapes(
    g_out: Tensor, g_raw: Tensor, g_received: Tensor, out: Tensor | None, lse: Tensor, *call: Any
) -> tuple[Tensor, ...]:
    q, k, v, task = _task(*call)
    bias = task.score.tensor
    g_bias = q.new_empty(bias.shape if task.learns and bias is not None else (0,), dtype=working_dtype(q.dtype))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), g_bias


class _Stream(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
        return forward_op(*call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        out, raw, _ = output
        ctx.save_for_backward(out if inputs[-1] in _READ_OUTPUT else None, raw, *inputs[:_TENSORS])
        ctx.options = inputs[_TENSORS:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor, g_raw: Tensor, g_received: Tensor) -> tuple[Tensor | None, ...]:
        out, raw, *tensors = ctx.saved_tensors
        g_q, g_k, g_v, g_bias = backward_op(g_out, g_raw, g_received, out, raw[0], *tensors, *ctx.options)
        bias = tensors[3]
        given = g_bias.to(bias.dtype) if g_bias.numel() else None
        return g_q, g_k, g_v, given, *[None] * (_TENSORS - 4 + len(ctx.options))


# vmap: the batched axis is folded into the samples, which the kernel walks anyhow

# of a call's tensors: mask, positions, those of the pattern and sinks; the bias needs a gradient for each
_MAY_BROADCAST = (4, *range(7, 10 + _PLACES))


@forward_op.register_vmap
def _forward_vmap(info: Any, in_dims: tuple[int | None, ...], *call: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size, samples = info.batch_size, _samples(call[0], in_dims[0])
    out, raw, received = forward_op(*_fold_call(call, in_dims, size, samples))
    return (_unfold(out, size, 0), _unfold(raw, size, 1), _unfold(received, size, 0)), (0, 0, 0)


@backward_op.register_vmap
def _backward_vmap(
    info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    size, samples = info.batch_size, _samples(arguments[5], in_dims[5])
    known = [_fold(arguments[i], in_dims[i], size, samples, axis=1 if i == 1 else 0) for i in range(5)]
    *g_inputs, g_bias = backward_op(*known, *_fold_call(arguments[5:], in_dims[5:], size, samples))
    bias, dim = arguments[8], in_dims[8]
    if bias is None or not g_bias.numel():
        return (*(_unfold(g, size, 0) for g in g_inputs), g_bias), (0, 0, 0, None)
    g_bias = _unfold(g_bias, size, 0)
    shape = bias.shape if dim is None else bias.movedim(dim, 0).shape[1:]
    return (*(_unfold(g, size, 0) for g in g_inputs), g_bias.sum_to_size(size, *shape)), (0, 0, 0, 0)


def _samples(q: Tensor, dim: int | None) -> int:
    return q.shape[0] if dim is None else q.movedim(dim, 0).shape[1]


def _fold_call(call: tuple[Any, ...], in_dims: tuple[int | None, ...], size: int, samples: int) -> list[Any]:
    *tensors, seed = call[:_TENSORS]
    folded = []
    for i, x in enumerate(tensors):
        broadcasts = i in _MAY_BROADCAST and x is not None and in_dims[i] is None and x.shape[0] == 1
        folded.append(x if broadcasts else _fold(x, in_dims[i], size, samples, 0))
    if seed is not None and in_dims[_TENSORS - 1] is not None:
        seed = seed.flatten()[0]
    return [*folded, seed, *call[_TENSORS:]]


def _fold(x: Tensor | None, dim: int | None, size: int, samples: int, axis: int) -> Tensor | None:
    """`x`, batched along `dim`, with that axis folded into its sample axis `axis`."""
    if x is None:
        return None
    x = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
    shape = [size, *x.shape[1:]]
    shape[axis + 1] = samples
    return x.expand(shape).movedim(axis + 1, 1).flatten(0, 1).movedim(0, axis)


def _unfold(x: Tensor, size: int, axis: int) -> Tensor:
    """The batched axis, in front, taken out of the sample axis `axis` again."""
    return x.unflatten(axis, (size, -1)).movedim(axis, 0)
