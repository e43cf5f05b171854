"""Attention seen in the functions that are called.

A mode sees every function of torch whose caller is inside the watched model, however it was imported. It changes none.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from clearhead.maps import is_applying
from clearhead.observe.watching.attended import Line, attention_map
from clearhead.observe.watching.by_hand import ByHand
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
from clearhead.observe.watching.trying import check_values, trying


class _Thread(threading.local):
    """Does the mode look on in a thread?"""

    aside = True


class Functions(TorchFunctionMode):
    """The function mode of a watch. `active` puts it in force in this thread, or takes it out."""

    def __init__(self, watch: Any) -> None:
        super().__init__()
        self._watch = watch
        self._thread, self._by_hand = _Thread(), ByHand(watch)
        self._handlers: dict[Any, Callable[..., Any]] = {
            F.scaled_dot_product_attention: self._sdpa,
            F.multi_head_attention_forward: self._multi_head,
            torch._native_multi_head_attention: partial(self._native, native_call),
            torch._transformer_encoder_layer_fwd: partial(self._native, layer_call),
            torch.ops.higher_order.flex_attention: self._flex,
            **self._by_hand.handlers,
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
            if self._by_hand.following and self._watch.frame is not None:
                with trying(self._watch, self._watch.frame.path):
                    self._by_hand.follow(func, args, kwargs, out)
            return out
        if self._thread.aside or torch.compiler.is_compiling() or self._watch.frame is None:
            return func(*args, **kwargs)
        return handler(func, args, kwargs)

    # what is seen

    def _sdpa(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        out = func(*args, **kwargs)
        if is_applying():
            return out
        watch, path = self._watch, self._watch.frame.path
        with watch.trying(path):
            call = bound(_SDPA, args, kwargs)
            check_values(call["query"], call["key"])
            q, k, mask = _together(call["query"], call["key"], call["attn_mask"], call["enable_gqa"])
            beginnings: Line | None = "beginnings" if call["is_causal"] else None
            A = attention_map(
                q, k, scale=call["scale"], mask=mask, causal_from=beginnings, cross=says_cross(path)
            )  # fmt: skip
            watch.record(A, "scaled_dot_product_attention", says_cross(path), given=(q, k))
            watch.give(path, out, four_heads)
        return out

    def _multi_head(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The function behind nn.MultiheadAttention, called by it or by someone else."""
        with self._watch.hidden():
            out = func(*args, **kwargs)
        with self._watch.trying(self._watch.frame.path):
            of_multi_head_attention_forward(self._watch, multi_head_call(args, kwargs), out[0])
        return out

    def _native(self, read: Callable[..., dict[str, Any]], func: Any, args: Any, kwargs: Any) -> Any:
        """The fast path of nn.MultiheadAttention, or of a layer of an encoder."""
        out = func(*args, **kwargs)
        with self._watch.trying(self._watch.frame.path):
            of_native(self._watch, read(args, kwargs))
        return out

    def _flex(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._watch.cannot_see(self._watch.frame.path, FLEX)
        return func(*args, **kwargs)


def four_heads(x: Tensor) -> Tensor:
    """(B, H, N, D) from fewer or more axes: of three the first is of samples, as of more all before the heads."""
    if x.dim() == 3:
        return x[:, None]
    return x[(None,) * (4 - x.dim())] if x.dim() < 4 else x.flatten(0, x.dim() - 4)


def _together(q: Tensor, k: Tensor, mask: Tensor | None, grouped: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries, keys and a mask of four axes. PyTorch broadcasts their samples, and their heads where these are not
    `grouped`; maps are of as many keys as queries."""
    shared = 3 if grouped else 2
    given = [q, k] if mask is None else [q, k, mask]
    batch = torch.broadcast_shapes(*(x.shape[: max(0, x.dim() - shared)] for x in given[:2]))
    q, k = (x.expand(*batch, *x.shape[-shared:]) for x in (q, k))
    if mask is not None:
        mask = mask[(None,) * (q.dim() - mask.dim())]
        if q.dim() > 4:  # its axes before the heads become one, as those of q do
            mask = mask.expand(*q.shape[:-3], *mask.shape[-3:])
        mask = four_heads(mask)
    return four_heads(q), four_heads(k), mask


def _sdpa_signature(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):  # type: ignore[no-untyped-def]
    """scaled_dot_product_attention is a builtin, which has no signature of its own."""


_SDPA = inspect.signature(_sdpa_signature)
