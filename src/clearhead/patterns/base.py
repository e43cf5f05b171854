"""The algebra of patterns. Shapes: every argument is an integer tensor; they broadcast against each other."""

from dataclasses import dataclass

import torch
from torch import Tensor

NONE, SOME, ALL = 0, 1, 2
"""Kleene's truth values, in order: `&` is the minimum, `|` the maximum, `~` swaps the ends."""


class Pattern:
    """Who may attend to whom, as a function of positions.

    A new pattern is a frozen dataclass that defines `allows` and `cover`. It is a value: equal when its fields are,
    hashable, and its `repr` can be pasted back (`clearhead.patterns.parse` reads it).
    """

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """May the query at position `q` attend to the key at position `k`? In sample `b` and head `h`; boolean.

        The signature is that of FlexAttention's `mask_mod`.
        """
        raise NotImplementedError

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        """Does the rectangle of positions [q_lo, q_hi) × [k_lo, k_hi) hold NONE, SOME or ALL allowed pairs? int8.

        NONE and ALL are proofs; SOME may be pessimistic in compositions and is exact in single shapes.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        # not the one that dataclass writes, which torch.compile cannot trace
        return f"{type(self).__name__}()"

    def __and__(self, other: "Pattern") -> "Pattern":
        return _And(self, other) if isinstance(other, Pattern) else NotImplemented

    def __or__(self, other: "Pattern") -> "Pattern":
        return _Or(self, other) if isinstance(other, Pattern) else NotImplemented

    def __invert__(self) -> "Pattern":
        return _Not(self)

    def __str__(self) -> str:
        """The pattern's `repr` and a drawing of its first positions: a row per query, a column per key."""
        at, zero = torch.arange(_DRAWN), torch.tensor(0)
        seen = self.allows(zero, zero, at[:, None], at[None, :]).expand(_DRAWN, _DRAWN)
        rows = (" ".join("■" if cell else "·" for cell in row) for row in seen.tolist())
        return "\n".join([repr(self), *rows])


_DRAWN = 8


def verdict(some: Tensor, all_: Tensor) -> Tensor:
    """The int8 answer of `cover` from two facts: some pair is allowed, all pairs are."""
    return some.to(torch.int8) + all_.to(torch.int8)


@dataclass(frozen=True, repr=False)
class _And(Pattern):
    left: Pattern
    right: Pattern

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allows(b, h, q, k) & self.right.allows(b, h, q, k)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        where = (b, h, q_lo, q_hi, k_lo, k_hi)
        return torch.minimum(self.left.cover(*where), self.right.cover(*where))

    def __repr__(self) -> str:
        # & is associative but its tree is part of the value, so the right operand keeps its parentheses
        left = f"({self.left!r})" if isinstance(self.left, _Or) else repr(self.left)
        right = f"({self.right!r})" if isinstance(self.right, _Or | _And) else repr(self.right)
        return f"{left} & {right}"


@dataclass(frozen=True, repr=False)
class _Or(Pattern):
    left: Pattern
    right: Pattern

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allows(b, h, q, k) | self.right.allows(b, h, q, k)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        where = (b, h, q_lo, q_hi, k_lo, k_hi)
        return torch.maximum(self.left.cover(*where), self.right.cover(*where))

    def __repr__(self) -> str:
        right = f"({self.right!r})" if isinstance(self.right, _Or) else repr(self.right)
        return f"{self.left!r} | {right}"


@dataclass(frozen=True, repr=False)
class _Not(Pattern):
    inner: Pattern

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ~self.inner.allows(b, h, q, k)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        return ALL - self.inner.cover(b, h, q_lo, q_hi, k_lo, k_hi)

    def __repr__(self) -> str:
        return f"~({self.inner!r})" if isinstance(self.inner, _And | _Or) else f"~{self.inner!r}"
