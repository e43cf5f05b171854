"""The course of a training: an object a line in metrics.jsonl, the same in TensorBoard, progress on standard error."""

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch.utils.tensorboard import SummaryWriter

from clearhead.errors import RunError
from clearhead.observe.monitoring.record_file import RecordFile
from clearhead.train.folder import RunFolder, write_text
from clearhead.train.task import Meter, Task


class Journal(Callback):
    """Writes down loss and speed each time another half percent is done, and whatever others `record`.

    After a resume, records behind the step that training goes on from are taken back first.
    """

    def __init__(self, folder: RunFolder, share: float = 0.005) -> None:
        self.folder, self.share = folder, share
        self.writer: SummaryWriter | None = None
        """In the first process, while it trains."""
        self._meter = Meter()
        self._written = 0.0

    def on_train_start(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        self._meter, self._written = Meter(), task.clock.progress(trainer.global_step)
        if trainer.is_global_zero:
            kept = [record for record in self.folder.read_metrics() if record["step"] <= trainer.global_step]
            write_text(self.folder.metrics, "".join(json.dumps(record) + "\n" for record in kept))
            self.writer = SummaryWriter(str(self.folder.tensorboard), purge_step=trainer.global_step + 1)

    def on_train_batch_end(self, trainer: Trainer, task: Task, *_: Any) -> None:  # type: ignore[override]
        progress = task.progress(trainer.global_step)
        if progress < min(1.0, self._written + self.share):
            return
        self._written = progress
        loss, speed = self._meter.read(task.seen)
        if not math.isfinite(loss):
            step = trainer.global_step
            if not trainer.is_global_zero:
                raise SystemExit(2)  # the first process says it
            raise RunError(
                f"the loss is {loss} at step {step}: lower train.learning_rate; earlier checkpoints are whole"
            )
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.record(trainer, task, train_loss=loss, learning_rate=rate, tokens_per_second=speed)

    def record(self, trainer: Trainer, task: Task, **values: float) -> None:
        """Append a record of numbers, and write them to TensorBoard."""
        if self.writer is not None:
            self.append(trainer, task, values)
            for name, value in values.items():
                self.writer.add_scalar(name, value, trainer.global_step)

    def append(self, trainer: Trainer, task: Task, values: Mapping[str, Any]) -> None:
        """Append a record: `values` with step, epoch, seconds and progress. By the first process."""
        step = trainer.global_step
        place = {"step": step, "epoch": trainer.current_epoch, "seconds": round(task.clock.elapsed, 2)}
        place["progress"] = round(task.clock.progress(step), 4)
        RecordFile(self.folder.metrics)({**place, **values})

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:  # type: ignore[override]
        if self.writer is not None:
            self.writer.close()


class Display(Callback):
    """Loss, tokens a second and time left on standard error: a bar in a terminal, else a line every `seconds`."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds = seconds
        self._bar: Progress | None = None
        self._meter = Meter()
        self._spoke = time.monotonic()

    def on_train_start(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        self._meter, self._spoke = Meter(), time.monotonic()
        if trainer.is_global_zero and sys.stderr.isatty():
            self.seconds = 0.5
            columns = (TextColumn("{task.percentage:3.0f} %"), BarColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.add_task("training", total=1.0, note="")
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, task: Task, *_: Any) -> None:  # type: ignore[override]
        if not trainer.is_global_zero or time.monotonic() - self._spoke < self.seconds:
            return
        self._spoke = time.monotonic()
        step = trainer.global_step
        loss, speed = self._meter.read(task.seen)
        left = int(task.clock.left(step))
        note = f"loss {loss:.3f}, {speed:,.0f} tokens/s, {left // 60}:{left % 60:02d} left"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=task.clock.progress(step), note=note)
        else:
            print(f"{task.clock.progress(step):4.0%}  step {step}: {note}", file=sys.stderr, flush=True)

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:  # type: ignore[override]
        if self._bar:
            self._bar.stop()
            self._bar = None
