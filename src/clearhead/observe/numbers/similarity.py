"""How alike heads attend: the Jensen-Shannon divergence between their rows (Clark et al. 2019).

Shapes: B samples, H heads, G heads of all layers together, Nq queries, Nk keys, r rows of a strip.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.observe.calls import Call
from clearhead.observe.numbers.kept import Mapped, kept, padding_of, position

HELD = 1 << 20
"""Weights held at a time: 8 MiB in float64."""


@torch.no_grad()
def similarity(given: Mapped | Sequence[Mapped], rows: Sequence[int] | Tensor | None = None) -> Tensor:
    """How alike every two heads attend, (G, G): 1 for heads with the same weights, 0 where no key is attended by both.

    It is 1 minus the Jensen-Shannon divergence in bits, averaged over the rows that see something in both heads,
    padding left out; NaN where there is no such row. The square root of 1 minus it is a metric, fit for clustering
    heads and for drawing them in a plane. The work grows with G² · rows · Nk, memory with Nk alone.

    Args:
        given: a call with its map, a map, or several, whose heads then follow each other: head h of the second comes
            at H + h.
        rows: a sample of rows, such as `range(0, n, 16)`; None: all.

    Raises InputError where maps were not kept, differ in samples, queries or keys, or a row is not there.
    """
    several = [given] if not isinstance(given, Sequence) else list(given)
    b, n_queries, n_keys = _size(several)
    wanted = range(n_queries) if rows is None else [position(int(row), n_queries, "row") for row in rows]
    heads = sum(kept(one).full_shape[1] for one in several)
    total = torch.zeros(heads, heads, dtype=torch.float64, device=kept(several[0]).device)
    count = torch.zeros_like(total)
    step = max(1, HELD // max(1, b * heads * n_keys))
    for start in range(0, len(wanted), step):
        weights, known = _strip(several, list(wanted[start : start + step]))
        for head in range(heads):
            both = known[:, head : head + 1] & known[:, head:]
            divergence = _divergence(weights[:, head : head + 1], weights[:, head:])
            total[head, head:] += divergence.masked_fill(~both, 0).sum((0, 2))
            count[head, head:] += both.sum((0, 2))
    alike = 1 - total / count
    return alike.triu() + alike.triu(1).mT


def _strip(several: Sequence[Mapped], rows: list[int]) -> tuple[Tensor, Tensor]:
    """The weights of some rows of all heads, (B, G, r, Nk) in float64, and which of them say something, (B, G, r)."""
    parts, known = [], []
    for one in several:
        A = kept(one)
        b, h, _, n_keys = A.full_shape
        weights = A.weights(rows).reshape(b, h, len(rows), n_keys).double()
        parts.append(weights)
        known.append((weights.sum(-1) > 0) & ~padding_of(one)[:, None, rows])
    return torch.cat(parts, 1), torch.cat(known, 1)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of distributions along the last axis, in bits: 0 to 1."""
    mixed = torch.special.entr((p + q) / 2) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    return mixed.sum(-1).clamp(0) / math.log(2)


def _size(several: Sequence[Mapped]) -> tuple[int, int, int]:
    """(B, Nq, Nk), the same for all."""
    if not several:
        raise InputError("similarity needs at least one call or map")
    shapes = [(shape[0], shape[2], shape[3]) for shape in (kept(one).full_shape for one in several)]
    for shape, one in zip(shapes, several, strict=True):
        if shape != shapes[0]:
            name = one.name if isinstance(one, Call) else "a map"
            raise InputError(
                f"heads are compared row by row: {name} has (samples, queries, keys) {shape}, the first {shapes[0]}; "
                'choose a part, as in seen["encoder"]'
            )
    return shapes[0]
