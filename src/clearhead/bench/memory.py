"""Peak memory at lengths where n² weights are out of reach: each arm in a process of its own."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from clearhead.bench import attention, statistics
from clearhead.bench.case import DTYPES, Case, coverage
from clearhead.bench.comparison import Say, peak_memory
from clearhead.bench.measure import warm
from clearhead.bench.peers import EAGER, FULL, LOCAL, LONGFORMER, OURS, PEERS, SDPA, NotRun, Prepare

MATRIX = "one matrix of weights would hold"
OUTPUTS: Mapping[str, Prepare] = {arm: PEERS[arm] for arm in (OURS, LOCAL, LONGFORMER, SDPA, FULL, EAGER)}
SEEN: Mapping[str, Prepare] = {arm: statistics.ARMS[arm] for arm in (statistics.BOTH, SDPA, EAGER)}
LONG = 4e12
"""Floating point operations above which an arm that goes through every pair is left out: minutes on two cores."""


@dataclass(frozen=True)
class Peaks:
    """Bytes that each arm held at most beyond its arguments, results included."""

    title: str
    case: dict[str, Any]
    bytes: dict[str, int]
    missing: dict[str, str]

    def lines(self) -> list[str]:
        """As a table."""
        width = max(map(len, [*self.bytes, *self.missing]))
        rows = [f"  {arm:<{width}}  {held / 2**20:>9,.0f} MiB" for arm, held in self.bytes.items()]
        return [self.title, *rows, *(f"  {arm:<{width}}  {why}" for arm, why in self.missing.items()), ""]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bench_memory(case: Case, say: Say | None = None) -> list[Peaks]:
    """Peak memory of the case's pattern, and of output with all row statistics of one head that sees everything."""
    case.check_size()
    seen = replace(case, heads=1, pattern="everything()", backward=False)
    return [
        _peaks("peak memory: " + attention.title(case), OUTPUTS, case, say),
        _peaks("peak memory, with statistics: " + attention.title(seen), SEEN, seen, say),
    ]


def _peaks(title: str, arms: Mapping[str, Prepare], case: Case, say: Say | None) -> Peaks:
    held, missing = {}, {}
    for arm in arms:
        if say:
            say(f"{title}: {arm}")
        try:
            _affordable(arm, case)
            arms[arm](case)
            held[arm] = peak_memory(__name__, "prepared", arm=arm, **asdict(case))
        except NotRun as reason:
            missing[arm] = str(reason)
    if say:
        say("")
    held[MATRIX] = case.heads * case.length**2 * DTYPES[case.dtype].itemsize
    return Peaks(title, asdict(case), held, missing)


def _affordable(arm: str, case: Case) -> None:
    pairs = case.length**2 if arm in (SDPA, FULL, EAGER) else coverage(case.mask, case.length).pairs
    work = pairs * case.heads * case.dim * 2 * (7 if case.backward else 2)
    if work > LONG and case.device == "cpu":
        raise NotRun(f"not run: {work / 1e12:,.0f} million million operations would take minutes")


def prepared(arm: str, **case: Any) -> Callable[[], object]:
    """One arm, ready to run."""
    return warm((OUTPUTS if arm in OUTPUTS and case["pattern"] != "everything()" else {**OUTPUTS, **SEEN})[arm], **case)
