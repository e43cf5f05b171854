"""What it costs to see: outputs with statistics, received, pooled maps, beside the fused call and the eager matrix."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clearhead.bench.attention import title
from clearhead.bench.case import POOLED, Case, shape_of
from clearhead.bench.comparison import Say
from clearhead.bench.measure import measured, peaks, warm
from clearhead.bench.peers import EAGER, SDPA, Job, NotRun, Prepare, dense, ours, room, sdpa
from clearhead.bench.table import Table
from clearhead.errors import InputError, nearest
from clearhead.maps import Softmax, SoftmaxMap

BOTH, ALONE, SOME = "output + row statistics", "row statistics alone", "statistics of 64 rows"
RECEIVED, POOL, OUTPUT = "received", f"pool({POOLED}, {POOLED})", "output alone"
_READ = ("entropy", "logsumexp", "max_weight", "max_logit")


def bench_statistics(
    case: Case,
    only: Sequence[str] = (),
    rounds: int = 5,
    memory: bool = True,
    say: Say | None = None,
) -> list[Table]:
    """Statistics beside SDPA alone and eager attention; `only` names the arms, all if none. SDPA always runs.

    With `case.backward`, gradients are of the output and the entropy of rows, and of the output alone for SDPA.
    """
    for name in only:
        if name not in ARMS:
            raise InputError(f"unknown arm {name!r}{nearest(name, ARMS)}")
    arms = {name: arm for name, arm in ARMS.items() if not only or name in only or name == SDPA}
    case.check_size()
    taken = peaks(__name__, case) if memory else None
    return [measured("statistics: " + title(case), case, arms, rounds, taken, say, peer=SDPA)]


def _map(case: Case, q: Tensor, k: Tensor) -> SoftmaxMap:
    return Softmax(case.mask)(q, k)


def _seen(case: Case, look: Callable[[SoftmaxMap, Tensor], dict[str, Any]]) -> Job:
    """A job without gradients: what `look` makes of the map and the values."""
    if case.backward:
        raise NotRun("measured without gradients: leave --backward out")
    q, k, v, _ = case.tensors()

    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            found = look(_map(case, q, k), v)
        names[:] = found
        return list(found.values())

    names: list[str] = []
    return Job(run, lambda found: dict(zip(names, found, strict=True)))


def _both(case: Case) -> Job:
    if not case.backward:
        return _seen(case, _output_and_statistics)
    return _learned(case, lambda q, k, v: _output_and_statistics(_map(case, q, k), v))


def _output_and_statistics(A: SoftmaxMap, v: Tensor) -> dict[str, Tensor]:
    out, seen = A.apply(v, statistics=True)
    return {"output": out, **{name: getattr(seen, name) for name in _READ}}


def _learned(case: Case, forward: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]) -> Job:
    """Forward, and the gradients of output and entropy."""
    *given, grad = case.tensors()
    q, k, v = (x.requires_grad_() for x in given)

    def run() -> Sequence[Tensor]:
        found = forward(q, k, v)
        kept = (found["output"], found["entropy"])
        gradients = torch.autograd.grad(kept, (q, k, v), (grad, grad[..., 0].to(kept[1].dtype)))
        return [*(found[name].detach() for name in ("output", *_READ)), *gradients]

    return Job(run, lambda found: dict(zip(("output", *_READ, "dq", "dk", "dv"), found, strict=True)), entropy=True)


def _eager(case: Case) -> Job:
    room(case, 4 if case.backward else 3)
    hidden = None if shape_of(case.mask, case.length).kind == "everything" else ~dense(case)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        logits = q @ k.mT / math.sqrt(case.dim)
        logits = logits if hidden is None else logits.masked_fill(hidden, -math.inf)
        weights, lse = logits.softmax(-1), logits.logsumexp(-1)
        # not by entr: its gradient is infinite where a weight is 0, and softmax makes NaN of that
        shown = logits if hidden is None else logits.masked_fill(hidden, 0)
        seen = {"entropy": lse - (weights * shown).sum(-1), "logsumexp": lse}
        return {"output": weights @ v, **seen, "max_weight": weights.amax(-1), "max_logit": logits.amax(-1)}

    if case.backward:
        return _learned(case, forward)
    q, k, v, _ = case.tensors()

    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return list(forward(q, k, v).values())

    return Job(run, lambda found: dict(zip(("output", *_READ), found, strict=True)))


def _alone(case: Case) -> Job:
    return _seen(case, lambda A, v: {name: getattr(A.statistics(received=False), name) for name in _READ[:1]})


def _some(case: Case) -> Job:
    rows = range(0, case.length, max(1, case.length // 64))
    return _seen(case, lambda A, v: {"some": A.statistics(rows).entropy})


def _received(case: Case) -> Job:
    return _seen(case, lambda A, v: {"received": A.received()})


def _pool(case: Case) -> Job:
    return _seen(case, lambda A, v: {"pool": A.pool(POOLED, POOLED)})


ARMS: Mapping[str, Prepare] = {
    BOTH: _both,
    SDPA: sdpa,
    EAGER: _eager,
    OUTPUT: ours,
    ALONE: _alone,
    SOME: _some,
    RECEIVED: _received,
    POOL: _pool,
}


def prepared(arm: str, **case: Any) -> Callable[[], object]:
    """One arm, ready to run, for its memory."""
    return warm(ARMS[arm], **case)
