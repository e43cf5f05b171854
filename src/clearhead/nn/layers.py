"""Transformer layers with the norm first (Xiong 2020), and stacks of them.

Shapes: B samples, N tokens, M tokens of a memory, E model width.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clearhead.errors import InputError
from clearhead.maps import Cache
from clearhead.nn.attention import CrossAttention, SelfAttention, next_positions
from clearhead.nn.dropout import Dropout
from clearhead.nn.initial import branch_scale, xavier
from clearhead.nn.positions import Learned, Rotary, Sinusoidal
from clearhead.nn.recompute import recomputed
from clearhead.patterns import Pattern


class FeedForward(nn.Module):
    """Two projections with an activation between them, the same at every token; `ff_dim` is 4 E if None."""

    def __init__(self, embed_dim: int, ff_dim: int | None = None, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.up = nn.Linear(embed_dim, 4 * embed_dim if ff_dim is None else ff_dim)
        self.activation = nn.GELU() if activation is None else activation
        self.down = nn.Linear(self.up.out_features, embed_dim)
        self.reset_parameters()

    def reset_parameters(self, branch_scale: float = 1.0) -> None:
        """Xavier-uniform; `branch_scale` scales the second projection."""
        xavier(self.up)
        xavier(self.down, branch_scale)

    def forward(self, x: Float[Tensor, "b n e"]) -> Float[Tensor, "b n e"]:
        return self.down(self.activation(self.up(x)))


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    Args:
        attention: a SelfAttention, which brings its heads, mechanism and rotary positions.
        ff_dim: width of the feed-forward; 4 E if None.
        dropout: the probability that an entry of a branch's output is dropped in training.
        activation: of the feed-forward; GELU if None.
    """

    branches = 2

    def __init__(
        self,
        attention: SelfAttention,
        ff_dim: int | None = None,
        dropout: float = 0.1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        width = attention.embed_dim
        self.attention_norm, self.attention = nn.LayerNorm(width), attention
        self.feed_forward_norm, self.feed_forward = nn.LayerNorm(width), FeedForward(width, ff_dim, activation)
        self.drop = Dropout(dropout)

    @property
    def embed_dim(self) -> int:
        return self.attention.embed_dim

    def cache(self) -> Cache:
        """An empty cache for the layer's attention."""
        return self.attention.mechanism.cache()

    def forward(self, x: Float[Tensor, "b n e"], **call: Any) -> Float[Tensor, "b n e"]:
        """The layer's output, (B, N, E). `call` is that of `SelfAttention.forward`."""
        x = x + self.drop(self.attention(self.attention_norm(x), **call))
        return x + self.drop(self.feed_forward(self.feed_forward_norm(x)))


class DecoderLayer(nn.Module):
    """An encoder layer with attention to a memory between its two branches.

    Args as for `EncoderLayer`; `self_attention` is causal where its mechanism's pattern is.
    """

    branches = 3

    def __init__(
        self,
        self_attention: SelfAttention,
        cross_attention: CrossAttention,
        ff_dim: int | None = None,
        dropout: float = 0.1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        width = self_attention.embed_dim
        if cross_attention.embed_dim != width:
            raise InputError(f"self_attention has embed_dim={width}, cross_attention {cross_attention.embed_dim}")
        self.self_norm, self.self_attention = nn.LayerNorm(width), self_attention
        self.cross_norm, self.cross_attention = nn.LayerNorm(width), cross_attention
        self.feed_forward_norm, self.feed_forward = nn.LayerNorm(width), FeedForward(width, ff_dim, activation)
        self.drop = Dropout(dropout)

    @property
    def embed_dim(self) -> int:
        return self.self_attention.embed_dim

    def cache(self) -> tuple[Cache, Cache]:
        """Empty caches for attention to the past and to the memory."""
        return self.self_attention.mechanism.cache(), self.cross_attention.mechanism.cache()

    def forward(
        self,
        x: Float[Tensor, "b n e"],
        memory: Float[Tensor, "b m f"] | None,
        memory_lengths: Int[Tensor, " b"] | None = None,
        cache: tuple[Cache, Cache] | None = None,
        **call: Any,
    ) -> Float[Tensor, "b n e"]:
        """The layer's output, (B, N, E). `memory` may be None where the cache holds it."""
        past, held = (None, None) if cache is None else cache
        x = x + self.drop(self.self_attention(self.self_norm(x), cache=past, **call))
        x = x + self.drop(self.cross_attention(self.cross_norm(x), memory, memory_lengths, cache=held))
        return x + self.drop(self.feed_forward(self.feed_forward_norm(x)))


class StackCache:
    """The caches of all layers of a stack, as one."""

    def __init__(self, layers: list[Cache] | list[tuple[Cache, Cache]]) -> None:
        self.layers = layers

    def _each(self) -> Iterator[Cache]:
        for layer in self.layers:
            yield from layer if isinstance(layer, tuple) else (layer,)

    @property
    def lengths(self) -> Tensor | None:
        """How many tokens each sample has, (B,); None before the first."""
        return next(self._each()).lengths

    @property
    def positions(self) -> Tensor | None:
        """The position that each sample's next token will have, (B,); None before the first."""
        return next(self._each()).positions

    def reorder(self, index: Tensor) -> None:
        """Sample i becomes what sample `index[i]` was, in every layer."""
        for cache in self._each():
            cache.reorder(index)

    def keep(self, rows: Tensor) -> None:
        """Drop all samples but `rows`."""
        for cache in self._each():
            cache.keep(rows)


class _Stack(nn.Module):
    """Copies of one layer, input positions, and a norm at the end."""

    def __init__(
        self, layer: EncoderLayer | DecoderLayer, num_layers: int, positions: Sinusoidal | Learned | None
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise InputError(f"num_layers is {num_layers}; it must be at least 1")
        if isinstance(positions, Rotary):
            raise InputError("Rotary positions turn queries and keys: give them to SelfAttention")
        self.positions = positions
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.norm = nn.LayerNorm(layer.embed_dim)
        self.checkpoint = False
        """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
        for copied in self.layers:
            _initialise(copied, branch_scale(num_layers * layer.branches))

    def cache(self) -> StackCache:
        """Empty caches for decoding step by step."""
        layers: Any = self.layers
        return StackCache([layer.cache() for layer in layers])

    def _call(self, layer: nn.Module, *given: Any, **call: Any) -> Tensor:
        """A layer's output; its activations are kept only without `checkpoint`."""
        if self.checkpoint and self.training and torch.is_grad_enabled():
            return recomputed(layer, *given, **call)
        return layer(*given, **call)

    def _enter(self, x: Tensor, positions: Tensor | None, cache: StackCache | None) -> Tensor:
        if self.positions is None:
            return x
        return self.positions(x, next_positions(x, positions, None if cache is None else cache.positions))


class Encoder(_Stack):
    """A stack of encoder layers: `Encoder(EncoderLayer(SelfAttention(128, 4)), num_layers=6)`.

    The layer given is a plan: it is copied `num_layers` times, and each copy initialised anew, its residual branches
    scaled by the depth. With a causal mechanism it is a decoder-only model, and takes a cache.

    Args:
        positions: Sinusoidal or Learned, added to the input; Rotary ones belong to the layer's SelfAttention.
    """

    def __init__(self, layer: EncoderLayer, num_layers: int, positions: Sinusoidal | Learned | None = None) -> None:
        super().__init__(layer, num_layers, positions)

    def forward(
        self,
        x: Float[Tensor, "b n e"],
        lengths: Int[Tensor, " b"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        pattern: Pattern | None = None,
        positions: Int[Tensor, "..."] | None = None,
        cache: StackCache | None = None,
    ) -> Float[Tensor, "b n e"]:
        """The encoded tokens, (B, N, E), from x (B, N, E); options as for `SelfAttention.forward`."""
        x = self._enter(x, positions, cache)
        caches = [None] * len(self.layers) if cache is None else cache.layers
        for layer, held in zip(self.layers, caches, strict=True):
            x = self._call(layer, x, lengths=lengths, mask=mask, pattern=pattern, positions=positions, cache=held)
        return self.norm(x)


class Decoder(_Stack):
    """A stack of decoder layers; the layer given is a plan, as in `Encoder`."""

    def __init__(self, layer: DecoderLayer, num_layers: int, positions: Sinusoidal | Learned | None = None) -> None:
        super().__init__(layer, num_layers, positions)

    def forward(
        self,
        x: Float[Tensor, "b n e"],
        memory: Float[Tensor, "b m f"] | None,
        lengths: Int[Tensor, " b"] | None = None,
        memory_lengths: Int[Tensor, " b"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        pattern: Pattern | None = None,
        positions: Int[Tensor, "..."] | None = None,
        cache: StackCache | None = None,
    ) -> Float[Tensor, "b n e"]:
        """The decoded tokens, (B, N, E), from x (B, N, E) and the memory (B, M, E).

        `mask`, `pattern` and `positions` are of attention to the past. With a cache, x are the next tokens, and the
        memory may be None after the first step.
        """
        x = self._enter(x, positions, cache)
        call = {"lengths": lengths, "mask": mask, "pattern": pattern, "positions": positions}
        caches = [None] * len(self.layers) if cache is None else cache.layers
        for layer, held in zip(self.layers, caches, strict=True):
            x = self._call(layer, x, memory, memory_lengths, held, **call)
        return self.norm(x)


def _initialise(layer: nn.Module, scale: float) -> None:
    """Initialise every part of a copied layer anew; those that end a residual branch scaled down."""
    part: Any
    for part in layer.modules():
        if isinstance(part, SelfAttention | CrossAttention | FeedForward):
            part.reset_parameters(scale)
        elif not isinstance(part, nn.Linear) and hasattr(part, "reset_parameters"):
            part.reset_parameters()
