"""From numbers to colours: what is the same for every cell of a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import AsinhNorm, CenteredNorm, Colormap, LinearSegmentedColormap, LogNorm, Normalize

from clearhead.errors import InputError
from clearhead.picture.colour import LIGHT
from clearhead.picture.sheet import EDGE, Sheet, lines
from clearhead.picture.ticks import INK, MUTED

DECADES = 1e-6  # of the largest weight: what a logarithmic scale still tells from zero
FAR = 10.0  # times the typical magnitude: a number that large would leave all others without colour


@dataclass(frozen=True)
class Scale:
    """A norm, and the colours of 0 to 1; `extend` is "min" or "max" where numbers exist beyond those with a colour."""

    norm: Normalize
    colours: Colormap
    extend: str = "neither"

    @property
    def linear_width(self) -> float | None:
        """Up to where a compressed scale is linear; None where all of it is."""
        return self.norm.linear_width if isinstance(self.norm, AsinhNorm) else None

    @property
    def ticks(self) -> list[float] | None:
        """Zero and powers of ten, far enough from each other to be read, on a compressed scale."""
        if not isinstance(self.norm, AsinhNorm) or self.norm.vmin is None or self.norm.vmax is None:
            return None
        first, far = math.ceil(math.log10(self.norm.linear_width)), self.norm.vmax
        powers = [10.0**k for k in range(first, math.floor(math.log10(far)) + 1)]
        powers = powers[:: -(-len(powers) // 6)]
        return [*(-power for power in powers[::-1] if -power >= self.norm.vmin), 0.0, *powers]

    def cells(self, values: np.ndarray) -> np.ma.MaskedArray:
        """`values` to be drawn: what is not finite is masked, and what is too small for a logarithm is not."""
        cells = np.ma.masked_invalid(values)
        return np.ma.maximum(cells, self.norm.vmin or 0.0) if isinstance(self.norm, LogNorm) else cells

    def colour(self, value: Any) -> Any:
        return self.colours(self.norm(max(value, self.norm.vmin) if isinstance(self.norm, LogNorm) else value))

    def ink(self, value: Any) -> str:
        """What can be read on the colour of `value`."""
        red, green, blue, _ = self.colour(value)
        return INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.55 else "white"

    def show(self, sheet: Sheet, axes: Axes, words: str) -> None:
        """The bar that says which colour is which number."""
        bar = sheet.colorbar(ScalarMappable(self.norm, self.colours), cax=axes, extend=self.extend)
        if self.ticks is not None:
            bar.set_ticks(self.ticks, labels=[*map(power, self.ticks)], minor=False)
            bar.minorticks_off()
        high = axes.get_position().height * float(sheet.get_figheight())
        bar.set_label("\n".join(lines(words, high, 9.0)), fontsize=9, color=MUTED, parse_math=False)
        bar.outline.set(edgecolor=EDGE, linewidth=0.6)
        bar.ax.tick_params(labelsize=8, colors=MUTED, width=0.6)


@dataclass(frozen=True)
class Measure:
    """What a statistic is called, and the numbers that it can have at least and at most; None: any."""

    words: str
    low: float | None = None
    high: float | None = None


MEASURES = {
    "entropy": Measure("entropy (nats)", 0.0),
    "normalized_entropy": Measure("normalized entropy", 0.0, 1.0),
    "sink": Measure("weight on the sink", 0.0, 1.0),
    "max_weight": Measure("greatest weight", 0.0, 1.0),
    "max_logit": Measure("greatest logit"),
    "logsumexp": Measure("logsumexp of the logits"),
    "distance": Measure("mean distance (positions)", 0.0),
    "received": Measure("weight received", 0.0),
    "visible": Measure("visible keys", 0.0),
}


def measure(name: str) -> Measure:
    """What is known of the statistic `name`; other names are as good, and may have any number."""
    return MEASURES.get(name, Measure(name.replace("_", " ")))


def scale_of(values: np.ndarray, kind: Measure) -> Scale:
    """The scale of a statistic: from zero, to its own limit where it has one; two-sided where there are negative ones.

    It is compressed (asinh) where single numbers are so large that all others would look like zero.
    """
    known = values[np.isfinite(values)]
    low, high = float(known.min(initial=0.0)), float(known.max(initial=0.0))
    if kind.high is not None:
        return Scale(Normalize(kind.low, kind.high, clip=True), one_sided())
    far = max(-low, high) or 1.0
    least, colours = (0.0, one_sided()) if low >= 0 else (-far, two_sided())
    typical = float(np.median(abs(known[known != 0]))) if (known != 0).any() else far
    if far > FAR * typical:
        return Scale(AsinhNorm(typical, least, far), colours)
    return Scale(Normalize(least, far), colours)


def written(value: float) -> str:
    """`value` in a cell, in about three digits; nothing where there is no number."""
    if not np.isfinite(value):
        return ""
    size = abs(value)
    if size >= 99999.5:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    text = f"{value:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}"
    return "0.00" if text == "-0.00" else text


def power(tick: float) -> str:
    """A power of ten, its negative, or zero, in digits as long as these can be counted."""
    return f"{tick:,.0f}" if tick == 0 or 1 <= abs(tick) < 1e6 else f"{tick:g}"


def without_peaks(values: np.ndarray) -> float:
    """The greatest of `values`, but for so few and so great ones that all others would have no colour beside them."""
    known = values[np.isfinite(values)]
    most, nearly = float(known.max(initial=0.0)), float(np.quantile(known, 0.995)) if len(known) else 0.0
    return nearly if 0 < nearly < most / 4 else most


def scale_of_weights(values: np.ndarray, log: bool, most: float | None = None) -> Scale:
    """The scale that shows all of `values` from zero, or their logarithms; two-sided where there are negative ones.

    What is greater than `most`, if given, has the last colour too.

    Raises InputError for a logarithm of negative ones.
    """
    known = values[np.isfinite(values)]
    low, high = float(known.min(initial=0.0)), float(known.max(initial=0.0)) or 1.0
    if low < 0 and log:
        raise InputError(
            f"log: the smallest weight is {low:.3g}, but a logarithmic scale has no place for negative ones"
        )
    if low < 0:  # not a share of attention
        return Scale(CenteredNorm(halfrange=max(-low, high)), two_sided())
    if not log:
        top = high if most is None else most or 1.0
        return Scale(Normalize(0.0, top), one_sided(), "max" if high > top else "neither")
    least = max(float(known[known > 0].min(initial=high)), high * DECADES)
    least = least if least < high else high / 10
    return Scale(LogNorm(least, high), one_sided(), "min" if (known < least).any() else "neither")


def one_sided() -> Colormap:
    """From zero, the background, to the most."""
    return LinearSegmentedColormap.from_list("attention", LIGHT)


def two_sided() -> Colormap:
    """Zero in the middle: negative numbers in browns, which nothing else has."""
    return LinearSegmentedColormap.from_list("signed", ("#7a2b08", "#e08f4f", *LIGHT[:1], LIGHT[5], LIGHT[10]))
