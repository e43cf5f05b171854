"""The training step, as Lightning wants it: loss, gradients normalised by tokens, optimizer, data of each process."""

import sys
import time
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from clearhead.data import PAD, Batch, Batches, Examples
from clearhead.nn import Seq2Seq
from clearhead.nn.cross_entropy import linear_cross_entropy
from clearhead.train.clock import Clock, learning_rate
from clearhead.train.config import Config
from clearhead.train.optimizers import make_optimizer
from clearhead.train.parts import Parts
from clearhead.train.processes import gathered


def summed_loss(model: Seq2Seq, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """The cross entropy of every target token but the first, given those before it, summed over the batch.

    Padding on the right of the target needs no lengths: no real row of a causal decoder sees it, and its loss is left
    out.
    """
    hidden = model(batch.source, batch.target[:, :-1], source_lengths=batch.source_lengths, logits=False)
    return linear_cross_entropy(hidden, model.output.weight, batch.target[:, 1:], PAD, label_smoothing)


def at_step_end(trainer: Trainer) -> bool:
    """Is no gradient waiting for more accumulated batches? Only then does a checkpoint hold all there is."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return batches % trainer.accumulate_grad_batches == 0 or batches == trainer.num_training_batches


class Seen(NamedTuple):
    """What was computed since the start: a summed loss, the tokens it is of, tokens of both sides."""

    loss: float = 0.0
    targets: int = 0
    tokens: int = 0

    def after(self, loss: float, targets: int, tokens: int) -> "Seen":
        """With one more batch."""
        return Seen(self.loss + loss, self.targets + targets, self.tokens + tokens)


class Meter:
    """Mean loss and tokens a second between one reading and the next."""

    def __init__(self) -> None:
        self._seen, self._time = Seen(), time.monotonic()

    def read(self, seen: Seen) -> tuple[float, float]:
        before, since = self._seen, self._time
        self._seen, self._time = seen, time.monotonic()
        loss = (seen.loss - before.loss) / max(1, seen.targets - before.targets)
        return loss, (seen.tokens - before.tokens) / (self._time - since)


class Task(LightningModule):
    """A sequence-to-sequence model that learns from batches.

    The gradient of a step is that of the mean over all its target tokens, in all accumulated batches of all processes:
    each batch gives its *sum*, and the gradients are divided by the number of tokens after the last of a step.
    """

    def __init__(self, model: Seq2Seq, examples: Examples, config: Config) -> None:
        super().__init__()
        self.model, self.examples, self.config = model, examples, config
        model.encoder.checkpoint = model.decoder.checkpoint = config.train.checkpoint
        self.batches: Batches
        self.clock: Clock
        self._own = self._all = Seen()  # of this process, and at the end of the last step of all
        self.parts = Parts(config.train.parts or 1, model, self._loss, half=config.train.precision == "bfloat16")
        self._step_tokens = 0

    @property
    def seen(self) -> Seen:
        """What all processes have computed since they started."""
        return self._own if self.trainer.world_size == 1 else self._all

    def train_dataloader(self) -> Batches:
        """The batches of this process, and the clock that depends on their number."""
        train = self.config.train
        self.batches = Batches(
            self.examples,
            self.config.data.batch_tokens,
            seed=self.config.seed,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        self.clock = Clock(train.duration, -(-len(self.batches) // train.accumulate))
        return self.batches

    def training_step(self, batch: Batch, index: int) -> Tensor:
        tokens = int((batch.target[:, 1:] != PAD).sum())
        self._step_tokens += tokens
        loss = self._loss(self.parts.start(batch))
        self._own = self._own.after(float(loss.detach()), tokens, tokens + int((batch.source != PAD).sum()))
        return loss * self.config.train.accumulate  # Lightning divides by it

    def _loss(self, batch: Batch) -> Tensor:
        return summed_loss(self.model, batch, self.config.train.label_smoothing)

    def on_after_backward(self) -> None:
        self._own = self._own.after(self.parts.add(), 0, 0)
        if at_step_end(self.trainer):  # callbacks see the gradients before `on_before_optimizer_step` here
            self._divide_by_tokens()

    def _divide_by_tokens(self) -> None:
        tokens = float(self._step_tokens)
        if self.trainer.world_size > 1:  # the gradients are means over processes by now
            sums = torch.tensor([tokens, *self._own], dtype=torch.float64, device=self.device)
            tokens, loss, targets, both = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            self._all = Seen(loss, int(targets), int(both))
            tokens /= self.trainer.world_size
        self._step_tokens = 0
        torch._foreach_div_([p.grad for p in self.parameters() if p.grad is not None], tokens)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._step_tokens:
            self._divide_by_tokens()
        rate = self.config.train.learning_rate * learning_rate(
            self.progress(self.trainer.global_step + 1), self.config.train.warmup, self.config.train.decay
        )
        for group in optimizer.param_groups:
            group["lr"] = rate

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Lightning's own refuses a fused optimizer, since one could unscale gradients; here nothing is scaled."""
        nn.utils.clip_grad_norm_(self.parameters(), self.config.train.clip)

    def progress(self, step: int) -> float:
        """The share of the training that is done after `step` steps; all processes go by the first one's clock."""
        elapsed = self.clock.elapsed
        if self.clock.timed and self.trainer.world_size > 1:
            elapsed = self.trainer.strategy.broadcast(elapsed)
        return self.clock.progress(step, elapsed)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.config.train)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random"] = gathered(self.trainer, [torch.get_rng_state(), *torch.cuda.get_rng_state_all()])
        checkpoint["elapsed"] = self.clock.elapsed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        random = checkpoint["random"]
        self._random = random if isinstance(random[0], list) else [random]  # older ones: of the first alone
        self._elapsed = checkpoint["elapsed"]

    def on_train_start(self) -> None:
        self.clock.start(getattr(self, "_elapsed", 0.0))

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        if every := self.__dict__.pop("_random", None):  # only now: what Lightning does before would draw from it
            self._draw_from(every)

    def _draw_from(self, every: list[list[Tensor]]) -> None:
        """Let random numbers go on where those of this process were."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        if len(every) != world and not rank:
            print(
                f"the checkpoint holds the random numbers of {len(every)} of {world} processes: "
                "weights will differ from those of a run that was never stopped",
                file=sys.stderr,
                flush=True,
            )
        if rank < len(every):
            torch.set_rng_state(every[rank][0].cpu())
            torch.cuda.set_rng_state_all([state.cpu() for state in every[rank][1:]])
