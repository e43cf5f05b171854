"""`seen.view()`: a page of what was seen, served while Python goes on."""

import json
import re
import sys
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
import torch

import clearhead as ch
from clearhead.errors import InputError
from clearhead.view import shown

N, M, SAMPLES = 40, 30, 2


@pytest.fixture(scope="module")
def seen():
    """Self-attention and cross-attention, in two passes."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"own": ch.nn.SelfAttention(16, 2), "other": ch.nn.CrossAttention(16, 2)}).eval()
    model.forward = lambda x, memory: model["other"](x + model["own"](2 * x), 2 * memory)
    with ch.watch(model, keep_maps=True) as seen, torch.no_grad():
        for _ in "ab":
            model(torch.randn(SAMPLES, N, 16), torch.randn(SAMPLES, M, 16))
    return seen


@pytest.fixture
def view(seen, monkeypatch):
    """`seen.view`, without a browser; what it would have opened is in `.opened`."""
    pages, opened = [], []
    monkeypatch.setattr("webbrowser.open", opened.append)

    def made(*args, **options):
        pages.append(seen.view(*args, **{"block": False, **options}))
        return pages[-1]

    made.opened = opened
    yield made
    for page in pages:
        page.close()


@pytest.fixture
def notebook(monkeypatch):
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def get(page, path, **parts):
    query = "&".join(f"{name}={value}" for name, value in parts.items())
    return urlopen(f"{page.url}{path}?{query}", timeout=20)


def told(page, path, **parts):
    return json.load(get(page, f"api/{path}", **parts))


def test_the_last_pass_is_served_and_python_goes_on(view, seen):
    page = view([f"word{i}" for i in range(N)], sample=1)
    assert view.opened == [page.url]
    assert [each["shape"] for each in told(page, "model")["layers"]] == [[N, N], [N, M]]
    tokens = [told(page, "tokens", layer=1, side=side, **{"from": 2, "to": 4})["names"] for side in ("rows", "keys")]
    assert tokens == [["word2", "word3"], ["2", "3"]]
    with get(page, "api/tile", layer=0, head=1, level=0, row=0, column=0) as answer:
        values = np.frombuffer(answer.read(), "<f4").reshape(N, N)
    np.testing.assert_allclose(values, seen[2].map.weights()[1, 1].numpy(), rtol=1e-4, atol=1e-7)
    assert repr(page) == f"Shown({page.url!r})"


def test_it_is_served_until_it_is_closed(view):
    page = view()
    assert get(page, "").status == 200
    page.close()
    page.close()
    with pytest.raises(URLError):
        get(page, "")
    assert repr(page) == f"Shown({page.url!r}, closed)"
    assert "was closed" in page._repr_html_()


def test_a_program_waits_until_it_is_interrupted(seen, monkeypatch, capsys):
    def interrupted(page):
        assert get(page, "").status == 200
        page.close()

    monkeypatch.setattr(shown.Shown, "wait", interrupted)
    page = seen.view(browser=False)
    assert capsys.readouterr().err == f"{page.url} shows what was seen; Ctrl-C ends it\n"


@pytest.mark.parametrize("asker", ["ps1", "notebook"])
def test_neither_the_prompt_nor_a_notebook_waits(seen, monkeypatch, request, asker):
    if asker == "ps1":
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    else:
        request.getfixturevalue("notebook")
    seen.view(browser=False).close()


def test_a_notebook_shows_it_in_a_frame_and_no_browser_opens(view, notebook):
    page = view()
    assert view.opened == []
    assert re.search(r'<iframe src="(.*?)"', page._repr_html_())[1] == page.url
    assert "frame-ancestors" not in get(page, "").headers["Content-Security-Policy"]


def test_elsewhere_nobody_may_frame_it(view):
    assert "frame-ancestors 'none'" in get(view(), "").headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sample": 2}, "sample 2 is not there: samples are 0 … 1"),
        ({"tokens": ["a", "b"]}, "2 tokens were given: rows and keys are 30, 40"),
        ({"port": -1}, "port -1 is none: write one from 1 to 65535, or 0 for any that is free"),
    ],
)
def test_what_cannot_be_viewed_is_said_in_a_line(seen, options, says):
    with pytest.raises(InputError) as error:
        seen.view(**options)
    assert str(error.value) == says


def test_without_maps_it_says_how_to_keep_them():
    torch.manual_seed(0)
    model = ch.nn.SelfAttention(16, 2)
    with ch.watch(model) as seen:
        model(torch.randn(1, 5, 16))
    with pytest.raises(InputError, match=r"no maps were kept: watch with ch.watch\(model, keep_maps=True\)"):
        seen.view()
    with pytest.raises(InputError, match="nothing was seen"):
        seen[:0].view()
