"""Sums of weights over blocks, computed from queries and keys in rectangles that stay in a core's cache.

Shapes: a map (1, 1, Nq, Nk); r blocks of rows, c blocks of keys.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.kernels import Statistics
from clearhead.kernels.side_by_side import side_by_side
from clearhead.maps import AttentionMap
from clearhead.view.blocks import sums

_ROWS, _KEYS = 512, 1024


def block_sums(A: AttentionMap, rows: slice, keys: slice, logsumexp: Tensor, row_level: int, key_level: int) -> Tensor:
    """The sums of the weights over blocks of 2^row_level rows and 2^key_level keys, (r, c), on the CPU.

    From the logsumexp of all rows, (Nq,). `rows` and `keys` begin where blocks do.
    """
    strips = list(enumerate(_parts(rows, max(_ROWS, 1 << row_level))))

    def strip(part: slice) -> Tensor:
        lse = logsumexp[part].to(A.device)[None, None]
        found = [sums(A.block(part, some, lse)[0, 0], key_level) for some in _parts(keys, max(_KEYS, 1 << key_level))]
        return sums(torch.cat(found, 1).mT, row_level).mT.cpu()

    def work(share: Sequence[tuple[int, slice]]) -> list[tuple[int, Tensor]]:
        return [(i, strip(part)) for i, part in share]

    shares = side_by_side(work, strips) if A.device.type == "cpu" else [work(strips)]
    found = dict(each for share in shares for each in share)
    return torch.cat([found[i] for i, _ in strips])


def logsumexps(found: Statistics) -> Tensor:
    """Those of all rows, (rows,). Raises InputError where a mechanism has none."""
    if found.logsumexp is None:
        raise InputError("this attention has no logits: it can be looked at by A.weights(rows) and A.pool(…) alone")
    return found.logsumexp.flatten()


def _parts(whole: slice, step: int) -> list[slice]:
    return [slice(start, min(whole.stop, start + step)) for start in range(whole.start, whole.stop, step)]
