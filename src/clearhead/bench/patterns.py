"""Every kind of pattern at one length, beside the peers that know it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from clearhead.bench import packed
from clearhead.bench.attention import title
from clearhead.bench.case import Case
from clearhead.bench.comparison import Say
from clearhead.bench.measure import measured, peaks, warm
from clearhead.bench.peers import FLEX, PEERS, Job, NotRun, Prepare, flex
from clearhead.bench.table import Table
from clearhead.errors import InputError, nearest

KINDS: Mapping[str, Callable[[int], str]] = {
    "full": lambda n: "everything()",
    "causal": lambda n: "causal()",
    "local": lambda n: "window(256)",
    "longformer": lambda n: "longformer(512, [0])",
    "bigbird": lambda n: f"bigbird(length={n})",
    "sparse_transformer": lambda n: "sparse_transformer(128)",
    "chunks": lambda n: "chunks(256)",
    "prefix": lambda n: f"causal() | prefix({n // 4})",
}
"""Names of patterns, and how each is written for n tokens."""
DOCUMENTS = "documents"
PACKED, MEAN = 64, 128


def bench_patterns(
    case: Case, only: Sequence[str] = (), rounds: int = 3, memory: bool = False, say: Say | None = None
) -> list[Table]:
    """A table for each kind of pattern (`only` these, if any), of one length; `case.pattern` is not read.

    Documents are 64 packed sequences with a mean of 128 tokens, whatever the length. FlexAttention is left out on a
    CPU, where it compiles for half a minute a pattern: `bench_attention` has it.
    """
    names = [*KINDS, DOCUMENTS]
    for name in only:
        if name not in names:
            raise InputError(f"unknown pattern {name!r}{nearest(name, names)}")
    case.check_size()
    return [_table(name, case, rounds, memory, say) for name in only or names]


def _table(name: str, case: Case, rounds: int, memory: bool, say: Say | None) -> Table:
    if name == DOCUMENTS:
        case = replace(case, length=PACKED * MEAN, documents=PACKED, pattern="everything()")
        arms, heading = packed.ARMS, packed.title(case)
    else:
        case = replace(case, pattern=KINDS[name](case.length))
        arms, heading = ARMS, f"{name}: {title(case)}"
    return measured(heading, case, arms, rounds, peaks(__name__, case) if memory else None, say)


def _flex(case: Case) -> Job:
    if torch.device(case.device).type == "cpu":
        raise NotRun("left out: it compiles for half a minute; clearhead bench attention has it")
    return flex(case)


ARMS: Mapping[str, Prepare] = {**PEERS, FLEX: _flex}


def prepared(arm: str, **case: Any) -> Callable[[], object]:
    """One arm, ready to run, for its memory."""
    return warm((packed.ARMS if case["documents"] else ARMS)[arm], **case)
