"""The monitor as a callback of Lightning's Trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from clearhead.errors import InputError
from clearhead.observe.monitoring.identity import identity
from clearhead.observe.monitoring.monitor import AttentionMonitor, means
from clearhead.observe.monitoring.record_file import RecordFile
from clearhead.observe.paths import module_at


class LightningAttentionMonitor(Callback):
    """Monitors every `every`-th optimizer step, and the first step.

        Trainer(callbacks=[LightningAttentionMonitor()])

    Records are appended to metrics.jsonl in the logger's folder, and written through its SummaryWriter if it is for
    TensorBoard, unless `log` or `tensorboard` says otherwise. Their loss is the mean of those that `training_step`
    returned for the batches of the step; where several are accumulated, attention is that of the first. Where a batch
    makes several optimizer steps, all of them are one.

    Checkpoints hold the monitor's state, so that a resumed training goes on as if it had not stopped, and records
    behind its step are dropped. Put it before callbacks that save checkpoints at the end of a step. A Trainer may have
    several monitors that differ in what they measure.

    Args:
        every: a step is monitored if its number, counted from 1, is a multiple of this.
        part: the path of the submodule to monitor; "": the whole LightningModule.
        options: as for `AttentionMonitor`.
    """

    def __init__(self, every: int = 20, *, part: str = "", **options: Any) -> None:
        self.every, self.part, self.options = every, part, options
        self.monitor: AttentionMonitor | None = None
        self._identity = identity(every=every, part=part, **options)
        self._state: Mapping[str, Any] | None = None
        self._number = self._started = 0  # the step that runs, and the last one that was monitored
        self._notes: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            model = module_at(pl_module, self.part)
        except InputError as error:
            raise InputError(f"part: {error}") from None
        options = {"log": _folder(trainer) / "metrics.jsonl", "tensorboard": _writer(trainer), **self.options}
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        self.monitor = AttentionMonitor(model, every=self.every, optimizer=optimizer, **options)
        if self._state is not None:
            self.monitor.load_state_dict(self._state)
        if isinstance(self.monitor.log, RecordFile) and trainer.is_global_zero:
            self.monitor.log.go_back(trainer.global_step)
        self._number = (self._state or {}).get("number", trainer.global_step)
        self._started = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        number, last = trainer.global_step + 1, self._number
        if self.monitor is None or number == last:
            return  # of accumulated batches the first alone
        self._number = number
        if number == 1 or number // self.every > last // self.every:
            self._started, self._notes = number, []
            self.monitor.start(number)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.monitor is not None:
            self.monitor.stop()
            self.monitor.measure_norms()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.monitor is None or not self.monitor.running:
            return
        self.monitor.stop()
        self._notes.append(self.notes(trainer, outputs))
        if trainer.global_step >= self._started:
            self.monitor.finish(means(self._notes))
            trainer.should_stop = trainer.should_stop or self.monitor.asks_to_stop

    def notes(self, trainer: Trainer, outputs: Any) -> dict[str, Any]:
        """Return the numbers of a batch whose means become part of the record. Lightning has divided the loss."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return {}
        return {"loss": loss.detach() * trainer.accumulate_grad_batches}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is not None:
            self.monitor.abandon()  # a step that was not finished, such as one that still accumulates

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.monitor is not None:
            self.monitor.abandon()

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}({self._identity})"

    def state_dict(self) -> dict[str, Any]:
        if self.monitor is None:
            return dict(self._state or {})
        return {**self.monitor.state_dict(), "number": self._number}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the state of a monitor whose key is an older one, or of the only one, whose options have changed."""
        states, name = checkpoint.get("callbacks") or {}, type(self).__qualname__
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        alone = sum(type(callback) is type(self) for callback in callbacks) == 1
        keys = [key for key in states if key == name or (alone and str(key).startswith(f"{name}("))]
        if self.state_key not in states and len(keys) == 1:
            self.load_state_dict(states[keys[0]])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.log_dir or trainer.default_root_dir)


def _writer(trainer: Trainer) -> Any:
    """The SummaryWriter of a logger for TensorBoard, if there is one."""
    boards: list[Any] = [logger for logger in trainer.loggers if type(logger).__name__ == "TensorBoardLogger"]
    return boards[0].experiment if boards else None
