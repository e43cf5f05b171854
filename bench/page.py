"""What a page of 144 heads costs a reader: `python bench/page.py [--heads 12 --tokens 128 --rounds 5]`.

Weights are drawn at random, which is the most that a page of this size can hold. For each round a real Chromium opens
the page anew: the processor time of its main thread, and the time by the clock, until the page can be used.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from clearhead.picture.atlases import atlas


def write(path: Path, heads: int, tokens: int) -> None:
    """A page of as many layers as heads."""
    names = [f"token {i}" for i in range(tokens)]
    layers = []
    for i, A in enumerate(np.random.default_rng(0).dirichlet(np.ones(tokens), (heads, heads, tokens))):
        entropy = -(A * np.log(A)).sum(-1)
        layers.append(
            {"path": f"layers.{i}", "group": "", "weights": A, "entropy": entropy, "received": A.sum(-2),
             "statistics": {"entropy": entropy.mean(-1)}, "rows": names, "columns": names}
        )  # fmt: skip
    atlas(path, title="a page", subtitle="measured", layers=layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("heads", 12), ("tokens", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        parser.error("no chromium or google-chrome is on the PATH: install one, as Debian's package chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as engine:
        path = Path(folder) / "page.html"
        write(path, asked.heads, asked.tokens)
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        busy, clock = [], []
        for _ in range(asked.rounds):
            start = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_selector("[data-ready]")
            clock.append(time.perf_counter() - start)
            metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
            busy.append(metrics["TaskDuration"])
            page.goto("about:blank")
        print(f"{asked.heads} x {asked.heads} heads, {asked.tokens} tokens: {path.stat().st_size / 1e6:.2f} MB")
        for name, values in (("main thread", busy), ("by the clock", clock)):
            print(f"usable, {name}: {statistics.median(values):.2f} s (from {min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
