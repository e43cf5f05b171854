"""Head importance: how much the loss would change if a head were masked (Michel et al. 2019).

    I_h = E_x |∂L(x)/∂ξ_h| at ξ = 1,  ξ_h a gate that the output of head h is multiplied by

No gate is built: at ξ = 1 the derivative is Σ out_h · ∂L/∂out_h, for all heads and samples from one backward pass.
Importances are divided by their ℓ2 norm in each layer, as in the paper.

Shapes: B samples, H heads, Nq queries, Dv value width.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.errors import InputError, nearest
from clearhead.observe.calls import Seen
from clearhead.observe.numbers.families import families
from clearhead.observe.numbers.grid import NARROW, Cell, Column, Grid, Section
from clearhead.observe.watching.watch import Watch

Heads = Callable[[Tensor], Tensor]
"""Shapes an attention's output, and its gradient, as (B, H, Nq, Dv)."""

Loss = Callable[[nn.Module, Any], Tensor]
"""Runs the model on a batch; returns the loss of each sample, (B,), or their mean."""


def head_importance(model: nn.Module, batches: Iterable[Any], loss: Loss) -> "Importance":
    """How much each head of `model` matters for the loss, in evaluation mode, averaged over all samples of `batches`.

    Parameters get no gradient. A layer that runs several times on a sample has one gate for all of its runs.

    Args:
        loss: called as `loss(model, batch)`; returns the loss of each sample, (B,), or their mean.

    Raises InputError where no attention is seen, where no gradient reaches it, and for a loss of another shape.
    """
    gates = Gates()
    with _evaluating(model), torch.enable_grad(), _gated(model, gates) as seen:
        for batch in batches:
            losses = loss(model, batch)
            if losses.dim() > 1 or not losses.requires_grad:
                raise InputError(
                    f"the loss has shape {tuple(losses.shape)}{'' if losses.requires_grad else ' and no gradient'}; "
                    "return the loss of each sample, (B,), or their mean, of what the model computed"
                )
            if gates.outputs:
                torch.autograd.grad(losses.sum(), gates.outputs, allow_unused=True)
            gates.close(averaged=losses.dim() == 0)
    scores = gates.importance().scores
    unseen = {name: "its heads are joined where no gate can stand" for name in seen.names if name not in scores}
    unseen |= seen.unseen
    if not scores:
        why = "".join(f"; {path}: {reason}" for path, reason in unseen.items())
        raise InputError(f"no head of {type(model).__name__} could be scored in these batches{why}")
    return Importance(scores, unseen)


class Gates:
    """The gates of all heads while a model runs; none of them is really there.

    For each batch: `add` every attention's output in the forward pass, run the backward pass, and `close`.
    """

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        """What was added since the last batch was closed."""
        self._batch: dict[str, Tensor] = {}  # (B, H), ∂L/∂ξ in the batch that runs
        self._sums: dict[str, Tensor] = {}  # (H,), of |∂L/∂ξ| over samples
        self._samples: dict[str, int] = {}

    def add(self, name: str, output: Tensor, heads: Heads | None = None, value: Tensor | None = None) -> None:
        """Gate the heads of an attention's `output`, which is (B, H, Nq, Dv) unless `heads` shapes it so.

        Where `output` is what a projection made of the heads' own, these are `value` (B, H, Nq, Dv), and `heads` takes
        the gradient back to them.

        An output that the model computes without gradients does not move the loss: its derivative is 0. Raises
        InputError for another one that has none, and where a layer runs on several numbers of samples at once.
        """
        if not output.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"the output of {name} carries no gradient: model.requires_grad_() lets its parameters have one"
            )
        own, version = output.detach(), output._version
        samples_and_heads = (value if value is not None else own if heads is None else heads(own)).shape[:2]
        score = self._batch.setdefault(name, _wide(own).new_zeros(samples_and_heads))
        if score.shape != samples_and_heads:
            raise InputError(
                f"{name} ran on {score.shape[0]} and on {samples_and_heads[0]} samples for one loss, which cannot be "
                "averaged over samples: compute their losses in batches of their own"
            )

        if not output.requires_grad:
            return

        def derivative(gradient: Tensor) -> None:
            if output._version != version:
                raise InputError(f"the output of {name} was changed in place after it was computed")
            # half precision would lose the sum
            out, back = (_wide(x if heads is None else heads(x)) for x in (own, gradient))
            score.add_(((out if value is None else _wide(value)) * back).sum((-1, -2)))

        output.register_hook(derivative)
        self.outputs.append(output)

    def close(self, averaged: bool = False) -> None:
        """End a batch, whose loss was the sum over its samples, or their mean (`averaged`)."""
        for name, score in self._batch.items():
            total = score.abs().sum(0).double().cpu() * (len(score) if averaged else 1)
            self._sums[name] = self._sums.get(name, 0) + total
            self._samples[name] = self._samples.get(name, 0) + len(score)
        self._batch, self.outputs = {}, []

    def importance(self) -> "Importance":
        """Of the batches that were closed. Where no gradient reached any head of a layer, all of them are 0."""
        means = {name: total / self._samples[name] for name, total in self._sums.items()}
        return Importance(
            {name: (x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)).float() for name, x in means.items()}
        )


@dataclass(frozen=True, eq=False)
class Importance:
    """The importance of every head: (H,) for each layer's path, of ℓ2 norm 1. `unseen` says which layers have none."""

    scores: dict[str, Tensor]
    unseen: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.scores:
            raise InputError(f"no importance of {name!r}{nearest(name, self.scores)}")
        return self.scores[name]

    def least(self, k: int = 10) -> list[tuple[str, int, float]]:
        """The `k` least important heads of all layers, least first: (layer, head, importance). Prune in this order."""
        every = [(name, head, x) for name, row in self.scores.items() for head, x in enumerate(row.tolist())]
        return sorted(every, key=lambda one: one[2])[:k]

    def grid(self) -> Grid:
        """As a table, layer × head, or in few words for each layer where there are many heads."""
        most = max((len(row) for row in self.scores.values()), default=0)
        wide = len("layer") + most * len("  0.00") > NARROW
        names = ["heads", "range", "least important"] if wide else [str(head) for head in range(most)]
        columns = [Column("layer"), *(Column(name, words=name == "least important") for name in names)]
        line = _in_words if wide else _in_numbers
        sections = [
            Section(family, [[Cell(label), *line(self.scores[path], len(names))] for path, label in paths.items()])
            for family, paths in families([*self.scores]).items()
        ]
        unseen = ["not seen:", *(f"  {path}: {why}" for path, why in self.unseen.items())] if self.unseen else []
        return Grid("importance of each head (Michel 2019), of norm 1 in each layer", columns, sections, unseen)

    def __str__(self) -> str:
        return self.grid().text()

    def __rich__(self) -> Any:
        return self.grid().rich()

    def _repr_html_(self) -> str:
        return self.grid().html()


def _in_numbers(row: Tensor, width: int) -> list[Cell]:
    """An importance in each column."""
    texts = [f"{x:.2f}" for x in row.tolist()]
    return [Cell(text) for text in texts + [""] * (width - len(texts))]


def _in_words(row: Tensor, width: int) -> list[Cell]:
    """The number of heads, the range of their importances, and the least of them."""
    least = sorted(enumerate(row.tolist()), key=lambda one: one[1])[:5]
    few = ", ".join(f"{head} ({x:.2f})" for head, x in least)
    return [Cell(str(len(row))), Cell(f"{row.min():.2f}..{row.max():.2f}"), Cell(few)]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def _gated(model: nn.Module, gates: Gates) -> Iterator[Seen]:
    """A block in which the output of every attention of `model` is added to the gates; its value is what was seen."""
    with Watch(model, statistics=(), rows=1, compiled="eager", outputs=gates.add) as seen:
        yield seen


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A block in which the model is in evaluation mode; each module goes back to its own."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
