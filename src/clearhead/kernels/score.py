"""Logits: what softmax is taken of. Shapes: q (B, H, R, D), k (B, Hkv, K, D), H a multiple of Hkv."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)  # a frozen one takes four times as long to make
class Score:
    """softcap(q · k · scale) + bias, computed in the dtype of q and k.

    `softcap` c turns s into c · tanh(s / c) (Gemma 2). `bias` broadcasts to (B, H, Nq, Nk); a key whose bias is -inf
    is not seen.
    """

    scale: float
    softcap: float | None = None
    bias: Tensor | None = None

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


def as_given(device: torch.device) -> AbstractContextManager[None]:
    """A block in which products are taken in their tensors' own dtype, whatever autocast surrounds it."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING


_NOTHING = nullcontext()


def traced() -> bool:
    """Does the compiler or a transform of torch.func look on, so that tensors stand for others and cannot be read?"""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
