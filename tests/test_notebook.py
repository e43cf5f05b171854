"""In notebooks the objects draw themselves."""

import importlib
import io
import subprocess
import sys
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch

import clearhead as ch
from clearhead.notebook import register


class Formatter:
    """As IPython's: it knows a type by the names of its module and class, and takes it for all that inherit."""

    def __init__(self) -> None:
        self.known = {}

    def for_type_by_name(self, module, name, function):
        assert isinstance(getattr(importlib.import_module(module), name), type)
        self.known[module, name] = function

    def __call__(self, shown):
        names = ((each.__module__, each.__name__) for each in type(shown).__mro__)
        return next((self.known[name](shown) for name in names if name in self.known), None)


@pytest.fixture
def formatters():
    made = {"image/png": Formatter(), "text/html": Formatter()}
    register(SimpleNamespace(display_formatter=SimpleNamespace(formatters=made)))
    return made


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png))


@pytest.mark.parametrize("shape", [(6, 4), (2, 6, 4), (1, 3, 6, 4), (2, 3, 6, 4)])
def test_a_map_is_drawn_of_its_first_sample(formatters, shape):
    torch.manual_seed(0)
    q, k = torch.randn(shape), torch.randn(shape, requires_grad=True)
    A = ch.Softmax(ch.causal())(q, k)
    drawn = formatters["image/png"](A)
    assert formatters["text/html"](A) is None
    again = formatters["image/png"](ch.Softmax(ch.causal())(q, torch.randn(shape)))
    assert pixels(drawn).std() > 0.01
    assert drawn != again
    if shape[0] == 2 and len(shape) == 4:  # the second sample is not in it
        changed = q.clone()
        changed[1] += 1.0
        assert formatters["image/png"](ch.Softmax(ch.causal())(changed, k)) == drawn


def test_nothing_is_drawn_of_nothing(formatters):
    assert formatters["image/png"](ch.Softmax()(torch.randn(1, 1, 0, 4), torch.randn(1, 1, 3, 4))) is None


def test_a_call_is_drawn_where_its_map_was_kept(formatters):
    torch.manual_seed(1)
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(1, 5, 8)
    for keep in (True, False):
        with ch.watch(layer, keep_maps=keep) as seen:
            layer(x, x, x)
        drawn = formatters["image/png"](seen[0])
        assert (drawn is not None) == keep
        assert "<table" in seen._repr_html_()


def test_a_pattern_is_written_as_it_prints(formatters):
    pattern = ch.causal() & ch.window(2)
    assert formatters["text/html"](pattern) == f"<pre>{str(pattern).replace('&', '&amp;')}</pre>"
    assert "■" in formatters["text/html"](~pattern)


def test_a_running_ipython_is_told_when_clearhead_is_imported():
    """Without torch or matplotlib being imported; and without IPython nothing happens."""
    code = (
        "import sys; from types import SimpleNamespace as S\n"
        "told = []; one = S(for_type_by_name=lambda *a: told.append(a[:2]))\n"
        "shell = S(display_formatter=S(formatters={'image/png': one, 'text/html': one}))\n"
        "running = {'yes': shell, 'none': None}\n"
        "if sys.argv[1] in running: sys.modules['IPython'] = S(get_ipython=lambda: running[sys.argv[1]])\n"
        "import clearhead\n"
        "print(len(told), 'torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    for argument, told in (("yes", 3), ("none", 0), ("no", 0)):
        done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True)
        assert done.stdout == f"{told} False False\n"


def test_in_ipython_itself():
    pytest.importorskip("IPython")
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as S; shell = S.instance()\n"
        "shell.display_formatter.active_types = list(shell.display_formatter.formatters)\n"
        "import torch, clearhead as ch\n"
        "A = ch.Softmax()(torch.randn(3, 2), torch.randn(3, 2))\n"
        "print([sorted(shell.display_formatter.format(x)[0]) for x in (A, ch.causal())])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[['image/png', 'text/plain'], ['text/html', 'text/plain']]\n"
