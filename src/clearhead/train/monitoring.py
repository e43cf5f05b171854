"""Attention watched while a run learns: into its journal, with the remedies that its configuration names."""

from typing import Any

from lightning.pytorch import Trainer

from clearhead.observe.health.remedies import LowerLearningRate, QKClip, Remedy, StopWithLastGood
from clearhead.observe.monitoring.lightning_callback import LightningAttentionMonitor
from clearhead.train.config import Monitoring
from clearhead.train.journal import Journal
from clearhead.train.task import Task

REMEDIES: dict[str, type[Remedy]] = {
    "qk-clip": QKClip,
    "lower-learning-rate": LowerLearningRate,
    "stop": StopWithLastGood,
}


class Monitor(LightningAttentionMonitor):
    """Writes into the journal, which stands before it among the callbacks and takes back what is behind a resume."""

    def __init__(self, journal: Journal, settings: Monitoring) -> None:
        assert settings.every is not None
        super().__init__(settings.every, part="model", rows=settings.rows, samples=settings.samples)
        self.journal, self.settings = journal, settings

    @property
    def state_key(self) -> str:
        """A run has one monitor, and checkpoints name it so."""
        return type(self).__qualname__

    def on_train_start(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        self.options |= {
            "remedies": [REMEDIES[name]() for name in self.settings.remedies],
            "log": lambda record: self.journal.append(trainer, task, record),
            "tensorboard": self.journal.writer,
        }
        super().on_train_start(trainer, task)

    def notes(self, trainer: Trainer, outputs: Any) -> dict[str, Any]:
        """The journal writes the loss down itself: that of a step is a sum, of one part of its batch."""
        return {}
