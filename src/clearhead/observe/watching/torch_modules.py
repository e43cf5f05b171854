"""Attention of `torch.nn.MultiheadAttention` and the layers built on it, projected again from what came in.

All of them attend in one of three functions, which are seen with their arguments: so what ran is known, whatever a
subclass, a hook, a parametrization or a replaced part made of them. Their queries and keys are computed a second time,
which costs a share of a projection.

Two of the functions are a fused fast path, which these modules take unless a function mode is on. A watch is one, and
the outputs would differ in their last bits: so `fast_path_open` lets them ask as if it were not.

Shapes: B samples, Nq queries, Nk keys, E width, H heads, D = E / H.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearhead.maps import SoftmaxMap
from clearhead.observe.watching.attended import attention_map, four
from clearhead.observe.watching.replacing import replaced
from clearhead.observe.watching.trying import check_values

HOW = "torch.nn.MultiheadAttention"
_ASKING = ("torch.nn.modules.activation", "torch.nn.modules.transformer", __name__)
"""Who may ask: these modules, and a watch within a watch on their behalf."""


def fast_path_open(paused: Callable[[], AbstractContextManager[None]]) -> AbstractContextManager[None]:
    """Within the block, PyTorch's modules choose their path as if the mode that `paused` takes away were not on."""

    def over(given: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def has_torch_function(args: Any) -> bool:
            if sys._getframe(1).f_globals.get("__name__") not in _ASKING:
                return given(args)
            with paused():
                return given(args)

        return has_torch_function

    return replaced(torch.overrides, "has_torch_function", over)


def follows(module: nn.Module) -> bool | None:
    """Are the functions that a module calls to be followed? None: it is a single operation of torch, its caller's.

    Not those of Clearhead's own modules, which attend by maps that speak for themselves.
    """
    family = type(module).__module__
    if family.startswith("torch.nn.modules.") and not module._modules:
        return None
    return not family.startswith("clearhead.")


def of_multi_head_attention_forward(watch: Any, call: dict[str, Any], output: Tensor) -> None:
    """Record a call of `F.multi_head_attention_forward`, whose tensors are (N, B, E) or (N, E)."""
    path = watch.frame.path
    if call["static_k"] is not None:
        watch.cannot_see(path, "multi_head_attention_forward with static_k")
        return
    kept = None if watch.grad else _kept(output)
    _record(watch, path, call, False, kept)
    if watch.gives:
        _give(watch, path, call, output)


def of_native(watch: Any, call: dict[str, Any]) -> None:
    """Record a call of the fast path of `nn.MultiheadAttention`, or of an encoder layer: then of its `self_attn`.

    Its tensors are (B, N, E), and it takes no gradient.
    """
    frame = watch.frame
    inner = watch.path_of(getattr(frame.module, "self_attn", None))
    _record(watch, frame.path if inner is None else inner, call, True)


_NATIVE = inspect.signature(
    lambda query, key, value, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias, mask=None,
    need_weights=True, average_attn_weights=True, mask_type=None: None
)  # fmt: skip
_LAYER = inspect.signature(
    lambda src, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias, use_gelu, norm_first, eps,
    norm_weight_1, norm_bias_1, norm_weight_2, norm_bias_2, ffn_weight_1, ffn_bias_1, ffn_weight_2, ffn_bias_2,
    mask=None, mask_type=None: None
)  # fmt: skip
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def multi_head_call(args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of `F.multi_head_attention_forward` by their names."""
    return bound(_MULTI_HEAD, args, kwargs)


def native_call(args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of `torch._native_multi_head_attention`, by the names of `F.multi_head_attention_forward`."""
    given = bound(_NATIVE, args, kwargs)
    return _as_multi_head(given, given["query"], given["key"])


def layer_call(args: Any, kwargs: Any) -> dict[str, Any]:
    """Those of the attention in `torch._transformer_encoder_layer_fwd`, likewise."""
    given = bound(_LAYER, args, kwargs)
    x = given["src"]
    if given["norm_first"]:
        x = F.layer_norm(x, (given["embed_dim"],), given["norm_weight_1"], given["norm_bias_1"], given["eps"])
    return _as_multi_head(given, x, x)


def _as_multi_head(given: dict[str, Any], query: Tensor, key: Tensor) -> dict[str, Any]:
    """These functions take any mask for a boolean one, in which whatever is not 0 hides a key."""
    hidden = None if given["mask"] is None else given["mask"].bool()
    of_keys = given["mask_type"] == 1
    return {
        "query": query,
        "key": key,
        "num_heads": given["num_heads"],
        "in_proj_weight": given["qkv_weight"],
        "in_proj_bias": given["qkv_bias"],
        "bias_k": None,
        "add_zero_attn": False,
        "use_separate_proj_weight": False,
        "attn_mask": None if of_keys else hidden,
        "key_padding_mask": hidden if of_keys else None,
        "is_causal": False,
        "need_weights": True,
    }


def bound(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by their names."""
    call = signature.bind(*args, **kwargs)
    call.apply_defaults()
    return call.arguments


def _record(
    watch: Any, path: str, call: dict[str, Any], batch_first: bool, kept: tuple[Tensor, Tensor] | None = None
) -> None:
    check_values(*(x for x in (call["query"], call["key"]) if not x.is_nested))
    A, cross = _map(call, batch_first, kept)
    watch.record(A, HOW, cross, path)


def _give(watch: Any, path: str, call: dict[str, Any], output: Tensor) -> None:
    """Hand over what the heads put out before the projection that joins them, computed again."""
    shape = call["num_heads"], False, call["query"].dim() == 3
    weight, bias = _projections(call)[4:]
    v = _heads(F.linear(call["value"], weight, bias), *shape)
    out = _map(call, False)[0] @ _with_more_tokens(v, call["bias_v"], call)[0]
    back = call["out_proj_weight"]
    watch.give(path, output, lambda gradient: _heads(gradient @ back.to(gradient.dtype), *shape), out)


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
    cross = not _same(query, key)
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
    if call["is_causal"] and call["key_padding_mask"] is None and not call["need_weights"]:
        # the function then goes by this hint, and never looks at the mask that came with it
        return attention_map(q, k, causal_from="beginnings", cross=cross), cross
    mask, bias = _masks(call, q.shape[0], heads)
    if extra:
        mask = (
            mask if mask is None else F.pad(mask.expand(*mask.shape[:-1], k.shape[2] - extra), (0, extra), value=True)
        )
        bias = bias if bias is None else F.pad(bias.expand(*bias.shape[:-1], k.shape[2] - extra), (0, extra))
    if allowed is not None:
        mask = allowed[:, None, None] if mask is None else mask & allowed[:, None, None]
    return attention_map(q, k, mask=mask, bias=bias, cross=cross), cross


def _same(query: Tensor, key: Tensor) -> bool:
    """Are both one tensor, or views of it that were made alike? Modules transpose them on their way."""
    if query is key:
        return True
    if query.is_nested or key.is_nested or query.shape != key.shape or query.stride() != key.stride():
        return False
    same = query.untyped_storage()._cdata == key.untyped_storage()._cdata
    return same and query.storage_offset() == key.storage_offset()


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
