"""The algebra of patterns. Shapes: every argument is an integer tensor; they broadcast against each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.patterns.drawing import drawn

NONE, SOME, ALL = 0, 1, 2
"""Kleene's truth values, in order: `&` is the minimum, `|` the maximum, `~` swaps the ends."""


class Pattern:
    """Who may attend to whom, as a function of positions.

    A new pattern is a frozen dataclass that defines `allows` and `cover`. Made of integers it is a value: equal when
    its fields are, hashable, and its `repr` can be pasted back (`clearhead.patterns.parse` reads it). One that holds
    tensors, each with its samples (B or 1) on the first axis, also defines `tensors`, `holding` and `outline`; its
    `repr` prints shapes, `==` asks whether two are the same object, and `equal` compares what they hold.
    """

    @property
    def extent(self) -> int:
        """About how many positions show what the pattern does: the size of its drawing."""
        return 1

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

    def absent(self, b: Tensor, at: Tensor) -> Tensor | None:
        """Which positions `at` of sample `b` are padding: they see nothing, and nobody sees them. None: none is."""
        return None

    def __repr__(self) -> str:
        # not the one that dataclass writes, which torch.compile cannot trace
        return f"{type(self).__name__}()"

    def __and__(self, other: "Pattern") -> "Pattern":
        return _And(self, other) if isinstance(other, Pattern) else NotImplemented

    def __or__(self, other: "Pattern") -> "Pattern":
        return _Or(self, other) if isinstance(other, Pattern) else NotImplemented

    def __invert__(self) -> "Pattern":
        return _Not(self)

    def joined(self) -> "tuple[Pattern, ...]":
        """The patterns that `&` joins in this one; itself alone, if none."""
        return (self,)

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the pattern holds, in the order in which `repr` names their owners."""
        return ()

    def holding(self, tensors: Sequence[Tensor]) -> "Pattern":
        """The same pattern with other tensors in the place of its own."""
        return self

    def outline(self) -> str:
        """The pattern's text without its tensors: `clearhead.patterns.restore` makes it whole again."""
        return repr(self)

    def check(self, samples: int, positions: int | None) -> None:
        """Raise ShapeError unless the pattern speaks of so many samples, and of so many positions (None: unknown)."""

    @property
    def samples(self) -> int:
        """For how many samples it was made, each with its own: B, or 1 where all see alike."""
        return max([1, *(x.shape[0] for x in self.tensors())])

    def of(self, samples: Tensor) -> "Pattern":
        """The pattern of some samples alone, whose numbers are `samples` (S,)."""
        return self.holding([x if x.shape[0] == 1 else x.index_select(0, samples) for x in self.tensors()])

    def alone(self, sample: int, head: int) -> "Pattern":
        """The pattern of one sample and one head, whatever number a call gives these."""
        if not type(self).__module__.startswith(__package__):  # someone else's, which may tell heads apart
            return _Alone(self, sample, head)
        return self if self.samples == 1 else self.of(torch.tensor([sample], device=self.tensors()[0].device))

    def to(self, device: torch.device | str) -> "Pattern":
        """The same pattern with its tensors on `device`."""
        return self.holding([x.to(device) for x in self.tensors()])

    def equal(self, other: "Pattern") -> bool:
        """Do both say the same in the same words, and hold equal tensors?"""
        own, others = self.tensors(), other.tensors()
        return self.outline() == other.outline() and all(torch.equal(x, y) for x, y in zip(own, others, strict=True))

    def draw(self, n: int | None = None, width: int = 32, sample: int = 0) -> str:
        """A drawing of the first `n` positions: a row per query, a column per key, at most `width` of each.

        `n` is chosen by the pattern if None. Where there are more positions than `width`, a cell stands for a square of
        them: ■ all pairs are allowed, ▒ some are (or, beyond 2,048 positions, may be), · none is.
        """
        for name, value in (("n", n), ("width", width)):
            if value is not None:
                whole("draw", name, value, 1)
        least = 1 if self.tensors() else 8  # tables are drawn as long as they are
        return drawn(self, max(least, self.extent) if n is None else n, width, sample)

    def __str__(self) -> str:
        """The pattern's `repr` and its drawing."""
        return f"{self!r}\n{self.draw()}"


def is_value(pattern: Pattern) -> bool:
    """Is it made of whole numbers and compared by them, so that an equal one allows the same pairs, for ever?"""
    if type(pattern).__hash__ in (None, object.__hash__):
        return False
    return all(
        is_value(x) if isinstance(x, Pattern) else x is None or type(x) is int or _whole_numbers(x)
        for x in vars(pattern).values()
    )


def _whole_numbers(x: object) -> bool:
    return type(x) is tuple and all(type(i) is int for i in x)


def whole(pattern: str, argument: str, value: object, least: int) -> None:
    """Raise InputError unless `value` is a whole number of at least `least`, and can be added to a position."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{pattern}: {argument} is {value!r}; it must be a whole number of at least {least}")
    if value > _MOST:
        raise InputError(f"{pattern}: {argument} is greater than 2**62, beyond all positions; write a smaller number")


_MOST = 2**62


def verdict(some: Tensor, all_: Tensor) -> Tensor:
    """The int8 answer of `cover` from two facts: some pair is allowed, all pairs are."""
    return some.to(torch.int8) + all_.to(torch.int8)


def spread(x: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """`x`, computed from `q` or `k` alone, with an entry for each pair; as it is where that is what it has.

    FlexAttention's compiler takes no `expand` of a single pair.
    """
    shape = torch.broadcast_shapes(q.shape, k.shape)
    return x if x.shape == shape else x.expand(shape)


@dataclass(frozen=True, repr=False)
class _Pair(Pattern):
    """Two patterns, joined."""

    left: Pattern
    right: Pattern

    def _joined(self, left: str, right: str) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        return self._joined(repr(self.left), repr(self.right))

    def outline(self) -> str:
        return self._joined(self.left.outline(), self.right.outline())

    @property
    def extent(self) -> int:
        return max(self.left.extent, self.right.extent)

    def alone(self, sample: int, head: int) -> Pattern:
        return type(self)(self.left.alone(sample, head), self.right.alone(sample, head))

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.left.tensors(), *self.right.tensors())

    def holding(self, tensors: Sequence[Tensor]) -> Pattern:
        own = len(self.left.tensors())
        return type(self)(self.left.holding(tensors[:own]), self.right.holding(tensors[own:]))

    def check(self, samples: int, positions: int | None) -> None:
        self.left.check(samples, positions)
        self.right.check(samples, positions)


@dataclass(frozen=True, repr=False)
class _And(_Pair):
    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allows(b, h, q, k) & self.right.allows(b, h, q, k)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        where = (b, h, q_lo, q_hi, k_lo, k_hi)
        return torch.minimum(self.left.cover(*where), self.right.cover(*where))

    def absent(self, b: Tensor, at: Tensor) -> Tensor | None:
        left, right = self.left.absent(b, at), self.right.absent(b, at)
        return left if right is None else right if left is None else left | right

    def joined(self) -> tuple[Pattern, ...]:
        return (*self.left.joined(), *self.right.joined())

    def _joined(self, left: str, right: str) -> str:
        # & is associative but its tree is part of the value, so the right operand keeps its parentheses
        left = f"({left})" if isinstance(self.left, _Or) else left
        return f"{left} & ({right})" if isinstance(self.right, _Pair) else f"{left} & {right}"


@dataclass(frozen=True, repr=False)
class _Or(_Pair):
    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allows(b, h, q, k) | self.right.allows(b, h, q, k)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        where = (b, h, q_lo, q_hi, k_lo, k_hi)
        return torch.maximum(self.left.cover(*where), self.right.cover(*where))

    def absent(self, b: Tensor, at: Tensor) -> Tensor | None:
        left, right = self.left.absent(b, at), self.right.absent(b, at)
        return None if left is None or right is None else left & right

    def _joined(self, left: str, right: str) -> str:
        return f"{left} | ({right})" if isinstance(self.right, _Or) else f"{left} | {right}"


@dataclass(frozen=True, repr=False)
class _Not(Pattern):
    inner: Pattern

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ~self.inner.allows(b, h, q, k)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        return ALL - self.inner.cover(b, h, q_lo, q_hi, k_lo, k_hi)

    @property
    def extent(self) -> int:
        return self.inner.extent

    def alone(self, sample: int, head: int) -> Pattern:
        return _Not(self.inner.alone(sample, head))

    def tensors(self) -> tuple[Tensor, ...]:
        return self.inner.tensors()

    def holding(self, tensors: Sequence[Tensor]) -> Pattern:
        return _Not(self.inner.holding(tensors))

    def check(self, samples: int, positions: int | None) -> None:
        self.inner.check(samples, positions)

    def __repr__(self) -> str:
        return self._negated(repr(self.inner))

    def outline(self) -> str:
        return self._negated(self.inner.outline())

    def _negated(self, inner: str) -> str:
        return f"~({inner})" if isinstance(self.inner, _Pair) else f"~{inner}"


@dataclass(frozen=True, repr=False)
class _Alone(Pattern):
    """What a pattern says of one sample and one head, said of all."""

    inner: Pattern
    sample: int
    head: int

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.inner.allows(torch.full_like(b, self.sample), torch.full_like(h, self.head), q, k)

    def cover(self, b: Tensor, h: Tensor, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        b, h = torch.full_like(b, self.sample), torch.full_like(h, self.head)
        return self.inner.cover(b, h, q_lo, q_hi, k_lo, k_hi)

    def absent(self, b: Tensor, at: Tensor) -> Tensor | None:
        return self.inner.absent(torch.full_like(b, self.sample), at)

    def __repr__(self) -> str:
        return f"{self.inner!r} in head {self.head} of sample {self.sample}"
