"""Paired measurements: the arms of a comparison take turns, so that a machine that slows down slows all of them."""

import contextlib
import ctypes
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
        return quantile(self.seconds[arm], 0.5)

    def ratio(self, arm: str, to: str | None = None) -> tuple[float, float, float]:
        """The median of the ratios of each round, and its quartiles: `arm` to the peer, or to another arm."""
        peer = self.seconds[self.peer if to is None else to]
        ratios = [own / other for own, other in zip(self.seconds[arm], peer, strict=True)]
        return quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75)

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
        row = [arm, shown(self.median(arm)), f"{middle:.3f}", f"{low:.3f}–{high:.3f}"] if timed else [arm, "", "", ""]
        if self.memory:
            own, peer = self.memory[arm], max(1, self.memory[self.peer])
            row += [f"{own / 2**20:,.0f} MiB", f"{own / peer:.3f}"]
        return row

    def record(self) -> dict[str, Any]:
        """For JSON."""
        ratios = {arm: dict(zip(("median", "low", "high"), self.ratio(arm), strict=True)) for arm in self.seconds}
        return {**asdict(self), "ratios": ratios}


def compare(
    title: str,
    arms: Mapping[str, Callable[[], object]],
    peer: str,
    rounds: int,
    say: Say | None = None,
    repeat: int = 1,
    wait: Callable[[], object] | None = None,
) -> Comparison:
    """Run every arm once to warm up, and then `rounds` times in turns, first forwards, then backwards, and so on.

    Args:
        repeat: how often an arm runs between two looks at the clock, whose seconds are then those of one run.
        wait: what waits for a device that works on while Python goes on, called before each look at the clock.
    """
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for i in range(-1, rounds):
        for arm in list(arms) if i % 2 else list(arms)[::-1]:
            if say:
                say(f"{title}: {arm}, " + ("warming up" if i < 0 else f"round {i + 1} of {rounds}"))
            taken = _seconds(arms[arm], repeat, wait)
            if i >= 0:
                seconds[arm].append(taken)
    if say:
        say("")
    return Comparison(title, seconds, peer)


def _seconds(work: Callable[[], object], repeat: int, wait: Callable[[], object] | None) -> float:
    """Of one run of `work`."""
    if wait:
        wait()
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    if wait:
        wait()
    return (time.perf_counter() - start) / repeat


def peak_memory(module: str, function: str, **arguments: Any) -> int:
    """The most memory that `function(**arguments)` of `module` held beyond what its preparation did, in bytes.

    It runs in a process of its own and returns what is to be measured as a callable, after preparing it.
    """
    return _peaks(module, function, [arguments])[0]


def peak_memories(module: str, function: str, each: Sequence[Mapping[str, Any]]) -> list[int]:
    """`peak_memory` for `each` of several arguments: in one process where its mark can be set back, as on Linux."""
    if os.path.exists(_MARK):
        return _peaks(module, function, each)
    return [peak_memory(module, function, **arguments) for arguments in each]


_MARK = "/proc/self/clear_refs"


def _peaks(module: str, function: str, each: Sequence[Mapping[str, Any]]) -> list[int]:
    program = (
        "import importlib, json, sys; from clearhead.bench.comparison import grown\n"
        "name, function, each = json.loads(sys.argv[1])\n"
        "work = getattr(importlib.import_module(name), function)\n"
        "print(json.dumps([grown(work(**arguments)) for arguments in each]))"
    )
    given = json.dumps([module, function, [dict(arguments) for arguments in each]])
    done = subprocess.run([sys.executable, "-c", program, given], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ClearheadError(f"measuring the memory of {function} failed: {last}")
    return [int(x) for x in json.loads(done.stdout.splitlines()[-1])]


def grown(work: Callable[[], object]) -> int:
    """How many bytes more than before are held in `work` at its height: of the GPU, where one has been used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not serve the work, or it would seem to need less
    with contextlib.suppress(OSError), open(_MARK, "w", encoding="ascii") as file:
        file.write("5")  # Linux: the most that was ever held begins anew, so that preparing and warming up do not count
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


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures are of."""
    gpu = {"device": torch.cuda.get_device_name(device)} if torch.device(device).type == "cuda" else {}
    return gpu | {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """Its name, where the system tells."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    return platform.processor() or platform.machine()


def quantile(values: Sequence[float], share: float) -> float:
    """By linear interpolation."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def shown(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"
