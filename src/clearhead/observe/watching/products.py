"""Products of two tensors in letters, as einsum has them: which axes they share, sum over, and keep.

Letters are those of an einsum's equation, or, of other products, pairs and words that no equation can hold.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Letters = tuple[Hashable, ...]

_MATMULS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm}
_ADDED = {torch.baddbmm, Tensor.baddbmm}
PRODUCTS = {*_MATMULS, *_ADDED, torch.einsum, Tensor.__rmatmul__}


@dataclass(frozen=True, eq=False)
class Product:
    """A product of two tensors: their letters, and those of the result."""

    tensors: tuple[Tensor, Tensor]
    letters: tuple[Letters, Letters]
    out: Letters

    def sides(self, x: Tensor) -> tuple[Letters, Letters]:
        """The letters of the operand `x`, and those of the other one."""
        return self.letters if self.tensors[0] is x else self.letters[::-1]

    def other(self, x: Tensor) -> Tensor:
        """The operand that is not `x`."""
        return self.tensors[1] if self.tensors[0] is x else self.tensors[0]


def operands(args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that a product was called with; an einsum may hold them in a list."""
    return [x for x in _flat([*args, *kwargs.values()]) if isinstance(x, Tensor)]


def product_of(func: Any, args: Any, kwargs: Any) -> Product | None:
    """The product that a call of one of PRODUCTS is; None for others than of two tensors of two axes or more."""
    tensors = operands(args, kwargs)
    if func is torch.einsum:
        equation = args[0] if args else kwargs.get("equation")
        return _einsum(equation, tensors) if isinstance(equation, str) and len(tensors) == 2 else None
    tensors = tensors[1:] if func in _ADDED else tensors
    if len(tensors) != 2 or min(x.dim() for x in tensors) < 2:
        return None
    left, right = reversed(tensors) if func is Tensor.__rmatmul__ else tensors
    batch = [("batch", i) for i in range(max(left.dim(), right.dim()) - 2, 0, -1)]
    of_left = (*batch[len(batch) - left.dim() + 2 :], "row", "sum")
    of_right = (*batch[len(batch) - right.dim() + 2 :], "sum", "column")
    return Product((left, right), (of_left, of_right), (*batch, "row", "column"))


def _einsum(equation: str, tensors: list[Tensor]) -> Product | None:
    given, _, out = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if len(terms) != 2 or "->" not in equation:
        return None
    left, right = (_letters(term, x.dim()) for term, x in zip(terms, tensors, strict=True))
    if len(set(left)) < len(left) or len(set(right)) < len(right):
        return None  # a diagonal
    shared = max((x for x in (*left, *right) if isinstance(x, tuple)), key=lambda x: x[1], default=("batch", 0))[1]
    of_out = _letters(out, shared + len(out.replace("...", "")))
    return Product((tensors[0], tensors[1]), (left, right), of_out)


def _letters(term: str, axes: int) -> Letters:
    """Return the letters of a term for a number of axes; those of an ellipsis are counted from its end."""
    before, dots, after = term.partition("...")
    hidden = axes - len(before) - len(after) if dots else 0
    return (*before, *(("batch", i) for i in range(hidden, 0, -1)), *after)


def _flat(values: list[Any]) -> Iterator[Any]:
    for x in values:
        if isinstance(x, list | tuple):
            yield from _flat([*x])
        else:
            yield x
