"""What a mechanism requires of its tensors, and the sentences it says when they do not fit."""

from typing import Any

import torch
from torch import Tensor

from clearhead.errors import InputError, ShapeError
from clearhead.kernels import ByDistance, Visible, autocast, working_dtype
from clearhead.maps.biases import DistanceBias
from clearhead.patterns import Pattern

_LAYOUTS = {2: "(N, D)", 3: "(B, N, D)", 4: "(B, H, N, D)"}


def check_queries_and_keys(q: Tensor, k: Tensor) -> None:
    """Raise where q and k cannot be multiplied, naming the tensor and the axis."""
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and _plainly_fit(q, k)):
        _check_each(q, k)
        _check_axes(q, k)


def _plainly_fit(q: Tensor, k: Tensor) -> bool:
    """Do q and k fit at first glance? The glance is what most calls are spared the questions by."""
    queries, keys = q.shape, k.shape
    if not len(queries) == len(keys) == 4:
        return False
    alike = q.dtype is k.dtype and q.is_floating_point() and q.device == k.device
    heads, kv_heads = queries[1], keys[1]
    return alike and queries[0] == keys[0] and heads == kv_heads != 0 and queries[3] == keys[3]


def _check_each(q: Tensor, k: Tensor) -> None:
    for name, x in (("q", q), ("k", k)):
        if not isinstance(x, Tensor):
            raise InputError(f"{name} is a {type(x).__name__}; it must be a torch.Tensor")
        if not x.is_floating_point():
            raise InputError(f"{name} is {x.dtype}; attention needs floating-point numbers: write {name}.float()")
        if x.dim() not in _LAYOUTS:
            raise ShapeError(f"{name} has shape {tuple(x.shape)}; expected {' or '.join(_LAYOUTS.values())}")
    if q.dim() != k.dim():
        raise ShapeError(f"q has {q.dim()} axes and k has {k.dim()}; give both {_LAYOUTS[q.dim()]}")
    if q.dtype != k.dtype and not autocast(q.device.type):
        raise InputError(f"q is {q.dtype} and k is {k.dtype}; write k.to(q.dtype) or q.to(k.dtype)")
    if q.device != k.device:
        raise InputError(f"q is on {q.device} and k is on {k.device}; write k.to(q.device)")


def _check_axes(q: Tensor, k: Tensor) -> None:
    shapes = f"q has shape {tuple(q.shape)}, k {tuple(k.shape)}"
    if q.shape[-1] != k.shape[-1]:
        raise ShapeError(f"{shapes}: the last axis, the width of a head, must be the same")
    if q.dim() > 2 and q.shape[0] != k.shape[0]:
        raise ShapeError(f"{shapes}: axis 0, the samples, must be the same; write k.expand({q.shape[0]}, …)")
    if q.dim() == 4 and (not k.shape[1] or q.shape[1] % k.shape[1]):
        raise ShapeError(f"{shapes}: axis 1, the {q.shape[1]} heads of q, must be a multiple of k's {k.shape[1]}")


def visible_pairs(
    q: Tensor,
    k: Tensor,
    pattern: Pattern,
    lengths: Any,
    mask: Tensor | None,
    q_positions: Tensor | None,
    k_positions: Tensor | None,
) -> Visible:
    """Who sees whom, from what came with the call; q (B, H, Nq, D) and k (B, Hkv, Nk, D) have been checked."""
    b, h, n_queries, _ = q.shape
    device, n_keys = q.device, k.shape[2]
    if mask is not None:
        mask = _check_mask(mask, (b, h, n_queries, n_keys), device)
    if k_positions is not None and q_positions is None:
        raise InputError("k_positions came without q_positions; give both")
    if q_positions is not None:
        q_positions = _check_positions("q_positions", q_positions, (b, h, n_queries), device)
    if k_positions is not None:
        k_positions = _check_positions("k_positions", k_positions, (b, h, n_keys), device)
    _check_pattern(pattern, b, n_keys if k_positions is None else None, device)
    q_real, k_real = (None, None) if lengths is None else _check_lengths(lengths, b, n_queries, n_keys, device)
    return Visible(pattern, n_queries, n_keys, device, mask, q_real, k_real, q_positions, k_positions)


def _check_pattern(pattern: Pattern, samples: int, positions: int | None, device: torch.device) -> None:
    """Raise unless what the pattern holds, if anything, fits the samples, positions (if known) and device of a call."""
    if not (tensors := pattern.tensors()):
        return
    pattern.check(samples, positions)
    for x in tensors:
        if x.device != device:
            raise InputError(f"pattern holds tensors on {x.device}, q is on {device}; write pattern.to('{device}')")


def _check_mask(mask: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if mask.dtype != torch.bool:
        raise InputError(f"mask is {mask.dtype}; it must be boolean, True = may attend (an additive mask is a bias)")
    return _broadcastable("mask", mask, shape, device)


def _check_positions(name: str, at: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if at.is_floating_point() or at.dtype == torch.bool:
        raise InputError(f"{name} is {at.dtype}; positions are whole numbers")
    return _broadcastable(name, at, shape, device).to(torch.int64)


def _broadcastable(name: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """`x` with all axes of `shape`, each of full size or 1; the last axis in full where `shape` says positions."""
    full = x.reshape((1,) * (len(shape) - x.dim()) + x.shape) if x.dim() < len(shape) else x
    if full.dim() > len(shape) or any(have not in (1, want) for have, want in zip(full.shape, shape, strict=True)):
        raise ShapeError(f"{name} has shape {tuple(x.shape)}; it must broadcast to {shape}")
    if x.device != device:
        raise InputError(f"{name} is on {x.device}, q is on {device}; write {name}.to('{device}')")
    return full if len(shape) == 4 else full.expand(*full.shape[:-1], shape[-1])


def check_bias(bias: Any) -> Any:
    """Raise where it is no tensor of floating-point numbers, and no bias object."""
    if isinstance(bias, Tensor) and not bias.is_floating_point():
        raise InputError(f"bias is {bias.dtype}; it must be floating-point (a boolean tensor is a mask)")
    if not isinstance(bias, Tensor | DistanceBias | None):
        raise InputError(f"bias is a {type(bias).__name__}; write a float tensor or an object such as ch.ALiBi(heads)")
    return bias


def bias_for(bias: Tensor | DistanceBias | None, q: Tensor, k: Tensor, placed: bool) -> Tensor | ByDistance | None:
    """A score's bias, which fits queries and keys; are they `placed` on one axis, so that distances are known?"""
    check_bias(bias)
    if bias is None:
        return None
    if isinstance(bias, DistanceBias):
        if not placed:
            name = type(bias).__name__
            raise InputError(
                f"bias is a {name}, but distances are unknown where keys alone have lengths; give q_positions"
            )
        return bias.for_queries(q, working_dtype(q.dtype))
    return _broadcastable("bias", bias, (q.shape[0], q.shape[1], q.shape[2], k.shape[2]), q.device)


def check_sinks(sinks: Tensor | None, q: Tensor | None = None) -> Tensor | None:
    """Learned sinks (H,); with q (B, H, Nq, D), one for each of its heads."""
    if sinks is None:
        return None
    kind = sinks.dtype if isinstance(sinks, Tensor) else type(sinks).__name__
    if not isinstance(sinks, Tensor) or not sinks.is_floating_point():
        raise InputError(f"sinks is {kind}; write a float tensor (H,) such as nn.Parameter(torch.zeros(heads))")
    heads = "H" if q is None else q.shape[1]
    if sinks.dim() != 1 or (q is not None and len(sinks) != heads):
        raise ShapeError(f"sinks has shape {tuple(sinks.shape)}; expected ({heads},), a logit for each head")
    if q is not None and sinks.device != q.device:
        raise InputError(f"sinks is on {sinks.device}, q is on {q.device}; write sinks.to('{q.device}')")
    return sinks


def _check_lengths(lengths: Any, b: int, n_queries: int, n_keys: int, device: torch.device) -> tuple[Any, Any]:
    if not isinstance(lengths, tuple):
        if n_queries != n_keys:
            raise ShapeError(
                f"lengths is one tensor, but there are {n_queries} queries and {n_keys} keys; "
                "give a pair (query lengths or None, key lengths)"
            )
        one = _check_length("lengths", lengths, b, n_keys, device)
        return one, one
    if len(lengths) != 2:
        raise InputError(f"lengths is a tuple of {len(lengths)}; give a tensor or a pair (queries, keys)")
    queries, keys = lengths
    return (
        None if queries is None else _check_length("lengths[0]", queries, b, n_queries, device),
        None if keys is None else _check_length("lengths[1]", keys, b, n_keys, device),
    )


def _check_length(name: str, lengths: Tensor, b: int, n: int, device: torch.device) -> Tensor:
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        kind = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise InputError(f"{name} is {kind}; it must be a tensor of whole numbers, one for each sample")
    if lengths.shape != (b,):
        raise ShapeError(f"{name} has shape {tuple(lengths.shape)}; expected ({b},), one length for each sample")
    if lengths.device != device:
        raise InputError(f"{name} is on {lengths.device}, q is on {device}; write {name}.to('{device}')")
    held = lengths.tolist() if _readable(lengths) else None
    if held and not (min(held) >= 0 and max(held) <= n):
        raise ShapeError(f"{name} holds {held}; each must be between 0 and the {n} tokens there are")
    return lengths


def _readable(x: Tensor) -> bool:
    """Can the values be looked at here and now: on the CPU, and neither traced nor batched by vmap?"""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not torch._C._functorch.is_batchedtensor(x)
