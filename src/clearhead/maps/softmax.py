"""Softmax attention: softmax(softcap(q · k · scale) + bias) over the visible keys (Vaswani 2017).

Shapes: B samples, H heads, Hkv key heads, Nq queries, Nk keys, D width.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from clearhead.errors import InputError
from clearhead.kernels import (
    OUTPUT_ALONE,
    Call,
    Explanation,
    Score,
    Statistics,
    Task,
    Tile,
    Visible,
    absent,
    as_given,
    choose,
    cleaned,
    cut,
    describe,
    flex_attend,
    logsumexp,
    run,
    softmax_rows,
    tiles,
    whole,
    without_values,
    working_dtype,
)
from clearhead.kernels import explain as explain_call
from clearhead.maps.base import AttentionMap, Strip, autocasted, with_axes
from clearhead.maps.biases import DistanceBias
from clearhead.maps.cache import GrowingCache
from clearhead.maps.checks import bias_for, check_bias, check_queries_and_keys, check_sinks, visible_pairs
from clearhead.maps.ring import cache_for
from clearhead.maps.sinks import beside, kept
from clearhead.patterns import ALL, NONE, Pattern, everything

SMALL = 256
"""Queries of a call whose choice of a kernel is not worth asking for."""


class SoftmaxMap(AttentionMap):
    """The map of a softmax mechanism; `sinks` (H,) are learned ones."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        visible: Visible,
        score: Score,
        axes: int,
        distance: bool,
        sinks: Tensor | None = None,
    ) -> None:
        super().__init__(q, k, axes)
        self._q, self._k, self._sinks = q, k, sinks
        self.visible, self._score, self._distance = visible, score, distance

    @property
    def made_of(self) -> tuple[Tensor, Tensor]:
        """The queries and keys."""
        return self._q, self._k

    def _clean(self) -> tuple[Tensor, Tensor]:
        """Queries and keys without those that take no part; each use has an autograd graph of its own."""
        if not (torch.is_grad_enabled() and (self._q.requires_grad or self._k.requires_grad)):
            return self._q, self._k  # their logits are overwritten; only gradients would carry NaN out of them
        queries, keys = absent(self.visible, self._score, self._k)
        return cleaned(self._q, queries), cleaned(self._k, keys)

    def _taking_part(self, y: Tensor) -> Tensor:
        return cleaned(y, absent(self.visible, self._score, self._k)[0])

    def explain(self, v_dim: int | None = None, dropout: float = 0.0, statistics: bool = False) -> Explanation:
        """Which kernel computes this map's product with values of width `v_dim`, and why not each other one."""
        call = self._call(self._q.shape[-1] if v_dim is None else v_dim, dropout, statistics)
        return explain_call(call)

    def _call(self, v_dim: int, dropout: float, statistics: bool, learns: bool = False) -> Call:
        """`learns`: do the values want a gradient?"""
        learns, sinks = self._learns(learns), self._sinks is not None
        return describe(self._q, self._k, v_dim, self.visible, self._score, dropout, statistics, sinks, learns)

    def _learns(self, more: bool = False) -> bool:
        """Does a gradient come to what the map is made of, or to something `more`?"""
        wanted = more or self._q.requires_grad or self._k.requires_grad or self._score.learns
        return wanted and torch.is_grad_enabled()

    def _apply(self, v: Tensor, dropout: float, statistics: bool) -> tuple[Tensor, Statistics | None]:
        if without_values(self._q):
            return self._unread(v, statistics), None
        see = self.visible
        kernel = choose(self._call(v.shape[-1], dropout, statistics, v.requires_grad))
        if kernel in OUTPUT_ALONE:
            return OUTPUT_ALONE[kernel](self._q, self._k, v, see, self._score, dropout), None
        queries, keys = absent(see, self._score, self._k)
        q, k, v = cleaned(self._q, queries), cleaned(self._k, keys), cleaned(v, keys)
        named = self._first_key() if statistics else None
        if kernel == "flex":
            out, raw = flex_attend(q, k, v, see, self._score, logsumexp=self._sinks is not None)
        else:
            out, raw, _ = run(q, k, v, self._task(see, self._score, named, dropout), kernel)
        if self._sinks is not None:
            out = (out * kept(raw[0], self._sinks)[..., None]).to(out.dtype)
        out = cleaned(out, queries)
        return out, self._told(raw, None) if statistics else None

    def _first_key(self) -> Tensor:
        """The sample's first real key, (B or 1, 1)."""
        return self.visible.first_key()

    def _unread(self, v: Tensor, statistics: bool) -> Tensor:
        """A v by operations that read no value: kernels plan by what they read."""
        if statistics:
            raise InputError("q has no values (the meta device, or FakeTensorMode), and so it has no statistics")
        rows = self._rows(torch.arange(self._full[2], device=self.device))
        return (rows @ v.repeat_interleave(self._full[1] // v.shape[1], 1).to(rows.dtype)).to(v.dtype)

    def _told(self, raw: Tensor, received: Tensor | None) -> Statistics:
        raw = raw if self._sinks is None else beside(raw, self._sinks)
        return Statistics.of(raw, received, distance=self._distance)

    def _task(self, see: Visible, score: Score, sinks: Tensor | None, dropout: float = 0.0, **options: Any) -> Task:
        # the seed comes from the global generator, so that torch.manual_seed decides and checkpointing repeats it
        seed = torch.randint(2**62, ()) if dropout else None
        distance = self._distance and sinks is not None
        return Task(see, score, dropout, seed, sinks, distance=distance, **options)

    def _selected(self, q: Tensor, rows: Tensor) -> tuple[Tensor, Visible, Score]:
        """Queries, visibility and score of some rows alone."""
        score, bias = self._score, self._score.bias
        if isinstance(bias, Tensor) and bias.shape[2] > 1:
            score = replace(score, bias=bias.index_select(2, rows))
        return q.index_select(2, rows), self.visible.take(rows), score

    def _rows(self, rows: Tensor) -> Tensor:
        q, k = self._clean()
        q, see, score = self._selected(q, rows)
        b, h, n_queries, n_keys = (*self._full[:2], len(rows), self._full[3])
        if not n_keys:
            return q.new_zeros(b, h, n_queries, 0, dtype=self._wide)
        return _softmax(whole(b, self._kv_heads, h, n_queries, n_keys), q, k, see, score, self._sinks)

    def _strips(self) -> Iterator[Strip]:
        (q, k), see = self._clean(), self.visible.placed()
        for tile in tiles(see, *self._full[:2], self._kv_heads):
            if tile.keys.stop > tile.keys.start:
                weights = partial(_softmax, tile, q, k, see, self._score, self._sinks)
                yield Strip(tile.b, tile.h, tile.rows, tile.keys, weights)

    def _received(self) -> Tensor:
        q, k = self._q, self._k
        if self._learns() or self._sinks is not None:  # strips have gradients of any order
            return super()._received()
        nothing = k.new_zeros(*k.shape[:3], 0)
        return run(q, k, nothing, self._task(self.visible, self._score, None, received=True))[2]

    def detach(self, copy: bool = False) -> "SoftmaxMap":
        own = (lambda x: x.detach().clone()) if copy else Tensor.detach
        sinks, score = None if self._sinks is None else own(self._sinks), self._score.changed(own)
        return SoftmaxMap(own(self._q), own(self._k), self.visible, score, self._axes, self._distance, sinks)

    def of(self, samples: Tensor) -> "SoftmaxMap":
        """The map of some samples alone, whose numbers are `samples` (S,)."""
        score = self._score.changed(lambda x: x if x.shape[0] == 1 else x.index_select(0, samples))
        q, k = self._q.index_select(0, samples), self._k.index_select(0, samples)
        return SoftmaxMap(q, k, self.visible.of(samples), score, self._axes, self._distance, self._sinks)

    def part(self, rows: Tensor, head: int = 0, sample: int = 0) -> "SoftmaxMap":
        wide, key_head = working_dtype(self.dtype), head * self._kv_heads // self._full[1]
        q, k = self._q.detach()[sample, head].to(wide), self._k.detach()[sample, key_head].to(wide)

        def own(x: Tensor) -> Tensor:
            x = cut(x.detach(), slice(sample, sample + 1), slice(head, head + 1))
            return x[0, 0][rows][:, None] if x.dim() == 4 and x.shape[2] > 1 else x

        see, score = self.visible.part(sample, head, rows), self._score.changed(own)
        sinks = None if self._sinks is None else self._sinks.detach()[head : head + 1]
        keys = k.expand(len(rows), 1, *k.shape)
        return SoftmaxMap(q[rows][:, None], keys, see, score, 4, self._distance, sinks)

    @torch.no_grad()
    def block(self, rows: slice, keys: slice, logsumexp: Tensor) -> Tensor:
        b, h, _, _ = self._full
        allowed = self.visible.cover(b, h, rows, keys)
        if allowed == NONE:
            return logsumexp.new_zeros(b, h, rows.stop - rows.start, keys.stop - keys.start)
        sides = slice(0, b), slice(0, self._kv_heads), slice(0, h), rows, keys
        tile, wide = Tile(*sides, free=allowed == ALL, unpadded=self.visible.unpadded), working_dtype(self.dtype)
        lse = logsumexp.nan_to_num(nan=math.inf, neginf=math.inf, posinf=math.inf)  # exp(s - ∞) = 0
        with as_given(self.device):
            q, k = self._q[:, :, rows].to(wide), self._k[:, :, keys].to(wide)
            return softmax_rows(tile, q, k, self._score, self.visible, lse).exp

    @property
    def measures_distance(self) -> bool:
        return self._distance

    def _statistics(self, rows: Tensor | None, sinks: Tensor | None, received: bool) -> Statistics:
        q, k = self._clean()
        named = self._first_key() if sinks is None else sinks[None]
        nothing = k.new_zeros(*k.shape[:3], 0)
        if rows is None:
            task = self._task(self.visible, self._score, named, received=received and self._sinks is None)
            _, raw, total = run(q, k, nothing, task)
            if received and self._sinks is not None:
                total = self._received()
            return self._told(raw, total if received else None)
        q, see, score = self._selected(q, rows)
        _, raw, _ = run(q, k, nothing, self._task(see, score, named))
        return self._told(raw, None)


def _softmax(tile: Tile, q: Tensor, k: Tensor, see: Visible, score: Score, sinks: Tensor | None) -> Tensor:
    """The weights of a tile, (b, h, rows, keys)."""
    wide = working_dtype(q.dtype)
    queries, keys = q[tile.b, tile.h, tile.rows].to(wide), k[tile.b, tile.kv, tile.keys].to(wide)
    with as_given(q.device):
        rows = softmax_rows(tile, queries, keys, score, see)
        return rows.weights if sinks is None else rows.weights * kept(logsumexp(rows), sinks[tile.h])[..., None]


class Softmax(nn.Module):
    """The mechanism softmax(softcap(q · k · scale) + bias) over the keys that `pattern` lets a query see.

    Args:
        pattern: who may attend to whom; everything if None. Tensors that it holds are buffers of this module.
        scale: what products are multiplied by; 1/√D if None (Vaswani 2017).
        softcap: c bounds the scaled products by c · tanh(s / c) (Gemma 2); none if None.
        bias: what is added to the logits: an `ALiBi`, `T5Bias` or `RelativeBias`, which go by distance; or a float
            tensor broadcastable to (B, H, Nq, Nk), read by row and column, which may be an nn.Parameter. A key whose
            bias is -inf is not seen.
        sinks: learned sinks, a float tensor (H,), may be an nn.Parameter: a logit for each head that the softmax of its
            rows counts in, and that has no value, so that a head need not attend to any key (gpt-oss); zeros are
            "softmax off by one" (Miller 2023).
    """

    def __init__(
        self,
        pattern: Pattern | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        bias: Tensor | DistanceBias | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.softcap = scale, _softcap(softcap)
        self._take(_pattern(pattern))
        self.bias: Tensor | DistanceBias | None
        self.sinks: Tensor | None
        self._hold("bias", check_bias(bias))
        self._hold("sinks", check_sinks(sinks))

    def _hold(self, name: str, x: Tensor | nn.Module | None) -> None:
        """Hold a tensor so that it moves with the module, and learns if it is a parameter; or a module."""
        if isinstance(x, nn.Parameter | nn.Module):
            setattr(self, name, x)
        else:
            self.register_buffer(name, x, persistent=False)

    def _take(self, pattern: Pattern) -> None:
        """Hold the tensors of `pattern` as buffers, so that they move with the module."""
        tensors = pattern.tensors()
        self._outline = pattern.holding([x.new_empty(0) for x in tensors])
        for i, x in enumerate(tensors):
            self.register_buffer(f"pattern_{i}", x, persistent=False)

    @property
    def pattern(self) -> Pattern:
        """Who may attend to whom."""
        held = len(self._outline.tensors())
        return self._outline.holding([getattr(self, f"pattern_{i}") for i in range(held)]) if held else self._outline

    def extra_repr(self) -> str:
        """The arguments that would make this mechanism again."""
        parts = [repr(self.pattern)]
        parts += [f"{name}={value}" for name in ("scale", "softcap") if (value := getattr(self, name)) is not None]
        tensors = {"bias": self.bias, "sinks": self.sinks}
        return ", ".join(parts + [f"{name}={tuple(x.shape)}" for name, x in tensors.items() if isinstance(x, Tensor)])

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        *,
        pattern: Pattern | None = None,
        lengths: Any = None,
        mask: Tensor | None = None,
        q_positions: Tensor | None = None,
        k_positions: Tensor | None = None,
    ) -> SoftmaxMap:
        """The attention map of queries (B, H, Nq, D) and keys (B, Hkv, Nk, D), H a multiple of Hkv.

        Args:
            pattern: of this batch; and-ed with the mechanism's own.
            lengths: right padding, (B,) for both sides, or a pair (queries, keys) of which either may be None.
            mask: boolean, True = may attend, broadcastable to (B, H, Nq, Nk).
            q_positions, k_positions: where queries and keys stand, broadcastable to (B, H, N); by default their ends
                line up, counted without padding.

        Raises ShapeError or InputError, naming the tensor, where they do not fit.
        """
        both = self.pattern if pattern is None else _both(self.pattern, _pattern(pattern))
        call = (both, lengths, mask, q_positions, k_positions)
        return _softmax_map(q, k, self.scale, self.softcap, self.bias, self.sinks, *call)

    def cache(self) -> GrowingCache:
        """An empty cache for decoding step by step: a ring where the pattern bounds what later queries see."""
        by_column = isinstance(self.bias, Tensor) and self.bias.shape[-1] > 1  # read by column: all must be there
        return GrowingCache(self) if by_column else cache_for(self, self.pattern)


def _pattern(pattern: Pattern | None) -> Pattern:
    if pattern is None:
        return everything()
    if not isinstance(pattern, Pattern):
        raise InputError(
            f"pattern is a {type(pattern).__name__}; it must be a Pattern such as ch.causal() (a tensor is a mask)"
        )
    return pattern


def _both(own: Pattern, given: Pattern) -> Pattern:
    """own & given, kept simple so that kernels recognise plain shapes."""
    if isinstance(given, everything) or own == given:
        return own
    return given if isinstance(own, everything) else own & given


def _softcap(softcap: float | None) -> float | None:
    if softcap is not None and not softcap > 0:
        raise InputError(f"softcap is {softcap}; it must be positive, or None for no cap")
    return softcap


def _softmax_map(
    q: Tensor,
    k: Tensor,
    scale: float | None,
    softcap: float | None,
    bias: Tensor | DistanceBias | None,
    sinks: Tensor | None,
    pattern: Pattern,
    lengths: Any,
    mask: Tensor | None,
    q_positions: Tensor | None,
    k_positions: Tensor | None,
) -> SoftmaxMap:
    check_queries_and_keys(q, k)  # in what they came as; autocast then casts them, as it does for fused attention
    axes = q.dim()
    q, k = autocasted(with_axes(q), with_axes(k))
    visible = visible_pairs(q, k, pattern, lengths, mask, q_positions, k_positions)
    # keys alone have lengths in cross-attention, where queries and keys stand on different axes
    distance = q_positions is not None or not (isinstance(lengths, tuple) and lengths[0] is None)
    added = bias_for(bias, q, k, distance)
    score = Score(1 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale, softcap, added)
    return SoftmaxMap(q, k, visible, score, axes, distance, check_sinks(sinks, q))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | DistanceBias | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    statistics: bool = False,
    **call: Any,
) -> Any:
    """softmax(softcap(q · kᵀ · scale) + bias) v over the visible keys: `Softmax(pattern, …)(q, k, …) @ v` in one step.

    Shapes: q (B, H, Nq, D), k (B, Hkv, Nk, D), v (B, Hkv, Nk, Dv), out (B, H, Nq, Dv); or all (B, N, D); or all (N, D).
    Options are those of the mechanism (`Softmax`), of its call (`lengths`, `mask`, positions) and of
    `AttentionMap.apply` (`dropout`, `statistics`: then returns (output, Statistics)).
    """
    if (  # the plainest of calls takes no detour: 5 µs is all that attend may cost
        pattern is None
        and not call
        and isinstance(k, Tensor)
        and isinstance(v, Tensor)
        and q.shape == k.shape == v.shape
        and len(q.shape) == 4
        and scale is softcap is bias is sinks is None
        and not (dropout or statistics)
        and q.dtype is k.dtype is v.dtype
        and (q.dtype is torch.float32 or q.shape[2] <= SMALL)  # of other kinds of long calls there is a choice
        and q.is_floating_point()
        and q.device == k.device == v.device
    ):
        return scaled_dot_product_attention(q, k, v)
    A = _attention_map(q, k, pattern, scale, softcap, bias, sinks, **call)
    return A.apply(v, dropout, statistics)


def _attention_map(
    q: Tensor,
    k: Tensor,
    pattern: Pattern | None,
    scale: float | None,
    softcap: float | None,
    bias: Tensor | DistanceBias | None,
    sinks: Tensor | None,
    *,
    lengths: Any = None,
    mask: Tensor | None = None,
    q_positions: Tensor | None = None,
    k_positions: Tensor | None = None,
) -> SoftmaxMap:
    call = (lengths, mask, q_positions, k_positions)
    return _softmax_map(q, k, scale, _softcap(softcap), bias, sinks, _pattern(pattern), *call)


def explain(
    q: Tensor,
    k: Tensor,
    pattern: Pattern | None = None,
    *,
    v_dim: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | DistanceBias | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    statistics: bool = False,
    **call: Any,
) -> Explanation:
    """Which kernel `attend` runs for these tensors and options, and why each other one does not; prints as a table."""
    A = _attention_map(q, k, pattern, scale, softcap, bias, sinks, **call)
    return A.explain(v_dim, dropout, statistics)
