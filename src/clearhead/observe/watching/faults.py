"""What brought NaN or Inf into attention: the query of a row, or a key that it sees.

Shapes: B samples, H heads, Hkv key heads, Nq queries, Nk keys, D width.
"""

import math

import torch
from torch import Tensor

from clearhead.maps import AttentionMap, SoftmaxMap
from clearhead.observe.calls import Call
from clearhead.observe.heads import summarise

Given = tuple[Tensor, Tensor]
"""The queries (B, H, Nq, D) and keys (B, Hkv, Nk, D) that someone's attention was called with."""


@torch.no_grad()
def brought(call: Call, A: AttentionMap, given: Given | None) -> tuple[str | None, ...] | None:
    """For each head "query 3" or "key 17", which spoiled the first of its rows that is not finite; None for a head that
    is well, and where neither is to blame, as when their product overflows. None: all are well, or nothing is at hand.

    `A` is the map of the call's samples.
    """
    visible, logsumexp = call.statistics.visible, call.statistics.logsumexp
    if given is None or visible is None or logsumexp is None or not isinstance(A, SoftmaxMap):
        return None
    if math.isfinite(float(logsumexp.sum())):  # soon said, where all is well and every row sees a key
        return None
    if not bool(((visible > 0) & ~logsumexp.isfinite()).any()):
        return None
    heads = summarise(call)
    return tuple(
        _source(call, A, given, head, *heads.first_broken[head]) if heads.broken[head] else None
        for head in range(call.heads)
    )


def _source(call: Call, A: SoftmaxMap, given: Given, head: int, sample: int, row: int) -> str | None:
    q, k = given
    here = sample if call.samples is None else int((call.samples == sample).nonzero())
    row %= call.shape[2]
    if not bool(q[sample, head, row].isfinite().all()):
        return f"query {row}"
    bad = ~k[sample, head * k.shape[1] // call.heads].isfinite().all(-1)
    one = (slice(here, here + 1), slice(head, head + 1), slice(row, row + 1), slice(0, len(bad)))
    seen = A.visible.pairs(*one)
    bad = bad if seen is None else bad & seen.expand(1, 1, 1, len(bad)).flatten()
    return f"key {int(bad.int().argmax())}" if bool(bad.any()) else None
