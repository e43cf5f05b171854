"""Ctrl-C and SIGTERM: finish the step, save, stop."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from clearhead.train.checkpoints import LAST
from clearhead.train.folder import RunFolder
from clearhead.train.task import Task, at_step_end

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was interrupted; the message says how to go on, and `status` is what the program ends with."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.status = 128 + number


class Interrupt(Callback):
    """While it is entered, the signals end the run: they raise Interrupted.

    While steps are computed the first one is remembered, and answered at the end of the step: to save in the signal's
    own moment would lose the batch that is being computed. A second one ends it at once.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.begun = False
        """Is there a run to go on with?"""
        self.asked, self.saved = 0, False
        self._stepping = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        self._before = self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _listen(self) -> dict[int, Any]:
        """Take the signals, where a thread can; returns who had them."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._ask) for number in SIGNALS}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._stepping and not self.asked:
            self.asked = number
            return
        raise Interrupted(f"interrupted: {self.how_to_go_on()}", number)

    def how_to_go_on(self) -> str:
        """The end of a message about a run that did not come to its end."""
        return f"go on with --resume ({self.folder.path})" if self.begun else "nothing was begun"

    def on_train_start(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        self._listen()  # Lightning has taken them since, and would end with status 0
        self._stepping = True

    def on_train_batch_end(self, trainer: Trainer, task: Task, *_: Any) -> None:  # type: ignore[override]
        if trainer.world_size > 1:  # one that is asked asks all
            asked = torch.tensor(self.asked, device=trainer.strategy.root_device)
            self.asked = int(trainer.strategy.reduce(asked, reduce_op="max"))
        if self.asked and at_step_end(trainer) and not trainer.should_stop:
            trainer.save_checkpoint(self.folder.checkpoints / LAST)
            self.saved = trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        self._stepping = False

    def check(self, step: int) -> None:
        """Raise Interrupted where the run was stopped by a signal."""
        if self.asked:
            saved = f" at step {step} and saved" if self.saved else " after its last step"
            raise Interrupted(f"interrupted{saved}: go on with --resume ({self.folder.path})", self.asked)
