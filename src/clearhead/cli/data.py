"""Commands about people's own files."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from clearhead.cli.options import AsJson, json_line

data = typer.Typer(help="Look at your own files before you train on them.", no_args_is_help=False)


@data.callback()
def _group() -> None:
    """A group, although it holds one command."""


@data.command("check")
def check(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="TRAIN [VALID [TEST]]", help="Each a file of pairs, or two parallel files with a comma between."
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As in train, such as data.source_column=en; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> Iterator[str]:
    """Say what would be trained on: lengths, duplicates, odd lines and characters; status 2 where training refuses."""
    from clearhead.train import survey

    found = survey(files, settings or [])
    if as_json:
        yield json_line([one.record() for one in found])
    else:
        for one in found:
            yield from _lines(one, sys.stdout.isatty())
    if any(one.refused for one in found):
        raise typer.Exit(2)


def _lines(one: Any, colour: bool) -> Iterator[str]:
    def painted(text: str, code: int) -> str:
        return f"\033[{code}m{text}\033[0m" if colour else text

    yield painted(f"{one.split}: {', '.join(one.files)}", 1)
    yield f"  {one.pairs:,} pair{'s' * (one.pairs != 1)}"
    if one.pairs:
        yield f"  {'':<18} {'median':>8} {'95 %':>8} {'longest':>8}  different"
    for side in one.characters:
        for unit, lengths, different in (
            ("characters", one.characters[side], f"{one.alphabet[side]:>11,}"),
            ("words", one.words[side], ""),
        ):
            numbers = f"{lengths.median:>8,.0f} {lengths.p95:>8,.0f} {lengths.longest:>8,}"
            yield f"  {side + ' ' + unit:<18} {numbers}{different}"
    for word, code, findings in (("refused", 31, one.refused), ("noted", 33, one.noted)):
        for finding in findings:
            yield f"  {painted(word, code)}: {finding.kind}: {finding.count:,}"
            for example in finding.examples:
                yield f"    {example}"
    if not one.refused:
        yield painted("  nothing that training refuses", 32)
