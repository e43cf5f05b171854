"""What peers get wrong, shown on small inputs: each trap runs the peer, and Clearhead on the same problem.

Shapes: q, k, v (1, 1, N, D).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from clearhead.bench.case import Case, reference, relative_error
from clearhead.bench.peers import BIGBIRD, EAGER, LOCAL, SDPA, XT, NotRun, big_bird, installed
from clearhead.maps import attend
from clearhead.patterns import causal, window


@dataclass(frozen=True)
class Trap:
    """A mistake: which arm makes it, in which words, and functions that say whether the peer and whether we make it.

    `peer` raises NotRun where the peer is not installed.
    """

    arm: str
    words: str
    peer: Callable[[], bool]
    ours: Callable[[], bool]


@cache
def fallen(arm: str) -> list[str]:
    """What `arm` gets wrong, found by running it now; nothing where it is not installed."""
    return [trap.words for trap in TRAPS if trap.arm == arm and _falls(trap)]


def _falls(trap: Trap) -> bool:
    try:
        return trap.peer()
    except NotRun:
        return False


def _tensors(n: int = 8, d: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, d, generator=generator) for _ in range(3))
    return q, k, v


def _sees_future(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> bool:
    """Does the first row, whose only key is masked, change with a later value?"""
    q, k, v = _tensors()
    other = v.index_fill(2, torch.tensor([3]), 100.0)
    return not torch.equal(function(q, k, v)[:, :, 0], function(q, k, other)[:, :, 0])


_REAL = torch.arange(8)[None] > 0  # the first key is padding, on the left


def _local() -> bool:
    layer = installed("local_attention").LocalAttention(4, causal=True, exact_windowsize=True)
    return _sees_future(lambda q, k, v: layer(q, k, v, mask=_REAL))


def _local_of_ours() -> bool:
    pattern = window(4, 0)
    return _sees_future(lambda q, k, v: attend(q, k, v, pattern, mask=_REAL[:, None, None]))


def _autopad() -> bool:
    layer = installed("local_attention").LocalAttention(4, exact_windowsize=True, autopad=True)
    return _differs(layer(*_tensors(7)), Case(7, 1, 4, pattern="window(4)"))


def _autopad_of_ours() -> bool:
    return _differs(attend(*_tensors(7), window(4)), Case(7, 1, 4, pattern="window(4)"))


def _differs(found: Tensor, case: Case) -> bool:
    """From dense weights in float64, by more than a hundredth."""
    q, k, v = (x.double() for x in _tensors(case.length, case.dim))
    logits = (q @ k.mT / case.dim**0.5).masked_fill(~case.sees(torch.arange(case.length)), -torch.inf)
    return relative_error(found, logits.softmax(-1) @ v) > 1e-2


def _x_transformers() -> bool:
    module = installed("x_transformers.attend")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = module.Attend(causal=True, flash=False, heads=1)
    return _sees_future(lambda q, k, v: layer(q, k, v, mask=_REAL[:, None, None])[0])


def _causal_of_ours() -> bool:
    return _sees_future(lambda q, k, v: attend(q, k, v, causal(), mask=_REAL[:, None, None]))


def _bigbird(length: int) -> bool:
    case = Case(length, 1, 16, pattern=f"bigbird(length={length})")
    job = big_bird(case)
    found = job.read(job.run())["output"]
    rows = torch.arange(length)
    assert job.sees is not None
    return relative_error(found, reference(case, rows, job.sees())["output"]) > 1e-2


def _bigbird_of_ours(length: int) -> bool:
    case = Case(length, 1, 16, pattern=f"bigbird(length={length})")
    q, k, v, _ = case.tensors()
    wanted = reference(case, torch.arange(length))["output"]
    return relative_error(attend(q, k, v, case.mask), wanted) > 1e-2


def _nan(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> bool:
    """Does NaN in a value that nobody may see come out?"""
    q, k, v = _tensors()
    return bool(function(q, k, v.index_fill(2, torch.tensor([7]), torch.nan))[:, :, :7].isnan().any())


def _sdpa_nan() -> bool:
    mask = (torch.arange(8) < 7).expand(1, 1, 8, 8)
    return _nan(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask))


def _nan_of_ours() -> bool:
    return _nan(lambda q, k, v: attend(q, k, v, lengths=torch.tensor([7])))


def _last_rows(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> bool:
    """Do the last two queries, asked alone, get something else than in the whole?"""
    q, k, v = _tensors()
    return relative_error(function(q[:, :, -2:], k, v), function(q, k, v)[:, :, -2:].double()) > 1e-2


def _aligned() -> bool:
    return _last_rows(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True))


def _aligned_of_ours() -> bool:
    return _last_rows(lambda q, k, v: attend(q, k, v, causal()))


_NONE = torch.zeros(1, 1, 8, 8, dtype=torch.bool)


def _eager() -> bool:
    q, k, v = _tensors()
    return bool(((q @ k.mT).masked_fill(~_NONE, -torch.inf).softmax(-1) @ v).isnan().any())


def _eager_of_ours() -> bool:
    return bool(attend(*_tensors(), mask=_NONE).isnan().any())


TRAPS = (
    Trap(LOCAL, "a row whose keys are all masked averages keys it may not see, the future too", _local, _local_of_ours),
    Trap(LOCAL, "autopad without a mask attends to the padding it adds", _autopad, _autopad_of_ours),
    Trap(
        XT, "without flash, a row whose keys are all masked averages the future too", _x_transformers, _causal_of_ours
    ),
    Trap(
        BIGBIRD,
        "at 1,024 tokens random blocks may be the last one, which every row sees: it counts twice",
        lambda: _bigbird(1024),
        lambda: _bigbird_of_ours(1024),
    ),
    Trap(SDPA, "NaN in masked values comes out", _sdpa_nan, _nan_of_ours),
    Trap(SDPA, "is_causal lines up beginnings: fewer queries than keys see other keys", _aligned, _aligned_of_ours),
    Trap(EAGER, "a row that sees nothing is NaN", _eager, _eager_of_ours),
)
