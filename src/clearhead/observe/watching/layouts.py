"""Which axis of hand-written attention is what: from the letters of its last product, and what its module says.

Shapes: B samples, H heads, Nq queries, Nk keys, Dv width of values.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from clearhead.observe.watching.products import Product
from clearhead.observe.watching.trying import Unseen

_UNCLEAR = "a product whose heads and queries cannot be told apart; give its module an attribute num_heads"


@dataclass(frozen=True)
class Order:
    """How many heads there are, and whether they come before samples."""

    heads: int
    first: bool


@dataclass(frozen=True, eq=False)
class Layout:
    """How to bring what has the axes of the weights to (B, H, Nq, Nk), and of the output to (B, H, Nq, Dv)."""

    keys: int
    """Which axis of the weights the product sums over."""
    maps: Callable[[Tensor], Tensor]
    values: Callable[[Tensor], Tensor] | None

    @classmethod
    def of(cls, product: Product, weights: Tensor, heads: int | None, order: Order | None) -> "Layout":
        """The layout of a product of `weights` with values, in a module of as many `heads`, if it says so, and with
        queries of that `order`, if they tell. Raises Unseen where axes are ambiguous.
        """
        mine, others = product.sides(weights)
        size = dict(zip(mine, weights.shape, strict=True))
        summed = [a for a in mine if a not in product.out]
        shared = [a for a in mine if a in others and a in product.out]
        rows = [a for a in mine if a not in others and a in product.out]
        width = [a for a in product.out if a not in mine]
        if len(summed) != 1 or summed[0] not in others or len(rows) > 2:
            raise Unseen("a softmax, then a product whose axes are not understood")
        if len(rows) == 2:  # keys and values that all heads share
            head = _head(rows, size, heads)
            if head is None:
                raise Unseen(_UNCLEAR)
            samples, of_heads, queries = shared, [head], [a for a in rows if a != head]
        else:
            samples, of_heads = _samples_and_heads(shared, size, heads, order)
            queries = rows
        together = Order(1, False)  # samples and heads that lie in one axis
        if len(shared) == 1 and not of_heads:
            told = order or Order(heads or 1, False)
            together = told if size[shared[0]] % told.heads == 0 else together
        parts = (samples, of_heads, queries)
        maps = _arranged(mine, (*parts, summed), together)
        return cls(mine.index(summed[0]), maps, _arranged(product.out, (*parts, width), together) if width else None)


def _head(among: Sequence[Hashable], size: dict[Hashable, int], heads: int | None) -> Hashable | None:
    """The one axis of those that is of heads, by its letter or by its size; None: it is not clear."""
    if among.count("h") == 1:
        return "h"
    fit = [a for a in among if size[a] == heads]
    return fit[0] if len(fit) == 1 else None


def _samples_and_heads(
    shared: list[Hashable], size: dict[Hashable, int], heads: int | None, order: Order | None
) -> tuple[list[Hashable], list[Hashable]]:
    """The shared axes as those of samples and those of heads: the last one, unless there are signs."""
    if len(shared) < 2:
        return ([], shared) if shared == ["h"] else (shared, [])
    head = _head(shared, size, heads)
    if head is None and len(shared) == 2:
        lettered = [a for a in shared if a != "b"]
        head = lettered[0] if len(lettered) == 1 else shared[0] if order and order.first else None
    head = shared[-1] if head is None else head
    return [a for a in shared if a != head], [head]


def _arranged(
    letters: Sequence[Hashable], parts: Sequence[Sequence[Hashable]], together: Order
) -> Callable[[Tensor], Tensor]:
    """Bring a tensor with those letters to four axes, those of `parts`; several heads `together` lie in the first."""
    order = [letters.index(a) for part in parts for a in part]
    ends = [sum(len(part) for part in parts[:i]) for i in range(5)]

    def arrange(x: Tensor) -> Tensor:
        x = x.permute(order)
        x = x.reshape([math.prod(x.shape[a:b]) for a, b in pairwise(ends)])
        if together.heads == 1:
            return x
        x = x.squeeze(1)
        if together.first:
            return x.unflatten(0, (together.heads, -1)).transpose(0, 1)
        return x.unflatten(0, (-1, together.heads))

    return arrange


def order_of(x: Tensor, heads: int | None) -> Order:
    """What the first two axes of queries or keys are, of which there are four.

    Their sizes tell, and else their strides: heads lie closer together in what a projection put out.
    """
    a, b = x.shape[:2]
    if heads is not None and (a == heads) is not (b == heads):
        first = a == heads
    else:
        first = min(a, b) > 1 and x.stride(0) < x.stride(1)
    return Order(a if first else b, first)
