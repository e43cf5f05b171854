"""How attention looks: heatmaps as matplotlib figures, and a training report as one HTML file.

    heatmap(A, rows=phonemes, columns=letters).savefig("attention.png")
    grid({"encoder.layers.0": A, "encoder.layers.1": B}).savefig("layers.png")
    training_report("report.html", title=..., scores=..., curves=..., examples=..., attention=...)

Names are resolved when first used: drawing needs matplotlib, which takes a while to import, and a report does not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clearhead.picture.heatmaps import grid as grid
    from clearhead.picture.heatmaps import heatmap as heatmap
    from clearhead.picture.report import training_report as training_report
    from clearhead.picture.sheet import png as png

_HOME = {"grid": "heatmaps", "heatmap": "heatmaps", "png": "sheet", "training_report": "report"}

__all__ = ["grid", "heatmap", "png", "training_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clearhead.picture' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"clearhead.picture.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
