"""Clearhead where nothing is installed that an extra brings.

python without_extras.py COMMANDS     runs commands (a JSON list of lists), and prints what became of each
"""

import contextlib
import io
import json
import sys
from importlib.abc import MetaPathFinder

from clearhead.errors import EXTRAS


class Nothing(MetaPathFinder):
    """Finds none of the packages, as where they are not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def run(arguments: list[str]) -> list:
    """Status, standard output and standard error of a command; of Python code, which begins with a space."""
    from clearhead.cli import main

    streams, status = (io.StringIO(), io.StringIO()), 0
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            if arguments[0].startswith(" "):
                exec(arguments[0].strip(), {})
            else:
                main(arguments)
        except ImportError as error:
            status, _ = type(error).__name__, print(error, file=sys.stderr)
        except SystemExit as ended:
            status = ended.code
    return [status, *(stream.getvalue() for stream in streams)]


if __name__ == "__main__":
    sys.meta_path.insert(0, Nothing())
    print(json.dumps([run(arguments) for arguments in json.loads(sys.argv[1])]))
