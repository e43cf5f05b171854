"""The monitor as a callback of Lightning's Trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from clearhead.errors import InputError
from clearhead.observe.monitoring.monitor import AttentionMonitor
from clearhead.observe.monitoring.record_file import RecordFile
from clearhead.observe.paths import module_at


class LightningAttentionMonitor(Callback):
    """Monitors the first batch of every `every`-th optimizer step, and the first step.

        Trainer(callbacks=[LightningAttentionMonitor()])

    Records are appended to metrics.jsonl in the logger's folder, and written through its SummaryWriter if it is for
    TensorBoard, unless `log` or `tensorboard` says otherwise. They hold the loss that `training_step` returned.
    Checkpoints hold the monitor's state, so that a resumed training goes on as if it had not stopped, and records
    behind its step are dropped. Put it before callbacks that save checkpoints at the end of a step.

    Args:
        every: a step is monitored if its number, counted from 1, is a multiple of this.
        part: the path of the submodule to monitor; "": the whole LightningModule.
        options: as for `AttentionMonitor`.
    """

    def __init__(self, every: int = 20, *, part: str = "", **options: Any) -> None:
        self.every, self.part, self.options = every, part, options
        self.monitor: AttentionMonitor | None = None
        self._state: Mapping[str, Any] | None = None
        self._number = 0

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
        self._number = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        number = trainer.global_step + 1
        if self.monitor is not None and number != self._number and (number == 1 or self.monitor.due(number)):
            self._number = number  # of accumulated batches the first alone
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
        if trainer.global_step >= self._number:
            self.monitor.finish(self.notes(trainer, outputs))
            trainer.should_stop = trainer.should_stop or self.monitor.asks_to_stop

    def notes(self, trainer: Trainer, outputs: Any) -> dict[str, Any]:
        """What of the outputs of `training_step` becomes part of the record. Lightning has divided the loss."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return {}
        return {"loss": loss.detach() * trainer.accumulate_grad_batches}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.monitor is not None:
            self.monitor.stop()

    def state_dict(self) -> dict[str, Any]:
        return self.monitor.state_dict() if self.monitor is not None else dict(self._state or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.log_dir or trainer.default_root_dir)


def _writer(trainer: Trainer) -> Any:
    """The SummaryWriter of a logger for TensorBoard, if there is one."""
    boards: list[Any] = [logger for logger in trainer.loggers if type(logger).__name__ == "TensorBoardLogger"]
    return boards[0].experiment if boards else None
