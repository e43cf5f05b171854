"""Who attends to whom most, and which tokens receive most, with the tokens' own names.

Shapes: B samples, H heads, Nq queries, Nk keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.observe.calls import Call
from clearhead.observe.numbers.kept import Mapped, kept, padding_of, position, visible_keys
from clearhead.observe.watching.attended import received_from

Tokens = Sequence[str] | Sequence[Sequence[str]]
"""The names of tokens: of one sample or of all alike, or a list for each sample, which may end where padding begins."""


@dataclass(frozen=True)
class Pair:
    """A query and a key it attends to. Tokens are None where none were given."""

    sample: int
    head: int
    query: int
    key: int
    weight: float
    query_token: str | None = None
    key_token: str | None = None

    def __str__(self) -> str:
        ends = f"{_named(self.query, self.query_token)} -> {_named(self.key, self.key_token)}"
        return f"sample {self.sample}, head {self.head}: {ends}, {self.weight:.3f}"


@dataclass(frozen=True)
class Received:
    """A key and the sum of the weights that it received. The token is None where none were given."""

    sample: int
    head: int
    key: int
    weight: float
    token: str | None = None

    def __str__(self) -> str:
        return f"sample {self.sample}, head {self.head}: {_named(self.key, self.token)}, {self.weight:.3f}"


@torch.no_grad()
def top_pairs(
    given: Mapped,
    k: int = 10,
    queries: Tokens | None = None,
    keys: Tokens | None = None,
    sample: int | None = None,
    head: int | None = None,
) -> list[Pair]:
    """The `k` pairs of the largest weights, largest first, of all samples and heads or of those chosen.

    Rows that see a single key are left out, since their weight is 1 whatever the head does; so is padding.

    Args:
        given: a call with its map, or a map.
        queries, keys: the tokens' names, one for each token, special tokens included.

    Raises InputError where labels do not fit the tokens, and for a sample or head that is not there.
    """
    A = kept(given)
    b, h, n_queries, n_keys = A.full_shape
    hidden, visible = padding_of(given), visible_keys(given)
    of_queries = _labels(queries, "queries", b, n_queries, lambda: hidden | (visible == 0).all(1))
    of_keys = _labels(keys, "keys", b, n_keys, lambda: (_sums(given) == 0).all(1))
    weights, at = (x.reshape(b, h, n_queries, -1) for x in A.top(k))
    weights = weights * ((visible > 1) & ~hidden[:, None])[..., None]
    pairs = []
    for (s, head_, query, i), weight in _largest(weights, k, sample, head):
        key = int(at[s, head_, query, i])
        pairs.append(Pair(s, head_, query, key, weight, _name(of_queries, s, query), _name(of_keys, s, key)))
    return pairs


@torch.no_grad()
def top_received(
    given: Mapped, k: int = 10, keys: Tokens | None = None, sample: int | None = None, head: int | None = None
) -> list[Received]:
    """The `k` keys that received most, largest first, of all samples and heads or of those chosen.

    Arguments and errors are those of `top_pairs`; a call needs no map where it measured what keys received. Queries
    that are known to be padding give nothing.
    """
    sums = _sums(given)
    labels = _labels(keys, "keys", len(sums), sums.shape[-1], lambda: (sums == 0).all(1))
    return [
        Received(s, head_, key, weight, _name(labels, s, key))
        for (s, head_, key), weight in _largest(sums, k, sample, head)
    ]


def _sums(given: Mapped) -> Tensor:
    """What each key received, (B, H, Nk)."""
    if isinstance(given, Call) and given.statistics.received is not None:
        return given.statistics.received
    A = kept(given)
    return received_from(A, ~padding_of(given))


def _largest(x: Tensor, k: int, sample: int | None, head: int | None) -> list[tuple[list[int], float]]:
    """Where the `k` largest values of `x` (B, H, …) above 0 lie, and what they are; of one sample or head if chosen."""
    if k < 1:
        raise InputError(f"k is {k}; ask for at least 1")
    chosen = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    samples = slice(None) if sample is None else position(sample, x.shape[0], "sample")
    chosen[samples, slice(None) if head is None else position(head, x.shape[1], "head")] = True
    x = x * chosen.reshape(*chosen.shape, *(1,) * (x.dim() - 2))
    values, index = x.flatten().topk(min(k, x.numel()))
    places = torch.stack(torch.unravel_index(index, x.shape), -1)
    return [(place, value) for place, value in zip(places.tolist(), values.tolist(), strict=True) if value > 0]


def _labels(
    tokens: Tokens | None, what: str, samples: int, n: int, padding: Callable[[], Tensor]
) -> list[Sequence[str]] | None:
    """A list of names for each sample. `padding()`, (B, n), is asked for where a list is too short for all tokens."""
    if tokens is None:
        return None
    lists: list[Sequence[str]] = [tokens] * samples if _is_flat(tokens) else list(tokens)  # type: ignore[list-item]
    if len(lists) != samples:
        raise InputError(f"{what}: {len(lists)} lists of labels for {samples} samples; give one for each")
    for sample, labels in enumerate(lists):
        count = n if len(labels) >= n else _real(padding()[sample])
        if len(labels) < count or len(labels) > n:
            raise InputError(
                f"{what}: {len(labels)} labels for the {count} tokens of sample {sample}; give one for each token, "
                "special tokens included"
            )
    return lists


def _name(labels: list[Sequence[str]] | None, sample: int, token: int) -> str | None:
    return None if labels is None else labels[sample][token]


def _is_flat(tokens: Tokens) -> bool:
    return isinstance(tokens, str) or all(isinstance(token, str) for token in tokens)


def _real(padding: Tensor) -> int:
    """How many tokens there are up to the last that is no padding."""
    real = (~padding).nonzero()
    return int(real[-1]) + 1 if len(real) else 0


def _named(index: int, token: str | None) -> str:
    return str(index) if token is None else f"{token!r} ({index})"
