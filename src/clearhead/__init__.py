"""Clearhead: self-attention for PyTorch that is fast, right, and can be seen through.

    A = ch.Softmax(ch.causal())(q, k)      # an attention map; nothing is computed yet
    A @ v                                  # the output, by the fastest kernel that fits
    A.weights(rows), A.statistics()        # what it does, without the n × n matrix

    with ch.watch(model) as seen:          # any model: what every head does
        model(**batch)

Names are resolved when first used (PEP 562), so that `import clearhead` costs next to nothing and the command line
answers `--help` without torch.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from clearhead.errors import attribute

__version__ = "0.1.0"

_HOME = {
    "ALiBi": "clearhead.maps",
    "AttentionMap": "clearhead.maps",
    "ClearheadError": "clearhead.errors",
    "Pattern": "clearhead.patterns",
    "RelativeBias": "clearhead.maps",
    "Softmax": "clearhead.maps",
    "T5Bias": "clearhead.maps",
    "attend": "clearhead.maps",
    "bigbird": "clearhead.patterns",
    "causal": "clearhead.patterns",
    "chunks": "clearhead.patterns",
    "documents": "clearhead.patterns",
    "everything": "clearhead.patterns",
    "explain": "clearhead.maps",
    "first": "clearhead.patterns",
    "global_tokens": "clearhead.patterns",
    "graph": "clearhead.patterns",
    "load": "clearhead.train",
    "memory_budget": "clearhead.kernels",
    "longformer": "clearhead.patterns",
    "prefix": "clearhead.patterns",
    "scattered": "clearhead.patterns",
    "sparse_transformer": "clearhead.patterns",
    "stride": "clearhead.patterns",
    "summaries": "clearhead.patterns",
    "verify": "clearhead.observe",
    "watch": "clearhead.observe",
    "window": "clearhead.patterns",
}
_ROOMS = ("bench", "data", "errors", "kernels", "maps", "nn", "observe", "patterns", "picture", "train")

__all__ = ["__version__", *sorted([*_HOME, "nn", "observe", "picture"])]

if TYPE_CHECKING:
    from clearhead import nn as nn
    from clearhead import observe as observe
    from clearhead import picture as picture
    from clearhead.errors import ClearheadError as ClearheadError
    from clearhead.kernels import memory_budget as memory_budget
    from clearhead.maps import ALiBi as ALiBi
    from clearhead.maps import AttentionMap as AttentionMap
    from clearhead.maps import RelativeBias as RelativeBias
    from clearhead.maps import Softmax as Softmax
    from clearhead.maps import T5Bias as T5Bias
    from clearhead.maps import attend as attend
    from clearhead.maps import explain as explain
    from clearhead.observe import verify as verify
    from clearhead.observe import watch as watch
    from clearhead.patterns import Pattern as Pattern
    from clearhead.patterns import bigbird as bigbird
    from clearhead.patterns import causal as causal
    from clearhead.patterns import chunks as chunks
    from clearhead.patterns import documents as documents
    from clearhead.patterns import everything as everything
    from clearhead.patterns import first as first
    from clearhead.patterns import global_tokens as global_tokens
    from clearhead.patterns import graph as graph
    from clearhead.patterns import longformer as longformer
    from clearhead.patterns import prefix as prefix
    from clearhead.patterns import scattered as scattered
    from clearhead.patterns import sparse_transformer as sparse_transformer
    from clearhead.patterns import stride as stride
    from clearhead.patterns import summaries as summaries
    from clearhead.patterns import window as window
    from clearhead.train import load as load


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = attribute(_HOME[name], name)
    elif name in _ROOMS:
        value = importlib.import_module(f"clearhead.{name}")
    else:
        raise AttributeError(f"module 'clearhead' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _tell_notebooks() -> None:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        importlib.import_module("clearhead.notebook").register(shell)


_tell_notebooks()
