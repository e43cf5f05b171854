"""One attention call of any pattern, beside every peer that knows the pattern."""

from collections.abc import Callable, Sequence
from typing import Any

from clearhead.bench.case import Case
from clearhead.bench.comparison import Say
from clearhead.bench.measure import measured, peaks, warm
from clearhead.bench.peers import PEERS
from clearhead.bench.table import Table


def bench_attention(
    case: Case,
    deviations: Sequence[float] = (),
    rounds: int = 5,
    memory: bool = True,
    say: Say | None = None,
) -> list[Table]:
    """Time, error and memory of one call, a table for each of `deviations` (of the logits; the case's own if none)."""
    case.check_size()
    cases = [Case(**{**vars(case), "deviation": each}) for each in deviations or [case.deviation]]
    return [measured(title(one), one, PEERS, rounds, peaks(__name__, one) if memory else None, say) for one in cases]


def title(case: Case) -> str:
    """Of a table."""
    passes = "forward and backward" if case.backward else "forward"
    logits = f", logits of deviation {case.deviation:g}" if case.deviation != 1 else ""
    where = f", {case.device}" if case.device != "cpu" else ""
    heads = f"{case.heads} heads of {case.dim}"
    return f"{case.pattern}, {case.length:,} tokens, {heads}, {case.dtype}{logits}{where}, {passes}"


def prepared(arm: str, **case: Any) -> Callable[[], object]:
    """One arm, ready to run, for its memory."""
    return warm(PEERS[arm], **case)
