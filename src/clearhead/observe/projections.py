"""Where the query, key and value of each head come from, in the attention modules of several libraries.

A layout says which rows of which weight project to a head: of separate projections, or of a fused one, whose rows are
either all queries, then all keys, then all values, or, head by head, its query, key and value ("interleaved").

Shapes: E model width, H query heads, Hkv key heads, D head width.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clearhead.errors import InputError

SEPARATE = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
)
FUSED = ("c_attn", "qkv", "Wqkv", "qkv_proj", "to_qkv", "query_key_value")
INTERLEAVED = ("GPTNeoX", "GPTNeoXJapanese", "Bloom", "Persimmon")
UNKNOWN = ("CodeGen", "Falcon", "GPTBigCode", "MiniMax")
"""Modules of transformers, by the beginning of their name, whose fused rows lie otherwise than the name of the
attribute says: head by head, or in an order of their own."""

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
KV_HEADS = ("kv_heads", "num_key_value_heads", "num_kv_heads", "n_kv_heads")
NORMS = re.compile(r"(q|k|qk|query|key)_?(layer_?)?norms?")


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of a projection that make queries, keys or values: those of head h begin at `start + h * stride`.

    Attributes:
        weight: (rows, E); bias: (rows,) or None.
        width: D; heads: how many.
        owner: the module whose parameter the weight is, and its name there. "weight" is that of a linear layer.
    """

    weight: Tensor
    bias: Tensor | None
    start: int
    stride: int
    width: int
    heads: int
    owner: nn.Module
    parameter: str = "weight"

    def rows(self, head: int) -> slice:
        """The rows of a head."""
        at = self.start + head * self.stride
        return slice(at, at + self.width)

    def views(self, head: int) -> tuple[Tensor, ...]:
        """Views of a head's weight (D, E) and bias (D,): what is done to them in place is done to the module."""
        return tuple(x.detach()[self.rows(head)] for x in (self.weight, self.bias) if x is not None)


@dataclass(frozen=True, eq=False)
class Layout:
    """The projections of an attention module; `value` is None where they were not recognised.

    `foreign_keys` says that there are keys that no projection makes (`bias_k` of torch's MultiheadAttention).
    """

    query: Part
    key: Part
    value: Part | None
    foreign_keys: bool = False


@dataclass(frozen=True, eq=False)
class Projections:
    """Views of one head's query and key projections, each a weight (D, E) and, where there is one, a bias (D,).

    `shared`: other heads use the same key, or keys come from elsewhere too; then only the query is the head's own.
    """

    query: tuple[Tensor, ...]
    key: tuple[Tensor, ...]
    shared: bool

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the head's products q · k by `factor` >= 0, in place: √factor on either side, or all of it on the
        query where the key is not the head's own."""
        if not factor >= 0:
            raise InputError(f"factor is {factor}; products can be scaled by 0 or more")
        share = factor if self.shared else factor**0.5
        for x in (*self.query, *(() if self.shared else self.key)):
            x.mul_(share)


def query_key(module: nn.Module, head: int, num_heads: int | None = None, kv_heads: int | None = None) -> Projections:
    """The query and key projections of a head of `module`, to be scaled in place.

    Known are Clearhead's attention, `torch.nn.MultiheadAttention`, and modules with projections named as in Hugging
    Face's models, separate or fused. `num_heads` and `kv_heads` are read from the module or its config if None.

    Raises InputError where projections are not recognised, the head does not exist, or scaling would not scale the
    logits: with norms between the projection and the product, or a parametrised weight.
    """
    parts = layout(module, num_heads, kv_heads)
    if not 0 <= head < parts.query.heads:
        raise InputError(f"head {head} is outside 0 … {parts.query.heads - 1} of {_kind(module)}")
    _check_scalable(module, parts)
    group = parts.query.heads // parts.key.heads
    return Projections(parts.query.views(head), parts.key.views(head // group), group > 1 or parts.foreign_keys)


def layout(module: nn.Module, num_heads: int | None = None, kv_heads: int | None = None) -> Layout:
    """Where the heads of an attention module come from.

    Raises InputError for a module whose projections are not recognised, saying what is needed.
    """
    counts = _Counts(module, num_heads, kv_heads)
    if isinstance(module, nn.MultiheadAttention):
        return _torch(module)
    for names in SEPARATE:
        if all(_linear(module, name) for name in names[:2]):
            heads = (counts.query, counts.key, counts.key)
            return _layout(_whole(x, n) for x, n in zip(map(partial(_linear, module), names), heads, strict=True) if x)
    query, fused = _linear(module, "q_attn"), _linear(module, "c_attn")
    if query is not None and fused is not None:  # cross-attention of GPT-2, whose keys and values are fused
        return _layout([_whole(query, counts.query), *_blocks(fused, [counts.key, counts.key])])
    for name in FUSED:
        if (fused := _linear(module, name)) is not None:
            return _fused(module, name, fused, counts)
    named = ", ".join("/".join(names) for names in SEPARATE)
    raise InputError(
        f"{_kind(module)} has no query and key projections that are known: give it nn.Linear layers named {named}, or "
        f"one named {', '.join(FUSED[:-1])} or {FUSED[-1]}"
    )


def recognised(module: nn.Module) -> bool:
    """Are the names of the module's projections known to `layout`?"""
    if isinstance(module, nn.MultiheadAttention):
        return True
    separate = any(all(_linear(module, name) for name in names[:2]) for names in SEPARATE)
    return separate or any(_linear(module, name) for name in FUSED)


class _Counts:
    """How many heads a module has, as told or as it says."""

    def __init__(self, module: nn.Module, num_heads: int | None, kv_heads: int | None) -> None:
        self._module, self._given = module, (num_heads, kv_heads)

    @property
    def query(self) -> int:
        """H."""
        found = self._given[0] or _said(self._module, HEADS)
        if found is None:
            raise InputError(f"{_kind(self._module)} does not say how many heads it has: give num_heads")
        return found

    @property
    def key(self) -> int:
        """Hkv."""
        groups = _said(self._module, ("num_key_value_groups",))
        found = self._given[1] or _said(self._module, KV_HEADS)
        return found or (self.query // groups if groups else self.query)


def _said(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of these attributes that the module, or else its config, has as a whole number."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _layout(parts: Iterable[Part], foreign_keys: bool = False) -> Layout:
    query, key, *value = parts
    return Layout(query, key, value[0] if value else None, foreign_keys)


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _linear(module: nn.Module, name: str) -> nn.Module | None:
    """The linear layer of that name, nn.Linear or transformers' Conv1D, which has its weight transposed."""
    found = getattr(module, name, None)
    return found if is_linear(found) else None


def is_linear(module: Any) -> bool:
    """Is it a linear layer whose weight can be read?"""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: Any) -> bool:
    """Is its weight (E, rows), as that of transformers' Conv1D, rather than (rows, E)?"""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def _part(linear: nn.Module, start: int, stride: int, width: int, heads: int) -> Part:
    weight: Any = linear.weight
    bias: Any = linear.bias
    return Part(weight.mT if is_transposed(linear) else weight, bias, start, stride, width, heads, linear)


def _rows(linear: Any) -> int:
    return linear.weight.shape[1 if is_transposed(linear) else 0]


def _whole(linear: nn.Module, heads: int) -> Part:
    """A projection that makes one thing, for all heads."""
    return _blocks(linear, [heads])[0]


def _blocks(linear: nn.Module, heads: list[int]) -> list[Part]:
    """A projection that makes several things, one after the other, each for so many heads."""
    width, rest = divmod(_rows(linear), sum(heads))
    if rest:
        raise InputError(
            f"a projection has {_rows(linear)} rows, which {' + '.join(map(str, heads))} heads do not divide: give "
            "num_heads and kv_heads"
        )
    return [_part(linear, sum(heads[:i]) * width, width, width, n) for i, n in enumerate(heads)]


def _fused(module: nn.Module, name: str, linear: nn.Module, counts: _Counts) -> Layout:
    kind = _kind(module)
    interleaved = kind.startswith(INTERLEAVED)
    if kind.startswith(UNKNOWN) or (name == "query_key_value" and not interleaved):
        raise InputError(f"{kind}.{name} holds queries, keys and values in an order that is not known")
    if not interleaved:
        return _layout(_blocks(linear, [counts.query, counts.key, counts.key]))
    width = _whole(linear, 3 * counts.query).width
    return _layout(_part(linear, i * width, 3 * width, width, counts.query) for i in range(3))


def _torch(module: nn.MultiheadAttention) -> Layout:
    """torch.nn.MultiheadAttention: one packed weight, or three where keys and values have widths of their own."""
    heads, width, e = module.num_heads, module.head_dim, module.embed_dim
    packed: Any = module.in_proj_weight
    if packed is not None:
        starts = (0, e, 2 * e)
        parts = [Part(packed, module.in_proj_bias, at, width, width, heads, module, "in_proj_weight") for at in starts]
    else:
        biases: Any = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        parts = [
            Part(getattr(module, name), bias, 0, width, width, heads, module, name)
            for name, bias in zip(names, biases, strict=True)
        ]
    return _layout(parts, foreign_keys=module.bias_k is not None or module.add_zero_attn)


def _check_scalable(module: nn.Module, parts: Layout) -> None:
    """InputError where scaling the projections would not scale the logits."""
    for name, child in module.named_children():
        if NORMS.fullmatch(name) and not isinstance(child, nn.Identity):
            raise InputError(
                f"{_kind(module)} normalises queries and keys after projecting them ({name}): scaling the projections "
                "changes nothing, and the norm already bounds the logits; lower the learning rate instead"
            )
    for part in (parts.query, parts.key):
        if parametrize.is_parametrized(part.owner, part.parameter):
            raise InputError(
                f"the weights of {_kind(module)} are parametrised, so they are computed anew at each use and cannot be "
                "scaled in place; torch.nn.utils.parametrize.remove_parametrizations makes them plain again"
            )
    if not parts.query.weight.is_floating_point():
        raise InputError(f"the weights of {_kind(module)} are {parts.query.weight.dtype} and cannot be scaled")
