"""What a training will hold and how long it will take, measured before its first step on its largest batch."""

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from clearhead.data import Batch, Batches
from clearhead.nn import Seq2Seq
from clearhead.train.config import Config
from clearhead.train.optimizers import make_optimizer
from clearhead.train.parts import Parts
from clearhead.train.task import summed_loss


@dataclass(frozen=True)
class Forecast:
    """Bytes of weights, gradients and optimizer (`held`), bytes that the largest batch keeps for its backward pass,
    real tokens a second, and the tokens and batches of an epoch."""

    parameters: int
    held: int
    activations: int
    speed: float
    tokens: int
    batches: int

    def line(self, config: Config) -> str:
        """In words."""
        return (
            f"{self.parameters:,} parameters; weights, gradients and optimizer {_bytes(self.held)}, activations of the "
            f"largest batch {_bytes(self.activations)}; {self.speed:,.0f} tokens/s: {self._time(config)}"
        )

    def _time(self, config: Config) -> str:
        duration, epoch = config.train.duration, self.tokens / self.speed
        if duration.unit == "minutes":
            return f"{duration} are about {60 * duration.amount / epoch:.2g} epochs"
        steps = config.train.accumulate * duration.amount / self.batches
        return f"{duration} take about {_duration(epoch * (duration.amount if duration.unit == 'epochs' else steps))}"


def forecast(module: Seq2Seq, batches: Batches, config: Config) -> Forecast:
    """One forward and backward pass of the largest batch, and one optimizer step, on a copy of the model.

    Torch's random numbers are left as they were. `train.precision` and `train.parts` are decided.
    """
    device = next(module.parameters()).device
    module = copy.deepcopy(module).train()
    module.encoder.checkpoint = module.decoder.checkpoint = config.train.checkpoint
    batch = batches.largest().to(device)
    half = config.train.precision == "bfloat16"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            activations, loss = _kept(module, batch, config.train.label_smoothing)
        loss.backward()
        optimizer = make_optimizer(module, config.train)
        optimizer.step()
        speed = _speed(module, batch, config, half)
    weights = list(module.parameters())
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    held = sum(x.numel() * x.element_size() for x in [*weights, *weights, *states])
    return Forecast(sum(w.numel() for w in weights), held, activations, speed, batches.tokens, len(batches))


def _kept(module: Seq2Seq, batch: Batch, smoothing: float) -> tuple[int, Tensor]:
    """The bytes that a forward pass keeps for its backward pass, parameters not counted, and the loss."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = summed_loss(module, batch, smoothing)
    return sum(sizes.values()), loss


def _speed(module: Seq2Seq, batch: Batch, config: Config, half: bool) -> float:
    """Real tokens a second, forward and backward, in parts as in training."""
    running = Parts(config.train.parts or 1, module, lambda part: summed_loss(module, part, 0.1), half)
    start = time.perf_counter()
    with torch.autocast(batch.source.device.type, torch.bfloat16, enabled=half):
        loss = summed_loss(module, running.start(batch), 0.1)
    loss.backward()
    running.add()
    if batch.source.is_cuda:
        torch.cuda.synchronize()
    return int((batch.source != 0).sum() + (batch.target != 0).sum()) / (time.perf_counter() - start)


def _bytes(count: int) -> str:
    for name, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count / 2**10:.0f} KiB"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
