"""How someone's attention is called: with which arguments it takes its tokens and their padding, and what it returns.

Shapes: B samples, H heads, N tokens, E width, D head width.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearhead.errors import InputError
from clearhead.maps import attend
from clearhead.patterns import causal as causal_pattern

Tokens = tuple[Tensor, ...]
"""(x,), or (q, k, v): tokens are the last axis but one."""

PADDING_NAMES = ("lengths", "key_padding_mask", "src_key_padding_mask")
TRIPLES = (("query", "key", "value"), ("q", "k", "v"))


class Raised(Exception):
    """What the module raised when it was run."""


class Runner:
    """An attention and an example, as something that is run with other tokens.

    `example` is x (B, N, E), or (q, k, v), each (B, N, D) or (B, H, N, D), or a dictionary of keyword arguments that
    holds them. `call(module, example, lengths)` stands in where the module takes its arguments otherwise; one of two
    parameters says that it knows no padding.
    """

    def __init__(self, module: Any, example: Any, causal: bool, call: Callable[..., Any] | None) -> None:
        self.module, self.causal, self._call = module, causal, call
        self._names: tuple[str, ...] = ()
        self._others: dict[str, Any] = {}
        self.tokens: Tokens = self._read(example)
        self.no_padding = self._why_no_padding()
        """Why no lengths can be given; None where they can."""

    def _read(self, example: Any) -> Tokens:
        if isinstance(example, dict):
            found = next((names for names in TRIPLES if all(name in example for name in names)), None)
            floats = [name for name, x in example.items() if isinstance(x, Tensor) and x.is_floating_point()]
            self._names = found or tuple(floats[:1])
            self._others = {name: x for name, x in example.items() if name not in self._names}
            example = tuple(example[name] for name in self._names)
        tokens = (example,) if isinstance(example, Tensor) else tuple(example)
        sizes = {1: "x (B, N, E)", 3: "(q, k, v)"}
        if len(tokens) not in sizes or not all(isinstance(x, Tensor) and x.is_floating_point() for x in tokens):
            raise InputError(
                "the example must be a float tensor x (B, N, E), three of them (q, k, v), or a dict of these"
            )
        if any(x.dim() not in ((3,) if len(tokens) == 1 else (3, 4)) for x in tokens) or tokens[0].shape[-2] < 3:
            shapes = ", ".join(str(tuple(x.shape)) for x in tokens)
            raise InputError(f"the example has shape {shapes}; it must be {sizes[len(tokens)]} of at least 3 tokens")
        return tuple(x.detach() for x in tokens)

    @property
    def fixed(self) -> bool:
        """Do other tensors come with the tokens, so that batch and length must stay what they are?"""
        return any(isinstance(x, Tensor) for x in self._others.values())

    @property
    def of_heads(self) -> bool:
        """Is it a function of queries, keys and values?"""
        return len(self.tokens) == 3

    def __call__(self, tokens: Tokens, lengths: Tensor | None = None) -> Tensor:
        """The output (B, …, N, Dv) for these tokens, of which sample b has `lengths[b]`, or all.

        Raises Raised for whatever the module raises.
        """
        out = first_tensor(self._tried(tokens, lengths))
        if out is None or out.shape[:-1] != tokens[0].shape[:-1]:
            got = type(out).__name__ if out is None else tuple(out.shape)
            raise InputError(
                f"{name_of(self.module)} returned {got} for tokens {tuple(tokens[0].shape)}; verify needs an output "
                "for each token: give call=lambda module, x, lengths: …"
            )
        return out

    def weights(self, tokens: Tokens, lengths: Tensor | None = None) -> Tensor | None:
        """The weights (B, H, N, N) that it returns beside its output, if it does."""
        found = self._tried(tokens, lengths, weights=True)
        if not isinstance(found, tuple | list) or len(found) < 2 or not isinstance(found[1], Tensor):
            return None
        weights, b, n = found[1], tokens[0].shape[0], tokens[0].shape[-2]
        weights = weights[:, None] if weights.dim() == 3 else weights
        return weights if weights.dim() == 4 and weights.shape[0] == b and weights.shape[2] == n else None

    def _tried(self, tokens: Tokens, lengths: Tensor | None, weights: bool = False) -> Any:
        try:
            return self._run(tokens, lengths, weights)
        except Exception as error:
            raise Raised(
                f"it raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            ) from error

    def _run(self, tokens: Tokens, lengths: Tensor | None, weights: bool) -> Any:
        module, single = self.module, tokens[0] if len(tokens) == 1 else tokens
        hidden = None if lengths is None else padded(tokens[0], lengths)
        if self._call is not None:
            return self._call(module, single) if self.no_padding else self._call(module, single, lengths)
        if isinstance(module, nn.MultiheadAttention):
            return _multi_head(module, tokens, self._future(tokens), hidden, weights)
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder):
            return _encoder(module, tokens[0], self._future(tokens), hidden)
        if module is F.scaled_dot_product_attention:
            return _fused(tokens, self._future(tokens), hidden)
        if module is attend:
            return attend(*tokens, causal_pattern() if self.causal else None, lengths=lengths)
        more = {} if lengths is None else self._padding_arguments(lengths, hidden)
        if not self._names:
            return module(*tokens, **more)
        return module(**dict(zip(self._names, tokens, strict=True)), **self._others, **more)

    def _future(self, tokens: Tokens) -> Tensor | None:
        """True where a query must not look, for modules that are told at each call."""
        n = tokens[0].shape[-2]
        return torch.ones(n, n, dtype=torch.bool, device=tokens[0].device).triu(1) if self.causal else None

    def _padding_arguments(self, lengths: Tensor, hidden: Tensor | None) -> dict[str, Any]:
        known = _parameters(self.module)
        name = next(name for name in PADDING_NAMES if name in known)  # there is one, or no lengths would be given
        return {name: lengths if name == "lengths" else hidden}

    def _why_no_padding(self) -> str | None:
        module = self.module
        if self._call is not None:
            return None if len(inspect.signature(self._call).parameters) >= 3 else "call takes no lengths"
        own = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
        if isinstance(module, own) or module in (F.scaled_dot_product_attention, attend):
            return None
        if any(name in _parameters(module) for name in PADDING_NAMES):
            return None
        return f"it has no argument {', '.join(PADDING_NAMES)}; give call=lambda module, x, lengths: …"


def padded(x: Tensor, lengths: Tensor) -> Tensor:
    """Which tokens of x (B, …, N, E) are padding, (B, N)."""
    return torch.arange(x.shape[-2], device=x.device) >= lengths.to(x.device)[:, None]


def first_tensor(output: Any) -> Tensor | None:
    """The output, or the first of several."""
    if isinstance(output, Tensor):
        return output
    try:
        first = output[0]
    except (TypeError, KeyError, IndexError):
        return None
    return first if isinstance(first, Tensor) else None


def name_of(module: Any) -> str:
    """What to call a module or function."""
    return type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__name__", repr(module))


def _parameters(module: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(module.forward if isinstance(module, nn.Module) else module).parameters)
    except (TypeError, ValueError):  # built in
        return ()


def _multi_head(
    module: nn.MultiheadAttention, tokens: Tokens, future: Tensor | None, hidden: Tensor | None, weights: bool
) -> Any:
    q, k, v = tokens * 3 if len(tokens) == 1 else tokens
    if not module.batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    options = {"key_padding_mask": hidden, "attn_mask": future, "need_weights": weights}
    out, found = module(q, k, v, average_attn_weights=False, **options)
    return out if module.batch_first else out.transpose(0, 1), found


def _encoder(module: Any, x: Tensor, future: Tensor | None, hidden: Tensor | None) -> Tensor:
    layer = module if isinstance(module, nn.TransformerEncoderLayer) else module.layers[0]
    first = layer.self_attn.batch_first
    mask = "src_mask" if layer is module else "mask"
    out = module(x if first else x.transpose(0, 1), **{mask: future}, src_key_padding_mask=hidden)
    return out if first else out.transpose(0, 1)


def _fused(tokens: Tokens, future: Tensor | None, hidden: Tensor | None) -> Tensor:
    """PyTorch's function, whose boolean mask is True where a query may look."""
    shown = None if hidden is None else ~hidden.reshape(len(hidden), *[1] * (tokens[0].dim() - 2), -1)
    if future is not None:
        shown = ~future if shown is None else shown & ~future
    q, k, v = tokens
    return F.scaled_dot_product_attention(q, k, v, attn_mask=shown)
