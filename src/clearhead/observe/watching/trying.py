"""What a watch cannot see, it lists: watched code never fails where unwatched code works."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from clearhead.errors import ClearheadError


class Unseen(Exception):
    """Why an attention cannot be seen."""


@contextmanager
def trying(watch: Any, path: str) -> Iterator[None]:
    """A block that looks at the attention at `path`; where it fails, the attention is listed with the reason.

    Wrong input to the watch itself is raised.
    """
    try:
        yield
    except Unseen as why:
        watch.cannot_see(path, str(why))
    except ClearheadError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [""]
        watch.cannot_see(path, f"it could not be measured: {type(error).__name__}: {lines[0]}")


@contextmanager
def unrecorded() -> Iterator[None]:
    """A block whose operations are in nobody's record: no trace, no count of operations, no graph of them."""
    tracing = torch._C._get_tracing_state()
    counted = torch._C._len_torch_dispatch_stack()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        with _disable_current_modes() if counted else nullcontext():
            yield
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


def check_values(*tensors: Tensor) -> None:
    """Raise Unseen for tensors whose numbers cannot be read."""
    for x in tensors:
        if x.is_meta:
            raise Unseen("tensors without values (the meta device)")
        if torch._C._functorch.is_batchedtensor(x):
            raise Unseen("inside torch.vmap, where the values of a sample cannot be read")
        if type(x).__name__ == "FakeTensor":
            raise Unseen("tensors without values (FakeTensorMode)")
        if x.is_nested:
            raise Unseen("attention of nested tensors")
