"""How attention looks: matplotlib figures that show themselves in notebooks, and a training report as one HTML file.

    heatmap(A, rows=phonemes, columns=letters).savefig("attention.png")  # one head, or all of a layer
    grid({"encoder.layers.0": A, "encoder.layers.1": B})                 # every head of every layer
    statistic({"encoder.layers.0": entropies}, "entropy")                # a number for each head of each layer
    timeline(records, "entropy", alarms=...)                             # each head through training
    rollout(relevance, tokens)                                           # what an output rests on
    flow(q, k, v, weights, out, tokens=tokens, query=3)                  # how one token gathers its output
    atlas("atlas.html", title=..., subtitle=..., layers=...)             # every head of a model, in one page
    training_report("report.html", title=..., scores=..., curves=..., examples=..., attention=...)

Names are resolved when first used: drawing needs matplotlib, which takes a while to import, and a report does not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clearhead.picture.atlases import atlas as atlas
    from clearhead.picture.flows import flow as flow
    from clearhead.picture.heatmaps import grid as grid
    from clearhead.picture.heatmaps import heatmap as heatmap
    from clearhead.picture.report import training_report as training_report
    from clearhead.picture.rollouts import rollout as rollout
    from clearhead.picture.sheet import png as png
    from clearhead.picture.statistics import statistic as statistic
    from clearhead.picture.timelines import timeline as timeline

_HOME = {
    "atlas": "atlases",
    "flow": "flows",
    "grid": "heatmaps",
    "heatmap": "heatmaps",
    "png": "sheet",
    "rollout": "rollouts",
    "statistic": "statistics",
    "timeline": "timelines",
    "training_report": "report",
}

__all__ = ["atlas", "flow", "grid", "heatmap", "png", "rollout", "statistic", "timeline", "training_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clearhead.picture' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"clearhead.picture.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
