"""What all tests share: hypothesis profiles, two threads, as a laptop has, and a browser."""

import math
import os
import shutil
import signal

import hypothesis
import jaxtyping
import pytest
import torch

from clearhead.kernels import unwritten

TRIALS = os.environ.get("CLEARHEAD_TRIALS") == "1"

hypothesis.settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True)
hypothesis.settings.register_profile("trials", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("trials" if TRIALS else "quick")
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background is started without Ctrl-C
unwritten.BEGIN = math.nan  # what a kernel is to write begins as NaN: what it never wrote shows
torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def unchecked():
    """Run the code as users do, without the shape and type checks that pytest adds to every call.

    For tests of the library's own messages, and of tracing, where a size is no `int`.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def one_thread():
    """So small a model is only slowed down by a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CONDITIONS = {"usual": (0, 1), "late answers": (300, 1), "slow processor": (0, 6)}
"""Conditions in which pages are tested: the latest answer in ms, and the factor by which scripts are slower."""

LATE = """{ const ask = fetch; window.fetch = async (...what) => {
  await new Promise((resolve) => setTimeout(resolve, %d * Math.random()));
  return ask(...what);
}; }"""


class Browser:
    """A browser in one of the conditions."""

    def __init__(self, browser, delay, rate):
        self.browser, self.delay, self.rate = browser, delay, rate

    def __getattr__(self, name):
        return getattr(self.browser, name)

    def new_page(self, delay=None, **options):
        page = self.browser.new_page(**options)
        page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": self.rate})
        if delay := self.delay if delay is None else delay:
            page.add_init_script(LATE % delay)
        return page


@pytest.fixture(scope="module", params=CONDITIONS if TRIALS else ["usual"])
def browser(request):
    """A real Chromium, this machine's own; tests that need one are skipped where it is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    paths = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    if (path := next(filter(None, paths), None)) is None:
        pytest.skip("no Chromium on PATH")
    with playwright.sync_playwright() as engine:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
        browser = engine.chromium.launch(executable_path=path, args=options)
        yield Browser(browser, *CONDITIONS[request.param])
        browser.close()
