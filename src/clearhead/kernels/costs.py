"""What a kernel is predicted to cost: time from the pairs it visits and the calls it makes, memory from what it holds.

Shapes: B samples, H heads, Nq queries, Nk keys, D width.
"""

import json
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.kernels import flex, fused, packed, stream
from clearhead.kernels.call import Call
from clearhead.kernels.tiles import COMPILED, PAIRS, Size

WIDTHS = (32, 64, 128)
"""The shape classes that are measured: widths of a head; a call belongs to the nearest."""


class Rate(NamedTuple):
    """Seconds for a pair of a query and a key of one head, and for a call; forward and backward together."""

    pair: float
    call: float


@dataclass(frozen=True)
class Cost:
    """A prediction for forward and backward pass. `memory` is what is held beside inputs, output and gradients.

    `seconds` is None where nothing was measured on the device.
    """

    seconds: float | None
    memory: int

    def words(self) -> tuple[str, str]:
        """Time and memory as people write them."""
        return "not measured" if self.seconds is None else in_seconds(self.seconds), in_bytes(self.memory)


RATES = {
    "float32": {
        "sdpa": Rate(5.6e-9, 6e-5),
        "sdpa masked": Rate(6.8e-9, 8e-5),
        "blocks": Rate(8e-9, 2e-4),
        "stream": Rate(4.8e-9, 2e-4),
    },
    "half": {
        "sdpa": Rate(4.6e-9, 6e-5),
        "sdpa masked": Rate(5.6e-9, 8e-5),
        "blocks": Rate(7e-9, 2e-4),
        "stream": Rate(4.5e-9, 2e-4),
    },
}
"""Where nothing was measured: widths of 64 on two cores with AVX-512. What counts is how kernels compare."""


def rate(kernel: str, device: torch.device, dtype: torch.dtype, width: int) -> Rate | None:
    """The rate of a kernel: as measured here by `calibrate`, else, on CPUs, where the library was written."""
    near = min(WIDTHS, key=lambda known: abs(known - width))
    found = measured().get(str(device.type), {}).get(f"{str(dtype).removeprefix('torch.')} {near}", {}).get(kernel)
    if found is not None:
        return Rate(found[0] * ((32 + width) / (32 + near)), found[1])
    if device.type != "cpu":
        return None
    usual = RATES["half" if dtype.itemsize == 2 else "float32"][kernel]
    return Rate(usual.pair * (32 + width) / 96 * max(1, dtype.itemsize // 4), usual.call)


@lru_cache
def measured() -> dict[str, dict[str, dict[str, list[float]]]]:
    """What `calibrate` found on this machine: device, class, kernel, and its rate; empty where it never ran."""
    try:
        found = json.loads(rates_file().read_text(encoding="utf-8"))
        return dict(found["rates"]) if found["machine"] == machine() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def rates_file() -> Path:
    """Where `calibrate` writes, in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, __name__.partition(".")[0], "rates.json")


def machine() -> str:
    """What rates depend on, beside the device: another machine, torch or number of threads is measured again."""
    return f"{platform.machine()} {platform.processor()} {os.cpu_count()} {torch.__version__} {torch.get_num_threads()}"


def in_bytes(size: int | float) -> str:
    """A size as people write it, such as 1.2 GB."""
    for unit, step in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if size >= step:
            return f"{size / step:.3g} {unit}"
    return f"{int(size)} B"


def in_seconds(seconds: int | float) -> str:
    """A time as people write it, such as 1.2 ms."""
    for unit, step in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= step:
            return f"{seconds / step:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


_UNITS = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def as_bytes(size: int | str) -> int:
    """A size as people write it, in bytes: 1500000, "200 MB" or "1.5GB"."""
    text = str(size).strip().upper()
    number = text.rstrip("KMGB ")
    unit = text[len(number) :].strip()
    try:
        found = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        found = 0
    if found < 1 or isinstance(size, bool):
        raise InputError(f"memory is {size!r}; write bytes as a whole number, or as in '200MB' or '1.5GB'")
    return found


def predicted(kernel: str, call: Call) -> Cost:
    """What a kernel that fits a call is predicted to cost."""
    name = "sdpa masked" if kernel == "sdpa" and call.mask_cells else kernel
    each = rate(name, call.device, call.dtype, sum(call.widths) // 2)
    if each is None:
        return Cost(None, _memory(kernel, call))
    pairs, calls = work(kernel, call)
    slower = 2 if kernel == "stream" and _tensor_by_tensor(call) else 1
    return Cost(slower * pairs * each.pair + calls * each.call, _memory(kernel, call))


def how_streamed(call: Call) -> str:
    """In words, how `stream` computes a call."""
    return stream.how(*_empty(call))


def by_matrix_units(call: Call) -> bool:
    """Does `stream` take the products of a call's forward pass by matrix units?"""
    q, k, v, task = _empty(call)
    return fused.halves(q, k, v) is None and stream.misfit(q, k, v, task) is None


def _empty(call: Call) -> tuple[Tensor, Tensor, Tensor, stream.Task]:
    """A call's task, and queries, keys and values of its kind with nothing in them."""
    width, value_width = call.widths
    q = torch.empty(0, width, dtype=call.dtype, device=call.device)
    return q, q, q.new_empty(0, value_width), stream.Task(call.visible, call.score, call.dropout)


def _tensor_by_tensor(call: Call) -> bool:
    """Does `stream` compute a call by PyTorch's operations, in twice the time of the compiled pass?"""
    return how_streamed(call).startswith("tensor")


def work(kernel: str, call: Call) -> tuple[int, int]:
    """The pairs that a kernel visits, over all heads, and the calls of an operator that it takes."""
    if kernel == "blocks":
        return call.in_blocks, call.shape[0] * len(call.plan.bands)
    if kernel == "stream":
        if _tensor_by_tensor(call):
            return call.in_tiles(Size())
        pairs, tiles = call.in_tiles(COMPILED)
        return pairs + COMPILED.call * call.shape[1] * tiles, call.shape[0]
    if kernel == "flex":
        return call.shape[0] * call.shape[1] * flex.visited(call.visible), 1
    if kernel == "packed":
        return call.shape[1] * packed.visited(call.visible, call.shape[0]), 1
    return (call.pairs // 2 if call.visible.plainly_causal else call.pairs), 1


def _memory(kernel: str, call: Call) -> int:
    """Bytes held at a time: masks, logits and tiles, logsumexps, and in half precision copies in float32."""
    (b, h, n_queries, n_keys), size = call.shape, call.dtype.itemsize
    wider = 4 * b * h * (n_queries + n_keys) * sum(call.widths) if size < 4 else 0
    if kernel == "blocks":
        return wider + 8 * b * h * n_queries + 4 * min(call.in_blocks, 1 << 22)
    if kernel == "flex":
        return 8 * b * h * n_queries + 16 * b * h * -(-n_queries // flex.BLOCK) * -(-n_keys // flex.BLOCK)
    if kernel == "packed":  # tokens may be copied, one below another
        return 8 * b * h * n_queries + b * h * (n_queries + n_keys) * sum(call.widths) * size
    if kernel == "stream":
        return 2 * wider + 8 * b * h * n_queries + 96 * min(call.in_tiles(COMPILED)[0], 4 * PAIRS)
    return call.mask_cells * (size + 1) + (3 * call.pairs * size if call.unfused else 0)
