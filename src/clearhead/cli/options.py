"""Options and ways of writing that several commands share."""

import json
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


_ENDS = {ord(end): end.encode("unicode_escape").decode() for end in "\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"}
"""What ends lines, in one program or another, and what stands between columns."""
_JSON_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def one_line(text: str) -> str:
    r"""A text with the ends of its lines and its tabs written as \n, \t, \u2028; all else is as it is."""
    return text.translate(_ENDS)


def json_line(record: Any) -> str:
    """A record as JSON in one line."""
    return json.dumps(record, ensure_ascii=False).translate(_JSON_ENDS)
