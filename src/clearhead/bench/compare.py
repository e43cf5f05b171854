"""Paired measurements: the arms of a comparison take turns, so that a machine that slows down slows all of them."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from clearhead.errors import ClearheadError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """Seconds of each arm in each round, in the same order, and which arm the others are held against."""

    title: str
    seconds: dict[str, list[float]]
    peer: str
    memory: dict[str, int] | None = None
    """Peak memory beyond what was held before, in bytes."""

    def median(self, arm: str) -> float:
        """Seconds."""
        return _quantile(self.seconds[arm], 0.5)

    def ratio(self, arm: str, to: str | None = None) -> tuple[float, float, float]:
        """The median of the ratios of each round, and its quartiles: `arm` to the peer, or to another arm."""
        peer = self.seconds[self.peer if to is None else to]
        ratios = [own / other for own, other in zip(self.seconds[arm], peer, strict=True)]
        return _quantile(ratios, 0.5), _quantile(ratios, 0.25), _quantile(ratios, 0.75)

    def lines(self) -> list[str]:
        """As a table."""
        head = ["", "median", "ratio", "quartiles"] + (["memory", "ratio"] if self.memory else [])
        rows = [head, *(self._row(arm) for arm in self.seconds)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = []
        for name, *cells in rows:
            numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            lines.append(f"  {name:<{widths[0]}}{numbers}")
        return [self.title, *lines]

    def _row(self, arm: str) -> list[str]:
        middle, low, high = self.ratio(arm)
        timed = middle == middle
        row = [arm, _time(self.median(arm)), f"{middle:.3f}", f"{low:.3f}–{high:.3f}"] if timed else [arm, "", "", ""]
        if self.memory:
            own, peer = self.memory[arm], max(1, self.memory[self.peer])
            row += [f"{own / 2**20:,.0f} MiB", f"{own / peer:.3f}"]
        return row

    def record(self) -> dict[str, Any]:
        """For JSON."""
        ratios = {arm: dict(zip(("median", "low", "high"), self.ratio(arm), strict=True)) for arm in self.seconds}
        return {**asdict(self), "ratios": ratios}


def compare(
    title: str, arms: Mapping[str, Callable[[], object]], peer: str, rounds: int, say: Say | None = None
) -> Comparison:
    """Run every arm once to warm up, and then `rounds` times in turns, first forwards, then backwards, and so on."""
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for i in range(-1, rounds):
        for arm in list(arms) if i % 2 else list(arms)[::-1]:
            if say:
                say(f"{title}: {arm}, " + ("warming up" if i < 0 else f"round {i + 1} of {rounds}"))
            start = time.perf_counter()
            arms[arm]()
            if i >= 0:
                seconds[arm].append(time.perf_counter() - start)
    if say:
        say("")
    return Comparison(title, seconds, peer)


def peak_memory(module: str, function: str, **arguments: Any) -> int:
    """The most memory that `function(**arguments)` of `module` held beyond what its preparation did, in bytes.

    It runs in a process of its own and returns what is to be measured as a callable, after preparing it.
    """
    program = (
        "import importlib, json, sys; from clearhead.bench.compare import grown\n"
        "name, function, arguments = json.loads(sys.argv[1])\n"
        "print(grown(getattr(importlib.import_module(name), function)(**arguments)))"
    )
    given = json.dumps([module, function, arguments])
    done = subprocess.run([sys.executable, "-c", program, given], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ClearheadError(f"measuring the memory of {function} failed: {last}")
    return int(done.stdout.split()[-1])


def grown(work: Callable[[], object]) -> int:
    """By how many bytes the most memory that this process ever held grows in `work`."""
    before = _held("VmRSS")
    work()
    return max(0, _held("VmHWM") - before)


def _held(what: str) -> int:
    """What this process holds now (VmRSS) or the most that it ever held (VmHWM, and where the system tells no more).

    On Linux not from `getrusage`: its maximum began as what the process held that started this one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(what)) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> dict[str, Any]:
    """What the figures are of."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _quantile(values: Sequence[float], share: float) -> float:
    """By linear interpolation."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
