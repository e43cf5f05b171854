"""Attention of `torch.nn.MultiheadAttention` and the layers built on it, projected again from what came in.

A function mode would switch off the fused fast path of these modules, and their outputs would differ: so the mode steps
aside while they run, and their queries and keys are computed a second time, which costs a share of a projection.

Shapes: B samples, Nq queries, Nk keys, E width, H heads, D = E / H.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearhead.maps import SoftmaxMap
from clearhead.observe.watching.attended import attention_map, four

_FORWARDS = (nn.MultiheadAttention.forward, nn.TransformerEncoderLayer.forward, nn.TransformerEncoder.forward)


def steps_aside(module: nn.Module) -> bool:
    """Does the module ask whether a mode is on before it takes its fast path? Subclasses that run as torch's do."""
    return getattr(type(module), "forward", None) in _FORWARDS  # scripted modules have none


def follows(module: nn.Module) -> bool | None:
    """Are the functions that a module calls to be followed? None: it is a single operation of torch, its caller's.

    Not those of modules that step aside; nor those of Clearhead's own, which attend by maps that speak for themselves.
    """
    family = type(module).__module__
    if family.startswith("torch.nn.modules.") and not module._modules:
        return None
    return not steps_aside(module) and not family.startswith("clearhead.")


def is_multi_head(module: nn.Module) -> bool:
    """Does it attend as `nn.MultiheadAttention`?"""
    return type(module).forward is nn.MultiheadAttention.forward


_MULTI_HEAD = inspect.signature(nn.MultiheadAttention.forward)
_ENCODER_LAYER = inspect.signature(nn.TransformerEncoderLayer.forward)


def reproject(watch: Any, frame: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Record what the module of `frame` attended to, from the arguments of its forward pass."""
    module = frame.module
    if is_multi_head(module):
        call = _bound(_MULTI_HEAD, module, args, kwargs)
        _record(watch, frame.path, module, call, output[0])
        if watch.gives:
            _give(watch, frame.path, _with_weights(module, call), output[0], module.batch_first)
    elif type(module).forward is nn.TransformerEncoderLayer.forward and not frame.attended:  # the fast path
        call = _bound(_ENCODER_LAYER, module, args, kwargs)
        src = call["src"]
        x = _normed(module.norm1, src) if module.norm_first else src
        masks = {"attn_mask": call["src_mask"], "key_padding_mask": call["src_key_padding_mask"]}
        path = watch.path_of(module.self_attn)
        _record(watch, path or frame.path, module.self_attn, {"query": x, "key": x, "value": x, **masks})


def _give(watch: Any, path: str, call: dict[str, Any], output: Tensor, batch_first: bool) -> None:
    """Hand over what the heads put out before the projection that joins them, computed again."""
    shape = call["num_heads"], batch_first, call["query"].dim() == 3
    with watch.looking():
        weight, bias = _projections(call)[4:]
        v = _heads(F.linear(call["value"], weight, bias), *shape)
        out = _map(call, batch_first)[0] @ _with_more_tokens(v, call["bias_v"], call)[0]
    back = call["out_proj_weight"]
    watch.give(path, output, lambda gradient: _heads(gradient @ back.to(gradient.dtype), *shape), out)


def of_multi_head_attention_forward(watch: Any, call: dict[str, Any], output: Tensor) -> None:
    """Record a call of `F.multi_head_attention_forward`, whose tensors are (N, B, E) or (N, E)."""
    if call["static_k"] is not None:
        watch.cannot_see(watch.frame.path, "multi_head_attention_forward with static_k")
        return
    _record_projected(watch, watch.frame.path, call, batch_first=False)
    if watch.gives:
        _give(watch, watch.frame.path, call, output, batch_first=False)


def _record(
    watch: Any, path: str, module: nn.MultiheadAttention, call: dict[str, Any], output: Tensor | None = None
) -> None:
    kept = None if watch.grad or output is None else _kept(output)
    _record_projected(watch, path, _with_weights(module, call), module.batch_first, kept)


def _with_weights(module: nn.MultiheadAttention, call: dict[str, Any]) -> dict[str, Any]:
    """The call with all that the module adds to it, by the names of `F.multi_head_attention_forward`."""
    packed = module.in_proj_weight is not None
    weights = {
        "num_heads": module.num_heads,
        "in_proj_weight": module.in_proj_weight,
        "in_proj_bias": module.in_proj_bias,
        "bias_k": module.bias_k,
        "bias_v": module.bias_v,
        "out_proj_weight": module.out_proj.weight,
        "add_zero_attn": module.add_zero_attn,
        "use_separate_proj_weight": not packed,
        "q_proj_weight": module.q_proj_weight,
        "k_proj_weight": module.k_proj_weight,
        "v_proj_weight": module.v_proj_weight,
    }
    return {**call, **weights}


def _record_projected(
    watch: Any, path: str, call: dict[str, Any], batch_first: bool, kept: tuple[Tensor, Tensor] | None = None
) -> None:
    with watch.looking():
        A, cross = _map(call, batch_first, kept)
    watch.record(A, "torch.nn.MultiheadAttention", cross, path)


_ON_THE_WAY = ("Addmm", "Clone", "Mm", "Permute", "Squeeze", "T", "Transpose", "UnsafeView", "Unsqueeze", "View")


def _kept(output: Tensor) -> tuple[Tensor, Tensor] | None:
    """The queries and keys (B, H, N, D) of the fused call behind `output`, where autograd keeps them for its backward
    pass: in training, when no weights were asked for. None: they are to be computed again.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return None  # a checkpoint, say, which would compute what it did not keep
    ways = [output.grad_fn]
    while ways:
        node: Any = ways.pop()
        name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        if name.startswith("ScaledDotProduct") and hasattr(node, "_saved_query"):
            return node._saved_query.detach(), node._saved_key.detach()
        if name in _ON_THE_WAY:
            ways += [each for each, _ in node.next_functions]
    return None


def _map(call: dict[str, Any], batch_first: bool, kept: tuple[Tensor, Tensor] | None = None) -> tuple[SoftmaxMap, bool]:
    """The map of the call, and whether it is of another sequence; from the queries and keys that were `kept`."""
    query, key, allowed = call["query"], call["key"], None
    cross = query is not key
    if query.is_nested:  # how a TransformerEncoder hands padded batches to its layers
        query, allowed = _padded(query)
        key = query if not cross else _padded(key)[0]
    heads, batched = call["num_heads"], query.dim() == 3
    if kept is None:
        q_weight, q_bias, k_weight, k_bias = _projections(call)[:4]
        q = _heads(F.linear(query, q_weight, q_bias), heads, batch_first, batched)
        k = _heads(F.linear(key, k_weight, k_bias), heads, batch_first, batched)
        k, extra = _with_more_tokens(k, call["bias_k"], call)
    else:
        (q, k), extra = kept, (call["bias_k"] is not None) + bool(call["add_zero_attn"])
    mask, bias = _masks(call, q.shape[0], heads)
    if extra:
        mask = (
            mask if mask is None else F.pad(mask.expand(*mask.shape[:-1], k.shape[2] - extra), (0, extra), value=True)
        )
        bias = bias if bias is None else F.pad(bias.expand(*bias.shape[:-1], k.shape[2] - extra), (0, extra))
    if allowed is not None:
        mask = allowed[:, None, None] if mask is None else mask & allowed[:, None, None]
    return attention_map(q, k, mask=mask, bias=bias, cross=cross), cross


def _projections(call: dict[str, Any]) -> tuple[Any, ...]:
    """The weight and bias of queries, of keys, and of values."""
    biases = (None,) * 3 if call["in_proj_bias"] is None else call["in_proj_bias"].chunk(3)
    if call["use_separate_proj_weight"]:
        weights = call["q_proj_weight"], call["k_proj_weight"], call["v_proj_weight"]
    else:
        weights = call["in_proj_weight"].chunk(3)
    return tuple(x for pair in zip(weights, biases, strict=True) for x in pair)


def _heads(x: Tensor, heads: int, batch_first: bool, batched: bool) -> Tensor:
    """(B, H, N, D) from (B, N, E), (N, B, E) or (N, E)."""
    x = x[None] if not batched else x if batch_first else x.transpose(0, 1)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _masks(call: dict[str, Any], samples: int, heads: int) -> tuple[Tensor | None, Tensor | None]:
    """As (boolean mask, numbers that are added). PyTorch's booleans are True where a key is hidden."""
    mask, padding = call["attn_mask"], call["key_padding_mask"]
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (samples, heads))
    if padding is not None:
        padding = padding.reshape(-1, 1, 1, padding.shape[-1])
    given = [four(x) for x in (mask, padding) if x is not None]
    shown = [~x for x in given if x.dtype == torch.bool]
    added = [x for x in given if x.dtype != torch.bool]
    return (shown[0] & shown[-1] if shown else None), (sum(added[1:], added[0]) if added else None)


def _with_more_tokens(x: Tensor, learned: Tensor | None, call: dict[str, Any]) -> tuple[Tensor, int]:
    """Keys or values (B, H, N, D) with those of no token: a `learned` one (`bias_k`, `bias_v`) and one of zeros
    (`add_zero_attn`), seen by all; and how many these are."""
    more = []
    if learned is not None:
        more.append(learned.reshape(1, 1, x.shape[1], -1).transpose(1, 2).expand(x.shape[0], -1, -1, -1))
    if call["add_zero_attn"]:
        more.append(x.new_zeros(*x.shape[:2], 1, x.shape[3]))
    return torch.cat([x, *more], 2) if more else x, len(more)


def _padded(x: Tensor) -> tuple[Tensor, Tensor]:
    """A nested batch as (B, N, E) with zeros, and where its tokens are, (B, N)."""
    lengths = torch.tensor([len(sample) for sample in x.unbind()], device=x.device)
    full = torch.nested.to_padded_tensor(x, 0.0)
    return full, torch.arange(full.shape[1], device=x.device) < lengths[:, None]


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """`x` normalised, without running the module, which would be followed."""
    return norm.forward(x)


def _bound(signature: inspect.Signature, module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    call = signature.bind(module, *args, **kwargs)
    call.apply_defaults()
    return dict(call.arguments)
