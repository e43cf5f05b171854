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

from clearhead.patterns.base import ALL, NONE, SOME, Pattern
from clearhead.patterns.layout import block_layout
from clearhead.patterns.parse import parse
from clearhead.patterns.shapes import causal, chunks, everything, first, window

__all__ = [
    "ALL",
    "NONE",
    "SOME",
    "Pattern",
    "block_layout",
    "causal",
    "chunks",
    "everything",
    "first",
    "parse",
    "window",
]
