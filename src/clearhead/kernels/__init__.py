"""Kernels: how A v is computed. `stream` is the reference; every other one is an optimisation tested equal to it."""

from clearhead.kernels.absent import absent, cleaned
from clearhead.kernels.call import SMALL, Call, describe
from clearhead.kernels.choose import OUTPUT_ALONE, Explanation, choose, explain, memory_budget
from clearhead.kernels.flex import compiled_apart, flex_attend
from clearhead.kernels.operator import run
from clearhead.kernels.rows import Rows, logsumexp, softmax_rows
from clearhead.kernels.score import FAR, ByDistance, Score, as_given, autocast, without_values, working_dtype
from clearhead.kernels.statistics import Statistics
from clearhead.kernels.stream import Task
from clearhead.kernels.tiles import Tile, tiles, whole
from clearhead.kernels.visible import Visible, cut

__all__ = [
    "FAR",
    "OUTPUT_ALONE",
    "SMALL",
    "ByDistance",
    "Call",
    "Explanation",
    "Rows",
    "Score",
    "Statistics",
    "Task",
    "Tile",
    "Visible",
    "absent",
    "as_given",
    "autocast",
    "choose",
    "cleaned",
    "compiled_apart",
    "cut",
    "describe",
    "explain",
    "flex_attend",
    "logsumexp",
    "memory_budget",
    "run",
    "softmax_rows",
    "tiles",
    "whole",
    "without_values",
    "working_dtype",
]
