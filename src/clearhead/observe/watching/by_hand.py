"""Attention written by hand: a product of queries and keys, a softmax, and a product with values.

What is known of a tensor is followed from function to function. At the last product it is held against what went into
it: weights that are not the softmax of the logits, because heads were mixed or weights squared, renormalised or
subtracted, are listed as unseen, and never reported as a softmax.

Shapes: B samples, H heads, Nq queries, Nk keys, Dv width of values.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from clearhead.observe.watching.attended import logits_map
from clearhead.observe.watching.frames import says_cross
from clearhead.observe.watching.layouts import Layout, Order, order_of
from clearhead.observe.watching.products import PRODUCTS, Product, operands, product_of
from clearhead.observe.watching.trying import Unseen, check_values, trying
from clearhead.observe.watching.weights import CHANGED, Made, Softmax, Weights, changed

HOW = "matmul, softmax, matmul"
_SOFTMAXES = {torch.softmax, F.softmax, Tensor.softmax, torch.special.softmax}
_DROPOUTS = {F.dropout, torch.dropout}
_MERGES = {torch.reshape, torch.flatten, Tensor.reshape, Tensor.view, Tensor.flatten, torch.cat}
_PERMUTES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "get"}
_RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"}
_NORMALISERS = {
    "sigmoid", "exp", "exp2", "softmax", "log_softmax", "softmin", "gumbel_softmax", "softplus", "logsigmoid",
    "relu", "gelu", "silu", "elu", "normalize",
}  # fmt: skip
_MIXERS = ("linear", "conv", "norm", "cumsum", "sort", "roll", "flip")
"""Parts of the names of functions that are no more elementwise."""


class _Thread(threading.local):
    """What is known in a thread: another one's tensors must not make it forget its own."""

    def __init__(self) -> None:
        self.products: Any = WeakIdKeyDictionary()
        self.weights: Any = WeakIdKeyDictionary()
        self.merged: Any = WeakIdKeyDictionary()  # the order of samples and heads that lie in the first axis
        self.following = False  # is there anything in any


class ByHand:
    """Follows products, softmaxes, and what is done to them.

    `handlers` are for the functions to be asked about: each runs the function, and never fails where that does not.
    """

    def __init__(self, watch: Any) -> None:
        self._watch = watch
        self._thread = _Thread()
        self._stored: set[int | None] | None = None
        self.handlers: dict[Any, Callable[..., Any]] = {
            **dict.fromkeys(_SOFTMAXES, partial(self._after, self._softmax)),
            **dict.fromkeys(_DROPOUTS, self._dropout),
            **dict.fromkeys(_MERGES, partial(self._after, self._merge)),
            **dict.fromkeys(PRODUCTS, partial(self._after, self._product)),
        }

    @property
    def following(self) -> bool:
        """Is anything known of any tensor?"""
        return self._thread.following

    def _after(self, look: Callable[..., None], func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        with trying(self._watch, self._watch.frame.path):
            look(func, args, kwargs, out)
        return out

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """What is known of an argument is known of the result: scaled, masked, cast, dropped, moved."""
        known = self._thread
        name = getattr(func, "__name__", "").strip("_")
        for x in args:
            if not isinstance(x, Tensor):
                continue
            if (weights := known.weights.get(x)) is not None:
                self._follow_weights(weights, name, func, x, args, kwargs, out)
            elif isinstance(out, Tensor) and x.numel() == out.numel():
                if (made := known.products.get(x)) is not None:
                    known.products[out] = _since(made, name, args)
                elif x is not out and (order := known.merged.get(x)) is not None and x.shape[:1] == out.shape[:1]:
                    known.merged[out] = order
        known.following = bool(known.products or known.weights or known.merged)

    def _follow_weights(
        self, weights: Weights, name: str, func: Any, x: Tensor, args: Any, kwargs: Any, out: Any
    ) -> None:
        if isinstance(out, tuple | list):
            for part in out:
                if isinstance(part, Tensor) and part.is_floating_point() and part.dim() > 1:
                    self._thread.weights[part] = replace(weights, why=f"only parts of its weights ({name}) meet values")
        elif not isinstance(out, Tensor) or not out.is_floating_point() or out is x:
            return  # changes in place are found when the numbers are compared
        elif out.numel() != x.numel():
            if out.dim() > 1:
                self._thread.weights[out] = replace(
                    weights, why=f"its weights went through {name} before they met values"
                )
        elif x is args[0] and (name in _PERMUTES or name in _RESHAPES):
            self._thread.weights[out] = replace(weights, views=(*weights.views, _view(name, func, args, kwargs, out)))
        else:
            self._thread.weights[out] = weights

    def _merge(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Reshapes and joins that may put samples and heads in one axis."""
        x = args[0] if args else None
        heads = heads_of(self._watch.frame.module)
        if isinstance(out, Tensor) and out.dim() == 3:
            if func is torch.cat:
                axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
                if isinstance(x, list | tuple) and axis == 0 and heads in (None, len(x)):
                    self._thread.merged[out] = Order(len(x), True)  # one head after the other
            elif isinstance(x, Tensor) and x.dim() == 4 and x.shape[2:] == out.shape[1:]:
                self._thread.merged[out] = order_of(x, heads)
            self._thread.following = self._thread.following or out in self._thread.merged
        if self.following and func is not torch.cat:
            self.follow(func, args, kwargs, out)

    def _softmax(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        logits = args[0] if args else kwargs.get("input")
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if isinstance(out, Tensor) and out.dim() >= 2 and isinstance(axis, int):
            made = self._thread.products.get(logits)
            if made is not None or out.dim() > 2:  # the logits of a classifier have two axes
                self._thread.weights[out] = Weights(Softmax(logits, axis % out.dim(), out.dtype, made))
                self._thread.following = True

    def _dropout(self, func: Any, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs.get("input")
        rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
        training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
        weights = self._thread.weights.get(x) if self.following else None
        if weights is None or weights.of.recorded or not training or not 0 < rate < 1:
            return self._after(self.follow, func, args, kwargs)
        path = self._watch.frame.path
        why: str | None = CHANGED
        with self._watch.trying(path):
            check_values(x)
            why = changed(x, weights)  # now: it may be dropped in place
        out = func(*args, **kwargs)
        with self._watch.trying(path):
            left = (int(out.count_nonzero()), out.dtype) if why is None else None
            self._thread.weights[out] = replace(weights, scale=weights.scale / (1 - rate), left=left, why=why)
        return out

    def _product(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        known, given = self._thread, operands(args, kwargs)
        product = product_of(func, args, kwargs)
        x = next((x for x in given if x in known.weights), None)
        if x is not None:
            if not known.weights[x].of.recorded:
                self._attended(x, known.weights[x], product, out)
            return
        made = next((known.products[x] for x in given if x in known.products), None)
        if made is not None and made.by is not None and self._is_attention(given, product):
            self._watch.cannot_see(
                self._watch.frame.path, f"a product, {made.by}, then a product: weights that are no softmax over keys"
            )
        if isinstance(out, Tensor) and not any(self._is_weight(x) for x in given):
            known.products[out] = Made(order=self._order(product))
            known.following = True
        elif isinstance(out, Tensor) and made is not None:  # heads that are mixed before the softmax
            known.products[out] = replace(made, plain=False)

    def _order(self, product: Product | None) -> Order | None:
        """What queries and keys tell of the order of samples and heads; None: nothing."""
        if product is None:
            return None
        orders = [self._thread.merged.get(x) for x in product.tensors]
        if orders == [None, None] and min(x.dim() for x in product.tensors) == 4:
            orders = [order_of(x, heads_of(self._watch.frame.module)) for x in product.tensors]
        return next((order for order in orders if order is not None), None)

    def _is_attention(self, given: list[Tensor], product: Product | None) -> bool:
        """Does a product sum what went through an activation over an axis, sample by sample, as weights meet values?"""
        if product is None:
            return False
        x = next(x for x in given if x in self._thread.products)
        mine, others = product.sides(x)
        shared = [a for a in mine if a in others and a in product.out]
        summed = [a for a in mine if a in others and a not in product.out]
        return bool(shared and summed) and not self._is_weight(product.other(x))

    def _is_weight(self, x: Tensor) -> bool:
        """Is it a parameter of the model, or a view of one?"""
        if isinstance(x, nn.Parameter):
            return True
        if self._stored is None:
            self._stored = {_storage(p) for p in self._watch.model.parameters()} - {None}
        return _storage(x) in self._stored  # None, which has no place, is not among them

    def _attended(self, x: Tensor, weights: Weights, product: Product | None, out: Tensor) -> None:
        frame, watch = self._watch.frame, self._watch
        if weights.of.made is None and x.dim() < 3:
            return
        with watch.trying(frame.path):
            check_values(x)
            if weights.of.made is None:
                raise Unseen("a softmax, then a product; but its logits are no product of queries and keys")
            if product is None:
                raise Unseen("a softmax, then a product whose axes are not understood")
            logits = weights.moved(weights.of.logits)
            layout = Layout.of(product, x, heads_of(frame.module), weights.of.made.order)
            if (why := changed(x, weights, layout)) is not None:
                raise Unseen(why)
            weights.of.recorded, cross = True, says_cross(frame.path)
            watch.record(logits_map(layout.maps(logits), cross), HOW, cross)
            if watch.gives and layout.values is not None:
                watch.give(frame.path, out, layout.values)


def _storage(x: Tensor) -> int | None:
    """Where its numbers lie, below what torch.func wraps around it; None: in no place of its own."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    try:
        return x.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors, and tensors that hold others
        return None


def _since(made: Made, name: str, args: Any) -> Made:
    """What is known of a product after the function `name`."""
    if any(part in name for part in _MIXERS) and name not in _NORMALISERS:
        return replace(made, plain=False)
    if not made.plain or made.by is not None:
        return made
    if name in _NORMALISERS or _divides_by_sums(name, args):
        return replace(made, by=name if name in _NORMALISERS else "a division by sums")
    return made


def _divides_by_sums(name: str, args: Any) -> bool:
    if name not in ("div", "truediv", "itruediv", "true_divide") or len(args) < 2:
        return False
    x, by = args[:2]
    return isinstance(by, Tensor) and isinstance(x, Tensor) and by.dim() == x.dim() and by.shape[-1] == 1 < x.shape[-1]


def _view(name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Callable[[Tensor], Tensor]:
    """What a function that moves axes does to any tensor of the same shape."""
    if name in _RESHAPES:
        shape = out.shape
        return lambda x: x.reshape(shape)
    rest = args[1:]
    return lambda x: func(x, *rest, **kwargs)


_MOST_HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "nhead", "heads", "nheads", "n_attention_heads")


def heads_of(module: nn.Module) -> int | None:
    """How many heads a module says it has."""
    found = (getattr(module, name, None) for name in _MOST_HEADS)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)
