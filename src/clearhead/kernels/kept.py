"""What was made of tensors, kept while these stay as they are. On a GPU to read them would be to wait for it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Kept(Generic[Made]):
    """The last `most` things made. It holds on to the tensors they were made of, so that no others take their place.

    Tensors are told apart by where they lie and how often they were written to. Those of inference mode do not count
    that, and nothing made of them is kept. What was made on one CUDA stream is not there for another, which might read
    it before it is written.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._made: OrderedDict[Hashable, tuple[Made, tuple[Tensor | None, ...]]] = OrderedDict()

    def of(self, what: Hashable, tensors: Sequence[Tensor | None], make: Callable[[], Made]) -> Made:
        """What `make` returns, from now or from before; `what` says which of the things made of these tensors."""
        if any(x is not None and x.is_inference() for x in tensors):
            return make()
        stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_initialized() else None
        key = (what, stream, *(None if x is None else _identity(x) for x in tensors))
        if key not in self._made:
            self._made[key] = (make(), tuple(tensors))
        self._made.move_to_end(key)
        while len(self._made) > self._most:
            self._made.popitem(last=False)
        return self._made[key][0]


def _identity(x: Tensor) -> tuple[Hashable, ...]:
    return x.data_ptr(), x._version, x.shape, x.stride(), x.dtype, x.device
