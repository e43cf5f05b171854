"""Self-attention and cross-attention as modules.

Shapes: B samples, N tokens, M tokens of a memory, E model width, H heads, Hkv key heads, D = E / H head width.
"""

from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clearhead.errors import InputError, ShapeError
from clearhead.maps import AttentionMap, Cache, Softmax
from clearhead.nn.initial import xavier
from clearhead.nn.positions import Rotary
from clearhead.patterns import Pattern


class _Attention(nn.Module):
    """What self- and cross-attention share: projections, heads and a mechanism."""

    def __init__(
        self,
        embed_dim: int,
        memory_dim: int,
        num_heads: int,
        mechanism: nn.Module | None,
        kv_heads: int | None,
        dropout: float,
        qk_norm: bool,
        out: bool,
    ) -> None:
        super().__init__()
        kv_heads = num_heads if kv_heads is None else kv_heads
        _check_heads(embed_dim, num_heads, kv_heads)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}; it must be at least 0 and below 1")
        self.embed_dim, self.num_heads, self.kv_heads, self.head_dim = (
            embed_dim,
            num_heads,
            kv_heads,
            embed_dim // num_heads,
        )
        self.dropout = dropout
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(memory_dim, kv_heads * self.head_dim)
        self.value = nn.Linear(memory_dim, kv_heads * self.head_dim)
        self.out = nn.Linear(embed_dim, embed_dim) if out else nn.Identity()
        self.query_norm = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.mechanism: Any = Softmax() if mechanism is None else mechanism
        self.reset_parameters()

    def reset_parameters(self, branch_scale: float = 1.0) -> None:
        """Xavier-uniform projections (Glorot & Bengio 2010), biases zero; `branch_scale` scales the out projection."""
        for projection in (self.query, self.key, self.value):
            xavier(projection)
        if isinstance(self.out, nn.Linear):
            xavier(self.out, branch_scale)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        samples, tokens, _ = x.shape
        return x.reshape(samples, tokens, heads, self.head_dim).transpose(1, 2)

    def _queries(self, x: Tensor) -> Tensor:
        return _normed(self.query_norm, self._heads(self.query(x), self.num_heads))

    def _keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        keys = _normed(self.key_norm, self._heads(self.key(memory), self.kv_heads))
        return keys, self._heads(self.value(memory), self.kv_heads)

    def _apply_map(self, A: AttentionMap, v: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        out = A.apply(v, dropout=dropout)
        assert isinstance(out, Tensor)
        return self._merge(out)

    def _step(self, cache: Cache, *qkv: Tensor, **call: Any) -> Tensor:
        return self._merge(cache.attend(*qkv, **call))

    def _merge(self, heads: Tensor) -> Tensor:
        return self.out(heads.transpose(1, 2).flatten(2))

    def _check(self, x: Tensor, name: str, width: int) -> None:
        if x.dim() != 3 or x.shape[-1] != width:
            raise ShapeError(f"{name} has shape {tuple(x.shape)}; expected (B, N, {width})")

    def extra_repr(self) -> str:
        grouped = "" if self.kv_heads == self.num_heads else f", kv_heads={self.kv_heads}"
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}{grouped}, dropout={self.dropout}"


_M = TypeVar("_M", bound=_Attention)


def _check_heads(embed_dim: int, num_heads: int, kv_heads: int) -> None:
    if num_heads < 1 or embed_dim % num_heads:
        raise InputError(
            f"embed_dim={embed_dim} does not divide into num_heads={num_heads}; {_near(embed_dim, num_heads)}"
        )
    if kv_heads < 1 or num_heads % kv_heads:
        raise InputError(f"num_heads={num_heads} is no multiple of kv_heads={kv_heads}; {_near(num_heads, kv_heads)}")


def _near(total: int, parts: int) -> str:
    """The divisor of `total` nearest to `parts`, as advice."""
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    return f"the nearest that divides it is {min(divisors, key=lambda d: abs(d - parts))}" if divisors else ""


class SelfAttention(_Attention):
    """Multi-head self-attention (Vaswani 2017): every token attends to the tokens of its own sequence.

    >>> SelfAttention(embed_dim=128)(torch.randn(1, 10, 128)).shape
    torch.Size([1, 10, 128])

    Args:
        embed_dim: E, the width of tokens; a multiple of `num_heads`.
        mechanism: how queries and keys become weights; a new `Softmax()` if None.
        kv_heads: key and value heads, which divide `num_heads` (grouped queries, Ainslie 2023); as many if None.
        positions: a `Rotary`, which turns queries and keys; none if None.
        dropout: the probability that a weight is dropped in training.
        qk_norm: normalise queries and keys by their root mean square (Henry 2020).
        out: project the heads' outputs; without, they are concatenated.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        mechanism: nn.Module | None = None,
        kv_heads: int | None = None,
        positions: Rotary | None = None,
        dropout: float = 0.0,
        qk_norm: bool = False,
        out: bool = True,
    ) -> None:
        super().__init__(embed_dim, embed_dim, num_heads, mechanism, kv_heads, dropout, qk_norm, out)
        if positions is not None and not isinstance(positions, Rotary):
            raise InputError(
                f"SelfAttention takes positions that turn queries and keys (Rotary); {type(positions).__name__} is "
                "added to the input: give it to Encoder or Decoder"
            )
        self.positions = positions

    def forward(
        self,
        x: Float[Tensor, "b n e"],
        lengths: Int[Tensor, " b"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        pattern: Pattern | None = None,
        positions: Int[Tensor, "..."] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b n e"]:
        """The attended tokens, (B, N, E).

        Args:
            x: (B, N, E).
            lengths: (B,), right padding, which may hold anything; the outputs there are those of no input.
            mask: boolean, True = may attend, broadcastable to (B, H, N, N); with a cache, to (B, H, N, cached + N).
            pattern: of this batch, and-ed with the mechanism's own.
            positions: (B or 1, N), where the tokens stand; by default 0, 1, …, or behind what the cache holds.
            cache: from `mechanism.cache()`: x are the next tokens.
        """
        self._check(x, "x", self.embed_dim)
        q, k, v = self._queries_keys_values(x, positions, cache)
        if cache is not None:
            return self._step(cache, q, k, v, lengths=lengths, mask=mask, pattern=pattern, positions=positions)
        return self._apply_map(self._map(q, k, lengths, mask, pattern, positions), v)

    def map(
        self,
        x: Float[Tensor, "b n e"],
        lengths: Int[Tensor, " b"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        pattern: Pattern | None = None,
        positions: Int[Tensor, "..."] | None = None,
    ) -> AttentionMap:
        """The attention map that `forward` applies to the same arguments."""
        self._check(x, "x", self.embed_dim)
        q, k, _ = self._queries_keys_values(x, positions, None)
        return self._map(q, k, lengths, mask, pattern, positions)

    def _queries_keys_values(self, x: Tensor, positions: Tensor | None, cache: Cache | None) -> tuple[Tensor, ...]:
        q, (k, v) = self._queries(x), self._keys_and_values(x)
        if self.positions is not None:
            at = next_positions(x, positions, None if cache is None else cache.positions)[:, None]
            q, k = self.positions(q, at), self.positions(k, at)
        return q, k, v

    def _map(
        self,
        q: Tensor,
        k: Tensor,
        lengths: Tensor | None,
        mask: Tensor | None,
        pattern: Pattern | None,
        at: Tensor | None,
    ) -> AttentionMap:
        where = None if at is None else at.expand(-1, q.shape[2])[:, None]
        return self.mechanism(q, k, pattern=pattern, lengths=lengths, mask=mask, q_positions=where, k_positions=where)

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> "SelfAttention":
        """The same attention with the weights of torch's module; outputs are equal (ours is always batch-first)."""
        _check_torch(module)
        if not module._qkv_same_embed_dim:
            raise InputError("this MultiheadAttention has kdim or vdim; write CrossAttention.from_torch(module)")
        new = cls(module.embed_dim, module.num_heads, dropout=module.dropout)
        return _copy_projections(new, module)


class CrossAttention(_Attention):
    """Multi-head attention of one sequence to another, the memory (Vaswani 2017): a decoder's view of its encoder.

    Args as for `SelfAttention`; `memory_dim` is the width of the memory's tokens, E if None.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        mechanism: nn.Module | None = None,
        kv_heads: int | None = None,
        memory_dim: int | None = None,
        dropout: float = 0.0,
        qk_norm: bool = False,
        out: bool = True,
    ) -> None:
        memory_dim = embed_dim if memory_dim is None else memory_dim
        super().__init__(embed_dim, memory_dim, num_heads, mechanism, kv_heads, dropout, qk_norm, out)
        self.memory_dim = memory_dim

    def forward(
        self,
        x: Float[Tensor, "b n e"],
        memory: Float[Tensor, "b m f"] | None,
        memory_lengths: Int[Tensor, " b"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        pattern: Pattern | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b n e"]:
        """The memory as each token of x (B, N, E) attends to it, (B, N, E).

        With a cache that already holds the memory, `memory` may be None: its projections are not computed again.
        """
        self._check(x, "x", self.embed_dim)
        q = self._queries(x)
        call: dict[str, Any] = {"mask": mask, "pattern": pattern, "lengths": (None, memory_lengths)}
        if memory is None:
            if cache is None:
                raise InputError("memory is None, which only a cache that holds one can stand in for")
            return self._step(cache, q, mask=mask, pattern=pattern)
        self._check(memory, "memory", self.memory_dim)
        k, v = self._keys_and_values(memory)
        if cache is not None:
            return self._step(cache, q, k, v, **call)
        return self._apply_map(self.mechanism(q, k, **call), v)

    def map(
        self,
        x: Float[Tensor, "b n e"],
        memory: Float[Tensor, "b m f"],
        memory_lengths: Int[Tensor, " b"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        pattern: Pattern | None = None,
    ) -> AttentionMap:
        """The attention map that `forward` applies to the same arguments."""
        self._check(x, "x", self.embed_dim)
        self._check(memory, "memory", self.memory_dim)
        k, _ = self._keys_and_values(memory)
        return self.mechanism(self._queries(x), k, lengths=(None, memory_lengths), mask=mask, pattern=pattern)

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> "CrossAttention":
        """The same attention with the weights of torch's module, whose keys and values come from one memory."""
        _check_torch(module)
        if module.kdim != module.vdim:
            raise InputError(f"kdim={module.kdim} and vdim={module.vdim} differ; keys and values share one memory here")
        new = cls(module.embed_dim, module.num_heads, memory_dim=module.kdim, dropout=module.dropout)
        return _copy_projections(new, module)


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """`x` normalised in the norm's own dtype, which under autocast is wider than that of `x`."""
    return norm(x.to(norm.weight.dtype)).to(x.dtype) if isinstance(norm, nn.RMSNorm) else x


def next_positions(x: Tensor, given: Tensor | None, start: Tensor | None) -> Tensor:
    """Where the tokens x (B, N, …) stand, (B or 1, N): as given, else behind `start` (B,), else from 0."""
    if given is not None:
        return given.reshape(-1, given.shape[-1])
    at = torch.arange(x.shape[1], device=x.device)
    return at[None] if start is None else start[:, None] + at


def _check_torch(module: nn.MultiheadAttention) -> None:
    for name, present in (("bias_k", module.bias_k is not None), ("add_zero_attn", module.add_zero_attn)):
        if present:
            raise InputError(f"this MultiheadAttention has {name}, which adds a key that is no token; not supported")


def _copy_projections(new: _M, module: nn.MultiheadAttention) -> _M:
    """`new` with the projections of torch's `module`, on its device and in its dtype."""
    if module.in_proj_weight is not None:
        weights = list(module.in_proj_weight.detach().chunk(3))
    else:
        weights = [w.detach() for w in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)]
    biases = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.detach().chunk(3))
    weights.append(module.out_proj.weight.detach())
    biases.append(None if module.out_proj.bias is None else module.out_proj.bias.detach())
    for projection, weight, bias in zip((new.query, new.key, new.value, new.out), weights, biases, strict=True):
        projection.weight = nn.Parameter(weight.clone())
        projection.bias = None if bias is None else nn.Parameter(bias.clone())
    return new.train(module.training)
