"""How a question is answered: results are held against float64, then arms are timed in turns, then memory is taken."""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from clearhead.bench.case import (
    DTYPES,
    Case,
    coverage,
    reference,
    reference_whole,
    relative_error,
    sampled,
    synchronize,
)
from clearhead.bench.comparison import Say, compare, peak_memory
from clearhead.bench.peers import Job, NotRun, Prepare
from clearhead.bench.table import Table
from clearhead.bench.traps import fallen
from clearhead.errors import ClearheadError

LIMIT = "matrix product"
CHECKED = 1024
"""Tokens up to which gradients are held against a float64 matrix; longer cases are checked at this length."""
STATISTICS = ("entropy", "logsumexp", "max_weight", "max_logit")
_RIGHT = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def measured(
    title: str,
    case: Case,
    arms: Mapping[str, Prepare],
    rounds: int,
    memory: Callable[[str], int] | None = None,
    say: Say | None = None,
    notes: Sequence[str] = (),
    peer: str | None = None,
) -> Table:
    """Answer one question: `arms` make their jobs of `case`, and take turns.

    Args:
        peer: what ratios are to; None: the first that runs behind our own arm, which is the first.
        memory: takes the peak memory of an arm, by its name; None: not measured.
    """
    jobs, missing = _prepared(title, case, arms, say)
    if not jobs:
        raise ClearheadError(f"{title}: nothing runs: {'; '.join(f'{arm}: {why}' for arm, why in missing.items())}")
    errors = {arm: _errors(title, case, arm, arms[arm], job, say) for arm, job in jobs.items()}
    ours, *peers = jobs
    timed: dict[str, Callable[[], object]] = {arm: job.run for arm, job in jobs.items()}
    times = compare(
        title,
        timed | {LIMIT: (product := _product(case))[0]},
        peer if peer in jobs else [*peers, ours][0],
        rounds,
        say,
        wait=lambda: synchronize(case.device),
    )
    limit = product[1] / times.median(LIMIT)
    held = _memory(jobs, missing, memory, say)
    kept = replace(times, seconds={arm: times.seconds[arm] for arm in jobs})
    told = [*notes, *_told(case, jobs, errors), f"limit: {limit / 1e9:,.0f} GFLOP/s, {product[2]}"]
    work = {arm: _work(case, job) for arm, job in jobs.items() if "output" in errors[arm]}
    return Table(kept, asdict(case), errors, held, work, limit, missing, tuple(told))


def _prepared(title: str, case: Case, arms: Mapping[str, Prepare], say: Say | None) -> tuple[dict[str, Job], dict]:
    jobs, missing = {}, {}
    for arm, prepare in arms.items():
        if say:
            say(f"{title}: preparing {arm}")
        try:
            jobs[arm] = quiet(prepare, case)
        except NotRun as reason:
            missing[arm] = str(reason)
    return jobs, missing


def quiet(prepare: Prepare, case: Case) -> Job:
    """A job, without what peers print while they load."""
    with contextlib.redirect_stdout(io.StringIO()):
        return prepare(case)


def _errors(title: str, case: Case, arm: str, prepare: Prepare, job: Job, say: Say | None) -> dict[str, float]:
    """Of the output and the statistics on sampled rows of the case itself, and of gradients where it is short."""
    if say:
        say(f"{title}: checking {arm}")
    found = job.read(job.run())
    rows = sampled(case)
    sees = job.sees()[:, rows] if job.sees else None
    wanted = reference(case, rows, sees)
    errors = {"output": _on_rows(found["output"], wanted["output"], rows)} if "output" in found else {}
    told = [_on_rows(found[name], wanted[name], rows) for name in STATISTICS if name in found]
    if told:
        errors["statistics"] = max(told)
    if found.keys() & _KIND.keys():
        errors |= whole_errors(replace(case, length=min(case.length, CHECKED)), prepare)
    return errors


_KIND = {"dq": "gradients", "dk": "gradients", "dv": "gradients", "received": "statistics", "pool": "statistics"}


def whole_errors(case: Case, prepare: Prepare) -> dict[str, float]:
    """The largest errors of what needs all rows; none where the arm does not run at that length."""
    try:
        job = quiet(prepare, case)
    except NotRun:
        return {}
    found = job.read(job.run())
    wanted = reference_whole(case, job.sees() if job.sees else None, job.entropy)
    errors: dict[str, float] = {}
    for name in found.keys() & wanted.keys():
        error = relative_error(found[name], wanted[name])
        errors[_KIND[name]] = max(error, errors.get(_KIND[name], 0.0))
    return errors


def _on_rows(found: Tensor, wanted: Tensor, rows: Tensor) -> float:
    """The relative error of what was found, of all rows or of these."""
    return relative_error(found if found.shape[2] == len(rows) else found.cpu()[:, :, rows], wanted)


def _told(case: Case, jobs: Mapping[str, Job], errors: Mapping[str, dict]) -> list[str]:
    """What must be known of the arms: how they run, and which are wrong."""
    told = [f"{arm}: {job.explained}" for arm, job in jobs.items() if job.explained]
    told += [f"{arm} gets wrong elsewhere: {words}" for arm in jobs for words in fallen(arm)]
    for arm, found in errors.items():
        wrong = {kind: error for kind, error in found.items() if not error <= _RIGHT[case.dtype]}
        told += [f"{arm} is WRONG here: its {kind} differs from float64 by {e:.0%}" for kind, e in wrong.items()]
    if case.documents:
        return told
    seen = coverage(case.mask, case.length)
    about = "about " if seen.estimated else ""
    told.append(
        f"{about}{seen.pairs / case.length**2:.2%} of the pairs are visible; "
        f"blocks of 64 × 64 visited over needed: {seen.visited / max(1, seen.needed):.3f}"
    )
    return told


def _work(case: Case, job: Job) -> float:
    """Floating point operations of the visible pairs: 2 products forward, 5 more with a backward pass (Dao 2022)."""
    if job.sees:
        pairs = float(job.sees().float().sum(dtype=torch.float64)) / job.sees().shape[0]
    elif case.documents:
        pairs = float(sum(length**2 for length in case.document_lengths()))
    else:
        pairs = coverage(case.mask, case.length).pairs
    return float(pairs * case.heads * case.dim * 2 * (7 if case.backward else 2))


def _product(case: Case) -> tuple[Callable[[], Tensor], float, str]:
    """A plain matrix product in the case's dtype, its operations, and what it is."""
    side = 2048 if torch.device(case.device).type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=case.device).to(DTYPES[case.dtype]) for _ in range(2))
    return lambda: a @ b, 2.0 * side**3, f"a product of two {side:,} × {side:,} matrices in {case.dtype}, in turns"


def _memory(
    jobs: Mapping[str, Job], missing: Mapping[str, str], memory: Callable[[str], int] | None, say: Say | None
) -> dict[str, int]:
    if memory is None:
        return {}
    found = {}
    for arm in jobs:
        if say:
            say(f"memory: {arm}")
        found[arm] = memory(arm)
    if say:
        say("")
    return found


def peaks(module: str, case: Case) -> Callable[[str], int]:
    """How `measured` takes peak memory: `prepared(arm, **case)` of `module`, in a process of its own for each arm."""
    return lambda arm: peak_memory(module, "prepared", arm=arm, **asdict(case))


def warm(prepare: Prepare, **case: Any) -> Callable[[], object]:
    """An arm, ready to run, whose libraries have been loaded by a case of a few hundred tokens."""
    whole = Case(**case)
    with contextlib.suppress(NotRun):
        quiet(prepare, replace(whole, length=min(whole.length, 256), documents=min(whole.documents, 2))).run()
    return quiet(prepare, whole).run
