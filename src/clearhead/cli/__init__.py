"""The command line: each command reads its arguments, calls one function of the library, returns the lines to print.

Results alone go to standard output. Every mistake is one line on standard error and exit status 2; what nobody expected
is one line, exit status 1, and a file with the details.
"""

import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

import clearhead
from clearhead.cli import data, measures, models, streams, unexpected
from clearhead.errors import ClearheadError, InputError, missing

app = typer.Typer(
    name="clearhead",
    help="Self-attention for PyTorch that is fast, right, and can be seen through.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool | None) -> None:
    if asked:
        _print([f"clearhead {clearhead.__version__}"])
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = None,
) -> None:
    pass


for command in (
    models.train,
    models.evaluate,
    models.predict,
    models.inspect,
    models.view,
    measures.advise,
    measures.calibrate,
    models.demo,
):
    app.command()(command)
app.add_typer(measures.bench, name="bench")
app.add_typer(data.data, name="data")


def main(arguments: list[str] | None = None) -> None:
    """Run the program; ends it with status 0, 2 after a mistake, 130 after Ctrl-C, 1 after what nobody expected."""
    # Before torch is imported: its threads then sleep while they wait for each other. By default they spin, and where
    # anything else is running on the same cores a training takes many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    streams.prepare()
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except streams.ReaderGone:
        status = 0
    except KeyboardInterrupt:  # while the last lines are written
        status = 130
    except streams.OutputError as error:
        status = _refuse(str(error))
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    try:
        _check(arguments)
        results = app(arguments, standalone_mode=False)  # what the command returns, or the status it exits with
        return results if isinstance(results, int) else _print(results or [])  # some lines are made as they are asked
    except (streams.OutputError, streams.ReaderGone):
        raise
    except ClearheadError as error:
        return _refuse(str(error))
    except _UsageError as error:
        return _refuse(_in_our_words(error))
    except typer.Exit as ended:  # after the last line of a command that makes them one by one
        return ended.exit_code
    except (typer.Abort, KeyboardInterrupt):  # Ctrl-C: typer says Abort, but not while lines are made one by one
        return 130
    except Exception as error:
        known = missing(error) or unexpected.of_named_file(error, arguments)
        return unexpected.report(error, clearhead.__version__) if known is None else _refuse(str(known))


def _check(arguments: list[str]) -> None:
    """Refuse what no file and no text can hold; only programs can give it."""
    for number, argument in enumerate(arguments, 1):
        if "\0" in argument:
            raise InputError(f"argument {number} holds a zero byte: leave it out")


def _print(lines: Iterable[str]) -> int:
    for line in lines:
        print(line)
    return 0


_UsageError: Any = typer.BadParameter.__mro__[2]
"""The root of what the parser raises: click's, of which some versions of typer carry their own copy."""


def _in_our_words(error: Any) -> str:
    """A mistake in an option; typer may hand on what pydantic says of its value."""
    if hasattr(error.__cause__, "errors"):
        from clearhead.train import wording

        found = error.__cause__.errors()[0]
        error.message = wording.words(found) + wording.instead(found)
    if error.ctx is not None and not error.ctx.args and error.format_message() == "Missing command.":
        known = ", ".join(getattr(error.ctx.command, "commands", ()))
        return f"{error.ctx.command_path} needs a command: {known}"
    return error.format_message()


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
