"""AttentionMap: what attention does to one batch, as a linear map of the values that is never held as a matrix.

Shapes: B samples, H heads, Nq queries, Nk keys, Dv value width. A map of queries that came with fewer axes, (N, D) or
(B, N, D), drops the same axes from everything it returns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d
from torch.utils.checkpoint import checkpoint

from clearhead.errors import InputError, ShapeError
from clearhead.kernels import Statistics, as_given, autocast
from clearhead.maps.watching import applied, applying, observed

Rows = int | Sequence[int] | range | Tensor


@dataclass(frozen=True)
class Strip:
    """Some rows of the matrix: their place, and a function that computes their weights (b, h, rows, keys)."""

    b: slice
    h: slice
    rows: slice
    keys: slice
    weights: Callable[[], Tensor]


class AttentionMap(ABC):
    """The matrix A of attention weights, by what it does: `A @ v`, `A.T @ y`, and questions about its rows.

    A mechanism makes one from queries and keys; nothing is computed until it is asked for. Everything is
    differentiable in queries and keys unless said otherwise, and only `weights()` allocates Nq × Nk.

    A new kind of map defines `_apply`, `_rows`, `_strips` and `_statistics`; the rest follows.
    """

    def __init__(self, q: Tensor, k: Tensor, axes: int) -> None:
        """For queries (B, H, Nq, D) and keys (B, Hkv, Nk, D) that came with `axes` axes."""
        samples, heads, n_queries, _ = q.shape
        _, self._kv_heads, n_keys, _ = k.shape
        self._full, self._axes = (samples, heads, n_queries, n_keys), axes
        self.dtype, self.device = q.dtype, q.device

    @abstractmethod
    def _apply(self, v: Tensor, dropout: float, statistics: bool) -> tuple[Tensor, Statistics | None]:
        """A v for v (B, Hkv, Nk, Dv), and the row statistics if asked for."""

    @abstractmethod
    def _rows(self, rows: Tensor) -> Tensor:
        """The weights of `rows` (R,), (B, H, R, Nk)."""

    @abstractmethod
    def _strips(self) -> Iterator[Strip]:
        """The whole matrix, strip by strip; each row lies in one strip with all the keys it sees."""

    @abstractmethod
    def _statistics(self, rows: Tensor | None, sinks: Tensor | None, received: bool) -> Statistics:
        """Statistics of all rows, and if asked for with what each key `received`, or of some rows."""

    @abstractmethod
    def detach(self, copy: bool = False) -> "AttentionMap":
        """The same map without gradients; with `copy`, of tensors of its own, which nobody else can change."""

    @abstractmethod
    def of(self, samples: Tensor) -> "AttentionMap":
        """The map of some samples alone, whose numbers are `samples` (S,)."""

    @abstractmethod
    def part(self, rows: Tensor, head: int = 0, sample: int = 0) -> "AttentionMap":
        """Some rows (S, R) of one head of one sample as a map of shape (S, 1, R, Nk), without gradients.

        Each set of R rows is a sample: what is asked of a map is then told of each set apart.
        """

    def block(self, rows: slice, keys: slice, logsumexp: Tensor) -> Tensor:
        """The weights of a rectangle of the matrix, (B, H, rows, keys), from the logsumexp of its rows, (B, H, rows).

        Without gradients, and of a map with all axes. Rows whose logsumexp is NaN have weights 0.
        """
        return self._rows(torch.arange(rows.start, rows.stop, device=self.device))[..., keys].detach()

    @property
    def full_shape(self) -> tuple[int, int, int, int]:
        """(B, H, Nq, Nk), whatever axes the queries came without."""
        return self._full

    @property
    @abstractmethod
    def measures_distance(self) -> bool:
        """Do queries and keys stand on one axis, at known positions?"""

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, H, Nq, Nk), less the leading axes that the queries came without."""
        b, _, n_queries, n_keys = self._full
        return {4: self._full, 3: (b, n_queries, n_keys), 2: (n_queries, n_keys)}[self._axes]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, device={str(self.device)!r})"

    def __matmul__(self, v: Tensor) -> Tensor:
        """A v, (B, H, Nq, Dv), for values v (B, Hkv, Nk, Dv): by the fastest kernel that fits."""
        return self._dropped(self._applied(v, 0.0, False)[0])

    def apply(self, v: Tensor, dropout: float = 0.0, statistics: bool = False) -> Tensor | tuple[Tensor, Statistics]:
        """A v with options: each weight dropped with probability `dropout`; with the row statistics in one pass.

        Returns the output, or (output, Statistics) with `statistics=True`. Statistics are of the weights before
        dropout and hold no `received`.
        """
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}; it must be at least 0 and below 1")
        out, stats = self._applied(v, dropout, statistics)
        if self._axes < 4:
            out, stats = self._dropped(out), None if stats is None else stats.map(self._dropped)
        return out if stats is None else (out, stats)

    def _applied(self, v: Tensor, dropout: float, statistics: bool) -> tuple[Tensor, Statistics | None]:
        """`_apply`, of which observers are told."""
        values = self._values(v)
        if not observed():
            return self._apply(values, dropout, statistics)
        with applying(self):
            out, stats = self._apply(values, dropout, statistics)
        applied(self, out)
        return out, stats

    def weights(self, rows: Rows | None = None) -> Tensor:
        """Exact weights, (B, H, R, Nk) for some rows, (B, H, Nk) for one; all rows if None. float32 or wider."""
        if isinstance(rows, int):
            return self._dropped(self._rows(self._index([rows])).squeeze(2))
        return self._dropped(self._rows(self._index(range(self._full[2]) if rows is None else rows)))

    def statistics(self, rows: Rows | None = None, sinks: Rows | None = None, received: bool = True) -> Statistics:
        """Statistics of all rows, with what each key received unless not wanted, or of a sample of rows, without.

        `sinks` names the keys whose weight is the statistic `sink`; by default each sample's first real key.
        """
        named = None if sinks is None else self._index(sinks, axis=3)
        index = None if rows is None else self._index(rows)
        return self._statistics(index, named, received and rows is None).map(self._dropped)

    @property
    def T(self) -> "Adjoint":
        """The adjoint: `A.T @ y` is what each key gave."""
        return Adjoint(self)

    def received(self) -> Tensor:
        """The sum of the weights that each key received, (B, H, Nk): the column sums."""
        return self._dropped(self._received())

    def _received(self) -> Tensor:
        b, h, _, n_keys = self._full
        total = torch.zeros(b, h, n_keys, dtype=self._wide, device=self.device)
        for strip, part in self._visit(lambda strip: strip.weights().sum(-2)):
            total[strip.b, strip.h, strip.keys] += part
        return total

    def pool(self, height: int, width: int) -> Tensor:
        """The matrix at a lower resolution, (B, H, height, width): block means, as `adaptive_avg_pool2d` takes them."""
        b, h, n_queries, n_keys = self._full
        if height < 1 or width < 1:
            raise InputError(f"pool({height}, {width}): height and width must be at least 1")
        if not n_queries or not n_keys:
            raise ShapeError(f"a map of shape {self.shape} has nothing to pool")
        # the columns are pooled by the map itself, whose values are then the indicators of the column bins
        bins, sizes = _bins(n_keys, width, self.device)
        columns = self._apply(bins.to(self.dtype).expand(b, self._kv_heads, n_keys, width), 0.0, False)[0]
        columns = columns.to(self._wide) / sizes
        return self._dropped(adaptive_avg_pool1d(columns.flatten(0, 1).mT, height).mT.unflatten(0, (b, h)))

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The `k` largest weights of each row and their keys, both (B, H, Nq, k), largest first.

        Where a row sees fewer than `k` keys, the rest have weight 0 and key -1.
        """
        b, h, n_queries, _ = self._full
        if k < 1:
            raise InputError(f"top({k}): ask for at least 1 key")
        values = torch.zeros(b, h, n_queries, k, dtype=self._wide, device=self.device)
        keys = torch.full((b, h, n_queries, k), -1, device=self.device)
        for strip, (best, index) in self._visit(lambda strip: _top(strip.weights(), k)):
            at = (strip.b, strip.h, strip.rows, slice(0, best.shape[-1]))
            values[at] = best
            keys[at] = (index + strip.keys.start).masked_fill(best == 0, -1)
        return self._dropped(values), self._dropped(keys)

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def _adjoint(self, y: Tensor) -> Tensor:
        b, h, n_queries, n_keys = self._full
        full = self._with_axes(y, "y")
        if full.shape[:3] != (b, h, n_queries):
            raise ShapeError(f"y has shape {tuple(y.shape)}; expected {n_queries} queries, {b} samples and {h} heads")
        total = torch.zeros(b, h, n_keys, full.shape[-1], dtype=self._wide, device=self.device)
        full = self._taking_part(full.to(self._wide))
        for strip, part in self._visit(lambda s: _transposed(s, full)):
            total[strip.b, strip.h, strip.keys] += part
        return self._dropped(total.to(y.dtype))

    def _taking_part(self, y: Tensor) -> Tensor:
        """`y` (B, H, Nq, Dy) with zeros in rows that take no part, where anything may stand."""
        return y

    def _visit(self, function: Callable[[Strip], Any]) -> Iterator[tuple[Strip, Any]]:
        """`function` of every strip; under autograd its weights are formed again in the backward pass."""
        for strip in self._strips():
            if torch.is_grad_enabled():
                yield strip, checkpoint(function, strip, use_reentrant=False)
            else:
                yield strip, function(strip)

    def _values(self, v: Tensor) -> Tensor:
        """Values with all four axes; ShapeError where they do not fit."""
        b, _, _, n_keys = self._full
        full = self._with_axes(v, "v")
        *sizes, _ = full.shape
        if sizes != [b, self._kv_heads, n_keys]:
            wanted = (b, self._kv_heads, n_keys, "Dv")[-v.dim() :] if v.dim() != 3 else (b, n_keys, "Dv")
            raise ShapeError(f"v has shape {tuple(v.shape)}; k makes it ({', '.join(map(str, wanted))})")
        (full,) = autocasted(full)
        if full.dtype != self.dtype:
            raise InputError(f"v is {v.dtype}, q and k are {self.dtype}; write v.to({self.dtype})")
        if v.device != self.device:
            raise InputError(f"v is on {v.device}, q and k are on {self.device}; write v.to('{self.device}')")
        return full

    def _with_axes(self, x: Tensor, name: str) -> Tensor:
        """`x` with all four axes."""
        if not isinstance(x, Tensor):
            raise InputError(f"{name} is a {type(x).__name__}; it must be a torch.Tensor")
        if x.dim() != self._axes:
            raise ShapeError(f"{name} has {x.dim()} axes, shape {tuple(x.shape)}; q and k have {self._axes}")
        return with_axes(x)

    def _index(self, rows: Rows, axis: int = 2) -> Tensor:
        """Row (or key) numbers as a tensor, negative ones counted from the end."""
        size, what = self._full[axis], "row" if axis == 2 else "key"
        index = torch.as_tensor([rows] if isinstance(rows, int) else rows, device=self.device)
        if isinstance(rows, range | list | tuple) and not len(rows):
            index = index.long()
        if index.dim() != 1 or index.dtype.is_floating_point or index.dtype == torch.bool:
            raise InputError(
                f"{what}s must be a list of whole numbers, not {index.dtype} of shape {tuple(index.shape)}"
            )
        if index.numel() and (int(index.min()) < -size or int(index.max()) >= size):
            raise InputError(
                f"{what} {int(index.max() if index.max() >= size else index.min())} is outside 0 … {size - 1}"
            )
        return torch.where(index < 0, index + size, index)

    def _dropped(self, x: Tensor) -> Tensor:
        """`x` (B, H, …) without the leading axes that the queries came without."""
        if self._axes == 4:
            return x
        return x.squeeze(1) if self._axes == 3 else x.squeeze(1).squeeze(0)


@dataclass(frozen=True)
class Adjoint:
    """Aᵀ, by what it does."""

    map: AttentionMap

    def __matmul__(self, y: Tensor) -> Tensor:
        """Aᵀ y, (B, H, Nk, Dy), for y (B, H, Nq, Dy): what each key gave."""
        return self.map._adjoint(y)


def with_axes(x: Tensor) -> Tensor:
    """(N, D) or (B, N, D) as (B, 1, N, D)."""
    axes = x.dim()
    return x if axes == 4 else x[:, None] if axes == 3 else x[None, None]


def autocasted(*given: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one device in the dtype that an enclosing autocast asks for, as it gives them to fused attention."""
    kind = "cpu" if given[0].is_cpu else given[0].device.type
    if not autocast(kind):
        return given
    return tuple(x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(kind)) for x in given)


def _transposed(strip: Strip, y: Tensor) -> Tensor:
    with as_given(y.device):
        return strip.weights().mT @ y[strip.b, strip.h, strip.rows]


def _top(weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best, index = weights.topk(min(k, weights.shape[-1]), -1)
    return best, index


def _bins(n: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of `width` bins each of n columns lies in, (n, width) of 0 and 1, and the bins' sizes, (width,).

    The bins of `adaptive_avg_pool2d`: from ⌊i n / width⌋ to ⌈(i + 1) n / width⌉.
    """
    i, at = torch.arange(width, device=device), torch.arange(n, device=device)[:, None]
    inside = (at >= i * n // width) & (at < -(-(i + 1) * n // width))
    return inside, inside.sum(0)
