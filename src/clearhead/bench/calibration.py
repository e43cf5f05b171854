"""Calibration, told: the rates that the choice of kernels goes by, measured on this machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clearhead.bench.case import check_device
from clearhead.bench.comparison import Say, machine
from clearhead.kernels.calibrate import Measured, calibrate


@dataclass(frozen=True)
class Rates:
    """What was measured on a device, row by row."""

    device: str
    rows: Sequence[Measured]

    def lines(self) -> list[str]:
        """As a table."""
        head = ["dtype", "width", "kernel", "ns a pair", "µs a call"]
        cells = [
            [row.dtype, str(row.width), row.kernel, f"{1e9 * row.rate.pair:.3g}", f"{1e6 * row.rate.call:.3g}"]
            for row in self.rows
        ]
        widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
        return ["  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in [head, *cells]]

    def record(self) -> dict[str, Any]:
        """For JSON; rates are seconds for a pair, and for a call."""
        rates = [{**asdict(row), "rate": row.rate._asdict()} for row in self.rows]
        return {"machine": machine(self.device), "device": self.device, "rates": rates}


def calibrated(device: str = "cpu", rounds: int = 5, say: Say | None = None) -> Rates:
    """Measure the kernels' rates on `device`, and keep them in the user's cache folder for `ch.explain` and every call.

    Raises InputError where there is no such device, or the folder cannot be written to.
    """
    check_device(device)
    rows = calibrate(device, rounds=rounds, say=say or (lambda words: None))
    if say:
        say("")
    return Rates(device, rows)
