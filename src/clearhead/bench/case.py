"""What is measured: one attention call, its tensors, and what float64 says it should give.

Shapes: B samples (1 here), H heads, N tokens, D head width, S sampled rows.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from clearhead.errors import InputError, nearest
from clearhead.patterns import ALL, NONE, Pattern, block_layout
from clearhead.patterns.parse import parse
from clearhead.train.sizes import beyond

DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")}
BLOCK = 64
POOLED = 64  # rows and columns of the pooled map
_COUNTED = 1 << 27  # pairs that are looked at one by one; beyond, a sample of the blocks stands for all


@dataclass(frozen=True)
class Case:
    """One self-attention call of a single sample, of values that JSON can hold.

    `deviation` is the standard deviation of the logits, 1 to 4 in trained models. `backward` takes gradients in q, k
    and v too. With `documents`, the row of tokens is so many sequences, and `pattern` holds within each of them.
    """

    length: int
    heads: int = 8
    dim: int = 64
    dtype: str = "float32"
    device: str = "cpu"
    pattern: str = "everything()"
    backward: bool = False
    deviation: float = 1.0
    documents: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "heads", "dim"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}{nearest(self.dtype, DTYPES)}")
        if not 0 < self.deviation < math.inf:
            raise InputError(f"deviation is {self.deviation}; it must be positive: 1 to 4 in trained models")
        check_device(self.device)
        parse(self.pattern)

    def check_size(self) -> None:
        """Raise InputError unless the machine has room for the tensors."""
        if (problem := beyond(4 * 4 * self.heads * self.length * self.dim, "its four tensors")) is not None:
            raise InputError(f"length {self.length:,}: {problem}; write a smaller --length")

    @property
    def mask(self) -> Pattern:
        """The pattern."""
        return parse(self.pattern)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v and a gradient of the output, each (1, H, N, D), the same ones for all that are compared."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.heads, self.length, self.dim)
        q, k, v, grad = (torch.randn(shape, generator=generator) for _ in range(4))
        wide = math.sqrt(self.deviation)
        q, k, v, grad = (x.to(self.device, DTYPES[self.dtype]) for x in (q * wide, k * wide, v, grad))
        return q, k, v, grad

    def document_lengths(self) -> list[int]:
        """Of widely varying sequences, whose mean is `length` / `documents`: log-normal, σ = 1, at least 1 token."""
        generator = torch.Generator().manual_seed(1)
        share = torch.randn(self.documents, generator=generator).exp()
        ends = (share.cumsum(0) / share.sum() * (self.length - self.documents)).round().long()
        return (torch.diff(ends, prepend=ends.new_zeros(1)) + 1).tolist()

    def sees(self, rows: Tensor) -> Tensor:
        """Which keys the rows (S,) may see: boolean (H or 1, S, N)."""
        h, keys = torch.arange(self.heads)[:, None, None], torch.arange(self.length)
        seen = self.mask.allows(torch.tensor(0), h, rows[None, :, None], keys)
        if self.documents:
            ids = torch.repeat_interleave(torch.tensor(self.document_lengths()))
            seen = seen & (ids[rows][:, None] == ids)
        return seen.expand(-1, len(rows), -1)


def check_device(device: str) -> None:
    """Raises InputError where there is no such device."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"unknown device {device!r}{nearest(device, ('cpu', 'cuda'))}") from None
    if kind not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} cannot be measured; write cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: PyTorch finds no CUDA device here; write cpu")


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given: a clock read before tells nothing."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def sampled(case: Case, pairs: int = 1 << 22) -> Tensor:
    """Rows on which a result is held against float64, (S,): evenly spread, with the first and the last."""
    count = min(case.length, max(8, pairs // (case.heads * case.length)))
    return torch.linspace(0, case.length - 1, count).round().long().unique()


def reference(case: Case, rows: Tensor, sees: Tensor | None = None) -> dict[str, Tensor]:
    """What the rows (S,) should give, from dense weights in float64: the output, and the statistics of rows.

    `sees` (H or 1, S, N) replaces what the pattern says, for a peer that draws its own.
    """
    q, k, v = (x.cpu().double()[0] for x in case.tensors()[:3])
    seen = case.sees(rows) if sees is None else sees
    logits = (q[:, rows] @ k.mT / math.sqrt(case.dim)).masked_fill(~seen, -math.inf)
    weights = logits.softmax(-1)
    found = {"output": weights @ v, "entropy": torch.special.entr(weights).sum(-1), "max_weight": weights.amax(-1)}
    found |= {"logsumexp": logits.logsumexp(-1), "max_logit": logits.amax(-1)}
    return {name: x[None] for name, x in found.items()}


def reference_whole(case: Case, sees: Tensor | None = None, entropy: bool = False) -> dict[str, Tensor]:
    """What needs all rows, from dense weights in float64, for short cases: gradients, `received` and `pool`.

    Gradients are in q, k and v, of Σ output · gradient; with `entropy`, of that and Σ entropy · gradient[..., 0].
    """
    q, k, v, grad = (x.cpu().double()[0] for x in case.tensors())
    seen = case.sees(torch.arange(case.length)) if sees is None else sees
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    weights = (q @ k.mT / math.sqrt(case.dim)).masked_fill(~seen, -math.inf).softmax(-1)
    loss = (weights @ v * grad).sum()
    if entropy:
        loss = loss + (torch.special.entr(weights + 1e-300).sum(-1) * grad[..., 0]).sum()
    found = dict(zip(("dq", "dk", "dv"), torch.autograd.grad(loss, (q, k, v)), strict=True))
    weights = weights.detach()
    found |= {"received": weights.sum(-2), "pool": adaptive_avg_pool2d(weights, POOLED)}
    return {name: x[None] for name, x in found.items()}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖, in the Frobenius norm."""
    return float((found.cpu().double() - wanted).norm() / wanted.norm())


@dataclass(frozen=True)
class Coverage:
    """How many pairs are visible, and how many blocks of 64 × 64 hold some (`needed`) or are visited for them.

    Where looking at every pair would take long, `needed` and `pairs` are estimated from a sample of blocks.
    """

    pairs: int
    needed: int
    visited: int
    blocks: int
    estimated: bool


@lru_cache(maxsize=64)
def coverage(pattern: Pattern, length: int) -> Coverage:
    """Of a pattern over so many positions."""
    at = torch.arange(length)[None, None]
    layout = block_layout(pattern, at, at, BLOCK, BLOCK)[0]
    heads = layout.shape[0]
    partly = ((layout != NONE) & (layout != ALL)).nonzero()
    # the last block of a side may be short: pairs of whole blocks are counted by their sides
    side = torch.full((layout.shape[-1],), BLOCK).clamp(max=length - BLOCK * torch.arange(layout.shape[-1]))
    whole = int(((layout == ALL) * side[:, None] * side).sum())
    most = _COUNTED // BLOCK**2
    looked = partly if len(partly) <= most else partly[torch.linspace(0, len(partly) - 1, most).long()]
    counts = torch.cat([_seen(pattern, part, length) for part in looked.split(1024)]) if len(looked) else looked[:, 0]
    share = len(partly) / max(1, len(looked))
    pairs, some = whole + round(int(counts.sum()) * share), round(int((counts > 0).sum()) * share)
    full = int((layout == ALL).sum())
    numbers = (pairs // heads, (full + some) // heads, (full + len(partly)) // heads)
    return Coverage(*numbers, layout[0].numel(), len(looked) < len(partly))


def _seen(pattern: Pattern, blocks: Tensor, length: int) -> Tensor:
    """How many pairs of each block (count, 3: head, row block, key block) are allowed, (count,)."""
    within = torch.arange(BLOCK)
    q = (blocks[:, 1, None] * BLOCK + within)[:, :, None]
    k = (blocks[:, 2, None] * BLOCK + within)[:, None, :]
    allowed = pattern.allows(torch.tensor(0), blocks[:, 0, None, None], q, k) & (q < length) & (k < length)
    return allowed.sum((-1, -2))


@dataclass(frozen=True)
class Shape:
    """What peers with fixed shapes of their own need to know of a pattern: see `shape_of`."""

    kind: str  # everything, causal, window, window and global, other
    before: int = 0
    after: int = 0
    first: int = 0


@lru_cache(maxsize=64)
def shape_of(pattern: Pattern, length: int) -> Shape:
    """Which plain shape a pattern has over so many positions, found by what it lets rows see, however it is written."""
    rows = torch.linspace(0, length - 1, min(length, 64)).round().long().unique()
    seen = _rows(pattern, rows, length)
    middle = length // 2
    row = _rows(pattern, torch.tensor([middle]), length)[0]
    if not row[middle]:
        return Shape("other")
    before = int(row[:middle].flip(0).cumprod(0).sum())
    after = int(row[middle + 1 :].cumprod(0).sum())
    first = int(row.cumprod(0).sum()) if before < middle else 0
    back = rows[:, None] - torch.arange(length)
    local = (back <= before) & (back >= -after)
    for shape, wanted in (
        (Shape("everything"), torch.ones_like(seen)),
        (Shape("causal"), back >= 0),
        (Shape("window", before, after), local),
        (
            Shape("window and global", before, after, first),
            local | (rows < first)[:, None] | (torch.arange(length) < first),
        ),
    ):
        if torch.equal(seen, wanted):
            return shape
    return Shape("other")


def _rows(pattern: Pattern, rows: Tensor, length: int) -> Tensor:
    zero = torch.tensor(0)
    return pattern.allows(zero, zero, rows[:, None], torch.arange(length)[None]).expand(len(rows), length)
