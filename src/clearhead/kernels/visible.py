"""Who sees whom in one call: the pattern, and everything that came with the batch.

Shapes: B samples, H heads, Nq queries, Nk keys; a size of 1 broadcasts.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from operator import and_

import torch
from torch import Tensor

from clearhead.kernels.shared import numbers, shares
from clearhead.patterns import ALL, SOME, Pattern, causal, everything, is_value

_KEPT = 1 << 20
"""Cells of a mask that is kept for later calls, at most."""


@dataclass(eq=False)  # a frozen one takes four times as long to make
class Visible:
    """The visible pairs of one call. Fields are not set again.

    `mask` (B, H, Nq, Nk) bool is read by row and column. `q_lengths` and `k_lengths` (B,) mean right padding, which
    does not exist, on either side; one tensor given for both sides is the same object in both fields. The pattern
    speaks of positions: `q_positions` and `k_positions` (B, H, N) where given; else key j stands at j and the ends of
    queries and keys line up, counted without padding.
    """

    pattern: Pattern
    n_queries: int
    n_keys: int
    device: torch.device
    mask: Tensor | None = None
    q_lengths: Tensor | None = None
    k_lengths: Tensor | None = None
    q_positions: Tensor | None = None
    k_positions: Tensor | None = None

    @property
    def unpadded(self) -> bool:
        return self.q_lengths is None and self.k_lengths is None

    @property
    def aligned(self) -> bool:
        """Query i and key i stand at the same position, in every sample."""
        default = self.q_positions is None and self.k_positions is None
        return default and self.n_queries == self.n_keys and self.q_lengths is self.k_lengths

    @property
    def alike(self) -> bool:
        """No one gave positions, and those that go without saying do not depend on lengths."""
        return self.q_positions is None and self.k_positions is None and (self.unpadded or self.aligned)

    @property
    def full(self) -> bool:
        """Every query sees every key that is not padding."""
        return self.mask is None and isinstance(self.pattern, everything)

    @property
    def plainly_causal(self) -> bool:
        """Causal, and no row of a real query reaches padding: the causal flag of a fused kernel says it all."""
        return self.mask is None and isinstance(self.pattern, causal) and self.aligned

    def positions_of_queries(self) -> Tensor:
        """Where each query stands, (B or 1, H or 1, Nq)."""
        if self.q_positions is not None:
            return self.q_positions
        at = numbers(self.n_queries, self.device)
        if self.q_lengths is self.k_lengths:
            return at + (self.n_keys - self.n_queries) if self.unpadded and self.n_keys != self.n_queries else at
        keys = self.n_keys if self.k_lengths is None else self.k_lengths[:, None, None]
        queries = self.n_queries if self.q_lengths is None else self.q_lengths[:, None, None]
        return at + (keys - queries)

    def positions_of_keys(self) -> Tensor:
        """Where each key stands, (B or 1, H or 1, Nk)."""
        if self.k_positions is not None:
            return self.k_positions
        return numbers(self.n_keys, self.device)

    def placed(self) -> "Visible":
        """The same call with its positions written out, for a walk that asks for them at every tile."""
        return replace(self, q_positions=self.positions_of_queries(), k_positions=self.positions_of_keys())

    def pairs(
        self, b: slice, h: slice, rows: slice, keys: slice, *, pattern: bool = True, padding: bool = True
    ) -> Tensor | None:
        """The visible pairs of a rectangle, boolean and broadcastable to (B, H, rows, keys); None: all of them.

        `pattern=False` and `padding=False` leave these out, for rectangles that they are known to allow.
        """
        parts = []
        if pattern and not isinstance(self.pattern, everything):
            kept = self._lasting and (rows.stop - rows.start, keys.stop - keys.start) == (self.n_queries, self.n_keys)
            sides = b.start, b.stop, h.start, h.stop
            parts = [_kept(self.pattern, *sides, rows.stop, keys.stop) if kept else self._allowed(b, h, rows, keys)]
        if self.mask is not None:
            parts.append(cut(self.mask, b, h, rows, keys))
        if padding and self.k_lengths is not None:
            parts.append(self._real(self.k_lengths, b, keys))
        if padding and self.q_lengths is not None:
            parts.append(self._real(self.q_lengths, b, rows).mT)
        return reduce(and_, parts) if parts else None

    @property
    def _lasting(self) -> bool:
        """Does the pattern allow the same pairs in every call of these sizes, and may they be kept?"""
        small = self.n_queries * self.n_keys <= _KEPT
        return small and self.alike and shares(self.device) and is_value(self.pattern)

    def _allowed(self, b: slice, h: slice, rows: slice, keys: slice) -> Tensor:
        """What the pattern allows of a rectangle."""
        q, k = (cut(at, b, h) for at in (self.positions_of_queries(), self.positions_of_keys()))
        samples = numbers(b.stop, self.device, b.start).view(-1, 1, 1, 1)
        heads = numbers(h.stop, self.device, h.start).view(1, -1, 1, 1)
        return self.pattern.allows(samples, heads, q[..., rows, None], k[..., None, keys])

    def real_keys(self) -> Tensor | None:
        """Which keys are no padding, (B, 1, 1, Nk); None: all."""
        return None if self.k_lengths is None else numbers(self.n_keys, self.device) < self.k_lengths.view(-1, 1, 1, 1)

    def _real(self, lengths: Tensor, b: slice, part: slice) -> Tensor:
        """Which of some tokens are no padding, (b, 1, 1, part)."""
        return numbers(part.stop, self.device, part.start) < cut(lengths, b).view(-1, 1, 1, 1)

    def dense(self, samples: int, heads: int) -> Tensor | None:
        """All visible pairs, broadcastable to (B, H, Nq, Nk). For sizes where n² is small."""
        return self.pairs(slice(0, samples), slice(0, heads), slice(0, self.n_queries), slice(0, self.n_keys))

    def take(self, rows: Tensor) -> "Visible":
        """The same call for some of its rows alone; `rows` (R,)."""
        mask = self.mask if self.mask is None or self.mask.shape[2] == 1 else self.mask.index_select(2, rows)
        if self.q_lengths is not None:
            real = (rows < self.q_lengths[:, None])[:, None, :, None]
            mask = real if mask is None else mask & real
        return replace(
            self,
            n_queries=len(rows),
            mask=mask,
            q_lengths=None,
            q_positions=self.positions_of_queries().index_select(-1, rows),
            k_positions=self.positions_of_keys(),
        )

    def of(self, samples: Tensor) -> "Visible":
        """The same call for some of its samples alone; `samples` (S,)."""

        def some(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.shape[0] == 1 else x.index_select(0, samples)

        q_lengths, k_lengths = some(self.q_lengths), some(self.k_lengths)
        if self.q_lengths is self.k_lengths:
            k_lengths = q_lengths
        mask, q_at, k_at = some(self.mask), some(self.q_positions), some(self.k_positions)
        some_see = replace(self, pattern=self.pattern.of(samples), mask=mask)
        return replace(some_see, q_lengths=q_lengths, k_lengths=k_lengths, q_positions=q_at, k_positions=k_at)

    def part(self, sample: int, head: int, rows: Tensor) -> "Visible":
        """The same call for some rows (S, R) of one head of one sample, each set of R as a sample of its own."""
        samples, heads = slice(sample, sample + 1), slice(head, head + 1)
        alone = self.pattern.alone(sample, head)
        mask = None if self.mask is None else cut(self.mask, samples, heads)
        if mask is not None and mask.shape[2] > 1:
            mask = mask[0, 0][rows][:, None]
        if self.q_lengths is not None:
            real = (rows < cut(self.q_lengths, samples))[:, None, :, None]
            mask = real if mask is None else mask & real
        q_at = cut(self.positions_of_queries(), samples, heads)[0, 0]
        return replace(
            self,
            pattern=alone,
            n_queries=rows.shape[1],
            mask=mask,
            q_lengths=None,
            k_lengths=None if self.k_lengths is None else cut(self.k_lengths, samples).expand(len(rows)),
            q_positions=q_at[rows][:, None],
            k_positions=cut(self.positions_of_keys(), samples, heads),
        )

    def cover(self, samples: int, heads: int, rows: slice, keys: slice) -> int:
        """Does the pattern allow NONE, SOME or ALL pairs of a rectangle?"""
        if isinstance(self.pattern, everything):
            return ALL
        q, k = self.positions_of_queries()[..., rows, None], self.positions_of_keys()[..., keys, None]
        sides = (end for at in (q, k) for end in (at.amin(-2, keepdim=True), at.amax(-2, keepdim=True) + 1))
        b, h = (numbers(n, self.device).view(shape) for n, shape in ((samples, (-1, 1, 1, 1)), (heads, (1, -1, 1, 1))))
        found = self.pattern.cover(b, h, *sides)
        least, most = int(found.min()), int(found.max())
        return least if least == most else SOME

    def shortened(self) -> "Visible":
        """The same call without the tokens that are padding in every sample; as it is where lengths cannot be read."""
        if not shares(self.device):
            return self
        n_keys, k_lengths = _longest(self.k_lengths, self.n_keys)
        n_queries, q_lengths = (n_keys, k_lengths) if self.aligned else _longest(self.q_lengths, self.n_queries)
        mask, q_at, k_at = self.mask, self.q_positions, self.k_positions
        rows, keys = slice(0, n_queries), slice(0, n_keys)
        return Visible(
            self.pattern,
            n_queries,
            n_keys,
            self.device,
            None if mask is None else mask[:, :, rows, keys],
            q_lengths,
            k_lengths,
            None if q_at is None else q_at[..., rows],
            None if k_at is None else k_at[..., keys],
        )

    def padding(self) -> tuple[Tensor | None, Tensor | None]:
        """Which queries and which keys are padding, (B, 1, N, 1); None: none is."""
        keys = _behind(self.k_lengths, self.n_keys)
        return keys if self.aligned else _behind(self.q_lengths, self.n_queries), keys

    def first_key(self) -> Tensor:
        """The sample's first real key, (B or 1, 1): the lowest position that is neither padding nor masked for all."""
        if not self.n_keys or (self.mask is None and self.k_positions is None):
            return numbers(1, self.device)[0]
        real = torch.ones(1, self.n_keys, dtype=torch.bool, device=self.device)
        if self.mask is not None:
            real = self.mask.any(2).any(1).expand(-1, self.n_keys)
        if self.k_positions is None:
            return real.to(torch.uint8).argmax(-1, keepdim=True)
        at = self.positions_of_keys().amin(1)
        if self.k_lengths is not None:
            real = real & (numbers(self.n_keys, self.device)[0] < self.k_lengths[:, None])
        return at.masked_fill(~real, torch.iinfo(at.dtype).max).argmin(-1, keepdim=True)


def cut(x: Tensor, *parts: slice) -> Tensor:
    """`x` narrowed to a part of each of its first axes, unless it broadcasts there."""
    for axis, part in enumerate(parts):
        size = part.stop - part.start
        if x.shape[axis] not in (1, size):
            x = x.narrow(axis, part.start, size)
    return x


def _longest(lengths: Tensor | None, n: int) -> tuple[int, Tensor | None]:
    """How many of n tokens are real in some sample, and the lengths among these; None: all are, in every sample."""
    if lengths is None:
        return n, None
    held = lengths.tolist()
    longest = max(1, *held) if held else n
    return longest, None if held and min(held) == longest else lengths


def _behind(lengths: Tensor | None, n: int) -> Tensor | None:
    """Which of n tokens stand behind each sample's last, (B, 1, N, 1)."""
    return None if lengths is None else (numbers(n, lengths.device) >= lengths.view(-1, 1, 1)).unsqueeze(-1)


@lru_cache(maxsize=16)
def _kept(pattern: Pattern, sample: int, samples: int, head: int, heads: int, n_queries: int, n_keys: int) -> Tensor:
    """What a pattern that is a value allows of samples and heads, on the CPU; for any later call, never written to."""
    with torch.inference_mode(False), torch.no_grad():
        see = Visible(pattern, n_queries, n_keys, torch.device("cpu"))
        return see._allowed(slice(sample, samples), slice(head, heads), slice(0, n_queries), slice(0, n_keys))
