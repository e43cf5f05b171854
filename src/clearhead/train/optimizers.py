"""Which optimizer moves which parameter."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from clearhead.train.config import Training
from clearhead.train.muon import Muon


def make_optimizer(model: nn.Module, train: Training) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019) for everything; or Muon (Jordan 2024) for the matrices between hidden states
    and AdamW for the rest: embeddings, the output projection tied to them, gains and biases.

    Muon's steps are scaled to the size of AdamW's (Liu 2025), so that both take one learning rate. Matrices decay;
    gains and biases do not.
    """
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    parameters = list(model.parameters())
    hidden = [p for p in parameters if p.ndim == 2 and p not in tables]
    tensors = [p for p in parameters if p.ndim >= 2 and not (p.ndim == 2 and p not in tables)]
    vectors = [p for p in parameters if p.ndim < 2]
    rest = [{"params": tensors, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if train.optimizer == "adamw":
        rest[0]["params"] = hidden + tensors
        return AdamW(rest, lr=train.learning_rate, betas=train.betas, fused=True)
    count = min(train.parts or 1, len(hidden))
    muons = [
        Muon(hidden[i::count], train.learning_rate, train.weight_decay, adjust_lr_fn="match_rms_adamw")
        for i in range(count)
    ]
    return Together([*muons, AdamW(rest, lr=train.learning_rate, betas=train.betas, fused=True)])


class Together(Optimizer):
    """Several optimizers, each of its own parameters, as one: for a trainer that knows of one.

    All but the last step side by side, in a thread each: of Muon's products one alone is too small for several cores.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = list(parts)
        # made where `train.parts.threads` holds, so the threads have a part's share of the cores
        self._pool = ThreadPoolExecutor(len(parts[:-1]), "optimizer", torch.set_num_threads, (torch.get_num_threads(),))
        self._share()

    def _share(self) -> None:
        """The parts' own groups and states are seen through this one: a learning rate set here is set there."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state.clear()
        for part in self.parts:
            self.state.update(part.state)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        running = [self._pool.submit(part.step) for part in self.parts[:-1]]
        self.parts[-1].step()
        for future in running:
            future.result()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Those of the parts, in their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()
