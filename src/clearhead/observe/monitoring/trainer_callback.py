"""The monitor as a callback of the Trainer of Hugging Face transformers."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from clearhead.observe.monitoring.monitor import AttentionMonitor
from clearhead.observe.monitoring.record_file import RecordFile


class HuggingFaceAttentionMonitor(TrainerCallback, ExportableState):
    """Monitors the first batch of every `every`-th optimizer step, and the first step.

        Trainer(..., callbacks=[HuggingFaceAttentionMonitor()])

    Records are appended to metrics.jsonl in the output folder, and written to the folder "attention" beside the
    Trainer's own events where it reports to TensorBoard, unless `log` or `tensorboard` says otherwise. Checkpoints hold
    the monitor's state: give the callback to the Trainer that resumes, too, and training goes on as if it had not
    stopped; records behind its step are dropped.

    Args:
        every: a step is monitored if its number, counted from 1, is a multiple of this.
        options: as for `AttentionMonitor`.
    """

    def __init__(self, every: int = 20, **options: Any) -> None:
        self.every, self.options = every, options
        self.monitor: AttentionMonitor | None = None
        self._rate = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        options = {"log": Path(args.output_dir or ".") / "metrics.jsonl", "tensorboard": _folder(args), **self.options}
        self.monitor = AttentionMonitor(given["model"], every=self.every, optimizer=given.get("optimizer"), **options)
        kept = _attributes(state.stateful_callbacks, type(self).__name__)
        if state.global_step and kept:
            self.monitor.load_state_dict(kept["kept"])
        if isinstance(self.monitor.log, RecordFile) and state.is_world_process_zero:
            self.monitor.log.go_back(state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        number = state.global_step + 1
        if self.monitor is not None and (number == 1 or self.monitor.due(number)):
            self.monitor.start(number)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if self.monitor is not None:
            self.monitor.stop()  # of accumulated batches the first alone

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if self.monitor is not None:
            self.monitor.stop()
            self.monitor.measure_norms()
            self._rate = given["optimizer"].param_groups[0]["lr"]  # the scheduler moves on before the step's end

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if self.monitor is not None and self.monitor.running:
            self.monitor.finish({"learning_rate": self._rate})
            control.should_training_stop = control.should_training_stop or self.monitor.asks_to_stop

    def state(self) -> dict[str, Any]:
        """What the Trainer keeps in its checkpoints."""
        kept = {} if self.monitor is None else {"kept": self.monitor.state_dict()}
        return {"args": {"every": self.every}, "attributes": kept}


def _attributes(callbacks: Any, name: str) -> dict[str, Any]:
    """What a checkpoint holds of the callback of this name."""
    state = callbacks.get(name, {}) if isinstance(callbacks, dict) else {}
    state = state[-1] if isinstance(state, list) else state
    return state.get("attributes", {})


def _folder(args: TrainingArguments) -> str | None:
    """Where scalars go, if the Trainer reports to TensorBoard."""
    folder = getattr(args, "logging_dir", None) or f"{args.output_dir}/runs"
    return f"{folder}/attention" if "tensorboard" in (args.report_to or []) else None
