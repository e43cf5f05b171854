"""A page beside a training: served by a thread of the process that trains, from its start to its end."""

import sys
from pathlib import Path
from threading import Thread
from types import TracebackType

from clearhead.train.interrupt import Interrupted
from clearhead.view.course import Course
from clearhead.view.server import PORT, Server


class Beside:
    """Within the block the page of a run can be looked at, from when it is called with the run's folder.

        with Beside() as show:
            train("g2p", begun=show)

    The port is taken at once. Raises InputError, in one line, for a port in use.
    """

    def __init__(self, port: int = PORT, browser: bool = False) -> None:
        self._server, self._browser = Server(port=port), browser
        self._course: Course | None = None
        self._thread: Thread | None = None

    def __call__(self, run: Path) -> None:
        """Serve the page of this folder, and say where."""
        self._course = Course(run)
        print(f"{self.url} shows {run} as it trains", file=sys.stderr, flush=True)
        arguments = (self._course, self._browser)
        self._thread = Thread(target=self._server.show, args=arguments, name="page", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return self._server.url

    def __enter__(self) -> "Beside":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if self._course is not None:
                self._course.end(_ended(self._course, error))
        finally:
            if self._thread is not None:
                self._server.shutdown()
            self._server.server_close()


def _ended(course: Course, error: BaseException | None) -> str:
    """How it ended."""
    if error is None:
        return f"The run has ended. `clearhead view {course.folder.path}` shows it again."
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    return words[0].upper() + words[1:] if isinstance(error, Interrupted) else f"The run stopped: {words}"
