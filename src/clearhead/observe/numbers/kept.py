"""The attention maps that a watch kept, and what is known about their rows.

Shapes: B samples, H heads, Nq queries, Nk keys.
"""

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.maps import AttentionMap
from clearhead.observe.calls import Call

Mapped = Call | AttentionMap
"""A call whose map was kept, or a map itself."""


def kept(given: Mapped) -> AttentionMap:
    """The map of a call. Raises InputError where none was kept, saying how to keep it."""
    if isinstance(given, AttentionMap):
        return given
    if given.map is None:
        raise InputError(
            f"no attention map was kept of {given.name}: write watch(model, keep_maps=True), and take a single call "
            "rather than joined steps"
        )
    return given.map


def padding_of(given: Mapped) -> Tensor:
    """Which queries are known to be padding, (B, Nq); of rows that a call did not measure nothing is known."""
    A = kept(given)
    b, _, n_queries, _ = A.full_shape
    hidden = torch.zeros(b, n_queries, dtype=torch.bool, device=A.device)
    if isinstance(given, Call) and given.padding is not None:
        known = slice(None) if given.rows is None else given.rows.to(A.device)
        hidden[:, known] = given.padding.to(A.device).expand(b, -1)
    return hidden


def visible_keys(given: Mapped) -> Tensor:
    """How many keys each row sees, (B, H, Nq)."""
    A = kept(given)
    if isinstance(given, Call) and given.rows is None and given.statistics.visible is not None:
        return given.statistics.visible.to(A.device)
    visible = A.statistics(received=False).visible
    if visible is None:
        raise InputError(f"{type(A).__name__} does not say which keys its rows see")
    return visible.reshape(A.full_shape[:3])


def position(index: int, size: int, what: str) -> int:
    """`index`, counted from the end if negative. Raises InputError, naming the valid range, where there is none."""
    if not -size <= index < size:
        raise InputError(f"{what} {index} is outside 0 … {size - 1}")
    return index % size
