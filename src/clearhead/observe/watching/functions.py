"""Attention seen in the functions that are called: fused ones, and a softmax between two products.

A mode sees every function of torch whose caller is inside the watched model, however it was imported. It changes none.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils.weak import WeakIdKeyDictionary

from clearhead.maps import is_applying
from clearhead.observe.watching.attended import Line, attention_map, four, logits_map
from clearhead.observe.watching.compiled import FLEX
from clearhead.observe.watching.frames import says_cross
from clearhead.observe.watching.torch_modules import (
    bound,
    layer_call,
    multi_head_call,
    native_call,
    of_multi_head_attention_forward,
    of_native,
)

_PRODUCTS = {
    torch.matmul, torch.bmm, torch.einsum, torch.baddbmm,
    Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.bmm, Tensor.baddbmm,
}  # fmt: skip
_SOFTMAXES = {torch.softmax, F.softmax, Tensor.softmax, torch.special.softmax}
_MOST_HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "nhead", "heads")


@dataclass(frozen=True, eq=False)
class Weights:
    """What is known of a tensor that came out of a softmax: its logits, and whether these came out of a product."""

    logits: Tensor
    product: bool


class _Thread(threading.local):
    """What is known in a thread: another one's tensors must not make it forget its own."""

    def __init__(self) -> None:
        self.aside = True
        self.products: Any = WeakIdKeyDictionary()  # tensors that come from a product, nothing but elementwise since
        self.weights: Any = WeakIdKeyDictionary()  # tensors that come from a softmax, likewise
        self.following = False  # is there anything in either


class Functions(TorchFunctionMode):
    """The function mode of a watch. `active` puts it in force in this thread, or takes it out."""

    def __init__(self, watch: Any) -> None:
        super().__init__()
        self._watch = watch
        self._thread = _Thread()
        self._handlers: dict[Any, Callable[..., Any]] = {
            F.scaled_dot_product_attention: self._sdpa,
            F.multi_head_attention_forward: self._multi_head,
            torch._native_multi_head_attention: partial(self._native, native_call),
            torch._transformer_encoder_layer_fwd: partial(self._native, layer_call),
            torch.ops.higher_order.flex_attention: self._flex,
            **dict.fromkeys(_SOFTMAXES, self._softmax),
            **dict.fromkeys(_PRODUCTS, self._product),
        }

    # when it is in force

    def active(self, on: bool) -> None:
        """In force or not, from here on, in this thread. If another's mode lies above, it only stops looking."""
        aside = not on
        if self._thread.aside is aside:
            return
        self._thread.aside = aside
        stack = _get_current_function_mode_stack()
        if on and self not in stack:
            _push_mode(self)
        elif not on and self in stack and all(isinstance(mode, Functions) for mode in stack[stack.index(self) :]):
            self.take_out()

    def take_out(self) -> int:
        """Take the mode away from wherever it lies among other modes; returns how many lay above it, or -1."""
        stack = _get_current_function_mode_stack()
        if self not in stack:
            return -1
        above = stack[stack.index(self) + 1 :]
        for _ in range(len(above) + 1):
            _pop_mode()
        for mode in above:
            _push_mode(mode)
        return len(above)

    def put_back(self, above: int) -> None:
        """Undo `take_out`, which returned `above`."""
        if above < 0:
            return
        stack = _get_current_function_mode_stack()
        over = stack[len(stack) - above :]
        for _ in over:
            _pop_mode()
        _push_mode(self)
        for mode in over:
            _push_mode(mode)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose functions pass by this mode."""
        above = self.take_out()
        try:
            yield
        finally:
            self.put_back(above)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # every function of the model passes here: what concerns few of them is asked last
        kwargs = kwargs or {}
        handler = self._handlers.get(func)
        if handler is None:
            out = func(*args, **kwargs)
            if self._thread.following and isinstance(out, Tensor):
                self._follow(args, out)
            return out
        if self._thread.aside or torch.compiler.is_compiling() or self._watch.frame is None:
            return func(*args, **kwargs)
        return handler(func, args, kwargs)

    # what is seen

    def _sdpa(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        out = func(*args, **kwargs)
        if not is_applying():
            call = bound(_SDPA, args, kwargs)
            q, k = call["query"], call["key"]
            if q.is_nested or k.is_nested:
                self._watch.cannot_see(self._watch.frame.path, "attention of nested tensors")
                return out
            causal_from: Line | None = "beginnings" if call["is_causal"] else None
            frame = self._watch.frame
            with self._watch.looking():
                q, k = _same_samples(four_heads(q), four_heads(k))
                A = attention_map(
                    q, k,
                    scale=call["scale"], mask=call["attn_mask"], causal_from=causal_from, cross=says_cross(frame.path),
                )  # fmt: skip
            self._watch.record(A, "scaled_dot_product_attention", says_cross(frame.path), given=(q, k))
            self._watch.give(frame.path, out, four_heads)
        return out

    def _multi_head(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The function behind nn.MultiheadAttention, called by it or by someone else."""
        with self._watch.hidden():
            out = func(*args, **kwargs)
            of_multi_head_attention_forward(self._watch, multi_head_call(args, kwargs), out[0])
        return out

    def _native(self, read: Callable[..., dict[str, Any]], func: Any, args: Any, kwargs: Any) -> Any:
        """The fast path of nn.MultiheadAttention, or of a layer of an encoder."""
        out = func(*args, **kwargs)
        with self._watch.looking():
            call = read(args, kwargs)
        of_native(self._watch, call)
        return out

    def _flex(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._watch.cannot_see(self._watch.frame.path, FLEX)
        return func(*args, **kwargs)

    def _softmax(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        out = func(*args, **kwargs)
        logits = args[0] if args else kwargs.get("input")
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if isinstance(out, Tensor) and out.dim() >= 3 and axis in (-1, out.dim() - 1):
            self._thread.weights[out] = Weights(logits, logits in self._thread.products)
            self._thread.following = True
        return out

    def _product(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        out = func(*args, **kwargs)
        operands = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        operands += [x for x in args[1] if isinstance(x, Tensor)] if len(args) == 2 and _many(args[1]) else []
        weights = next((self._thread.weights[x] for x in operands if x in self._thread.weights), None)
        if weights is not None:
            self._by_hand(weights, out)
        elif isinstance(out, Tensor) and out.dim() >= 3 and not any(isinstance(x, nn.Parameter) for x in operands):
            self._thread.products[out] = self._thread.following = True
        return out

    def _by_hand(self, weights: Weights, out: Tensor) -> None:
        frame = self._watch.frame
        if not weights.product:
            self._watch.cannot_see(
                frame.path, "a softmax, then a product; but its logits are no product of queries and keys"
            )
            return
        heads, cross = heads_of(frame.module), says_cross(frame.path)
        with self._watch.looking():
            logits = four_heads(weights.logits, heads)
            A = logits_map(logits, cross)
        self._watch.record(A, "matmul, softmax, matmul", cross)
        if self._watch.gives and out.shape[-2] == logits.shape[-2]:
            self._watch.give(frame.path, out, lambda x: four_heads(x, heads))

    def _follow(self, args: Any, out: Tensor) -> None:
        """What is known of an argument is known of a result of as many numbers: scaled, masked, cast, dropped."""
        products, weights = self._thread.products, self._thread.weights
        for x in args:
            if isinstance(x, Tensor) and x is not out and x.numel() == out.numel():
                if x in weights:
                    weights[out] = weights[x]
                elif x in products:
                    products[out] = True
        self._thread.following = bool(products or weights)


def four_heads(x: Tensor, heads: int | None = None) -> Tensor:
    """(B, H, N, D) from fewer or more axes before the last two. Samples and heads that lie in one axis are told apart
    where the number of `heads` divides it, as in old implementations that call bmm."""
    if x.dim() == 3:
        many = heads is not None and heads > 1 and x.shape[0] % heads == 0
        return x.unflatten(0, (-1, heads)) if many and heads is not None else x[:, None]
    return four(x)


def heads_of(module: nn.Module) -> int | None:
    """How many heads a module says it has."""
    found = (getattr(module, name, None) for name in _MOST_HEADS)
    return next((n for n in found if isinstance(n, int)), None)


def _many(x: Any) -> bool:
    return isinstance(x, list | tuple)


def _same_samples(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch broadcasts samples and heads; maps are of as many keys as queries."""
    b = max(q.shape[0], k.shape[0])
    return q.expand(b, -1, -1, -1), k.expand(b, -1, -1, -1)


def _sdpa_signature(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):  # type: ignore[no-untyped-def]
    """scaled_dot_product_attention is a builtin, which has no signature of its own."""


_SDPA = inspect.signature(_sdpa_signature)
