"""What the output of one token rests on, down the layers of its stack: rollout of one row, of any length of text.

As in `clearhead.observe.rollout`, R_l = ½ (A_l + I) R_(l-1) with A_l the mean over heads (Abnar & Zuidema 2020); but of
each layer only the tokens that hold most are followed, so that a layer costs a few rows of its weights and no more.

Shapes: n tokens, H heads; F tokens that are followed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.maps import AttentionMap

FOLLOWED = 32
"""Tokens of a layer that are followed."""
STAYS, MOVES = 30, 60
"""The strongest of a layer that are told: of a token to itself, and from one to another."""


@dataclass(frozen=True, eq=False)
class Level:
    """The tokens that are followed, what each holds of what the output rests on, both (F,), largest first, and the
    strongest `paths` to them from the level above: (query, key, share)."""

    tokens: Tensor
    shares: Tensor
    paths: Sequence[tuple[int, int, float]] = ()

    @property
    def followed(self) -> float:
        """The share of what the output rests on that these tokens hold."""
        return float(self.shares.sum())


@torch.no_grad()
def below(A: AttentionMap, above: Level, most: int = FOLLOWED, sample: int = 0) -> Level:
    """What is held before a layer, of what the followed tokens `above` hold behind it."""
    _, heads, n, _ = A.full_shape
    weights = sum((_rows(A, head, sample, above.tokens) for head in range(heads)), torch.zeros(1)) / heads
    weights[torch.arange(len(above.tokens)), above.tokens] += 1
    flows = weights * above.shares[:, None] / 2  # (F, n)
    shares, tokens = flows.sum(0).topk(min(most, n))
    tokens, shares = tokens[shares > 0], shares[shares > 0]
    return Level(tokens, shares, _paths(flows[:, tokens], above.tokens, tokens))


def top(token: int, n: int) -> Level:
    """The output of a token. Raises InputError where there is none."""
    if not 0 <= token < n:
        raise InputError(f"row {token} is not there: this map has rows 0 … {n - 1}")
    return Level(torch.tensor([token]), torch.ones(1, dtype=torch.float64))


def _rows(A: AttentionMap, head: int, sample: int, rows: Tensor) -> Tensor:
    """Weights of some rows of a head, (F, n), in float64; a row that sees nothing keeps what it has."""
    found = A.part(rows.to(A.device)[None], head, sample).weights()[0, 0].double().cpu()
    blind = found.abs().amax(-1) == 0
    found[blind, rows[blind]] = 1
    return found


def _paths(flows: Tensor, above: Tensor, tokens: Tensor) -> list[tuple[int, int, float]]:
    """The strongest of the flows (F, F), those that stay and those that move."""
    stays = above[:, None] == tokens
    found = []
    for kind, most in ((stays, STAYS), (~stays, MOVES)):
        values, index = flows.masked_fill(~kind, 0).flatten().topk(min(most, flows.numel()))
        found += [(i, share) for i, share in zip(index.tolist(), values.tolist(), strict=True) if share > 1e-4]
    return [(int(above[i // len(tokens)]), int(tokens[i % len(tokens)]), share) for i, share in found]
