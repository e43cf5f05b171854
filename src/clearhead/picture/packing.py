"""Numbers packed for the page's script: 16 bits each, in base64."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

STEP = 1e-4  # of packed shares: what is read out has as many decimals
NOTHING = 0xFFFF  # the packed value of what is not finite


def quantum(values: np.ndarray) -> tuple[float, float]:
    """The smallest value and the step of 16 bits: decimal for shares (0 to 1), whatever fits for anything else."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    return (0.0, STEP) if low == 0 and high <= 1.001 else (low, (high - low) / (NOTHING - 1) or STEP)


def quantised(values: np.ndarray, low: float, step: float) -> str:
    """Values as low + step · whole number; what is not finite becomes NOTHING."""
    finite = np.isfinite(values)
    steps = np.round((np.where(finite, values, low).astype(np.float64) - low) / step)
    return base64.b64encode(np.where(finite, steps, NOTHING).astype("<u2").tobytes()).decode()


def packed(values: np.ndarray) -> dict[str, Any]:
    """An array as {"low", "step", "data"}."""
    low, step = quantum(values)
    return {"low": low, "step": step, "data": quantised(values, low, step)}
