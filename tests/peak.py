"""The largest tensor that a block makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Peak(TorchDispatchMode):
    """A block whose operations are watched; `largest` is the size of the largest tensor, in elements."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.numel():
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return out
