"""Ctrl-C: finish the step, save, stop."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, Trainer

from clearhead.train.checkpoints import LAST
from clearhead.train.folder import RunFolder
from clearhead.train.task import Task, at_step_end


class Interrupted(KeyboardInterrupt):
    """Training was interrupted and saved; the message says how to go on."""


class Interrupt(Callback):
    """While it is entered, the first SIGINT is remembered and answered at the end of the step; a second one is Python's
    again.

    Saving in the signal's own moment would lose the batch that is being computed.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.asked = folder, False
        self._before: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: Trainer, task: Task, *_: Any) -> None:  # type: ignore[override]
        asked = trainer.strategy.broadcast(self.asked) if trainer.world_size > 1 else self.asked
        if asked and at_step_end(trainer) and not trainer.should_stop:
            self.asked = True
            trainer.save_checkpoint(self.folder.checkpoints / LAST)
            trainer.should_stop = True
        elif trainer.should_stop:
            self.asked = False  # the end came first: there is nothing to go on with
