"""Norms of gradients are those before clipping: a monitor is called before torch clips any.

Lightning says when; Hugging Face's Trainer and plain loops call `torch.nn.utils`, often by a name of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grad

from clearhead.observe.watching.replacing import frame_of, replaced

_CLIPPING = ("_clip_grads_with_norm_", "clip_grad_value_")


@contextmanager
def before_clipping(notice: Callable[[Sequence[Tensor]], object]) -> Iterator[None]:
    """Within the block, `notice(gradients)` is called before `torch.nn.utils` clips gradients in place.

    Its functions may have been imported under any name; all of them group the gradients first, by this function.
    """

    def wrap(given: Callable[..., Any]) -> Callable[..., Any]:
        def group(tensors: list[list[Tensor]], *rest: Any, **more: Any) -> Any:
            if frame_of(clip_grad).f_code.co_name in _CLIPPING:
                notice(tensors[0])
            return given(tensors, *rest, **more)

        return group

    with replaced(clip_grad, "_group_tensors_by_device_and_dtype", wrap):
        yield
