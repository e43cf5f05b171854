"""Patterns that hold tensors: packed documents. Shapes: B samples (or 1), N positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.errors import InputError, ShapeError
from clearhead.patterns.base import Pattern, verdict


def documents(ids: Tensor) -> Pattern:
    """Each position sees its own document: many sequences packed in one row, each as if it were alone.

    `ids` (N,), or (B, N) with a row for each sample, are whole numbers; equal ids are one document. A negative id is
    padding, which sees nothing and is seen by nobody; so are positions behind the last one. Ids need not be sorted,
    but a document whose positions are not contiguous costs a kernel more blocks than it needs.

    Raises InputError or ShapeError where ids are no whole numbers or of another shape.
    """
    if not isinstance(ids, Tensor):
        raise InputError(
            f"documents: ids is a {type(ids).__name__}; write torch.tensor(ids), one whole number a position"
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"documents: ids is {ids.dtype}; it must hold whole numbers: write ids.long()")
    if ids.dim() not in (1, 2):
        raise ShapeError(f"documents: ids has shape {tuple(ids.shape)}; expected (N,) or (B, N), one id a position")
    return _Documents(_named_by_first(ids if ids.dim() == 2 else ids[None]))


def names_of(pattern: Pattern) -> Tensor | None:
    """The first position of each position's document, (B or 1, N), -1 for padding; None if it is no `documents`."""
    return pattern.names if isinstance(pattern, _Documents) else None


def _named_by_first(ids: Tensor) -> Tensor:
    """Each id replaced by the first position that has it, so that contiguous documents are in order; padding by -1."""
    ordered, at = ids.sort(dim=-1, stable=True)
    here = torch.arange(ids.shape[-1], device=ids.device).expand_as(at)
    begins = (ordered != ordered.roll(1, -1)) | (here == 0)
    begin = torch.where(begins, here, 0).cummax(-1).values
    named = torch.empty_like(at).scatter(-1, at, at.gather(-1, begin))
    return torch.where(ids < 0, -1, named)


@dataclass(frozen=True, eq=False, repr=False)
class _Documents(Pattern):
    """`names` (B or 1, N) int64: the first position of each position's document, or -1 for padding."""

    names: Tensor

    def __repr__(self) -> str:
        return f"documents(ids={tuple(self.names.shape)})"

    def outline(self) -> str:
        return "documents()"

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.names,)

    def holding(self, tensors: Sequence[Tensor]) -> Pattern:
        return _Documents(*tensors)

    @property
    def extent(self) -> int:
        return int(self.names.shape[-1])

    def check(self, samples: int, positions: int | None) -> None:
        check_size("documents: ids", self.names.shape, samples, positions)

    def _at(self, b: Tensor, position: Tensor, table: Tensor) -> Tensor:
        """`table` (B or 1, …) at positions that lie in it."""
        return table[b if table.shape[0] > 1 else torch.zeros_like(b), position]

    def _name(self, b: Tensor, position: Tensor) -> Tensor:
        n = self.names.shape[-1]
        if n == 0:
            return torch.full_like(b + position, -1)
        inside = (position >= 0) & (position < n)
        return torch.where(inside, self._at(b, position.clamp(0, n - 1), self.names), -1)

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = self._name(b, q)
        return (own == self._name(b, k)) & (own >= 0)

    def absent(self, b: Tensor, at: Tensor) -> Tensor | None:
        return self._name(b, at) < 0

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        bounds = self._bounds()
        q_least, q_most, q_full, q_any = self._range(b, q_lo, q_hi, *bounds)
        k_least, k_most, k_full, k_any = self._range(b, k_lo, k_hi, *bounds)
        # where documents are contiguous, names rise with positions: what lies between two bounds is then all there
        some = (q_least <= k_most) & (k_least <= q_most) & q_any & k_any
        one = (q_least == q_most) & (k_least == k_most) & (q_least == k_least)
        return verdict(some, some & one & q_full & k_full)

    def _bounds(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each position, (B or 1, N + 1): the least name from it on, the greatest before, real positions before."""
        n, names = self.names.shape[-1], self.names
        real = names >= 0
        least = torch.where(real, names, n).flip(-1).cummin(-1).values.flip(-1) if n else names
        most = names.cummax(-1).values if n else names
        end = names.new_zeros(names.shape[0], 1)
        return (
            torch.cat([least, end + n], -1),
            torch.cat([end - 1, most], -1),
            torch.cat([end, real.cumsum(-1)], -1),
        )

    def _range(self, b: Tensor, lo: Tensor, hi: Tensor, *bounds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bounds of the names in [lo, hi); is every position of it real? Is any?"""
        n = self.names.shape[-1]
        first, behind = lo.clamp(0, n), hi.clamp(0, n)
        least, most = self._at(b, first, bounds[0]), self._at(b, behind, bounds[1])
        real = self._at(b, behind, bounds[2]) - self._at(b, first, bounds[2])
        return least, most, real == hi - lo, real > 0


def check_size(what: str, shape: Sequence[int], samples: int, positions: int | None) -> None:
    """Raise ShapeError unless a table of `shape` (B or 1, N) fits so many samples and positions."""
    if shape[0] not in (1, samples):
        raise ShapeError(
            f"pattern: {what} is for {shape[0]} samples, q has {samples}; give one for each, or one for all"
        )
    if positions is not None and shape[1] < positions:
        raise ShapeError(
            f"pattern: {what} is for {shape[1]} positions, but there are {positions} keys; give it for every position"
        )
