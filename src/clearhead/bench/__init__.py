"""Benchmarks: ratios against peers in the same run, paired, with their spread; never absolute speeds alone.

Names are resolved when first used: only training is measured with Lightning, and only some peers are imported.
"""

from typing import TYPE_CHECKING, Any

from clearhead.errors import attribute, require

_HOME = {
    "Advice": "clearhead.bench.advice",
    "Beyond": "clearhead.bench.small",
    "Case": "clearhead.bench.case",
    "Comparison": "clearhead.bench.comparison",
    "Growth": "clearhead.bench.scaling",
    "Peaks": "clearhead.bench.memory",
    "Rates": "clearhead.bench.calibration",
    "Table": "clearhead.bench.table",
    "Training": "clearhead.bench.training",
    "TrainingCase": "clearhead.bench.training",
    "advise": "clearhead.bench.advice",
    "bench_attention": "clearhead.bench.attention",
    "bench_memory": "clearhead.bench.memory",
    "bench_monitor": "clearhead.bench.monitor",
    "bench_patterns": "clearhead.bench.patterns",
    "bench_scaling": "clearhead.bench.scaling",
    "bench_small": "clearhead.bench.small",
    "bench_statistics": "clearhead.bench.statistics",
    "bench_training": "clearhead.bench.training",
    "bench_watch": "clearhead.bench.watch",
    "calibrated": "clearhead.bench.calibration",
    "compare": "clearhead.bench.comparison",
    "machine": "clearhead.bench.comparison",
    "peak_memory": "clearhead.bench.comparison",
}

__all__ = [
    "Advice",
    "Beyond",
    "Case",
    "Comparison",
    "Growth",
    "Peaks",
    "Rates",
    "Table",
    "Training",
    "TrainingCase",
    "advise",
    "bench_attention",
    "bench_memory",
    "bench_monitor",
    "bench_patterns",
    "bench_scaling",
    "bench_small",
    "bench_statistics",
    "bench_training",
    "bench_watch",
    "calibrated",
    "compare",
    "machine",
    "peak_memory",
]

if TYPE_CHECKING:
    from clearhead.bench.advice import Advice as Advice
    from clearhead.bench.advice import advise as advise
    from clearhead.bench.attention import bench_attention as bench_attention
    from clearhead.bench.calibration import Rates as Rates
    from clearhead.bench.calibration import calibrated as calibrated
    from clearhead.bench.case import Case as Case
    from clearhead.bench.comparison import Comparison as Comparison
    from clearhead.bench.comparison import compare as compare
    from clearhead.bench.comparison import machine as machine
    from clearhead.bench.comparison import peak_memory as peak_memory
    from clearhead.bench.memory import Peaks as Peaks
    from clearhead.bench.memory import bench_memory as bench_memory
    from clearhead.bench.monitor import bench_monitor as bench_monitor
    from clearhead.bench.patterns import bench_patterns as bench_patterns
    from clearhead.bench.scaling import Growth as Growth
    from clearhead.bench.scaling import bench_scaling as bench_scaling
    from clearhead.bench.small import Beyond as Beyond
    from clearhead.bench.small import bench_small as bench_small
    from clearhead.bench.statistics import bench_statistics as bench_statistics
    from clearhead.bench.table import Table as Table
    from clearhead.bench.training import Training as Training
    from clearhead.bench.training import TrainingCase as TrainingCase
    from clearhead.bench.training import bench_training as bench_training
    from clearhead.bench.watch import bench_watch as bench_watch


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clearhead.bench' has no attribute {name!r}")
    if _HOME[name] == "clearhead.bench.training":  # all that lacks in one line, also what its module does not import
        require("lightning", "tokenizers", "transformers", "accelerate")
    return attribute(_HOME[name], name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
