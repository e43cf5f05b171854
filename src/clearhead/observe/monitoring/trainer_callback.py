"""The monitor as a callback of the Trainer of Hugging Face transformers."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from clearhead.observe.monitoring.identity import identity, plain
from clearhead.observe.monitoring.monitor import AttentionMonitor
from clearhead.observe.monitoring.record_file import RecordFile

logger = logging.getLogger("clearhead.observe")


class HuggingFaceAttentionMonitor(TrainerCallback, ExportableState):
    """Monitors every `every`-th optimizer step, and the first step; of accumulated batches the first.

        Trainer(..., callbacks=[HuggingFaceAttentionMonitor()])

    Records are appended to metrics.jsonl in the output folder, and written to the folder "attention" beside the
    Trainer's own events where it reports to TensorBoard, unless `log` or `tensorboard` says otherwise. Checkpoints hold
    the monitor's state: give the callback to the Trainer that resumes, too, and training goes on as if it had not
    stopped; records behind its step are dropped. A Trainer may have several monitors that differ in what they measure.

    Args:
        every: a step is monitored if its number, counted from 1, is a multiple of this.
        options: as for `AttentionMonitor`.
    """

    def __init__(self, every: int = 20, **options: Any) -> None:
        self.every, self.options = every, options
        self.monitor: AttentionMonitor | None = None
        self.key = identity(every=every, **options)
        self.lost: Sequence[str] = ()  # options that a Trainer which made this callback anew could not give it
        self._alone = False
        self._rate = 0.0

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self._alone = len(_states(state, self._name)) == 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if self.lost:
            logger.warning(
                "restore_callback_states_from_checkpoint made the monitor anew, without its options %s: leave it off, "
                "for the monitor goes on by itself",
                ", ".join(self.lost),
            )
        options = {"log": Path(args.output_dir or ".") / "metrics.jsonl", "tensorboard": _folder(args), **self.options}
        self.monitor = AttentionMonitor(given["model"], every=self.every, optimizer=given.get("optimizer"), **options)
        kept = self._kept(state)
        if state.global_step and kept is not None:
            self.monitor.load_state_dict(kept)
        if isinstance(self.monitor.log, RecordFile) and state.is_world_process_zero:
            self.monitor.log.go_back(state.global_step)
        if isinstance(state.stateful_callbacks, dict):  # without an entry, the Trainer could not save a new callback's
            state.stateful_callbacks.setdefault(self._name, self.state())

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

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if self.monitor is not None:
            self.monitor.abandon()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Keep the last state of each monitor alone: the Trainer adds all of them anew to those of each save."""
        if isinstance(state.stateful_callbacks, dict) and isinstance(state.stateful_callbacks[self._name], list):
            last = {each.get("attributes", {}).get("key"): each for each in _states(state, self._name)}
            state.stateful_callbacks[self._name] = [*last.values()]

    def state(self) -> dict[str, Any]:
        """What the Trainer keeps in its checkpoints; `args` and `attributes` are for one that makes callbacks anew."""
        kept = plain(self.options)
        attributes: dict[str, Any] = {"key": self.key, "lost": [name for name in self.options if name not in kept]}
        if self.monitor is not None:
            attributes["kept"] = self.monitor.state_dict()
        return {"args": {"every": self.every, **kept}, "attributes": attributes}

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _kept(self, state: TrainerState) -> Mapping[str, Any] | None:
        """The state of this monitor in a checkpoint: by its key, or without one in an older checkpoint; or that of the
        only monitor, whose options have changed."""
        states = [each.get("attributes", {}) for each in _states(state, self._name)]
        keys = {each.get("key") for each in states}
        alone = self._alone and len(keys) == 1
        mine = [each for each in states if each.get("key", self.key) == self.key or alone]
        return mine[-1].get("kept") if mine else None


def _states(state: TrainerState, name: str) -> list[dict[str, Any]]:
    """What a Trainer's state holds of the callbacks of this name, one or several."""
    found: Any = state.stateful_callbacks.get(name, []) if isinstance(state.stateful_callbacks, dict) else []
    return found if isinstance(found, list) else [found]


def _folder(args: TrainingArguments) -> str | None:
    """Where scalars go, if the Trainer reports to TensorBoard."""
    folder = getattr(args, "logging_dir", None) or f"{args.output_dir}/runs"
    return f"{folder}/attention" if "tensorboard" in (args.report_to or []) else None
