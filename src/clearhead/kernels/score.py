"""Logits: what softmax is taken of. Shapes: q (B, H, R, D), k (B, Hkv, K, D), H a multiple of Hkv."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FAR = 9000.0
"""How far below the greatest number of its row one that is added to logits hides a key: a mask, and no bias.

Masks are −1e4, −1e9 or the lowest number of their type. At −9000 a weight is exactly 0 beside any logits that differ by
less than 8000, and a bias such as ALiBi comes as far only beyond 18,000 tokens.
"""


@dataclass(frozen=True, eq=False)
class ByDistance:
    """A bias by head and distance alone, the position of the key less that of the query.

    Column i of `table` (B or 1, H or 1, R) is for the distance `first` + i. Beyond an end the number there holds on,
    or the line through the last two goes on, where `linear`.
    """

    table: Tensor
    first: int
    linear: bool = False

    def at(self, distance: Tensor) -> Tensor:
        """The bias at distances (B or 1, H or 1, …), (B or 1, H or 1, …)."""
        return self.value(distance, self._look_up)

    def value(self, distance: Tensor, look_up: Callable[[Tensor], Tensor]) -> Tensor:
        """The bias at a distance, by a function that tells what stands in columns of the table."""
        inside, beyond = self._columns(distance)
        found = look_up(inside)
        return found + beyond.abs() * (found - look_up(inside - beyond.sign())) if self.linear else found

    def gradient(self, distance: Tensor, grad: Tensor) -> Tensor:
        """The gradient in the table, (B, H, R), from the one in what `at` gave, (B, H, …)."""
        inside, beyond = (x.flatten(2).expand(*grad.shape[:2], -1) for x in self._columns(distance))
        grad, found = grad.flatten(2), grad.new_zeros(*grad.shape[:2], self.table.shape[-1])
        if self.linear:
            found.scatter_add_(2, inside - beyond.sign(), -beyond.abs() * grad)
            grad = grad * (1 + beyond.abs())
        return found.scatter_add_(2, inside, grad)

    def _columns(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """The column that is nearest, and how much further it would be."""
        column = distance - self.first
        inside = column.clamp(0, self.table.shape[-1] - 1)
        return inside, column - inside

    def _look_up(self, column: Tensor) -> Tensor:
        b, h = (max(self.table.shape[i], column.shape[i]) for i in (0, 1))
        index = column.flatten(2).expand(b, h, -1)
        return self.table.expand(b, h, -1).gather(2, index).view(b, h, *column.shape[2:])


@dataclass(eq=False)  # a frozen one takes four times as long to make
class Score:
    """softcap(q · k · scale) + bias, computed in the dtype of q and k.

    `softcap` c turns s into c · tanh(s / c) (Gemma 2). `bias` broadcasts to (B, H, Nq, Nk), or is given for distances;
    a key whose bias is -inf is not seen.
    """

    scale: float
    softcap: float | None = None
    bias: Tensor | ByDistance | None = None

    @property
    def tensor(self) -> Tensor | None:
        """The tensor that the bias is made of; its first axes are samples and heads, each of full size or 1."""
        return self.bias.table if isinstance(self.bias, ByDistance) else self.bias

    @property
    def learns(self) -> bool:
        """May a gradient come to the bias? Under a transform of torch.func no tensor tells."""
        return self.tensor is not None and (self.tensor.requires_grad or transformed())

    def changed(self, function: Callable[[Tensor], Tensor]) -> "Score":
        """The same score, with a function of its bias's tensor in that one's place."""
        if isinstance(self.bias, ByDistance):
            return replace(self, bias=replace(self.bias, table=function(self.bias.table)))
        return self if self.bias is None else replace(self, bias=function(self.bias))

    def products(self, q: Tensor, k: Tensor) -> Tensor:
        """softcap(q · k · scale), (B, H, R, K). Grouped queries share their key without copying it."""
        products = grouped(q * self.scale, k).matmul(k.mT).view(*q.shape[:3], k.shape[2])
        return products if self.softcap is None else torch.tanh(products / self.softcap) * self.softcap

    def grad_products(self, grad: Tensor, products: Tensor) -> Tensor:
        """The gradient in q · k from the one in `products`."""
        if self.softcap is not None:
            grad = grad * (1 - (products / self.softcap).square())
        return grad * self.scale


def grouped(x: Tensor, k: Tensor) -> Tensor:
    """`x` (B, H, R, D) as (B, Hkv, H / Hkv · R, D): the rows of the heads that share a key, one below another."""
    return x.reshape(x.shape[0], k.shape[1], x.shape[1] // k.shape[1] * x.shape[2], x.shape[3])


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What logits and statistics are computed in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def autocast(kind: str) -> bool:
    """Return whether autocast is on for a kind of device; it knows no meta device."""
    return kind != "meta" and torch.is_autocast_enabled(kind)


def as_given(device: torch.device) -> AbstractContextManager[None]:
    """A block in which products are taken in their tensors' own dtype, whatever autocast surrounds it."""
    return torch.autocast(device.type, enabled=False) if autocast(device.type) else _NOTHING


_NOTHING = nullcontext()


def traced() -> bool:
    """Does the compiler or a transform of torch.func look on, so that tensors stand for others and cannot be read?"""
    return torch.compiler.is_compiling() or transformed()


def without_values(x: Tensor) -> bool:
    """Is it a tensor of the meta device, or one of FakeTensorMode that no compiler made?"""
    return x.is_meta or (type(x).__name__ == "FakeTensor" and not torch.compiler.is_compiling())


def transformed() -> bool:
    """Is this computed under vmap, grad or another transform of torch.func?"""
    return torch._C._are_functorch_transforms_active()
