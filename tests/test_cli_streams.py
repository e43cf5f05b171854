"""The program with streams that are full, closed, gone or of few characters: one line, a status, never a traceback."""

import json
import os
import subprocess
import sys

import pytest

PRINTS = "import sys; from clearhead.cli.streams import prepare; prepare(); print('犬 😀'); print('é', file=sys.stderr)"


@pytest.fixture
def shell(tmp_path):
    """Runs a line of bash in which `clearhead` is the program: its status, standard output and standard error."""
    (tmp_path / "prints.py").write_text(PRINTS, encoding="utf-8")
    program = f'clearhead() {{ {sys.executable} -m clearhead.cli "$@"; }}; prints() {{ {sys.executable} prints.py; }}'

    def run(line, **environment):
        around = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{program}\n{line}"],
            cwd=tmp_path,
            env=around,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(("where", "why"), [("/dev/full", "no space left on device"), ("&-", "it is closed")])
def test_results_that_cannot_be_written_are_one_line_and_status_2(where, why, shell):
    if where == "/dev/full" and not os.path.exists(where):
        pytest.skip("no /dev/full here")
    for command in ("--version", "train --help"):
        assert shell(f"clearhead {command} >{where}") == (2, b"", f"error: standard output: {why}\n".encode())


def test_remarks_that_cannot_be_written_stop_nothing(shell):
    for where in ("&-", "/dev/full"):
        assert shell(f"prints 2>{where}") == (0, "犬 😀\n".encode(), b"")
        assert shell(f"clearhead no-such-command 2>{where}") == (2, b"", b"")


def test_a_reader_that_has_gone_is_no_mistake(shell):
    assert shell("{ sleep 0.1; clearhead train --help; } | true") == (0, b"", b"")


def test_a_file_never_gets_the_number_of_a_closed_stream(shell):
    """A library that prints by itself would write into it."""
    code = "from clearhead.cli.streams import prepare; prepare(); f = open('made', 'w'); assert f.fileno() > 2"
    assert shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-') == (0, b"", b"")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_of_few_characters(encoding, shell):
    status, output, errors = shell("prints && clearhead view --help", PYTHONIOENCODING=encoding)
    assert status == 0
    assert json.loads(f'"{output.splitlines()[0].decode("ascii")}"') == "犬 😀"
    assert errors == {"latin-1": b"\xe9\n", "ascii": b"\\xe9\n"}[encoding]
    assert b"--text" in output
    status, _, errors = shell("clearhead 犬", PYTHONIOENCODING=encoding)
    assert (status, errors) == (2, b"error: No such command '\\u72ac'.\n")
