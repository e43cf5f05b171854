"""One head in a picture: its cells, its colours, its numbers, and its marginals.

h and w: the blocks of rows and columns that are drawn
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from clearhead.picture.colour import LIGHT, NOT_FINITE
from clearhead.picture.scale import Scale
from clearhead.picture.sheet import EDGE
from clearhead.picture.ticks import MUTED

HIDDEN: dict[str, Any] = {"facecolor": "#f4f3f7", "edgecolor": EDGE, "hatch": "\\\\\\\\", "linewidth": 0}
HATCH: dict[str, Any] = {"facecolor": NOT_FINITE, "edgecolor": "white", "hatch": "/////"}
BAR = LIGHT[6]
APART = 64  # bars up to which there is a gap between them
GAP = 0.15  # between cells and marginals, of the marginals' depth
BESIDE: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8, "color": MUTED}
NUMBERED = 12  # positions of an axis up to which a picture has room for numbers in its cells


@dataclass(frozen=True)
class Panel:
    """The weights of one head, (h, w), for so many queries and keys; `row` names the layer where it leads one.

    `blank` (w,) says which columns are hidden; `received` (w,) and `entropy` (h,) stand above and beside, if given.
    """

    values: np.ndarray
    queries: int
    keys: int
    blank: np.ndarray
    title: str = ""
    row: str = ""
    received: np.ndarray | None = None
    entropy: np.ndarray | None = None

    @property
    def unfinite(self) -> np.ndarray:
        """The cells (h, w) that are shown and have no finite value."""
        return ~np.isfinite(self.values) & ~self.blank


@dataclass(frozen=True)
class Bars:
    """How long the longest bars of the marginals are, of the cells' height and width, and whether they are `named`."""

    above: float
    beside: float
    named: bool


def draw(axes: Axes, panel: Panel, scale: Scale) -> AxesImage:
    """Draw the cells of `panel`, in units of positions however many of them a cell stands for."""
    if panel.unfinite.any():
        axes.patch.set(**HATCH, linewidth=0)  # masked cells are holes, and this is what shows through
    each = panel.keys / len(panel.blank)
    for j in np.flatnonzero(panel.blank):
        axes.add_patch(Rectangle((j * each - 0.5, -0.5), each, panel.queries, **HIDDEN, zorder=1.5))
    axes.set_anchor("NW")
    return axes.imshow(
        scale.cells(panel.values),
        cmap=scale.colours.with_extremes(bad=(0, 0, 0, 0)),
        norm=scale.norm,
        aspect="auto" if uneven(panel) else "equal",
        interpolation="nearest",
        extent=(-0.5, panel.keys - 0.5, panel.queries - 0.5, -0.5),
    )


def uneven(panel: Panel) -> bool:
    """Whether there are so many more queries than keys, or the other way round, that cells are not drawn square."""
    return not 1 / 8 <= panel.queries / panel.keys <= 8


def draw_marginals(axes: Axes, panel: Panel, most: tuple[float, float], bars: Bars) -> None:
    """What the keys received above the cells, and the entropy of the rows beside them.

    The greatest of the picture are `most`, and their bars the longest.
    """
    above = axes.inset_axes((0, 1 + GAP * bars.above, 1, bars.above))
    beside = axes.inset_axes((1 + GAP * bars.beside, 0, bars.beside, 1))
    _bars(above, panel.received, panel.keys, "horizontal")
    _bars(beside, panel.entropy, panel.queries, "vertical")
    above.set(xlim=axes.get_xlim(), ylim=(0, most[0] or 1))
    beside.set(ylim=axes.get_ylim(), xlim=(0, most[1] or 1))
    for each, foot in ((above, "bottom"), (beside, "left")):
        each.set(xticks=[], yticks=[], facecolor="none")
        each.spines[:].set_visible(False)
        each.spines[foot].set(visible=True, color=EDGE, linewidth=0.6)
        each.tick_params(labelsize=8, colors=MUTED, length=2, pad=2, width=0.6)
    if bars.named:
        above.set_yticks([most[0] or 1], [f"{most[0]:.3g}"])
        at: dict[str, Any] = {
            "xy": (0, 0.5),
            "xycoords": "axes fraction",
            "xytext": (-5, 0),
            "textcoords": "offset points",
        }
        above.annotate("received", **at, ha="right", va="center", fontsize=8, color=MUTED)
        beside.set_xticks([most[1] or 1], [f"{most[1]:.3g}"])
        beside.set_title("entropy\n(nats)", fontsize=8, color=MUTED, pad=3, linespacing=1.1)


def _bars(axes: Axes, values: np.ndarray | None, positions: int, along: str) -> None:
    """Bars that touch where there are many: a profile."""
    if values is None:
        return
    each = positions / len(values)
    at, thick = (np.arange(len(values)) + 0.5) * each - 0.5, each * (0.7 if len(values) <= APART else 1.0)
    known = np.isfinite(values)
    style: dict[str, Any] = {"color": BAR, "linewidth": 0, "antialiased": len(values) <= APART}
    if along == "horizontal":
        axes.bar(at[known], values[known], thick, **style)
    else:
        axes.barh(at[known], values[known], thick, **style)


def write_numbers(axes: Axes, panel: Panel, scale: Scale) -> None:
    """Write its weight into each cell; what is below a logarithmic scale stays blank."""
    least = scale.norm.vmin or 0.0
    style = ".1g" if isinstance(scale.norm, LogNorm) else ".2f"
    for (i, j), value in np.ndenumerate(panel.values):
        if np.isfinite(value) and value >= least:
            axes.text(j, i, format(value, style), ha="center", va="center", color=scale.ink(value), fontsize=7)
