"""What is seen, to keep: cells as a table, or as pixels."""

import csv
import io

import torch
from PIL import Image
from torch import Tensor

from clearhead.picture.colour import DARK, LIGHT
from clearhead.view.blocks import Picture


def table(shown: Picture, rows: list[str], keys: list[str]) -> str:
    """CSV: a line for each row of cells, its number and name first, and above all those of the keys.

    Cells of several tokens are named by the first and the last of their numbers, and `rows` and `keys` are not needed.
    """
    found = io.StringIO()
    out = csv.writer(found)
    out.writerow(["query \\ key", *_labels(shown.keys, shown.level, keys)])
    for label, values in zip(_labels(shown.rows, shown.level, rows), shown.values.tolist(), strict=True):
        out.writerow([label, *(f"{value:.8g}" for value in values)])
    return found.getvalue()


def _labels(tokens: slice, level: int, names: list[str]) -> list[str]:
    """A number goes before every name, so that no spreadsheet takes one for a formula."""
    if not level:
        return [f"{i} {name}" for i, name in zip(range(tokens.start, tokens.stop), names, strict=True)]
    step = 1 << level
    return [f"{i}-{min(i + step, tokens.stop) - 1}" for i in range(tokens.start, tokens.stop, step)]


def pixels(shown: Picture, dark: bool = False, log: bool = False) -> bytes:
    """PNG, a pixel for each cell, in the colours of the page: the largest value is the end of the scale.

    `log` colours by the logarithm, over five powers of ten.
    """
    scale = torch.tensor([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (DARK if dark else LIGHT)])
    at = strength(shown.values, log) * (len(scale) - 1)
    below = at.floor().clamp(max=len(scale) - 2).long()
    share = (at - below)[..., None]
    colours = scale[below] * (1 - share) + scale[below + 1] * share
    found = io.BytesIO()
    Image.fromarray(colours.round().to(torch.uint8).numpy()).save(found, "png")
    return found.getvalue()


def strength(values: Tensor, log: bool) -> Tensor:
    """Where on the scale of colours each value lies, from 0 to 1."""
    most = float(values.max())
    if not most > 0:
        return torch.zeros_like(values)
    share = (values / most).clamp(0, 1)
    return (1 + share.log10() / 5).clamp(min=0) if log else share
