"""Options that several commands share."""

import sys
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Heads = Annotated[int, typer.Option(help="Heads.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Rounds = Annotated[int, typer.Option(min=1, help="Times that each arm runs, in turns.")]


def progress() -> Any:
    """Says what is being measured, on a line that is written over, where there is a terminal."""
    if not sys.stderr.isatty():
        return None
    return lambda words: print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)
