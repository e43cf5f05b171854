"""Attention as heatmaps: one head, all heads of a layer, all layers of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from clearhead.errors import InputError
from clearhead.picture.heads import Choice, Heads, Keys, read
from clearhead.picture.layout import Layout
from clearhead.picture.panel import NUMBERED, Panel, draw, draw_marginals, write_numbers
from clearhead.picture.scale import scale_of_weights
from clearhead.picture.ticks import visible

Labels = Sequence[str] | None


def heatmap(
    weights: Any,
    rows: Labels = None,
    columns: Labels = None,
    *,
    sample: int | None = None,
    head: int | None = None,
    title: str | None = None,
    log: bool = False,
    hide_sinks: Keys = False,
    marginals: bool = False,
) -> Figure:
    """Draw attention weights; each row is a query, and shows how it spreads its attention over the keys.

    `weights` is an AttentionMap, or a tensor or array (Nq, Nk), (H, Nq, Nk) or (B, H, Nq, Nk), of which `sample` and
    `head` choose: one head fills the picture, several share it and its colour scale. `rows` names the queries,
    `columns` the keys. Axes longer than 256 positions (128 beside other heads) are drawn as means of blocks. What is
    not finite is hatched; a map with negative weights gets a two-sided scale.

    `log` colours by the logarithm. `hide_sinks` hides keys that draw attention away from all others, and stretches the
    colours over the rest: the first key that is seen at all, or the keys with these numbers. `marginals` adds what each
    key received, Σ of its column, above, and each row's entropy in nats beside.

    Raises ShapeError for other shapes, and for labels that are not as many as the positions of their axis; InputError
    for values that are no real numbers, for negative ones on a logarithmic scale or with marginals, and for a sample,
    head or key that is not there.
    """
    heads = read(weights, choice=Choice(sample, head, hide_sinks, marginals))
    panels = _panels(heads)
    if title is not None and len(panels) == 1:  # which says what there is to say
        panels = [replace(panels[0], title="")]
    across = _columns(len(panels))
    lines = [panels[i : i + across] for i in range(0, len(panels), across)]
    return _drawn(lines, [heads], rows, columns, title, log)


def grid(
    maps: Mapping[str, Any],
    rows: Labels = None,
    columns: Labels = None,
    *,
    sample: int | None = None,
    title: str | None = None,
    log: bool = False,
    hide_sinks: Keys = False,
    marginals: bool = False,
) -> Figure:
    """Draw every head of every layer, a row for each layer and a column for each head, on one colour scale.

    `maps` holds by name what `heatmap` takes, and the options are the same. `rows` and `columns`, when given, fit every
    layer.

    Raises what `heatmap` raises, naming the layer; InputError when there is no layer.
    """
    if not maps:
        raise InputError("maps: no layer to draw, expected {name: weights}")
    choice = Choice(sample, None, hide_sinks, marginals)
    layers = {name: read(weights, f"maps[{name!r}]", alone=False, choice=choice) for name, weights in maps.items()}
    lines: list[list[Panel]] = []
    for name, heads in layers.items():
        lines.append(_panels(heads, name, titled=max(map(len, lines), default=0)))
    if len(lines) == len(lines[0]) == 1:  # the name stands above, where the words for the queries leave it room
        lines = [[replace(lines[0][0], title=f"{next(iter(maps))} · head 0", row="")]]
    elif len(lines) == 1 and title is None:  # likewise: turned, it would have to be cut
        lines, title = [[replace(panel, row="") for panel in lines[0]]], next(iter(maps))
    return _drawn(lines, [*layers.values()], rows, columns, title, log)


def _panels(heads: Heads, layer: str = "", titled: int = 0) -> list[Panel]:
    """A panel for each head; the first `titled` have their title already, above them."""
    named = layer or heads.numbers != range(1)
    return [
        Panel(
            values,
            heads.queries,
            heads.keys,
            heads.blank,
            f"head {heads.numbers[i]}" if named and i >= titled else "",
            "" if i else layer,
            None if heads.received is None else heads.received[i],
            None if heads.entropy is None else heads.entropy[i],
        )
        for i, values in enumerate(heads.values)
    ]


def _columns(heads: int) -> int:
    """How many heads stand side by side: rather wider than high, and without a gap where that is possible."""
    widest = min(heads, 4 if heads <= 16 else 8)
    return next((n for n in range(widest, 0, -1) if heads % n == 0 and n * n >= heads), widest)


def _drawn(
    lines: list[list[Panel]], layers: list[Heads], rows: Labels, columns: Labels, title: str | None, log: bool
) -> Figure:
    panels = [panel for line in lines for panel in line]
    most = _most(panels)
    notes = [*_hidden(layers, columns), *_lengths(most, len(panels))]
    layout = Layout.of(lines, rows, columns, title, notes)
    scale = scale_of_weights(np.concatenate([panel.values.ravel() for panel in panels]), log)
    sheet = layout.sheet()
    for i, line in enumerate(lines):
        for j, panel in enumerate(line):
            axes = layout.place(sheet, i, j)
            draw(axes, panel, scale)
            if most is not None:
                draw_marginals(axes, panel, most, layout.lengths(panel))
    if layout.alone and max(panels[0].values.shape) <= NUMBERED:
        write_numbers(axes, panels[0], scale)
    pooled = any(panel.values.shape != (panel.queries, panel.keys) for panel in panels)
    scale.show(sheet, layout.place_scale(sheet), "mean weight" if pooled else "attention weight")
    layout.write(sheet)
    return sheet


def _hidden(layers: list[Heads], columns: Labels) -> list[str]:
    """Which keys are hidden, and how much of the attention with them."""
    sets = {tuple(heads.hidden) for heads in layers}
    if sets == {()}:
        return []
    share = np.average([heads.share for heads in layers], weights=[len(heads.values) for heads in layers])
    if len(sets) > 1:
        which = "the first key of each layer is"
    elif len(keys := max(sets)) == 1:
        which = f"key {keys[0]}" + (f" ({visible(columns[keys[0]])})" if columns is not None else "") + " is"
    else:
        which = f"keys {', '.join(map(str, keys))} are" if len(keys) <= 6 else f"{len(keys):,} keys are"
    return [f"{which} hidden, with {_percent(float(share))} of all weight"]


def _percent(share: float) -> str:
    return "less than 1%" if 0 < share < 0.005 else f"{share:.0%}"


def _most(panels: list[Panel]) -> tuple[float, float] | None:
    """The most that a key received, and the greatest entropy of a row; None without marginals."""
    received = [panel.received for panel in panels if panel.received is not None]
    entropy = [panel.entropy for panel in panels if panel.entropy is not None]
    if not received:
        return None
    first, second = (np.concatenate(each) for each in (received, entropy))
    return float(first[np.isfinite(first)].max(initial=0.0)), float(second[np.isfinite(second)].max(initial=0.0))


def _lengths(most: tuple[float, float] | None, heads: int) -> list[str]:
    """How long the longest bars are, where there is no room to say so at the bars."""
    if most is None or heads == 1:
        return []
    return [f"bars above: received, up to {most[0]:.3g}; beside: entropy, up to {most[1]:.3g} nats"]
