"""What was seen, on a page that is served while Python goes on: `Seen.view()`."""

import html
import sys
import webbrowser
from collections.abc import Sequence
from threading import Thread

from clearhead.errors import InputError
from clearhead.inspect.models import Names
from clearhead.observe import Call, Seen
from clearhead.view.answers import Explorer
from clearhead.view.scene import Scene
from clearhead.view.server import Server

HEIGHT = 900
"""Of the frame in a notebook, in pixels."""


class Shown:
    """A page that is served until `close`, or until Python ends. In a notebook it draws itself, in a frame.

    Attributes:
        url: where it is.
    """

    def __init__(self, scene: Scene, port: int = 0) -> None:
        self._server = Server(port=port, framed=in_notebook())
        self.url = self._server.url
        self._thread = Thread(target=self._server.show, args=[Explorer(scene)], daemon=True, name=self.url)
        self._thread.start()

    def close(self) -> None:
        """Serve no longer, and let go of the maps."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self.close()

    def __repr__(self) -> str:
        return f"Shown({self.url!r}{'' if self._thread.is_alive() else ', closed'})"

    def _repr_html_(self) -> str:
        url = html.escape(self.url)
        link = f'<a href="{url}" target="_blank" rel="noopener">{url}</a>'
        if not self._thread.is_alive():
            return f"<p>{link} was closed</p>"
        style = f"width: 100%; height: {HEIGHT}px; border: 0"
        return f'<p>{link}</p><iframe src="{url}" style="{style}" title="attention"></iframe>'


def view(
    seen: Seen,
    tokens: Sequence[str] | None = None,
    *,
    sample: int = 0,
    port: int = 0,
    browser: bool | None = None,
    block: bool | None = None,
) -> Shown:
    """`Seen.view`, which says what all this is."""
    shown = Shown(scene_of(seen, tokens, sample), port)
    if not in_notebook() if browser is None else browser:
        webbrowser.open(shown.url)
    if not (in_notebook() or hasattr(sys, "ps1") or sys.flags.interactive) if block is None else block:
        print(f"{shown.url} shows what was seen; Ctrl-C ends it", file=sys.stderr, flush=True)
        shown.wait()
    return shown


def scene_of(seen: Seen, tokens: Sequence[str] | None = None, sample: int = 0) -> Scene:
    """What was seen in the last pass, with the names of tokens along every axis that has as many."""
    newest = max((call.step for call in seen), default=0)
    last = [call for call in seen if call.step == newest]
    if not last:
        raise InputError("nothing was seen: there is no attention to view")
    if all(call.map is None for call in last):
        raise InputError("no maps were kept: watch with ch.watch(model, keep_maps=True)")
    samples = min(call.shape[0] for call in last)
    if not 0 <= sample < samples:
        raise InputError(f"sample {sample} is not there: samples are 0 … {samples - 1}")
    names = None if tokens is None else [str(token) for token in tokens]
    lengths = sorted({n for call in last for n in call.shape[2:]})
    if names is not None and len(names) not in lengths:
        raise InputError(f"{len(names)} tokens were given: rows and keys are {', '.join(map(str, lengths))}")

    def named(call: Call) -> tuple[Names, Names]:
        rows, keys = (names if names is not None and len(names) == n else None for n in call.shape[2:])
        return rows, keys

    return Scene("what was seen", Seen(last, seen.unseen), named, sample)


def in_notebook() -> bool:
    """Does this run in the kernel of a notebook, which shows what a cell returns?"""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return shell is not None and hasattr(shell, "kernel")
