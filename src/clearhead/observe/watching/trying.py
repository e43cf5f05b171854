"""What a watch cannot see, it lists: watched code never fails where unwatched code works."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

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
