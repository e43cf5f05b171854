"""The weights of someone's attention, read from outside.

In a function of (q, k, v) values that are the columns of an identity come out as the weights. In a module with
projections the output of its value projection is replaced by them, and the weights arrive where its heads' outputs do.
That what was read are the weights is then proved by an ordinary run: the output must be their product with the values.

Shapes: B samples, H heads, N queries, M keys, D head width.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearhead.errors import InputError
from clearhead.observe.projections import Layout, Part, is_linear, layout, recognised
from clearhead.observe.verifying.adapters import Runner, Tokens, name_of

NAMES = ("query", "key", "value")


@dataclass(frozen=True, eq=False)
class Reading:
    """Weights (B, H, N, M), and the products q · k (B, H, N, M), of width D, where they are known."""

    weights: Tensor
    products: Tensor | None
    width: int


class Unreadable(Exception):
    """Why weights cannot be read."""


def read(runner: Runner, tokens: Tokens, lengths: Tensor | None = None) -> Reading:
    """The weights that the attention applies to these tokens. Raises Unreadable, saying why it cannot tell."""
    if runner.of_heads and (found := _of_function(runner, tokens, lengths)) is not None:
        return found
    module = runner.module
    if not isinstance(module, nn.Module):
        raise Unreadable("its output is not linear in the values, so there are no weights to read")
    if isinstance(module, nn.MultiheadAttention):
        return _of_torch(runner, module, tokens, lengths)
    inner = [part for part in module.modules() if recognised(part)]
    if len(inner) > 1 or any(isinstance(part, nn.MultiheadAttention) for part in inner):
        raise Unreadable(f"{name_of(module)} holds several attentions or torch's own; verify them one by one")
    for parts in [_named(inner[0])] if inner else _unnamed(runner, module, tokens):
        found = _of_projections(runner, parts, tokens, lengths)
        if found is not None:
            return found
    weights = runner.weights(tokens, lengths)
    if weights is None:
        raise Unreadable(
            f"{name_of(module)} returns no weights, and its query, key and value projections were not found"
        )
    return Reading(weights.double(), None, 1)


def _of_function(runner: Runner, tokens: Tokens, lengths: Tensor | None) -> Reading | None:
    """From values that are columns of an identity; None where the output is no product of weights and values."""
    q, k, v = tokens
    pieces = [runner((q, k, x.expand(*v.shape[:-1], -1)), lengths) for x in _identity(k.shape[-2], v.shape[-1], v)]
    if any(piece.shape[-1] != v.shape[-1] for piece in pieces):
        return None
    weights = torch.cat(pieces, -1)[..., : k.shape[-2]].double()
    group = 1 if q.dim() == 3 else q.shape[1] // k.shape[1]  # keys and values that several heads share
    k, v = (x.double() if group == 1 else x.double().repeat_interleave(group, 1) for x in (k, v))
    if not _agree(runner(tokens, lengths), weights @ v):
        return None
    products = q.double() @ k.mT
    if q.dim() == 3:
        weights, products = weights[:, None], products[:, None]
    return Reading(weights, products, q.shape[-1])


def _of_torch(runner: Runner, module: nn.MultiheadAttention, tokens: Tokens, lengths: Tensor | None) -> Reading:
    """torch's attention returns its weights; its projections are no modules."""
    weights = runner.weights(tokens, lengths)
    if weights is None:
        raise Unreadable("it returned no weights")
    parts, (q, k, *_) = layout(module), tokens * 3
    products = _projected(parts.query, q) @ _projected(parts.key, k).mT
    return Reading(weights.double(), products if products.shape == weights.shape else None, parts.query.width)


def _projected(part: Part, x: Tensor) -> Tensor:
    """What a projection makes of x (B, N, E), (B, heads, N, D)."""
    return _heads(part, F.linear(x.double(), part.weight.double(), None if part.bias is None else part.bias.double()))


def _heads(part: Part, output: Tensor) -> Tensor:
    return torch.stack([output[..., part.rows(head)] for head in range(part.heads)], 1).double()


def _of_projections(runner: Runner, parts: Layout, tokens: Tokens, lengths: Tensor | None) -> Reading | None:
    """From values put in the place of those that the projection makes; None where they could not be followed."""
    plain = _Run(runner, parts, tokens, lengths, None)
    if plain.arrived is None:
        return None
    q, k, v = (plain.made[name] for name in NAMES)
    nothing = _Run(runner, parts, tokens, lengths, torch.zeros_like(v[0, 0], dtype=tokens[0].dtype)).arrived
    if nothing is None or bool((nothing != 0).any()):  # values of 0 give 0; this one is no value projection
        return None
    pieces = []
    for values in _identity(v.shape[2], v.shape[3], tokens[0]):
        piece = _Run(runner, parts, tokens, lengths, values).arrived
        if piece is None:
            return None
        pieces.append(piece.unflatten(-1, (parts.query.heads, -1)).transpose(1, 2))
    weights = torch.cat(pieces, -1)[..., : v.shape[2]].double()
    group = parts.query.heads // parts.key.heads
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    if not _agree(plain.arrived, (weights @ v).transpose(1, 2).flatten(2)):
        return None
    return Reading(weights, q @ k.mT, parts.query.width)


class _Run:
    """One run of an attention: what its projections `made`, and what its heads put out, where that `arrived`.

    With `values` (M, D) these are what the value projection gives each head.
    """

    def __init__(
        self, runner: Runner, parts: Layout, tokens: Tokens, lengths: Tensor | None, values: Tensor | None
    ) -> None:
        self.made: dict[str, Tensor] = {}
        self._parts, self._values = parts, values
        self._inputs: list[Tensor] = []
        owners = {parts.query.owner, parts.key.owner, getattr(parts.value, "owner", parts.key.owner)}
        with ExitStack() as hooks:
            for part in filter(is_linear, runner.module.modules()):
                if part in owners:
                    hooks.callback(part.register_forward_hook(self._project).remove)
                else:
                    hooks.callback(part.register_forward_pre_hook(self._feed).remove)
            out = runner(tokens, lengths)
        # heads' outputs arrive at the first linear layer after the projections that is as wide, or are the output
        width = parts.query.heads * getattr(parts.value, "width", 0)
        found = [x for x in (*self._inputs, out) if x.shape == (*tokens[0].shape[:2], width)]
        self.arrived = found[0] if found and len(self.made) == len(NAMES) else None

    def _project(self, owner: nn.Module, _: Any, output: Tensor) -> Tensor:
        for name in NAMES:
            part = getattr(self._parts, name)
            if part is None or part.owner is not owner or output.dim() != 3:
                continue
            self.made.setdefault(name, _heads(part, output.detach()))
            if name == "value" and self._values is not None:
                output = output.clone()
                for head in range(part.heads):
                    output[..., part.rows(head)] = self._values
        return output

    def _feed(self, _: nn.Module, inputs: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and len(self.made) == len(NAMES):
            self._inputs.append(inputs[0].detach())


def _named(module: nn.Module) -> Layout:
    try:
        return layout(module)
    except InputError as error:
        raise Unreadable(str(error)) from None


def _unnamed(runner: Runner, module: nn.Module, tokens: Tokens) -> Iterator[Layout]:
    """What the projections may be where their names say nothing: those called first. Widest heads first."""
    calls = _Calls(runner, module, tokens)
    if len(calls.order) >= 3:
        first = calls.order[:3]
        for value in (first[2], first[1], first[0]):
            query, key = sorted((x for x in first if x is not value), key=lambda x: not calls.stays_in_its_row(x))
            yield from _separate(query, key, value)
            yield from _separate(key, query, value)
    if calls.order and not calls.order[0].out_features % 3:
        yield from _fused(calls.order[0])


def _separate(query: nn.Linear, key: nn.Linear, value: nn.Linear) -> Iterator[Layout]:
    if key.out_features != value.out_features or query.out_features % key.out_features:
        return
    for heads in (n for n in range(1, key.out_features + 1) if key.out_features % n == 0):
        width = key.out_features // heads
        q, k, v = (_part(x, 0, width, width, x.out_features // width) for x in (query, key, value))
        yield Layout(q, k, v)


def _fused(linear: nn.Linear) -> Iterator[Layout]:
    total = linear.out_features // 3
    for heads in (n for n in range(1, total + 1) if total % n == 0):
        width = total // heads
        for step, stride in ((total, width), (width, 3 * width)):  # all queries first; or head by head
            q, k, v = (_part(linear, i * step, stride, width, heads) for i in range(3))
            yield Layout(q, k, v)


def _part(linear: nn.Linear, start: int, stride: int, width: int, heads: int) -> Part:
    return Part(linear.weight, linear.bias, start, stride, width, heads, linear)


class _Calls:
    """The linear layers that an attention calls, in their order, each once."""

    def __init__(self, runner: Runner, module: nn.Module, tokens: Tokens) -> None:
        self._runner, self._tokens = runner, tokens
        called: list[nn.Linear] = []
        with ExitStack() as hooks:
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    hooks.callback(part.register_forward_hook(lambda part, *_: called.append(part)).remove)
            self._out = runner(tokens)
        self.order = [part for part in called if called.count(part) == 1]

    def stays_in_its_row(self, linear: nn.Linear) -> bool:
        """Does what the layer makes of one token change that token's output alone, as a query does?"""
        j = self._tokens[0].shape[-2] // 2

        def change(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, j] = output[:, j].flip(-1) + 1
            return output

        handle = linear.register_forward_hook(change)
        try:
            changed = (self._runner(self._tokens) - self._out).abs().amax((0, -1))
        finally:
            handle.remove()
        changed[j] = 0
        return not bool((changed > 100 * torch.finfo(changed.dtype).eps * self._out.abs().max()).any())


def _identity(size: int, width: int, like: Tensor) -> tuple[Tensor, ...]:
    """The columns of an identity (size, size), `width` at a time; columns of zeros at the end."""
    return torch.eye(size, -(-size // width) * width, dtype=like.dtype, device=like.device).split(width, 1)


def _agree(out: Tensor, expected: Tensor) -> bool:
    """Is what came out the product of the weights and the values, but for rounding?"""
    size = float(expected.nan_to_num().abs().max())
    return torch.allclose(out.double(), expected, rtol=0, atol=200 * torch.finfo(out.dtype).eps * size, equal_nan=True)
