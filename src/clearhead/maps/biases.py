"""Biases by head and distance: what a mechanism adds to its logits for how far a key is from a query.

All are given for the distance d = position of the key - position of the query, and evaluated block by block.

Shapes: H heads; a table (1, H, R) over R distances.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from clearhead.errors import InputError, ShapeError
from clearhead.kernels import ByDistance


class DistanceBias(nn.Module):
    """What is added to the logits of each head, by distance alone: `ALiBi`, `T5Bias` or `RelativeBias`.

    A mechanism takes one as its `bias`; a layer is given its own, or one that several share.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = at_least("num_heads", num_heads, 1)

    @abstractmethod
    def table(self, like: Tensor) -> ByDistance:
        """The bias for a range of distances, on the device of `like`, and as exact as it or float32."""

    def for_queries(self, q: Tensor, dtype: torch.dtype) -> ByDistance:
        """The bias for queries (B, H, Nq, D), computed in `dtype`; raises where it is for other heads or devices."""
        if q.shape[1] != self.num_heads:
            name = type(self).__name__
            raise ShapeError(f"bias is for {self.num_heads} heads, q has {q.shape[1]}; write {name}({q.shape[1]}, …)")
        for x in self.parameters():
            if x.device != q.device:
                raise InputError(f"bias is on {x.device}, q is on {q.device}; write bias.to('{q.device}')")
        return self.table(torch.empty(0, dtype=dtype, device=q.device))


class ALiBi(DistanceBias):
    """Attention with linear biases (Press 2022): -m · |d|, with a slope m for each head; nothing is learned.

    Slopes are 2^(-8/H), 2^(-16/H), … where H is a power of two. For other numbers they are those of the power below,
    and then every other one of the power above.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__(num_heads)

    def slopes(self, like: Tensor) -> Tensor:
        """m for each head, (H,)."""
        below = 1 << (self.num_heads.bit_length() - 1)
        i = torch.arange(self.num_heads, device=like.device, dtype=like.dtype)
        return torch.exp2(-torch.where(i < below, 8 * (i + 1), 4 * (2 * (i - below) + 1)) / below)

    def table(self, like: Tensor) -> ByDistance:
        """The slopes at distances -1, 0 and 1, from where lines go on."""
        at = torch.arange(-1, 2, device=like.device, dtype=like.dtype).abs()
        return ByDistance(-self.slopes(like)[None, :, None] * at, first=-1, linear=True)

    def extra_repr(self) -> str:
        return str(self.num_heads)


class T5Bias(DistanceBias):
    """Relative position biases of T5 (Raffel 2020): a learned number for each head and bucket of distances.

    Half of the buckets of a direction are a distance each; the others grow with its logarithm, up to `max_distance`,
    beyond which all is one bucket. `weight` (buckets, H) is laid out as in T5, and begins at zero.

    Args:
        buckets: how many there are, for both directions together.
        max_distance: where the last bucket begins.
        bidirectional: tell keys before a query from those behind it; else the latter are as far as the query itself.
    """

    def __init__(self, num_heads: int, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> None:
        super().__init__(num_heads)
        self.buckets = at_least("buckets", buckets, 4 if bidirectional else 2)
        self.max_distance = at_least("max_distance", max_distance, buckets // (4 if bidirectional else 2) + 1)
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.zeros(buckets, num_heads))
        there = torch.arange(-max_distance, max_distance + 1 if bidirectional else 1)
        self.register_buffer("bucket", self.bucket_of(there), persistent=False)

    def bucket_of(self, distance: Tensor) -> Tensor:
        """The bucket of each distance, whole numbers of any shape."""
        buckets, above = self.buckets, torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            above, far = (distance > 0) * buckets, distance.abs()
        else:
            far = (-distance).clamp(min=0)
        exact = buckets // 2
        steps = torch.log(far.clamp(min=1).float() / exact) / math.log(self.max_distance / exact) * (buckets - exact)
        return above + torch.where(far < exact, far, (exact + steps.long()).clamp(max=buckets - 1))

    def table(self, like: Tensor) -> ByDistance:
        """The weights of the buckets at distances up to `max_distance`."""
        weight = self.weight.to(like.dtype)[self.get_buffer("bucket")]
        return ByDistance(weight.T[None], first=-self.max_distance)

    def extra_repr(self) -> str:
        return f"{self.num_heads}, {self.buckets}, {self.max_distance}, bidirectional={self.bidirectional}"


class RelativeBias(DistanceBias):
    """A learned number for each head and distance, which beyond `max_distance` is that of the end (Shaw 2018).

    `weight` (H, 2 · max_distance + 1) begins at zero; its column i is for the distance i - max_distance.
    """

    def __init__(self, num_heads: int, max_distance: int) -> None:
        super().__init__(num_heads)
        self.max_distance = at_least("max_distance", max_distance, 1)
        self.weight = nn.Parameter(torch.zeros(num_heads, 2 * max_distance + 1))

    def table(self, like: Tensor) -> ByDistance:
        """The weights."""
        return ByDistance(self.weight.to(like.dtype)[None], first=-self.max_distance)

    def extra_repr(self) -> str:
        return f"{self.num_heads}, {self.max_distance}"


def at_least(name: str, value: int, least: int) -> int:
    """`value`, which must be a whole number and no less."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    return value
