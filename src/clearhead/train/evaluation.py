"""Validation on the way: loss and greedy predictions, a checkpoint each time, and the decision to stop early."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from clearhead.data import PAD, Batches
from clearhead.nn import Seq2Seq
from clearhead.train import checkpoints
from clearhead.train.folder import RunFolder
from clearhead.train.journal import Journal
from clearhead.train.model import Model
from clearhead.train.scores import Example, judge_of, scored
from clearhead.train.task import Task, at_step_end, summed_loss


@torch.no_grad()
def validation_loss(module: Seq2Seq, batches: Batches) -> float:
    """Cross entropy in nats per target token, without label smoothing, in evaluation mode."""
    training, device = module.training, next(module.parameters()).device
    module.eval()
    loss, tokens = 0.0, 0
    for batch in batches:
        loss += float(summed_loss(module, batch.to(device)))
        tokens += int((batch.target[:, 1:] != PAD).sum())
    module.train(training)
    return loss / tokens


def validation_scores(model: Model, chosen: Sequence[Example]) -> dict[str, float]:
    """The figures of greedy predictions, under the names that the journal gives them."""
    training = model.module.training
    model.module.eval()
    found = scored(model, chosen, beam=1)
    model.module.train(training)
    return {f"valid_{figure.key}": found[figure.key] for figure in judge_of(model.config.score).figures}


class Evaluation(Callback):
    """Validates and keeps a checkpoint `evaluations` times, at equal distances; ends the training when it is done.

    It stops earlier after `patience` evaluations without a lower loss. Kept are the last `average` checkpoints and,
    where there is a patience, the best.
    """

    def __init__(
        self, folder: RunFolder, journal: Journal, batches: Batches, examples: Sequence[Example], model: Model
    ):
        self.folder, self.journal, self.batches, self.examples, self.model = folder, journal, batches, examples, model
        self.settings = model.config.train
        self.done, self.best, self.best_step, self.worse = 0, float("inf"), 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "best": self.best, "best_step": self.best_step, "worse": self.worse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def on_train_batch_end(self, trainer: Trainer, task: Task, *_: Any) -> None:  # type: ignore[override]
        if not at_step_end(trainer):
            return
        progress = task.progress(trainer.global_step)
        due = int(progress * self.settings.evaluations + 1e-9)
        if due > self.done or trainer.should_stop:  # a callback before this one may have asked to stop
            self.done = due
            self._evaluate(trainer, task)
            progress = task.progress(trainer.global_step)  # the evaluation itself takes time
        if progress >= 1 or (self.settings.patience and self.worse >= self.settings.patience):
            trainer.should_stop = True

    def _evaluate(self, trainer: Trainer, task: Task) -> None:
        loss = 0.0
        if trainer.is_global_zero:
            loss = validation_loss(task.model, self.batches)
            self.journal.record(trainer, task, valid_loss=loss, **validation_scores(self.model, self.examples))
        loss = trainer.strategy.broadcast(loss)
        self.worse = 0 if loss < self.best else self.worse + 1
        if loss < self.best:
            self.best, self.best_step = loss, trainer.global_step
        trainer.save_checkpoint(checkpoint_path(self.folder, trainer.global_step))
        if trainer.is_global_zero:
            self._forget()

    def _forget(self) -> None:
        best = checkpoint_path(self.folder, self.best_step)
        for path in checkpoints.kept(self.folder.checkpoints)[: -self.settings.average]:
            if self.settings.patience is None or path != best:
                path.unlink()


def checkpoint_path(folder: RunFolder, step: int) -> Path:
    """Where the checkpoint of an evaluation lies; names sort by step."""
    return folder.checkpoints / f"step-{step:09d}.ckpt"
