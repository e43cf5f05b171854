"""Numbers packed for a page's script: 16 bits each in base64, or very many of them, rounded and compressed.

The weights of a row sum to 1, so what n keys get is 1/n on average, and no row needs more than log2(e · 10^d / n) bits
a weight at d decimals: the exponential distribution has the largest entropy of all with that mean. For 128 keys and 4
decimals that is 7.7 bits, and what `compressed` makes of them is within 3 % of it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from clearhead.errors import InputError

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


# ---- very many numbers

ESCAPE = 255  # a code from which on a number needs more than its one byte
MOST = 2**24 - 1  # the largest code
ALPHABET = np.array([c for c in range(33, 127) if c not in b'"<\\'], np.uint8)
"""All 91 characters that JSON within a page holds as they are; two of them are 13 bits."""


def compressed(arrays: Iterable[tuple[np.ndarray, int]]) -> str:
    """Arrays of numbers from 0 on, each rounded to so many decimals, one after the other as one compressed text.

    A number becomes the code 1 + number · 10^decimals, and what is not finite 0. Codes below ESCAPE are a byte; the
    bytes of all others follow, plane by plane. 13 bits at a time, the most significant first, are two characters: their
    number's quotient and rest by 91; before them stands how many whole bytes were added in the end.

    Raises InputError for negative numbers, and for those that need over 24 bits.
    """
    codes = np.concatenate([_codes(np.asarray(values, np.float64), decimals) for values, decimals in arrays])
    long = codes[codes >= ESCAPE]
    planes = [np.minimum(codes, ESCAPE), *(long >> shift & 0xFF for shift in (0, 8, 16))]
    deflate = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    packed = b"".join(deflate.compress(plane.astype(np.uint8).tobytes()) for plane in planes) + deflate.flush()
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    spare = -len(bits) % 13
    words = np.pad(bits, (0, spare)).reshape(-1, 13) @ (1 << np.arange(12, -1, -1))
    return str(spare // 8) + ALPHABET[np.stack(np.divmod(words, 91), -1).ravel()].tobytes().decode()


def _codes(values: np.ndarray, decimals: int) -> np.ndarray:
    finite = np.isfinite(values)
    steps = np.round(np.where(finite, values, 0.0) * 10.0**decimals)
    if steps.size and (steps.min() < 0 or steps.max() >= MOST):
        raise InputError(f"weights from {steps.min():g} to {steps.max():g} · 1e-{decimals} do not fit into a page")
    return np.where(finite, steps + 1, 0).astype(np.int32).ravel()
