"""A monitor of training: every so many steps it watches a few rows of every attention, and speaks up.

    monitor = AttentionMonitor(model, log="metrics.jsonl")
    for step, batch in enumerate(batches):
        with monitor.step(step):
            loss = model(batch)
            loss.backward()
        optimizer.step()

`LightningAttentionMonitor` and `HuggingFaceAttentionMonitor` are the same for trainers.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clearhead.errors import InputError, nearest
from clearhead.observe.calls import Seen
from clearhead.observe.heads import NAMES, Baseline
from clearhead.observe.health.remedies import Remedy
from clearhead.observe.health.rules import RULES, Finding, Rule, judge
from clearhead.observe.monitoring.alarms import Alarms, sentence
from clearhead.observe.monitoring.clipping import before_clipping
from clearhead.observe.monitoring.digest import Digest, digests, merged
from clearhead.observe.monitoring.record_file import RecordFile
from clearhead.observe.monitoring.tensorboard import TensorBoard
from clearhead.observe.paths import module_at, unwrapped
from clearhead.observe.watching.watch import Watch, watch

STATISTICS = ("entropy", "normalized_entropy", "sink", "max_logit", "max_weight", "distance")
"""What is recorded of each head unless told otherwise: means over rows; of `max_logit` the greatest."""

logger = logging.getLogger("clearhead.observe")

Log = Callable[[dict[str, Any]], object]


class AttentionMonitor:
    """Watches the attention of a model while it trains.

    At each monitored step a few rows of each attention are measured in the forward pass; nothing about the training
    changes, and other steps cost nothing. What the rules find is told by Python's logging ("clearhead.observe"): a line
    when an alarm begins, when it gets much worse, and when it is over; notes at a lower level.

    Where torch.distributed runs, all processes must monitor the same steps. Their numbers are put together, so that
    all find the same and act alike; the first one writes.

    Args:
        model: any module; what `watch` sees in it.
        every: a step is monitored if its number is a multiple of this.
        rows, samples: how many rows of how many samples of the batch to measure, drawn at random; None: all.
        statistics: which to record of each head.
        layers: as for `watch`.
        rules: what to look for.
        remedies: what acts on the model when it is needed; each thing that one does is logged.
        optimizer: of the training, for remedies that need it and for the learning rate in the records.
        log: where records go: a file, to which a line of JSON is appended for each monitored step, or a function.
        tensorboard: a SummaryWriter, its folder, or a `TensorBoard`.
        compiled: as for `watch`.

    Attributes:
        findings: what was found at the last monitored step.
        record: the last record, {"step": 40, "attention": {layer: {"entropy": [H numbers], …, "weight_norm": …,
            "gradient_norm": …}}, "alarms": [event, …], "remedies": [line, …]}. Norms are of the layer's parameters.
            Gradients are as they were before they were clipped. What was not measured is left out, or null for a
            single head.

    Raises InputError for numbers that cannot be, statistics of another name, and whatever `watch` refuses.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 20,
        rows: int | None = 16,
        samples: int | None = 16,
        statistics: Sequence[str] = STATISTICS,
        layers: str | Sequence[str] | None = None,
        rules: Sequence[Rule] = RULES,
        remedies: Sequence[Remedy] = (),
        optimizer: Any = None,
        log: str | os.PathLike[str] | Log | None = None,
        tensorboard: Any = None,
        compiled: Literal["skip", "eager"] = "skip",
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every is {every}; monitor each step with 1, each twentieth with 20")
        for name in statistics:
            if name not in NAMES:
                raise InputError(f"statistics: there is no {name!r} to record{nearest(name, NAMES)}")
        self.model = unwrapped(model)
        self.every, self.statistics, self.rules, self.remedies = every, tuple(statistics), rules, tuple(remedies)
        self.optimizer = optimizer
        self.findings: list[Finding] = []
        self.record: dict[str, Any] = {}
        self.log = RecordFile(log) if isinstance(log, str | os.PathLike) else log
        self.tensorboard = tensorboard if isinstance(tensorboard, TensorBoard | None) else TensorBoard(tensorboard)
        self.baseline, self.alarms = Baseline(), Alarms()
        self._options: dict[str, Any] = {"rows": rows, "samples": samples, "layers": layers, "compiled": compiled}
        self._number, self._next = 0, 0
        self._watch: Watch | None = None
        self._seen: Seen | None = None
        self._norms: dict[str, dict[str, float]] | None = None
        self._step = ExitStack()  # what lasts from `start` to `finish`
        self._told_unseen: set[str] = set()
        self._watcher(False)  # so that what it refuses is refused here

    # a step, for plain loops

    @contextmanager
    def step(self, number: int | None = None) -> Iterator[dict[str, Any]]:
        """The block of a training step: forward and backward pass, and the optimizer's step or not.

        The block's value is a dictionary; numbers put into it, such as a loss, become part of the record.

        Args:
            number: of the step; None: one more than the last.
        """
        number = self._next if number is None else number
        self._next = number + 1
        notes: dict[str, Any] = {}
        if not self.due(number):
            yield notes
            return
        self.start(number)
        try:
            yield notes
        except BaseException:
            self.abandon()
            raise
        self.finish(notes)

    # the same in parts, for trainers

    def due(self, number: int) -> bool:
        """Is the step of this number to be monitored?"""
        return number % self.every == 0

    def start(self, number: int) -> None:
        """Watch from here on, in step `number`."""
        self.abandon()
        self._number, self._norms = number, None
        self._step.enter_context(before_clipping(self._clipped))
        maps = self.tensorboard is not None and self.tensorboard.wants_maps(number // self.every)
        self._watch = self._watcher(maps, seed=number)  # other rows at each step, the same if it is repeated
        self._seen = self._watch.__enter__()

    def _watcher(self, keep_maps: bool, seed: int = 0) -> Watch:
        return watch(self.model, statistics=NAMES, keep_maps=keep_maps, seed=seed, **self._options)

    @property
    def running(self) -> bool:
        """Has a step been started, and not finished?"""
        return self._seen is not None

    def stop(self) -> None:
        """Watch no more. What was seen is kept for `finish`."""
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
            self._watch = None

    def abandon(self) -> None:
        """Leave a step that was started and is not to be finished."""
        self.stop()
        self._seen = None
        self._step.close()

    def _clipped(self, gradients: Sequence[Tensor]) -> None:
        """Gradients are about to be clipped; those of other modules are none of ours."""
        if self._seen is not None:
            modules = [module_at(self.model, path) for path in self._seen.names]
            ours = {id(weight.grad) for module in modules for weight in module.parameters()}
            if any(id(gradient) in ours for gradient in gradients):
                self.measure_norms()

    def measure_norms(self) -> None:
        """Take the norms of weights and gradients now, rather than at the end, unless that has been done.

        It is done by itself before `torch.nn.utils` clips gradients; call it before you change them in another way.
        """
        if self._seen is not None and self._norms is None:
            self._norms = _norms({path: module_at(self.model, path) for path in self._seen.names})

    def finish(self, numbers: Mapping[str, Any] | None = None) -> None:
        """End the step: reduce what was seen, judge it, act, and write it down, with `numbers` from outside."""
        self.stop()
        self.measure_norms()
        seen = self._seen
        self.abandon()
        if seen is None:
            return
        processes = _over_processes((digests(seen), _plain(numbers or {})))
        layers = merged(each for mine, _ in processes for each in mine)
        self.findings = judge((each.heads for each in layers), self.rules, self.baseline)
        for each in layers:
            self.baseline.take(each.heads.key, each.heads.entropy)
        events = self.alarms.update(self.findings, {_place(each): (each.judged[0] > 0).tolist() for each in layers})
        done = self._act(seen)
        self.record = self._recorded(layers, means([notes for _, notes in processes]), events, done)
        if _first_process():
            self._write(seen, events, done)

    # what comes of it

    def _act(self, seen: Seen) -> list[str]:
        given = {"model": self.model, "optimizer": self.optimizer, "findings": self.findings, "calls": seen.calls}
        return [line for remedy in self.remedies for line in remedy.act(**given)]

    @property
    def asks_to_stop(self) -> bool:
        """Does a remedy want training to end?"""
        return any(getattr(remedy, "stop", False) for remedy in self.remedies)

    def _recorded(
        self, layers: list[Digest], numbers: dict[str, float], events: list[dict[str, Any]], done: list[str]
    ) -> dict[str, Any]:
        record: dict[str, Any] = {"step": self._number, **{name: _short(x) for name, x in numbers.items()}}
        if self.optimizer is not None:
            record.setdefault("learning_rate", self.optimizer.param_groups[0]["lr"])
        record["attention"] = {each.heads.key: self._layer(each) for each in layers}
        return record | ({"alarms": events} if events else {}) | ({"remedies": done} if done else {})

    def _layer(self, each: Digest) -> dict[str, Any]:
        numbers: dict[str, Any] = {name: _short(values) for name, values in each.numbers(self.statistics).items()}
        if any(each.heads.broken):
            numbers["not_finite"] = each.heads.broken
        norms = (self._norms or {}).get(each.heads.call.name, {})
        return numbers | {name: _short(value) for name, value in norms.items()}

    def _write(self, seen: Seen, events: list[dict[str, Any]], done: list[str]) -> None:
        for event in events:
            loud = event["severity"] == "alarm" and event["event"] != "over"
            logger.log(logging.WARNING if loud else logging.INFO, "step %d: %s", self._number, sentence(event))
        for line in done:
            logger.warning("step %d: %s", self._number, line)
        for path, why in seen.unseen.items():
            if path not in self._told_unseen:
                logger.warning("%s is not monitored: %s", path, why)
        self._told_unseen |= set(seen.unseen)
        if self.log is not None:
            self.log(self.record)
        if self.tensorboard is not None:
            self.tensorboard.write(self._number, self._number // self.every, self.record, seen.calls)

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: lists, numbers and strings alone."""
        remedies = [remedy.state_dict() if hasattr(remedy, "state_dict") else None for remedy in self.remedies]
        kept = {"baseline": self.baseline.state_dict(), "alarms": self.alarms.state_dict()}
        return {**kept, "remedies": remedies, "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, with the same remedies."""
        remedies = state["remedies"] if any(kept is not None for kept in state["remedies"]) else ()
        if remedies and len(remedies) != len(self.remedies):
            raise InputError(
                f"the checkpoint holds what {len(remedies)} remedies have done so far, and this monitor has "
                f"{len(self.remedies)}: give it the same"
            )
        self.baseline.load_state_dict(state["baseline"])
        self.alarms.load_state_dict(state["alarms"])
        self._next = state.get("next", self._next)
        for remedy, kept in zip(self.remedies, remedies, strict=False):
            if kept is not None:
                remedy.load_state_dict(kept)  # type: ignore[attr-defined]
                if self.optimizer is not None and hasattr(remedy, "attach"):
                    remedy.attach(self.optimizer)


def _place(each: Digest) -> tuple[str, int]:
    return each.heads.call.name, each.heads.call.turn


def _over_processes(mine: Any) -> list[Any]:
    """What each process of torch.distributed has, in their order; all of them have to call this."""
    dist = torch.distributed
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def _first_process() -> bool:
    dist = torch.distributed
    return not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0


@torch.no_grad()
def _norms(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
    """Of each module's parameters, and of their gradients; what is not there, or only in part, is left out."""
    places, tensors = [], list[Tensor]()
    for path, module in modules.items():
        weights = [p for p in module.parameters() if p.numel() and not hasattr(p, "to_local")]
        grads = [p.grad for p in weights if p.grad is not None and not p.grad.is_sparse]
        for name, parts in (("weight_norm", weights), ("gradient_norm", grads)):
            places += [(path, name)] * len(parts)
            tensors += parts
    found: dict[str, dict[str, float]] = {path: {} for path in modules}
    if tensors:
        norms = torch._foreach_norm(tensors, 2, torch.float32)
        one_device = len({x.device for x in tensors}) == 1
        numbers = torch.stack(norms if one_device else [norm.cpu() for norm in norms]).tolist()
        for (path, name), norm in zip(places, numbers, strict=True):
            found[path][name] = math.hypot(found[path].get(name, 0.0), norm)
    return found


def _plain(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of any kind as Python's. Raises InputError for what is no single number."""
    found = {}
    for name, x in numbers.items():
        try:
            found[name] = float(x.detach()) if isinstance(x, Tensor) else float(x)
        except (TypeError, ValueError, RuntimeError):
            kind = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise InputError(
                f"{name} is {kind}; a record of a step takes single numbers, such as loss.mean()"
            ) from None
    return found


def means(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each number over those notes that have it: of processes, or of the batches of a step."""
    found: dict[str, list[Any]] = {}
    for note in notes:
        for name, value in note.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _short(x: float | Iterable[float]) -> Any:
    """A number with four digits that count, None where it is not finite; or a list of them."""
    if isinstance(x, int | float):
        return float(f"{x:.4g}") if math.isfinite(x) else None
    return [_short(each) for each in x]
