"""One head in a picture: its cells, its colours, its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Colormap, LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.image import AxesImage

from clearhead.errors import InputError
from clearhead.picture.colour import LIGHT, NOT_FINITE
from clearhead.picture.ticks import INK, drawable

EDGE = "#c9c8d1"
HATCH: dict[str, Any] = {"facecolor": NOT_FINITE, "edgecolor": "white", "hatch": "/////"}
DECADES = 1e-6  # of the largest weight: what a logarithmic scale still tells from zero
NUMBERED = 12  # positions of an axis up to which a picture has room for numbers in its cells


@dataclass(frozen=True)
class Panel:
    """The weights of one head, (h, w), for so many queries and keys; `row` names the layer where it leads one."""

    values: np.ndarray
    queries: int
    keys: int
    title: str = ""
    row: str = ""


@dataclass(frozen=True)
class Scale:
    """From weights to colours, the same for all panels of a figure; `extend` is "min" where smaller weights exist."""

    norm: Normalize
    colours: Colormap
    extend: str = "neither"


def scale(panels: list[Panel], log: bool) -> Scale:
    """The scale that shows all weights of `panels`; InputError for a logarithm of negative ones."""
    values = np.concatenate([panel.values[np.isfinite(panel.values)] for panel in panels])
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0)) or 1.0
    colours = LinearSegmentedColormap.from_list("attention", LIGHT)
    if log and low < 0:
        raise InputError(
            f"log: the smallest weight is {low:.3g}, but a logarithmic scale has no place for negative ones"
        )
    if log:
        positive = values[values > 0]
        least = max(float(positive.min(initial=high)), high * DECADES)
        least = least if least < high else high / 10
        return Scale(LogNorm(least, high), colours, "min" if (values < least).any() else "neither")
    if low < 0:  # not a share of attention: two-sided, with zero in the middle
        return Scale(CenteredNorm(halfrange=max(-low, high)), _two_sided())
    return Scale(Normalize(0.0, high), colours)


def draw(axes: Axes, panel: Panel, scale: Scale) -> AxesImage:
    """Draw the cells of `panel`, in units of positions however many of them a cell stands for."""
    cells = np.ma.masked_invalid(panel.values)
    if isinstance(scale.norm, LogNorm):
        cells = np.ma.maximum(cells, scale.norm.vmin or 0.0)  # a logarithm would mask zeros as if they were not numbers
    if cells.mask.any():
        axes.patch.set(**HATCH, linewidth=0)  # masked cells are holes, and this is what shows through
    axes.spines[:].set(color=EDGE, linewidth=0.6)
    axes.set_title(panel.title, fontsize=9, color=INK, pad=4)
    axes.set_ylabel(drawable(panel.row), fontsize=9, color=INK, parse_math=False)
    return axes.imshow(
        cells,
        cmap=scale.colours.with_extremes(bad=(0, 0, 0, 0)),
        norm=scale.norm,
        aspect="equal" if 1 / 8 <= panel.queries / panel.keys <= 8 else "auto",
        interpolation="nearest",
        extent=(-0.5, panel.keys - 0.5, panel.queries - 0.5, -0.5),
    )


def write_numbers(axes: Axes, panel: Panel, scale: Scale) -> None:
    """Write its weight into each cell; what is below a logarithmic scale stays blank."""
    least = scale.norm.vmin or 0.0
    style = ".1g" if isinstance(scale.norm, LogNorm) else ".2f"
    for (i, j), value in np.ndenumerate(panel.values):
        if np.isfinite(value) and value >= least:
            red, green, blue, _ = scale.colours(scale.norm(value))
            ink = INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.55 else "white"
            axes.text(j, i, format(value, style), ha="center", va="center", color=ink, fontsize=7)


def _two_sided() -> Colormap:
    return LinearSegmentedColormap.from_list("signed", ("#7a2b08", "#e08f4f", *LIGHT[:1], LIGHT[5], LIGHT[10]))
