"""How time and memory grow with the length: exponents fitted by least squares of logarithms, per kind of pattern."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from clearhead.bench.attention import prepared as attention_prepared
from clearhead.bench.case import Case, synchronize
from clearhead.bench.comparison import Comparison, Say, compare, peak_memories, quantile, shown
from clearhead.bench.peers import OURS, ours
from clearhead.errors import InputError

KINDS: Mapping[str, Callable[[int], str]] = {
    "full": lambda n: "everything()",
    "global": lambda n: "longformer(256, [0])",
    "local": lambda n: "window(128)",
    "sparse": lambda n: f"bigbird(length={n})",
    "strided": lambda n: f"sparse_transformer({max(1, math.isqrt(n))})",
}
"""Names, and how each pattern is written for n tokens. A step of √n makes `strided` grow as n^1.5 (Child 2019)."""
POINTS = 4


@dataclass(frozen=True)
class Growth:
    """Seconds (a list of rounds) and bytes by pattern and length, with the exponents fitted to them."""

    title: str
    case: dict[str, Any]
    patterns: dict[str, str]
    lengths: list[int]
    seconds: dict[str, list[list[float]]]
    memory: dict[str, list[int]] | None

    def time_exponent(self, kind: str) -> tuple[float, float, float]:
        """Of time: the median of the exponents of each round, and its quartiles."""
        fits = [exponent(self.lengths, times) for times in zip(*self.seconds[kind], strict=True)]
        return quantile(fits, 0.5), quantile(fits, 0.25), quantile(fits, 0.75)

    def memory_exponent(self, kind: str) -> float | None:
        """Of peak memory; None where it was not measured."""
        return None if self.memory is None else exponent(self.lengths, self.memory[kind])

    def lines(self) -> list[str]:
        """As a table."""
        ends = [f"{n:,}" for n in (self.lengths[0], self.lengths[-1])]
        head = ["", "pattern", *(f"n {end}" for end in ends), "time ∝ n^", "quartiles", "memory ∝ n^"]
        rows = [head, *(self._row(kind) for kind in self.seconds)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        left = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}" for row in rows]
        cells = ["".join(f"  {x:>{w}}" for x, w in zip(row[2:], widths[2:], strict=True)) for row in rows]
        note = f"  exponents fitted over {', '.join(f'{n:,}' for n in self.lengths)} tokens"
        return [self.title, *(f"  {a}{b}" for a, b in zip(left, cells, strict=True)), note, ""]

    def _row(self, kind: str) -> list[str]:
        middle, low, high = self.time_exponent(kind)
        ends = [shown(quantile(self.seconds[kind][i], 0.5)) for i in (0, -1)]
        grown = self.memory_exponent(kind)
        memory = "not measured" if grown is None else f"{grown:.2f}"
        return [kind, self.patterns[kind], *ends, f"{middle:.2f}", f"{low:.2f}–{high:.2f}", memory]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        fits = {
            kind: {**dict(zip(("time", "low", "high"), self.time_exponent(kind), strict=True))} for kind in self.seconds
        }
        for kind, fit in fits.items():
            fit["memory"] = self.memory_exponent(kind)  # type: ignore[assignment]
        return {**asdict(self), "exponents": fits}


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """a of values ∝ lengths^a, by least squares of the logarithms."""
    x, y = [math.log(n) for n in lengths], [math.log(max(value, 1e-12)) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    square = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / square


def bench_scaling(
    case: Case,
    pattern: str | None = None,
    points: int = POINTS,
    rounds: int = 3,
    memory: bool = True,
    say: Say | None = None,
) -> list[Growth]:
    """Growth up to `case.length`, over so many lengths of which each is twice the one before.

    `pattern` is measured instead of the full, global, local, sparse and strided ones; `case.pattern` is not read.
    """
    if points < 2 or case.length >> (points - 1) < 64:
        least = 64 << min(64, max(1, points - 1))
        raise InputError(f"{points} lengths up to {case.length} cannot be fitted; write 2 or more up to {least:,}")
    case.check_size()
    lengths = [case.length >> i for i in range(points)][::-1]
    kinds = KINDS if pattern is None else {pattern: lambda n: pattern}
    cases = {kind: [replace(case, length=n, pattern=written(n)) for n in lengths] for kind, written in kinds.items()}
    times = _times(cases, rounds, say)
    seconds = {kind: [times.seconds[f"{kind}, {one.length:,} tokens"] for one in each] for kind, each in cases.items()}
    held = {kind: _held(kind, each, say) for kind, each in cases.items()} if memory else None
    passes = "forward and backward" if case.backward else "forward"
    title = f"growth: {case.heads} heads of {case.dim}, {case.dtype}, {case.device}, {passes}"
    if say:
        say("")
    return [Growth(title, asdict(case), {k: each[-1].pattern for k, each in cases.items()}, lengths, seconds, held)]


def _times(cases: Mapping[str, Sequence[Case]], rounds: int, say: Say | None) -> Comparison:
    arms = {f"{kind}, {one.length:,} tokens": ours(one).run for kind, each in cases.items() for one in each}
    one = next(iter(cases.values()))[0]
    return compare("growth", arms, next(iter(arms)), rounds, say, wait=lambda: synchronize(one.device))


def _held(kind: str, cases: Sequence[Case], say: Say | None) -> list[int]:
    if say:
        say(f"memory: {kind}")
    each = [{"arm": OURS, **asdict(case)} for case in cases]
    return peak_memories(attention_prepared.__module__, "prepared", each)
