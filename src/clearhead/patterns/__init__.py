"""Patterns: who may attend to whom.

A pattern is a small value that answers two questions about positions, and composes with `&`, `|` and `~`:

>>> print(causal() & window(2))
causal() & window(2)
■ · · · · · · ·
■ ■ · · · · · ·
■ ■ ■ · · · · ·
· ■ ■ ■ · · · ·
· · ■ ■ ■ · · ·
· · · ■ ■ ■ · ·
· · · · ■ ■ ■ ·
· · · · · ■ ■ ■
"""

from clearhead.patterns.base import ALL, NONE, SOME, Pattern, is_value
from clearhead.patterns.edges import graph
from clearhead.patterns.given import documents, names_of
from clearhead.patterns.layout import block_layout
from clearhead.patterns.parse import parse, restore
from clearhead.patterns.presets import bigbird, longformer, sparse_transformer
from clearhead.patterns.shapes import causal, chunks, everything, first, prefix, window
from clearhead.patterns.sparse import global_tokens, scattered, stride, summaries

__all__ = [
    "ALL",
    "NONE",
    "SOME",
    "Pattern",
    "bigbird",
    "block_layout",
    "causal",
    "chunks",
    "documents",
    "everything",
    "first",
    "global_tokens",
    "graph",
    "is_value",
    "longformer",
    "names_of",
    "parse",
    "prefix",
    "restore",
    "scattered",
    "sparse_transformer",
    "stride",
    "summaries",
    "window",
]
