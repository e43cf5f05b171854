"""Benchmarks: ratios against peers in the same run, paired, with their spread; never absolute speeds alone."""

from clearhead.bench.advice import Advice, advise
from clearhead.bench.attention import bench_attention
from clearhead.bench.calibration import Rates, calibrated
from clearhead.bench.case import Case
from clearhead.bench.compare import Comparison, compare, machine, peak_memory
from clearhead.bench.memory import Peaks, bench_memory
from clearhead.bench.monitor import bench_monitor
from clearhead.bench.patterns import bench_patterns
from clearhead.bench.scaling import Growth, bench_scaling
from clearhead.bench.small import Beyond, bench_small
from clearhead.bench.statistics import bench_statistics
from clearhead.bench.table import Table
from clearhead.bench.training import Training, TrainingCase, bench_training
from clearhead.bench.watch import bench_watch

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
