"""Benchmarks: ratios against peers in the same run, paired, with their spread; never absolute speeds alone."""

from clearhead.bench.compare import Comparison, compare, machine, peak_memory
from clearhead.bench.monitor import bench_monitor
from clearhead.bench.watch import bench_watch

__all__ = ["Comparison", "bench_monitor", "bench_watch", "compare", "machine", "peak_memory"]
