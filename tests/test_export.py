"""Self-attention of every pattern through torch.compile and torch.export, with open sizes."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "traced_layers.py"


@pytest.mark.parametrize("check", ["compiled", "compiled_long", "exported", "transformers"])
def test_traced_self_attention_is_what_it_is_untraced(check):
    """In a process of its own: tracing does not get through the checks that pytest adds to every call."""
    if check == "transformers":
        pytest.importorskip("transformers")
    command = [sys.executable, "-W", "ignore", str(PROGRAM), check]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [check]
