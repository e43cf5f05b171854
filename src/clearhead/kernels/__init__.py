"""Kernels: how A v is computed. `stream` is the reference; every other one is an optimisation tested equal to it."""

from clearhead.kernels.call import Call, describe
from clearhead.kernels.choose import SMALL, Explanation, choose, explain, memory_budget
from clearhead.kernels.operator import run
from clearhead.kernels.rows import Rows, logsumexp, softmax_rows
from clearhead.kernels.score import Score, as_given, working_dtype
from clearhead.kernels.sdpa import sdpa
from clearhead.kernels.statistics import Statistics
from clearhead.kernels.stream import Task
from clearhead.kernels.tiles import Tile, tiles
from clearhead.kernels.visible import Visible, cleaned

__all__ = [
    "SMALL",
    "Call",
    "Explanation",
    "Rows",
    "Score",
    "Statistics",
    "Task",
    "Tile",
    "Visible",
    "as_given",
    "choose",
    "cleaned",
    "describe",
    "explain",
    "logsumexp",
    "memory_budget",
    "run",
    "sdpa",
    "softmax_rows",
    "tiles",
    "working_dtype",
]
