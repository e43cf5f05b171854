"""From a pattern to the blocks that need work, without touching n² pairs."""

import torch
from torch import Tensor

from clearhead.patterns.base import Pattern


def block_layout(pattern: Pattern, q_positions: Tensor, k_positions: Tensor, q_block: int, k_block: int) -> Tensor:
    """What each block of the attention matrix holds: NONE, SOME or ALL, int8, (B or 1, H or 1, q blocks, k blocks).

    `q_positions` (B or 1, H or 1, Nq) and `k_positions` (B or 1, H or 1, Nk) need not be consecutive: a block is
    judged by the interval between its least and greatest position, which can only make the answer more pessimistic.
    """
    q_lo, q_hi = _intervals(q_positions, q_block)
    k_lo, k_hi = _intervals(k_positions, k_block)
    samples, heads = max(q_lo.shape[0], k_lo.shape[0], pattern.samples), max(q_lo.shape[1], k_lo.shape[1])
    b = torch.arange(samples, device=q_lo.device)[:, None, None, None]
    h = torch.arange(heads, device=q_lo.device)[None, :, None, None]
    cover = pattern.cover(b, h, q_lo[..., :, None], q_hi[..., :, None], k_lo[..., None, :], k_hi[..., None, :])
    return cover.expand(*cover.shape[:-2], q_lo.shape[-1], k_lo.shape[-1])


def _intervals(positions: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The least position of each block and the one behind its greatest, (…, blocks); the last block may be short."""
    short = -positions.shape[-1] % block
    if short:
        positions = torch.cat([positions, positions[..., -1:].expand(*positions.shape[:-1], short)], dim=-1)
    blocks = positions.unflatten(-1, (-1, block))
    return blocks.amin(-1), blocks.amax(-1) + 1
