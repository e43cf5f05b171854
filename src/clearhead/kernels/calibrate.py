"""How fast the kernels are here: measured once for each device, dtype and shape class, and kept for `choose`."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clearhead.errors import InputError, nearest
from clearhead.kernels.call import Call, describe
from clearhead.kernels.choose import KERNELS, OUTPUT_ALONE
from clearhead.kernels.costs import WIDTHS, Rate, machine, measured, rates_file, work
from clearhead.kernels.flex import flex_attend
from clearhead.kernels.operator import run
from clearhead.kernels.score import Score
from clearhead.kernels.stream import Task
from clearhead.kernels.visible import Visible
from clearhead.patterns import Pattern, causal, documents, everything, window
from clearhead.writing import write_text

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TRIALS = {
    "sdpa": ((everything(), 1024), (everything(), 16)),
    "sdpa masked": ((causal() & window(128), 768), (causal() & window(8), 16)),
    "blocks": ((window(256), 2048), (causal() & ~window(300), 640)),
    "stream": ((window(256), 2048), (causal() & window(8), 16)),
    "flex": ((window(256), 8192), (causal() & window(8), 640)),
    "packed": ((documents(torch.arange(8192) // 512), 8192), (documents(torch.arange(64) // 16), 64)),
}
"""For each kernel a call whose pairs take the time, and one whose calls do."""
_HEADS = 4


@dataclass(frozen=True)
class Measured:
    """One row of what was measured: the rate of a kernel for a dtype and heads of a width."""

    dtype: str
    width: int
    kernel: str
    rate: Rate


def calibrate(
    device: str = "cpu",
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    widths: Sequence[int] = WIDTHS,
    rounds: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> list[Measured]:
    """Measure the kernels' rates on `device`, write them to the user's cache folder, and return them row by row.

    Forward and backward pass, the least of `rounds`; some 20 seconds for the usual dtypes and widths on two cores.
    `say` is told what is being measured. Rates of other devices that were measured before are kept. Raises InputError
    where a dtype or width is none that is measured, or the folder cannot be written to.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise InputError(f"unknown dtype {dtype!r}{nearest(dtype, DTYPES)}")
    for width in widths:
        if width not in WIDTHS:
            raise InputError(f"width {width} is no shape class; choose among {', '.join(map(str, WIDTHS))}")
    rows = []
    for dtype in dtypes:
        for width in widths:
            say(f"{device}, {dtype}, heads of width {width}")
            for kernel in _kernels(device, DTYPES[dtype], width):
                rows.append(Measured(dtype, width, kernel, _rate(kernel, device, DTYPES[dtype], width, rounds)))
    _write(device, rows)
    return rows


def _kernels(device: str, dtype: torch.dtype, width: int) -> list[str]:
    """Those that compute their own trial there."""
    found = []
    for kernel, ((pattern, n), _) in _TRIALS.items():
        misfit = dict(KERNELS)[kernel.split()[0]]
        visible = Visible(pattern, n, n, torch.device(device))
        call = Call((1, _HEADS, n, n), (width, width), visible.device, visible, Score(1.0), dtype=dtype)
        if misfit(call) is None:
            found.append(kernel)
    return found


def _write(device: str, rows: Sequence[Measured]) -> None:
    known = {**measured()}
    classes = dict(known.get(device, {}))
    for row in rows:
        name = f"{row.dtype} {row.width}"
        classes[name] = {**classes.get(name, {}), row.kernel: list(row.rate)}
    file: Path = rates_file()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(file, json.dumps({"machine": machine(), "rates": {**known, device: classes}}, indent=1) + "\n")
    except OSError as error:
        raise InputError(
            f"{file} cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder of yours"
        ) from None
    measured.cache_clear()


def _rate(kernel: str, device: str, dtype: torch.dtype, width: int, rounds: int) -> Rate:
    """From a call of many pairs and one of few."""
    (seconds, (pairs, calls)), (few_seconds, (few_pairs, few_calls)) = (
        _measured(kernel, pattern, n, device, dtype, width, rounds) for pattern, n in _TRIALS[kernel]
    )
    determinant = pairs * few_calls - few_pairs * calls
    pair = (seconds * few_calls - few_seconds * calls) / determinant if determinant else seconds / pairs
    if pair <= 0:  # noise: calls took all the time
        return Rate(seconds / pairs, 0.0)
    return Rate(pair, max(0.0, (few_seconds - few_pairs * pair) / few_calls))


def _measured(
    kernel: str, pattern: Pattern, n: int, device: str, dtype: torch.dtype, width: int, rounds: int
) -> tuple[float, tuple[int, int]]:
    """Seconds of forward and backward pass, and what work that is: pairs and calls."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(1, _HEADS, n, width, generator=generator).to(device, dtype) for _ in range(4))
    pattern = pattern.to(device)
    visible, score = Visible(pattern, n, n, q.device), Score(width**-0.5)
    call = describe(q, k, width, visible, score)
    q, k, v = (x.requires_grad_() for x in (q, k, v))

    def trial() -> None:
        out = _output(kernel.split()[0], q, k, v, visible, score)
        torch.autograd.grad(out, (q, k, v), g)

    trial()  # compiles, and makes plans
    return min(_seconds(trial, q.device) for _ in range(rounds)), work(kernel.split()[0], call)


def _output(kernel: str, q: Tensor, k: Tensor, v: Tensor, visible: Visible, score: Score) -> Tensor:
    if kernel in OUTPUT_ALONE:
        return OUTPUT_ALONE[kernel](q, k, v, visible, score)
    return (
        flex_attend(q, k, v, visible, score)[0] if kernel == "flex" else run(q, k, v, Task(visible, score), kernel)[0]
    )


def _seconds(trial: Callable[[], None], device: torch.device) -> float:
    """How long a trial takes, by as many as fill 10 ms."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    count, total = 0, 0.0
    wait()
    start = time.perf_counter()
    while total < 0.01:
        trial()
        wait()
        count, total = count + 1, time.perf_counter() - start
    return total / count
