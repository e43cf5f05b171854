"""The site of a run of `clearhead train`: how it goes, drawn from the files of its folder as they are now."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Semaphore
from typing import Any

from clearhead.errors import ClearheadError, InputError
from clearhead.picture import live
from clearhead.picture.curves import course
from clearhead.picture.explorer import check_packed
from clearhead.train.folder import RunFolder
from clearhead.view.records import Records
from clearhead.view.site import Answer, Asked, Site, as_json

QUIET = 120
"""Seconds without a new record after which that is said."""
HANGING = 30
"""Seconds after which a page that waits for the end is answered that it has not come."""


def is_run(path: str | Path) -> bool:
    """Is this the folder of a run, whether it has ended or not?"""
    return RunFolder(path).config.exists()


class Course(Site):
    """A page of a run that goes on, in this process or in another, or has ended.

    Raises RunError where no run is in the folder.
    """

    def __init__(self, run: str | Path) -> None:
        self.folder = RunFolder(run)
        self.config = self.folder.read_config()
        self._records = Records(self.folder.metrics)
        self._drawing = Lock()
        self._drawn: tuple[str, dict[str, Any], str] = ("", {}, "")
        self._ended, self._over = "", Event()
        self._done, self._pages, self._counting = Semaphore(0), 0, Lock()

    def paths(self) -> Iterable[str]:
        return ["/", "/page.js", "/page.css", "/api/version", "/api/run", "/api/maps", "/api/end"]

    def at(self, path: str, asked: Asked) -> Answer:
        match path:
            case "/":
                return self._page()
            case "/page.js":
                return Answer("text/javascript; charset=utf-8", live.script().encode())
            case "/page.css":
                return Answer("text/css; charset=utf-8", live.style().encode())
            case "/api/version":
                return as_json(self._now())
            case "/api/run":
                return as_json(self._run())
            case "/api/end":
                return self._end(asked)
        return self._maps(asked.number("step"))

    def end(self, words: str, wait: float = 5.0) -> None:
        """The run has ended: say so, and give the pages that are open so many seconds to ask for what came last."""
        self._ended, until, pages = words, time.monotonic() + wait, self._pages
        self._over.set()
        for _ in range(pages):
            self._done.acquire(timeout=max(0.0, until - time.monotonic()))

    def _end(self, asked: Asked) -> Answer:
        """Answered when the run ends, or after a while; a page that has all it needs asks once more."""
        if self._over.is_set():
            self._done.release()
            return as_json({"ended": True})
        with self._counted():
            for _ in range(HANGING):
                asked.wait_is_over()
                if self._over.wait(1.0):
                    break
        return as_json({"ended": self._over.is_set()})

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """A block in which a page waits for the end."""
        with self._counting:
            self._pages += 1
        try:
            yield
        finally:
            with self._counting:
                self._pages -= 1

    def close(self) -> None:
        pass

    def _page(self) -> Answer:
        config, run = self.config, self._run()
        name = self.folder.path.name
        network = f"width {config.model.embed_dim}, {config.model.num_heads} heads, seed {config.seed}"
        title = name if name == config.task else f"{config.task}: {name}"
        kept = "None yet: the first come with the first step." if config.monitor.examples else "monitor.examples is 0."
        page = live.live_page(title, f"{config.train.duration}, {network}", run["now"]["words"], {**run, "kept": kept})
        return Answer("text/html; charset=utf-8", page)

    def _version(self) -> str:
        """Another whenever there is something new."""
        files = (self.folder.metrics, self.folder.model, *self.folder.snapshots().values())
        return ".".join([*(f"{mark:x}" for file in files for mark in _marks(file)), str(bool(self._ended))])

    def _now(self) -> dict[str, Any]:
        with self._drawing:
            return self._said(self._version(), self._records.read())

    def _said(self, version: str, records: list[dict[str, Any]]) -> dict[str, Any]:
        """How the run goes, in words."""
        state, words = self._state(records)
        short = f"step {records[-1]['step']:,}" if records else state
        return {"version": version, "state": state, "words": words, "short": short, "trouble": self._drawn[2]}

    def _state(self, records: list[dict[str, Any]]) -> tuple[str, str]:
        """One word for the page's colours, and how it goes."""
        if not self.folder.path.is_dir():
            return "gone", f"{self.folder.path} is no longer there."
        if self._ended:
            return "ended", self._ended
        if self.folder.model.exists():
            return "ended", f"The run has ended: {course(records)}. Its report is {self.folder.report}."
        if not records:
            return "waiting", "Waiting for the first step."
        return "on", _on(records[-1], time.time() - _marks(self.folder.metrics)[1] / 1e9)

    def _run(self) -> dict[str, Any]:
        """What is drawn, in pictures and in words, with the version that it is of, and the steps that have maps."""
        version = self._version()
        with self._drawing:
            records = self._records.read()
            if self._drawn[0] != version:
                self._drawn = (version, *self._draw(records))
            _, drawn, _ = self._drawn
            now = self._said(version, records)
        steps = [[step, _marks(path)[1]] for step, path in self.folder.snapshots().items()]
        return {**drawn, "now": now, "version": version, "steps": [[step, str(mark)] for step, mark in steps]}

    def _draw(self, records: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
        """What there is to see, and what cannot be seen."""
        trouble = self._records.trouble
        try:
            drawn = live.drawn(records)
            json.dumps(drawn, allow_nan=False)
            return drawn, trouble
        except (ClearheadError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            return live.drawn([]), f"{self.folder.metrics} is damaged: {type(error).__name__}: {error}"

    def _maps(self, step: int) -> Answer:
        path = self.folder.snapshots().get(step)
        if path is None:
            raise InputError(f"there are no maps of step {step}")
        try:
            examples = json.loads(path.read_bytes())["examples"]
            check_packed(examples)
            return as_json({"examples": examples})
        except (AttributeError, InputError, LookupError, OSError, RecursionError, TypeError, ValueError):
            raise InputError(f"{path} is damaged: the maps of step {step} cannot be shown") from None


def _marks(path: Path) -> tuple[int, int]:
    """Size and time of change, in ns; 0 where there is nothing."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _on(last: dict[str, Any], quiet: float) -> str:
    """How far a run is that goes on."""
    step, progress, seconds = last["step"], last.get("progress"), last.get("seconds")
    words = f"step {step:,}"
    if quiet > QUIET:
        return f"Step {step:,}; nothing new for {quiet / 60:,.0f} min: it was stopped, or is busy."
    if not isinstance(progress, int | float) or not 0 < progress <= 1:
        return f"The run goes on: {words}."
    if progress == 1:
        return f"All {step:,} steps are done: choosing the weights, and scoring them."
    words += f", {progress:.0%}"
    if isinstance(seconds, int | float):
        words += f", about {_duration(seconds * (1 - progress) / progress)} left"
    return f"The run goes on: {words}."


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
