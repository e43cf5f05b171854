"""Remedies for what `health` finds.

Those that act in training have one method, `act(model=…, optimizer=…, findings=…, calls=…)`, to be called after each
check, with findings or without; it returns a line for each thing that it did, to be logged:

    remedies = [QKClip(), LowerLearningRate()]
    lines = [line for remedy in remedies for line in remedy.act(model=model, optimizer=optimizer, findings=found)]

`entropy_floor` is a term of the loss. What changes a module before training is in `reparam`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clearhead.errors import InputError
from clearhead.observe.calls import Call
from clearhead.observe.heads import summaries
from clearhead.observe.health.rules import Finding
from clearhead.observe.paths import module_at
from clearhead.observe.projections import query_key


class Remedy(ABC):
    """What acts on a model in training. `paper` is where it comes from."""

    paper: ClassVar[str]

    @abstractmethod
    def act(
        self,
        *,
        model: nn.Module,
        optimizer: Any = None,
        findings: Sequence[Finding] = (),
        calls: Sequence[Call] = (),
    ) -> list[str]:
        """Act on what was found in the calls of this step, if there is anything to do; the lines say what was done."""


class QKClip(Remedy):
    """Where a head's largest logit exceeds `limit`, scale its query and key projections by √(limit / logit) each.

    The products q · k of that head are then limit / logit times what they were, and so are its logits, but for a bias
    that is added to them, and but for a soft cap, which bends them; other heads do not change. Where a key serves
    several heads, the query takes the whole factor. What was measured on a sample of rows is clipped by that sample. On
    several processes, which must watch the same layers, the largest logit of any of them counts.
    """

    paper = "Kimi Team 2025, Kimi K2 (MuonClip)"

    def __init__(self, limit: float = 100.0) -> None:
        if not limit > 0:
            raise InputError(f"limit is {limit}; it must be positive")
        self.limit = limit
        self._refused: set[str] = set()

    def act(
        self,
        *,
        model: nn.Module,
        optimizer: Any = None,
        findings: Sequence[Finding] = (),
        calls: Sequence[Call] = (),
    ) -> list[str]:
        """Clip the heads of `calls`; findings play no part, since the limit need not be an alarm's."""
        return [
            line
            for layer, logits in _largest_logits(calls).items()
            for head, logit in enumerate(logits)
            if logit > self.limit and (line := self._clip(model, layer, head, logit))
        ]

    def _clip(self, model: nn.Module, layer: str, head: int, logit: float) -> str:
        if not math.isfinite(logit):
            return ""  # no factor mends it
        factor = self.limit / logit
        try:
            query_key(module_at(model, layer), head).scale(factor)
        except InputError as error:  # an alarm in the middle of a long run must not end it
            new, self._refused = layer not in self._refused, self._refused | {layer}
            return f"QK-clip: {layer} cannot be clipped: {error}" if new else ""
        return (
            f"QK-clip: {layer} head {head}: largest logit {logit:.4g}, so its products q · k are scaled by {factor:.3g}"
        )


def _largest_logits(calls: Sequence[Call]) -> dict[str, list[float]]:
    """The largest logit of each head of each layer, in this and all other processes."""
    largest: dict[str, Tensor] = {}
    for heads in summaries(calls):
        name, new = heads.call.name, torch.tensor(heads.max_logit).nan_to_num(-math.inf)
        largest[name] = torch.maximum(largest.get(name, new), new)
    if torch.distributed.is_available() and torch.distributed.is_initialized() and largest:
        # weights that each process scaled by its own factor would part for ever
        device = calls[0].statistics.max_logit.device if calls[0].statistics.max_logit is not None else None
        together = torch.cat([*largest.values()]).to(device)
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
        sizes = [len(values) for values in largest.values()]
        largest = dict(zip(largest, together.cpu().split(sizes), strict=True))
    return {name: values.tolist() for name, values in largest.items()}


def entropy_floor(calls: Iterable[Call], floor: float = 0.1) -> Tensor:
    """A term of the loss: the mean of relu(floor − normalized entropy) over all heads and rows, a scalar.

    Rows that see fewer than two keys and padding are left out; without any row left it is 0. Entropy as a regulariser
    of attention is from Zhai 2023 (who bound it from below) and Pereyra 2017.

    Raises InputError for statistics that carry no gradient.
    """
    if not 0 < floor <= 1:
        raise InputError(f"floor is {floor}; normalized entropy lies between 0 and 1")
    terms, count = [], 0
    for call in calls:
        entropy = call.statistics.normalized_entropy
        if entropy is None:
            raise InputError(
                f"the normalized entropy of {call.name} was not measured: watch with it among `statistics`"
            )
        if not entropy.requires_grad:
            raise InputError(f"the statistics of {call.name} carry no gradient: write watch(model, grad=True)")
        known = entropy.isfinite()
        if call.padding is not None:
            known = known & ~call.padding[:, None]
        terms.append((floor - entropy[known]).relu().sum())
        count += int(known.sum())
    if not terms:
        raise InputError("there are no calls to take the entropy of")
    return torch.stack([term.to(terms[0]) for term in terms]).sum() / max(1, count)


class LowerLearningRate(Remedy):
    """While there are alarms, lower the learning rate by `factor`, at most once in `wait` checks, not below `lowest`.

    The rate is lowered within each `optimizer.step()` alone, by a hook: outside, `param_groups` hold what the scheduler
    set, so that any scheduler goes on with its own plan, and `scale` is what the optimizer multiplies that by. Keep
    `state_dict()` in the checkpoint, and after loading it call `attach(optimizer)`.

    Args:
        factor: between 0 and 1.
        wait: how many checks an alarm is left after the rate was lowered before it is lowered again.
        lowest: what `scale` never falls below.
    """

    paper = "Zhai 2023, who find entropy collapse above a learning rate and not below"

    def __init__(self, factor: float = 0.5, wait: int = 5, lowest: float = 0.01) -> None:
        if not 0 < factor < 1:
            raise InputError(f"factor is {factor}; it must lie between 0 and 1")
        self.factor, self.wait, self.lowest = factor, wait, lowest
        self.scale, self._since = 1.0, wait
        self._attached: Optimizer | None = None
        self._remove: list[Callable[[], None]] = []
        self._planned: list[Any] = []

    def act(
        self,
        *,
        model: nn.Module,
        optimizer: Any = None,
        findings: Sequence[Finding] = (),
        calls: Sequence[Call] = (),
    ) -> list[str]:
        """Lower the rate if there is an alarm. Raises InputError without an optimizer."""
        if optimizer is None:
            raise InputError("LowerLearningRate needs the optimizer: give act(optimizer=…)")
        self._since += 1
        alarm = next((finding for finding in findings if finding.severity == "alarm"), None)
        if alarm is None or self._since <= self.wait or self.scale <= self.lowest:
            return []
        self.scale, self._since = max(self.lowest, self.scale * self.factor), 0
        self.attach(optimizer)
        return [
            f"learning rate × {self.scale:.3g} of its schedule from now on, because of {alarm.rule} in {alarm.layer}"
        ]

    def attach(self, optimizer: Optimizer) -> None:
        """Hold the rate of `optimizer` down from now on; what wraps it may be given."""
        inner = getattr(optimizer, "optimizer", optimizer)  # what Lightning and Accelerate wrap
        if inner is self._attached:
            return
        self.detach()
        self._attached = inner
        handles = [inner.register_step_pre_hook(self._lower), inner.register_step_post_hook(self._restore)]
        self._remove = [handle.remove for handle in handles]

    def detach(self) -> None:
        """Let the rate go."""
        for remove in self._remove:
            remove()
        self._attached, self._remove = None, []

    def _lower(self, optimizer: Optimizer, *_: Any) -> None:
        self._restore(optimizer)  # where the last step raised, and left its rate behind
        self._planned = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.scale

    def _restore(self, optimizer: Optimizer, *_: Any) -> None:
        for group, planned in zip(optimizer.param_groups, self._planned, strict=False):
            group["lr"] = planned
        self._planned = []

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"scale": self.scale, "since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; then `attach` the optimizer."""
        self.scale, self._since = state["scale"], state["since"]


class StopWithLastGood(Remedy):
    """Keep the last weights of a check without alarms, on the CPU; after `patience` checks with alarms on end, put them
    back and ask training to stop: `stop` is then True, for the loop to read.

    Args:
        patience: how many checks with alarms on end are too many.
        every: keep weights at every so many checks without alarms; each costs a copy of the model.
        rules: the names of the rules whose alarms count; None: all.
    """

    paper = "Zhang 2022, OPT (restarts from the last healthy checkpoint)"

    def __init__(self, patience: int = 3, every: int = 1, rules: Sequence[str] | None = None) -> None:
        for name, value in (("patience", patience), ("every", every)):
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        self.patience, self.every = patience, every
        self.rules = None if rules is None else tuple(rules)
        self.stop = False
        self._good: dict[str, Any] | None = None
        self._bad = self._healthy = 0

    def act(
        self,
        *,
        model: nn.Module,
        optimizer: Any = None,
        findings: Sequence[Finding] = (),
        calls: Sequence[Call] = (),
    ) -> list[str]:
        """Keep the weights, or count an alarm, or stop."""
        if self.stop:
            return []
        alarms = [f for f in findings if f.severity == "alarm" and (self.rules is None or f.rule in self.rules)]
        if not alarms and _finite(model):
            self._bad = 0
            if self._healthy % self.every == 0:
                self._good = {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}
            self._healthy += 1
            return []
        self._bad += 1
        if self._bad < self.patience:
            return []
        self.stop = True
        why = f"{alarms[0].rule} in {alarms[0].layer}" if alarms else "weights that are not finite"
        if self._good is None:
            return [f"training is asked to stop because of {why}; no good weights were seen, so these are left"]
        model.load_state_dict(self._good)
        return [f"training is asked to stop because of {why}; the last good weights are back in place"]


@torch.no_grad()
def _finite(model: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())
