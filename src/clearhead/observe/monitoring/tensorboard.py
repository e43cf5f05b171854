"""What a monitor measures, for TensorBoard: scalars of every head, histograms of rows, and heatmaps.

Shapes: H heads.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clearhead.errors import InputError, extra
from clearhead.observe.calls import Call
from clearhead.picture.colour import LIGHT

SIDE = 64
"""Pixels of a heatmap, on each side."""
GAP = 4
HISTOGRAMS = ("normalized_entropy", "max_logit")


class TensorBoard:
    """Writes what a monitor measures.

    Scalars are "entropy/LAYER/head0", …, at every monitored step. Histograms, "normalized_entropy_of_rows/LAYER" and
    "max_logit_of_rows/LAYER", are of all measured rows of all heads. Heatmaps, "attention/LAYER", are of the first
    sample that is measured, its heads side by side, each white where it attends nowhere, darkest at its largest weight;
    maps are pooled to 64 × 64. For a heatmap the monitor keeps a step's queries and keys until it is over.

    Args:
        writer: a SummaryWriter, or the folder of a new one.
        histograms: write them at every so many *monitored* steps; None: never.
        heatmaps: likewise.
    """

    def __init__(self, writer: Any, *, histograms: int | None = 5, heatmaps: int | None = 25) -> None:
        for name, every in (("histograms", histograms), ("heatmaps", heatmaps)):
            if every is not None and every < 1:
                raise InputError(f"{name} is {every}; write them at each so many monitored steps, or never with None")
        if isinstance(writer, str | os.PathLike):
            extra("tensorboard", "train")
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(os.fspath(writer))
        self.writer, self.histograms, self.heatmaps = writer, histograms, heatmaps

    def wants_maps(self, monitored: int) -> bool:
        """Does the monitored step of this number need its attention maps?"""
        return self.heatmaps is not None and monitored % self.heatmaps == 0

    def write(self, step: int, monitored: int, record: Mapping[str, Any], calls: Sequence[Call]) -> None:
        """Write a step: `record` is the monitor's, `monitored` the number of the step among those monitored."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        # all scalars in one record: each would be written, and its checksum taken, by Python
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record["attention"])]
        self.writer.file_writer.add_summary(Summary(value=values), step)
        if self.histograms is not None and monitored % self.histograms == 0:
            for name in HISTOGRAMS:
                self._histograms(step, name, calls)
        if self.wants_maps(monitored):
            for layer, call in _first(calls).items():
                if call.map is not None:
                    self.writer.add_image(f"attention/{layer}", picture(call), step, dataformats="HWC")

    def _histograms(self, step: int, name: str, calls: Sequence[Call]) -> None:
        rows: dict[str, list[Tensor]] = {}
        for call in calls:
            x = getattr(call.statistics, name)
            if x is not None:
                x = x if call.padding is None else x.masked_fill(call.padding[:, None], torch.nan)
                rows.setdefault(_key(call), []).append(x[x.isfinite()].float().cpu())
        for layer, parts in rows.items():
            values = torch.cat(parts)
            if len(values):
                self.writer.add_histogram(f"{name}_of_rows/{layer}", values.numpy(), step)


def scalars(attention: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """(tag, value) of everything that was measured."""
    for layer, numbers in attention.items():
        for name, value in numbers.items():
            if isinstance(value, list):
                yield from ((f"{name}/{layer}/head{h}", float(x)) for h, x in enumerate(value) if x is not None)
            elif value is not None:
                yield f"{name}/{layer}", float(value)


def picture(call: Call) -> np.ndarray:
    """The heads of a call's first measured sample side by side, (SIDE, H · SIDE + gaps, 3) in 0 … 255."""
    assert call.map is not None
    with torch.no_grad():
        pooled = call.map.pool(SIDE, SIDE).reshape(*call.shape[:2], SIDE, SIDE)[0].float().cpu()
    share = (pooled / pooled.amax((1, 2), keepdim=True).clamp(min=1e-9)).nan_to_num(0).clamp(0, 1)
    heads = [_coloured(head) for head in share.numpy()]
    gap = np.full((SIDE, GAP, 3), 128, np.uint8)
    return np.concatenate([part for head in heads for part in (gap, head)][1:], axis=1)


def _coloured(share: np.ndarray) -> np.ndarray:
    """Shares (…, …) in 0 … 1 as colours (…, …, 3)."""
    scale = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in LIGHT])
    at = np.linspace(0, 1, len(scale))
    return np.stack([np.interp(share, at, scale[:, i]) for i in range(3)], -1).round().astype(np.uint8)


def _first(calls: Sequence[Call]) -> dict[str, Call]:
    """The first call of each layer."""
    found: dict[str, Call] = {}
    for call in calls:
        found.setdefault(_key(call), call)
    return found


def _key(call: Call) -> str:
    return f"{call.name}#{call.turn}" if call.turn else call.name
