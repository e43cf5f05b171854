"""Which pattern, kernel and precision for a shape: candidates measured on this machine, and what each gives up."""

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from clearhead.bench.attention import prepared
from clearhead.bench.case import BLOCK, Case, check_device, coverage, synchronize
from clearhead.bench.comparison import Say, machine, peak_memories, shown
from clearhead.bench.measure import whole_errors
from clearhead.bench.peers import OURS, ours
from clearhead.bench.scaling import exponent
from clearhead.errors import InputError
from clearhead.maps import explain
from clearhead.patterns import NONE, Pattern, block_layout
from clearhead.patterns.parse import parse
from clearhead.train.sizes import beyond

FIRST = (2048, 4096)  # tokens at which all candidates run, if they are fewer than asked for
QUICK = 0.5  # seconds, below which a run is repeated
CELLS = 2048  # into so many a row is cut to find what reaches a token
FREE = 1.5
"""Full attention gives up nothing: it is recommended up to so many times the time of the fastest that reaches all."""
SLIGHT = 1.1
"""float32 is recommended up to so many times the time of bfloat16."""


@dataclass(frozen=True)
class Candidate:
    """One pattern in one precision, forward and backward; `measured` is the longest length that was run."""

    name: str
    pattern: str
    dtype: str
    kernel: str
    seconds: float
    memory: int
    measured: int
    exponent: float | None
    visible: float
    field: float
    error: float

    def row(self, length: int) -> list[str]:
        """As cells of a table."""
        about = "" if self.measured == length else "≈ "
        return [
            self.pattern,
            self.dtype,
            self.kernel,
            about + shown(self.seconds),
            f"{about}{self.memory / 2**20:,.0f} MiB" if self.memory >= 2**20 else f"{about}< 1 MiB",
            f"{self.visible:.2%}",
            f"{self.field:.0%}",
            f"{self.error:.0e}",
        ]


@dataclass(frozen=True)
class Advice:
    """Every candidate, the one to take, and why."""

    title: str
    length: int
    layers: int
    candidates: list[Candidate]
    best: Candidate
    why: str

    def lines(self) -> list[str]:
        """As a table; the recommended one is marked."""
        head = ["pattern", "dtype", "kernel", "time", "memory", "pairs seen", f"field, {self.layers} layers", "error"]
        rows = [head, *(one.row(self.length) for one in self.candidates)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        marks = ["  ", *("▸ " if one is self.best else "  " for one in self.candidates)]
        table = [
            mark
            + "  ".join(f"{x:<{w}}" if i < 3 else f"{x:>{w}}" for i, (x, w) in enumerate(zip(row, widths, strict=True)))
            for mark, row in zip(marks, rows, strict=True)
        ]
        far = [one for one in self.candidates if one.measured < self.length]
        notes = [f"  ≈ extrapolated from at most {max(one.measured for one in far):,} tokens"] if far else []
        best = f"{self.best.pattern} in {self.best.dtype}, kernel {self.best.kernel}"
        return [self.title, *table, *notes, *_LEGEND, "", f"recommended: {best}", f"because {self.why}"]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"machine": machine(), **asdict(self)}


_LEGEND = [
    "  time and memory are of attention alone, forward and backward, without projections; memory for each layer",
    "  field: the share of tokens that can reach one, the last if causal, else the middle one; error: of gradients",
]


def advise(
    length: int,
    embed_dim: int,
    heads: int,
    causal: bool = False,
    memory: str | None = None,
    device: str = "cpu",
    layers: int = 12,
    seconds: float = 90.0,
    say: Say | None = None,
) -> Advice:
    """Measure candidates for a shape on this machine, and recommend one.

    Args:
        length, embed_dim, heads: tokens, the model's width, and heads, of which the width is a multiple.
        memory: what a layer's attention may hold at most, such as "2GB"; None: any amount.
        layers: through so many, information can travel.
        seconds: about so long may candidates run at the length itself, the quickest first; the others are extrapolated
            from 2,048 and 4,096 tokens, with the exponent that they grew with, kept between 1 and 2.

    Raises InputError, naming what was wrong; where no candidate keeps to the memory, with the least that is needed.
    """
    budget = None if memory is None else size(memory)
    first = _case(length, embed_dim, heads, device)
    if layers < 1 or not seconds > 0:
        raise InputError(f"layers is {layers} and seconds {seconds:g}; layers must be at least 1 and seconds positive")
    if (problem := beyond((length // BLOCK) ** 2, "its blocks of pairs")) is not None:
        raise InputError(f"length {length:,}: {problem}; write a smaller --length")
    cases = {
        (name, dtype): replace(first, pattern=pattern, dtype=dtype)
        for name, pattern in candidates(length, causal).items()
        for dtype in ("float32", "bfloat16")
    }
    with_times = _timed(cases, seconds / 2, say)  # memory takes as long again
    held = _held(cases, with_times, say)
    if say:
        say("")
    found = [_candidate(name, cases[name, dtype], with_times[name, dtype], held[name, dtype], layers, causal)
             for name, dtype in cases]  # fmt: skip
    best, why = recommend(found, budget, memory)
    title = f"attention of {length:,} tokens, {heads} heads of {first.dim}{', causal' if causal else ''}, on {device}"
    return Advice(title, length, layers, found, best, why)


def _case(length: int, embed_dim: int, heads: int, device: str) -> Case:
    for name, value in (("length", length), ("embed-dim", embed_dim), ("heads", heads)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if embed_dim % heads:
        fitting = [n for n in range(1, embed_dim + 1) if embed_dim % n == 0]
        near = min(fitting, key=lambda n: abs(n - heads))
        raise InputError(f"embed-dim {embed_dim} cannot be shared by {heads} heads; write --heads {near}")
    check_device(device)
    return Case(length, heads, embed_dim // heads, device=device, backward=True)


def size(text: str) -> int:
    """Bytes that such as "2GB" or "512 MiB" names; InputError otherwise."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", text, re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise InputError(f"memory is {text!r}; write a size such as 2GB or 512MiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))


def candidates(length: int, causal: bool) -> dict[str, str]:
    """Names of patterns worth a try at this length, and how each is written."""
    step = max(2, math.isqrt(length))
    past = "causal() & " if causal else ""
    found = {"full": "causal()" if causal else "everything()"}
    for width in (64, 256, 1024):
        if 2 * width < length:
            found[f"window {width}"] = f"window({width}, 0)" if causal else f"window({width})"
    if length > 512:
        found["window + global"] = f"{past}(window(256) | first(1))" if causal else "longformer(512, [0])"
        found["chunks"] = f"{past}chunks(512)"
    if length > 1024:
        found["bigbird"] = f"{past}({parse('bigbird()')!r})" if causal else f"bigbird(length={length})"
    found["strided"] = f"sparse_transformer({step})" if causal else f"window({step}) | stride({step})"
    return found


@dataclass(frozen=True)
class _Timed:
    """Seconds at the lengths that were run, in their order."""

    seconds: dict[int, float]

    @property
    def measured(self) -> int:
        return max(self.seconds)

    def grown(self, values: Sequence[float], length: int) -> tuple[float, float | None]:
        """The last of `values`, at the last lengths run, taken on to `length`; and the exponent that it grew with.

        Attention takes at least every token and at most every pair: what noise makes of it beyond is not believed.
        """
        lengths = list(self.seconds)[-len(values) :]
        if lengths[-1] == length:
            return values[-1], None
        power = min(2.0, max(1.0, exponent(lengths, values))) if len(lengths) > 1 else 2.0
        return values[-1] * (length / lengths[-1]) ** power, power

    def expected(self, length: int) -> float:
        """Seconds at `length`."""
        return self.grown(list(self.seconds.values())[-2:], length)[0]


_Cases = Mapping[tuple[str, str], Case]


def _timed(cases: _Cases, seconds: float, say: Say | None) -> dict[tuple[str, str], _Timed]:
    """All at the first lengths; then at the length itself those for which there is time, the quickest first."""
    found: dict[tuple[str, str], _Timed] = {key: _Timed({}) for key in cases}
    length = next(iter(cases.values())).length
    short = [n for n in FIRST if n < length]
    for n in short:
        for key, case in cases.items():
            _run(key, case, n, found[key], say)
    begun = time.perf_counter()
    for key in sorted(cases, key=lambda key: found[key].expected(length)) if short else cases:
        if short and time.perf_counter() - begun + found[key].expected(length) > seconds:
            break
        _run(key, cases[key], length, found[key], say)
    return found


def _run(key: tuple[str, str], case: Case, length: int, found: _Timed, say: Say | None) -> None:
    if say:
        say(f"{key[0]} in {key[1]}: {length:,} tokens")
    run = ours(replace(case, length=length, pattern=_at(case, length))).run
    if torch.device(case.device).type == "cuda":
        run()  # which compiles
    times = [_seconds(run, case.device)]
    if times[0] < QUICK:
        times = [_seconds(run, case.device) for _ in range(3)]
    found.seconds[length] = statistics.median(times)


def _at(case: Case, length: int) -> str:
    """The pattern for a shorter row: one that draws keys from all of it draws from what there is."""
    return case.pattern.replace(f"length={case.length}", f"length={length}")


def _seconds(run: Callable[[], object], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def _held(cases: _Cases, times: Mapping[tuple[str, str], _Timed], say: Say | None) -> dict[tuple[str, str], list[int]]:
    """Peak memory at the last two lengths that were run, or at the one asked for."""
    if say:
        say("memory of all candidates")
    asked, keys = [], []
    for key, case in cases.items():
        lengths = list(times[key].seconds)
        for length in lengths[-1:] if lengths[-1] == case.length else lengths[-2:]:
            shorter = replace(case, length=length, pattern=_at(case, length))
            asked.append({"arm": OURS, **asdict(shorter)})
            keys.append(key)
    found: dict[tuple[str, str], list[int]] = {key: [] for key in cases}
    for key, held in zip(keys, peak_memories(prepared.__module__, "prepared", asked), strict=True):
        found[key].append(held)
    return found


def _candidate(name: str, case: Case, times: _Timed, held: Sequence[int], layers: int, causal: bool) -> Candidate:
    last = list(times.seconds.values())[-2:]
    seconds, power = times.grown(last, case.length)
    memory, _ = times.grown([float(max(1, x)) for x in held], case.length)
    q, k, *_ = Case(case.length, 1, 1, case.dtype, case.device).tensors()
    q, k = (x.expand(1, case.heads, case.length, case.dim) for x in (q, k))
    seen = coverage(case.mask, case.length).pairs / case.length**2
    field = receptive_field(case.mask, case.length, layers, causal)
    short = min(case.length, 512)
    errors = whole_errors(replace(case, length=short, pattern=_at(case, short)), ours)
    kernel = explain(q.requires_grad_(), k, case.mask).chosen
    worst = errors["gradients"]
    return Candidate(
        name, case.pattern, case.dtype, kernel, seconds, int(memory), times.measured, power, seen, field, worst
    )


def receptive_field(pattern: Pattern, length: int, layers: int, causal: bool = False) -> float:
    """The share of tokens from which something reaches the middle one (the last if causal) through so many layers.

    Rows are cut into at most 2,048 cells, of which all tokens count as reached when one is.
    """
    cell = -(-length // CELLS)
    at = torch.arange(length)[None, None]
    layout = block_layout(pattern, at, at, cell, cell)[0, 0] != NONE
    reached = torch.zeros(len(layout), dtype=torch.bool)
    reached[-1 if causal else len(layout) // 2] = True
    for _ in range(layers):
        reached = reached | layout[reached].any(0)
    return float(reached.float().mean())


def recommend(found: Sequence[Candidate], budget: int | None, said: str | None) -> tuple[Candidate, str]:
    """The candidate to take, and why; InputError, with the least that is needed, where none keeps to the budget."""
    fit = [one for one in found if budget is None or one.memory <= budget]
    if not fit:
        least = min(found, key=lambda one: one.memory)
        need = math.ceil(least.memory / 2**20)
        raise InputError(
            f"memory {said}: no candidate needs so little; the least is {need} MiB, "
            f"for {least.pattern} in {least.dtype}: write --memory {need}MiB or more"
        )
    reaching = [one for one in fit if one.field > 0.99]
    if not reaching:
        best = max(fit, key=lambda one: (one.field, -one.seconds))
        return _precise(best, fit), "nothing that fits reaches every token; this one reaches the most"
    fastest = min(reaching, key=lambda one: one.seconds)
    full = [one for one in reaching if one.name == "full"]
    if full and min(one.seconds for one in full) <= FREE * fastest.seconds:
        best = min(full, key=lambda one: one.seconds)
        return _precise(best, fit), f"it gives up nothing, at less than {FREE:g} times the time of what is fastest"
    return _precise(fastest, fit), "it is the fastest of those whose layers together reach every token"


def _precise(best: Candidate, fit: Sequence[Candidate]) -> Candidate:
    """The same pattern in float32, where that takes hardly longer."""
    others = [one for one in fit if one.name == best.name and one.dtype == "float32"]
    return others[0] if others and others[0].seconds <= SLIGHT * best.seconds else best
