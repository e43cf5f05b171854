"""The attention of a few fixed examples as a model learns: what its heads look at, step by step.

maps/
  step-000000001.json      after the first step, and then each time another fiftieth of the training is done
"""

import json
from collections.abc import Sequence
from math import isqrt
from statistics import median
from typing import Any

from lightning.pytorch import Callback, Trainer

from clearhead.picture.explorer import pack_examples
from clearhead.train.config import Config
from clearhead.train.folder import RunFolder, write_text
from clearhead.train.model import Model
from clearhead.train.report import attention, shortened
from clearhead.train.scores import Example
from clearhead.train.task import Task, at_step_end

SHARES = 50
"""Files in all, beside that of the first step."""
LONGEST = 64
"""Tokens of an example on either side, at most."""
WEIGHTS = 1 << 19
"""Weights in a file, at most: 1.4 MB. Examples of models with very many heads are shorter for it."""


def typical(model: Model, examples: Sequence[Example], count: int) -> list[Example]:
    """Examples of a usual length, at equal distances among those nearest to it, in their order; the same each time."""
    longest = _longest(model.config, count)
    sources = model.source_tokenizer.encode([one.source for one in examples])
    targets = model.target_tokenizer.encode([one.answers[0] for one in examples])
    lengths = [(len(s), len(t) + 1) for s, t in zip(sources, targets, strict=True)]  # the end is predicted too
    fitting = [i for i, sides in enumerate(lengths) if min(sides) >= 2 and max(sides) <= longest]
    if not fitting:
        return []
    usual = median(sum(lengths[i]) for i in fitting)
    near = sorted(sorted(fitting, key=lambda i: abs(sum(lengths[i]) - usual))[: 8 * count])
    return [examples[i] for i in near[:: max(1, len(near) // count)][:count]]


def _longest(config: Config, count: int) -> int:
    network = config.model
    layers = (network.encoder_layers or network.layers) + 2 * (network.decoder_layers or network.layers)
    return min(LONGEST, network.max_length, isqrt(WEIGHTS // (count * layers * network.num_heads)))


class Snapshots(Callback):
    """Writes the maps of the examples, teacher-forced on their answers, so that tokens stay the same at every step.

    After a resume, files behind the step that training goes on from are removed first.
    """

    def __init__(self, folder: RunFolder, model: Model, examples: Sequence[Example]) -> None:
        self.folder, self.model, self.examples = folder, model, examples
        self._done = -1

    def on_train_start(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        step = trainer.global_step
        self._done = int(SHARES * task.clock.progress(step) + 1e-9) if step else -1
        if trainer.is_global_zero:
            self.folder.maps.mkdir(exist_ok=True)
            for at, path in self.folder.snapshots().items():
                if at > step:
                    path.unlink()

    def on_train_batch_end(self, trainer: Trainer, task: Task, *_: Any) -> None:  # type: ignore[override]
        if not trainer.is_global_zero or not at_step_end(trainer):
            return
        due = int(SHARES * task.clock.progress(trainer.global_step) + 1e-9)
        if due > self._done:
            self._done = due
            write(self.folder, trainer.global_step, self.model, self.examples)


def write(folder: RunFolder, step: int, model: Model, examples: Sequence[Example]) -> None:
    """Write the file of a step. The model is then in the mode it was in, and no random number was drawn."""
    training = model.module.training
    model.module.eval()
    maps = [attention(model, one.source, shortened(one.source), one.answers[0]) for one in examples]
    model.module.train(training)
    text = json.dumps({"step": step, "examples": pack_examples(maps)}, separators=(",", ":"))
    write_text(folder.maps / f"step-{step:09d}.json", text)
