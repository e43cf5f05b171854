"""Tiles computed side by side, in threads with cores of their own.

A tile fits a core's cache, and its operations are short: shared between cores, handing them out would cost as much as
they do. PyTorch lets go of Python's lock while it computes, so each core takes whole tiles instead.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MOST = 4
"""Workers; with more, Python's lock is what they wait for, and cores are better used within operations."""


def side_by_side(function: Callable[[Sequence[_Item]], _Result], items: Sequence[_Item]) -> list[_Result]:
    """`function` of shares of the items, at most one for each core, without gradients; results in the shares' order."""
    threads = torch.get_num_threads()
    workers = min(threads, _MOST, len(items))
    if workers < 2:
        return [function(items)]
    inference = torch.is_inference_mode_enabled()

    def run(share: Sequence[_Item]) -> _Result:
        with torch.inference_mode(inference), torch.no_grad():
            return function(share)

    first, *others = (items[i::workers] for i in range(workers))
    waiting = [_pool(workers - 1, threads // workers).submit(run, share) for share in others]
    torch.set_num_threads(threads // workers)
    try:
        mine = run(first)
    finally:
        torch.set_num_threads(threads)
    return [mine, *(future.result() for future in waiting)]


@lru_cache(maxsize=4)
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "tiles", torch.set_num_threads, (threads,))
