"""What attends in a model, found without `watch`, and `watch` held against it.

`Events` is the oracle: a mode that logs each softmax and each fused call, and hooks that name the module that ran it.
In eager attention what a softmax gives are the weights. `swept(kind)` runs one architecture of transformers (see
`small_models`) through all that must hold; its problems are sentences.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

import clearhead
import small_models
from architectures import NO_ATTENTION as NOTHING
from architectures import NO_SCORES
from clearhead.errors import InputError
from clearhead.observe.calls import Call, Seen, under
from clearhead.observe.numbers.importance import head_importance
from clearhead.observe.watching.watch import watch

clearhead.nn.register_with_transformers()
SOFTMAXES = {torch.softmax, F.softmax, Tensor.softmax, torch.special.softmax}
FUSED = {F.scaled_dot_product_attention, F.multi_head_attention_forward}
NO_ATTENTION = ("Router", "HyperConnection")
"""Ends of the names of classes whose softmax weighs experts or streams, and no tokens."""


@dataclass(eq=False)
class Event:
    """A softmax over the axis `axis`, or a fused call, that a module ran."""

    path: str
    how: str
    kind: str
    weights: Tensor | None = None
    axis: int = -1


@dataclass(eq=False)
class Events(TorchFunctionMode):
    """Within the block, `found` fills with what attends in `model`."""

    model: nn.Module
    found: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._paths = {module: path for path, module in self.model.named_modules()}
        self._stack: list[nn.Module] = []

    def __enter__(self) -> "Events":
        self._handles = [
            register_module_forward_pre_hook(lambda module, args: self._stack.append(module)),
            register_module_forward_hook(lambda *given: self._stack.pop() and None, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in FUSED or (func in SOFTMAXES and out.dim() >= 3):
            self._add(func, out, (kwargs or {}).get("dim", args[1] if len(args) > 1 else -1))
        return out

    def _add(self, func: Any, out: Any, axis: Any) -> None:
        own = [module for module in self._stack if not type(module).__module__.startswith("torch.nn.modules.")]
        module = own[-1] if own else self.model
        if module not in self._paths:  # BigBird exchanges modules while it runs
            self._paths |= {module: path for path, module in self.model.named_modules()}
        kind = type(module).__name__
        if kind.endswith(NO_ATTENTION):
            return
        if func in FUSED:
            self.found.append(Event(self._paths[module], func.__name__, kind))
        else:
            self.found.append(Event(self._paths[module], func.__name__, kind, out.detach().clone(), axis % out.dim()))


@dataclass
class Report:
    """What came out for one architecture."""

    kind: str
    attended: int = 0
    """How many events eager attention has."""
    recorded: int = 0
    unseen: dict[str, str] = field(default_factory=dict)
    clearhead: str = ""
    """Under attn_implementation="clearhead": who attends, or the line that refuses it."""
    problems: list[str] = field(default_factory=list)

    @property
    def level(self) -> str:
        """How much of its attention is seen."""
        if not self.unseen:
            return "seen" if self.recorded else "no attention"
        return "partly seen" if self.recorded else "listed"


def swept(kind: str, every_way: bool = False) -> Report:
    """Run an architecture watched and unwatched, and under Clearhead's own attention, against its eager weights."""
    model, report = small_models.build(kind), Report(kind)
    given = small_models.inputs(model)
    with Events(model) as events:
        eager = run(model, given)
    report.attended = len(events.found)
    for way in ways(model, every_way):
        watched(model, given, way, events.found, report)
    report.clearhead = under_clearhead(kind, given, events.found, eager, report)
    return report


def ways(model: Any, every: bool) -> Iterator[str]:
    """In which ways the model can attend, each set while it is yielded: the fused one if there is one, or all."""
    if every or not model._supports_sdpa:
        yield "eager"
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
        yield "sdpa"


@torch.no_grad()
def run(model: Any, given: dict[str, Tensor]) -> Any:
    torch.manual_seed(1)
    return model(**given)


def watched(model: Any, given: dict[str, Tensor], way: str, events: list[Event], report: Report) -> None:
    """Hold one way to attend against the events of eager attention: the same outputs, and its weights."""
    plain, state = run(model, given), torch.get_rng_state()
    with watch(model, keep_maps=True) as seen:
        out = run(model, given)
    report.recorded = len(seen)
    report.unseen |= seen.unseen
    problems = [f"output{where} is another one while it is watched" for where in different(plain, out)]
    if not torch.equal(state, torch.get_rng_state()):
        problems.append("other random numbers are drawn while it is watched")
    problems += compared(seen, events, given.get("attention_mask"))
    report.problems += [f"{way}: {problem}" for problem in problems]


def compared(seen: Seen, events: list[Event], mask: Tensor | None) -> Iterator[str]:
    """What is wrong with what was seen, given the events: each must be recorded, with its weights, or listed."""
    for path, each in by_path(events).items():
        calls = calls_of(seen, path, {event.path for event in events})
        if len(calls) == len(each):
            for call, event in zip(calls, each, strict=True):
                if event.weights is not None and (why := unlike(call, event.weights, mask)):
                    yield f"{path} ({event.kind}), by {call.how}: {why}"
        elif not any(under(name, path) or under(path, name) for name in seen.unseen):
            yield f"{path} ({each[0].kind}) attends {len(each)} times; {len(calls)} are seen, and none is listed"
    yield from (f"{call.name}: entropy is NaN in a row that sees keys" for call in seen if blank(call))


def by_path(events: list[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in events:
        found.setdefault(event.path, []).append(event)
    return found


def calls_of(seen: Seen, path: str, paths: set[str]) -> list[Call]:
    """The calls that were recorded at a path, or at a part of it that has no events of its own, or at what holds it."""
    names = {path}
    if not any(call.name == path for call in seen):
        names = {call.name for call in seen if under(call.name, path) and call.name not in paths}
        names = names or {call.name for call in seen if under(path, call.name) and call.name not in paths}
    return [call for call in seen if call.name in names]


def unlike(call: Call, weights: Tensor, mask: Tensor | None) -> str | None:
    """How the map of a call differs from eager weights, whose rows of padding, or that see nothing, say nothing."""
    own = call.map.weights().double()
    if weights.shape[-1] == own.shape[-1] + 1:
        weights = weights[..., :-1]  # a learned sink
    if weights.numel() != own.numel():
        return f"its shape is {call.shape}, that of the weights {tuple(weights.shape)}"
    theirs = weights.reshape(own.shape).double()
    if call.map._sinks is not None:  # eager attention may take the sink's share away after the softmax
        own, theirs = (x / x.sum(-1, keepdim=True) for x in (own, theirs))
    wrong = (own - theirs).abs().amax(-1)
    empty = own.sum(-1) == 0
    even = (theirs - theirs.mean(-1, keepdim=True)).abs().amax(-1).nan_to_num()  # what eager gives to such a row
    wrong = torch.where(empty, even, wrong)
    if mask is not None and call.role == "self" and wrong.shape[0] == len(mask) and wrong.shape[2] == mask.shape[1]:
        wrong = wrong.masked_fill(mask[:, None] == 0, 0)
    return None if float(wrong.max()) < 1e-4 else f"weights differ by {float(wrong.max()):.2g} from those of eager"


def blank(call: Call) -> bool:
    """Is the entropy of a row NaN that sees keys and is no padding?"""
    rows = call.statistics.entropy.isnan() & (call.statistics.visible > 0)
    return bool((rows if call.padding is None else rows & ~call.padding[:, None]).any())


def under_clearhead(kind: str, given: dict[str, Tensor], events: list[Event], eager: Any, report: Report) -> str:
    """Who attends under attn_implementation="clearhead", whose output must be that of eager attention; or "refused"."""
    try:
        model = small_models.build(kind, "clearhead")
        with watch(model, keep_maps=True) as seen:
            out = run(model, given)
    except InputError:
        return "refused"
    except KeyError as error:
        assert error.args == ("clearhead",)  # noqa: PT017
        return "no such name"
    problems = [*compared(seen, events, given.get("attention_mask"))]
    worst, where = furthest(eager, out, given.get("attention_mask"))
    if not worst < 2e-4:
        problems.append(f"output{where} differs from that of eager by {worst:.2g} of its size")
    report.problems += [f"clearhead: {problem}" for problem in problems]
    ours = sum("clearhead" in call.how for call in seen)
    return "clearhead" if ours and ours == len(seen) else "partly clearhead" if ours else "the model itself"


def tensors(x: Any, at: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in an output, with where they lie."""
    if isinstance(x, Tensor):
        yield at, x
    elif isinstance(x, dict):
        for key, value in x.items():
            yield from tensors(value, f"{at}.{key}")
    elif isinstance(x, list | tuple):
        for i, value in enumerate(x):
            yield from tensors(value, f"{at}[{i}]")


def different(a: Any, b: Any) -> list[str]:
    """Where two outputs are not the same to the bit."""
    a, b = dict(tensors(a)), dict(tensors(b))
    assert a.keys() == b.keys()
    return [
        at
        for at, x in a.items()
        if not torch.equal(*(y.nan_to_num() if y.is_floating_point() else y for y in (x, b[at])))
    ]


def furthest(a: Any, b: Any, mask: Tensor | None) -> tuple[float, str]:
    """By which share of its size a tensor of an output differs most, and which; without rows of padding."""
    b, worst = dict(tensors(b)), (0.0, "")  # outputs may hold weights, which not every way gives
    for at, x in tensors(a):
        if at not in b or not x.is_floating_point() or not x.numel() or (mask is not None and "past_key" in at):
            continue
        gap = (x - b[at]).abs() / (1e-9 + x.abs().max())
        if mask is not None and gap.shape[:2] == mask.shape:
            gap = gap[mask.bool()]
        if not float(gap.max()) <= worst[0]:
            worst = float(gap.max()), at
    return worst


# in training


def trained(kind: str, checkpointing: bool = False) -> list[str] | None:
    """What is wrong with a training step that is watched, with dropout; None: it cannot be trained so at all."""
    results = []
    for watching in (False, True):
        model = small_models.build(kind, dropping=True).train()
        try:
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            given = small_models.inputs(model)
            torch.manual_seed(1)
            with watch(model, statistics=["entropy"]) if watching else nullcontext() as seen:
                out = [x for _, x in tensors(model(**given)) if x.requires_grad]
                sum(x.float().square().mean() for x in out).backward()
        except (RuntimeError, ValueError):
            if watching:
                raise
            return None  # it cannot be trained so, watched or not
        results.append((out, [p.grad for p in model.parameters()], torch.get_rng_state()))
    (out, grads, state), (out2, grads2, state2) = results
    problems = [] if torch.equal(state, state2) else ["other random numbers are drawn while it is watched"]
    problems += [
        f"output {i} is another one" for i, (x, y) in enumerate(zip(out, out2, strict=True)) if not alike(x, y)
    ]
    problems += ["a gradient is another one"] if not all(map(alike, grads, grads2)) else []
    return problems + (
        [] if len(seen) or seen.unseen or kind in NOTHING else ["nothing is seen, and nothing is listed"]
    )


def alike(x: Tensor | None, y: Tensor | None) -> bool:
    """Are they the same to the bit, or both missing? NaN is what it is."""
    return x is y or (x is not None and y is not None and torch.equal(x.nan_to_num(), y.nan_to_num()))


def scored(kind: str) -> list[str]:
    """What is wrong with the importance of its heads: each layer that is seen has one for each head, or a reason."""
    model = small_models.build(kind)
    given = small_models.inputs(model)
    with watch(model, statistics=()) as seen:
        run(model, given)
    try:
        found = head_importance(model, [given], of_first_output)
    except InputError as error:
        return [] if kind in NO_SCORES else [str(error)]
    problems = ["it has scores now"] if kind in NO_SCORES else []
    for name in seen.names:
        heads = {call.heads for call in seen if call.name == name}
        if name not in found.scores:
            problems += [] if name in found.unseen else [f"{name} has no score, and no reason"]
        elif {len(found[name])} != heads or not bool(found[name].isfinite().all()):
            problems.append(f"{name} has {heads} heads, and scores {found[name].tolist()}")
    return problems


def of_first_output(model: Any, given: dict[str, Tensor]) -> Tensor:
    """A loss of the first output that carries gradients."""
    return next(x for _, x in tensors(model(**given)) if x.requires_grad).float().square().mean()
