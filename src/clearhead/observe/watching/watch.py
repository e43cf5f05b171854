"""`watch`: see the attention of any PyTorch model while it runs, without changing it.

    with ch.watch(model) as seen:
        model(**batch)
    print(seen)

Attention is found where it is called, at the highest level that knows what it means; below it nothing is looked at:

1. Clearhead's own maps tell their observers;
2. Hugging Face models ask an interface for the function that attends, which is wrapped (`hugging_face`);
3. functions of PyTorch that attend pass through a function mode (`functions`), those of `nn.MultiheadAttention` and the
   layers built on it among them (`torch_modules`);
4. so do products around a softmax.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from hashlib import blake2b
from threading import Lock, local
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from clearhead.errors import InputError, nearest
from clearhead.kernels import Statistics
from clearhead.maps import AttentionMap, SoftmaxMap, observing, unobserved
from clearhead.observe.calls import Call, Seen, by_pass, under
from clearhead.observe.paths import paths_of, shown
from clearhead.observe.watching.attended import padding, received_from
from clearhead.observe.watching.compiled import REASON, compiled_code_apart
from clearhead.observe.watching.faults import Given, brought
from clearhead.observe.watching.frames import UNCLEAR, Frame, Frames, recomputing, says_cross
from clearhead.observe.watching.functions import Functions
from clearhead.observe.watching.outputs import token_residual
from clearhead.observe.watching.torch_modules import fast_path_open, follows
from clearhead.observe.watching.trying import Unseen, check_values, trying, unrecorded

NAMES = tuple(field.name for field in fields(Statistics))
Outputs = Callable[[str, Tensor, Callable[[Tensor], Tensor], Tensor | None], None]


def watch(
    model: nn.Module,
    *,
    statistics: str | Sequence[str] | None = None,
    rows: int | Sequence[int] | Tensor | None = None,
    samples: int | None = None,
    layers: str | Sequence[str] | None = None,
    keep_maps: bool = False,
    grad: bool = False,
    compiled: Literal["skip", "eager"] = "skip",
    seed: int = 0,
) -> "Watch":
    """Within the block, record what every attention of `model` does, in numbers; the block's value is a `Seen`.

    Outputs, gradients and random numbers are bit for bit those without watching. Memory stays O(n), and nothing of a
    call is kept but its statistics.

    Args:
        model: any module; calls of its parts from outside count too.
        statistics: names of those to compute; None: all. `received` needs all rows.
        rows: how many rows to measure, drawn at random for each call, or which; None: all. 64 rows of 4096 cost a
            hundredth of what the attention itself costs.
        samples: how many samples of the batch to measure, drawn at random for each forward pass; None: all.
        layers: the paths to record, "encoder.layer.3" with all below it, or patterns such as "*.self"; None: all.
        keep_maps: keep each call's attention map, for pictures and rollout. This keeps its queries and keys.
        grad: let statistics carry gradients, for use in a loss (`entropy_floor`).
        compiled: what torch.compile has compiled is left as it is and listed in `seen.unseen` ("skip"), or runs
            uncompiled within the block ("eager").
        seed: of the random choice of rows and samples. The choice depends on this, on the path, the number of the pass
            and the length alone, never on torch's generators or on time. Passes in other threads than that of the
            block, whose order is an accident, choose the same rows as each other where they are as long.

    Raises InputError for what is no module, a path that does not exist, a statistic of another name.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"watch needs a torch.nn.Module, not a {type(model).__name__}")
    statistics = (statistics,) if isinstance(statistics, str) else statistics
    if statistics is not None:
        for name in statistics:
            if name not in NAMES:
                raise InputError(f"statistics: there is no {name!r}{nearest(name, NAMES)}")
    if compiled not in ("skip", "eager"):
        raise InputError(f"compiled is {compiled!r}; write 'skip' or 'eager'")
    for name, number in (("rows", rows), ("samples", samples)):
        if isinstance(number, float | bool) or (isinstance(number, int) and number < 1):
            raise InputError(f"{name} is {number}; write how many to measure, at least 1, or None for all")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed is {seed!r}; it must be a whole number")
    chosen = (layers,) if isinstance(layers, str) else layers
    for pattern in chosen or ():
        paths = [*paths_of(model).values()]
        if not any(_matches(path, pattern) for path in paths):
            raise InputError(f"layers: {shown(model, '')} has no module {pattern!r}{nearest(pattern, paths)}")
    return Watch(model, statistics, rows, samples, chosen, keep_maps, grad, compiled, seed)


class Watch(AbstractContextManager[Seen]):
    """A model that is being watched, from `with` to the end of its block; made by `watch`."""

    def __init__(
        self,
        model: nn.Module,
        statistics: Sequence[str] | None = None,
        rows: int | Sequence[int] | Tensor | None = None,
        samples: int | None = None,
        layers: Sequence[str] | None = None,
        keep_maps: bool = False,
        grad: bool = False,
        compiled: str = "skip",
        seed: int = 0,
        outputs: Outputs | None = None,
    ) -> None:
        self.model, self.seen = model, Seen()
        self._statistics = None if statistics is None else frozenset(statistics)
        self._rows, self._samples, self._layers = rows, samples, layers
        self._keep, self.grad = keep_maps, grad
        self._outputs = outputs
        self._functions = Functions(self)
        paused = self._functions.paused
        self._frames = Frames(model, follows, self._changed, self._done, lambda: fast_path_open(paused))
        self._eager = compiled == "eager"
        self._seed, self._lock = seed, Lock()
        # .above: what to put back in a thread that runs compiled code; .asked: by whom our maps are applied;
        # .graded: did the program run with gradients when the watch began to look
        self._thread = local()
        self._block = self._interface = ExitStack()
        self._elsewhere = False  # did compiled code run that may have called the model, unseen

    def __enter__(self) -> Seen:
        self._block = ExitStack()
        self._ask_interface()
        self._block.callback(lambda: self._interface.close())
        self._block.enter_context(observing(self._applied, self._came_out if self.gives else None))
        self._block.enter_context(compiled_code_apart(self.model, self._eager, self))
        self._frames.start()
        self._block.callback(self._functions.take_out)
        self._block.callback(self._frames.end)
        return self.seen

    def _ask_interface(self) -> None:
        """Wrap what Hugging Face models get from their interface."""
        self._interface = ExitStack()
        if "transformers.modeling_utils" in sys.modules:
            from clearhead.observe.watching.hugging_face import interface_of

            self._interface.enter_context(interface_of(self))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._block.close()
        unclear = self._frames.unclear
        for path in sorted(unclear):
            if not any(under(path, other) for other in unclear - {path}):
                self.cannot_see(path, UNCLEAR)
        if self._frames.elsewhere:
            with self._lock:
                self.seen.calls = by_pass(self.seen.calls, self._frames.elsewhere)
        if self._elsewhere and not self._frames.passes:
            self.cannot_see("", REASON)

    # who is running

    def _changed(self) -> None:
        top = self._frames.top
        self._functions.active(top is not None and top.followed)

    def _done(self, frame: Frame, args: Any, kwargs: Any, output: Any) -> None:
        if frame.compiled is not None and not frame.attended:
            self.cannot_see(frame.path, frame.compiled)
        elif type(frame.module).__name__.endswith("Attention") and not (frame.attended or frame.listed):
            self.cannot_see(frame.path, "attention by its name, in which no softmax over keys was found")
        if frame.calls:
            self._attended(frame, kwargs, output)

    def _attended(self, frame: Frame, kwargs: Any, output: Any) -> None:
        """What only the end of a module tells of the calls that were seen in it."""
        calls = self.seen.calls
        with self._lock:
            for i in frame.calls if _attends_elsewhere(kwargs) else ():
                calls[i] = _crossing(calls[i])
            if len(frame.calls) == 1:
                (i,) = frame.calls
                residual = None
                with self.trying(frame.path):
                    residual = token_residual(calls[i], frame.module, output, *frame.size)
                calls[i] = replace(calls[i], residual=residual)

    @property
    def frame(self) -> Frame | None:
        """The running module of the watched model; None outside of it, in a recomputation, and in compiled code."""
        return None if recomputing() or self._is_away else self._frames.top

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """A block in which this thread sees no functions: a higher level has seen, or is measuring."""
        with self._functions.paused():
            yield

    @contextmanager
    def looking(self) -> Iterator[None]:
        """A block of the watch's own operations: no function in it is seen, and the program's graph stays as it was.

        They run without gradients, so that a checkpoint finds the tensors it would find unwatched. With `grad=True`
        they have gradients, and what these need is kept apart from the tensors that the program saves.
        """
        graded, before = self.grad and torch.is_grad_enabled(), getattr(self._thread, "graded", None)
        self._thread.graded = self._graded
        apart = saved_tensors_hooks(_as_is, _as_is) if graded else nullcontext()
        try:
            with self.hidden(), unobserved(), unrecorded(), torch.set_grad_enabled(graded), apart:
                yield
        finally:
            self._thread.graded = before

    @property
    def _graded(self) -> bool:
        """Does the program run with gradients?"""
        graded = getattr(self._thread, "graded", None)
        return torch.is_grad_enabled() if graded is None else graded

    @property
    def _is_away(self) -> bool:
        return getattr(self._thread, "above", None) is not None

    @contextmanager
    def trying(self, path: str) -> Iterator[None]:
        """A block that looks at the attention at `path`, and lists it as unseen where that fails."""
        with trying(self, path), self.looking():
            yield

    def go_away(self, why: str, module: nn.Module | None) -> None:
        """Compiled code begins to run in this thread: follow nothing until its end. `why` nothing is seen of it.

        `module`: whose code it is, if it is that of a module.
        """
        if self._is_away:
            return
        top, path = self._frames.top, self._path_in(module)
        if top is not None:
            top.compiled = why
        elif path is not None:
            self.cannot_see(path, why)
        else:
            self._elsewhere = True
        if self._frames.leave():
            self._interface.close()
        self._thread.above = self._functions.take_out()

    def come_back(self) -> None:
        """Compiled code has ended."""
        if self._is_away:
            self._functions.put_back(self._thread.above)
            self._thread.above = None
            if self._frames.come_back():
                self._ask_interface()

    def _path_in(self, module: nn.Module | None) -> str | None:
        """Return the path of a module; "", the whole, for one that holds the model; None: it is no part of it."""
        if module is None or module in self._frames.paths:
            return None if module is None else self._frames.paths[module]
        return "" if any(part in self._frames.paths for part in module.modules()) else None

    # what they do

    def path_of(self, module: nn.Module | None) -> str | None:
        """The module's path in the watched model, or None."""
        return None if module is None else self._frames.paths.get(module)

    def wants(self, name: str) -> bool:
        """Is this path among the layers to record?"""
        return self._layers is None or any(_matches(name, pattern) for pattern in self._layers)

    def cannot_see(self, name: str, why: str) -> None:
        """Say that something at `name` attends and was not seen."""
        for running in self._frames.stack:
            running.listed = True
        if self.wants(name):
            self.seen.unseen.setdefault(self._shown(name), why)

    def record(
        self,
        A: AttentionMap,
        how: str,
        cross: bool,
        name: str | None = None,
        *,
        sinks: bool = True,
        given: Given | None = None,
    ) -> None:
        """Measure the map of an attention that just ran in the current frame; not `sinks` where nobody knows them.

        `given`, the queries and keys of the map, say what brought NaN or Inf.
        """
        frame = self.frame
        if frame is None:
            return
        for running in self._frames.stack:
            running.attended = True
        if not self.wants(frame.path if name is None else name):
            return
        name = frame.path if name is None else name
        with self.trying(name):
            if any(isinstance(size, Tensor) for size in A.full_shape):
                raise Unseen("a map that was made while torch.jit.trace recorded, whose sizes are tensors")
            if not A.full_shape[1]:
                raise Unseen("an attention of no heads")
            check_values(*A.made_of if isinstance(A, SoftmaxMap) else ())
            self._record(A, how, cross, name, frame, sinks, given)

    def _record(
        self, A: AttentionMap, how: str, cross: bool, name: str, frame: Frame, sinks: bool, given: Given | None
    ) -> None:
        A = A if self.grad else A.detach()
        turn, b, n_queries = frame.run.turn(name), A.full_shape[0], A.full_shape[2]
        # the same samples in all calls of a pass that have as many
        samples = frame.run.drawn.get(b)
        if samples is None:
            samples = frame.run.drawn[b] = self._drawn(self._samples, b, "samples", frame.run.number)
        A = A if samples is None else A.of(samples)
        rows = self._rows
        if rows is None or isinstance(rows, int):
            rows = self._drawn(rows, n_queries, "rows", frame.run.number, name, turn)
        rows = None if rows is None else torch.as_tensor(rows)
        hidden = padding(A, cross) if isinstance(A, SoftmaxMap) else None
        totals = self._measures("received") and rows is None
        measured = A.statistics(rows, received=totals and hidden is None)
        if totals and hidden is not None:
            measured = replace(measured, received=received_from(A, ~hidden))
        call = Call(
            name=self._shown(name),
            role="cross" if cross else "self",
            how=how,
            shape=A.full_shape,
            statistics=measured.only(lambda name: self._measures(name) and (sinks or name != "sink")),
            rows=rows,
            samples=samples,
            padding=hidden if hidden is None or rows is None else hidden[:, rows],
            map=A.detach(copy=True) if self._keep else None,
            step=frame.run.step,
            turn=turn,
        )
        if (why := brought(call, A, given)) is not None:
            call = replace(call, brought=why)
        with self._lock:
            frame.size = b, n_queries
            frame.calls.append(len(self.seen.calls))
            self.seen.calls.append(call)

    def give(self, name: str, output: Tensor, heads: Callable[[Tensor], Tensor], value: Tensor | None = None) -> None:
        """Hand over what an attention put out to whoever asked; `heads` shapes it as (B, H, Nq, Dv).

        With `value`, the heads' own outputs, `output` is what a projection made of them, and `heads` undoes it for
        gradients.
        """
        if self._outputs is not None and self.frame is not None and self.wants(name):
            with torch.set_grad_enabled(self._graded):
                self._outputs(self._shown(name), output, heads, value)

    @property
    def gives(self) -> bool:
        """Did anyone ask for outputs?"""
        return self._outputs is not None

    @contextmanager
    def asked(self, how: str, cross: bool, known: dict[str, Any]) -> Iterator[None]:
        """A block in which an interface of others applies our maps: `how`, and what else it knows for `record`."""
        self._thread.asked = how, cross, known
        try:
            yield
        finally:
            self._thread.asked = None

    def _applied(self, A: AttentionMap) -> None:
        frame = self.frame
        if frame is not None:
            path = frame.path
            how, cross, known = getattr(self._thread, "asked", None) or ("Clearhead", False, {})
            self.record(A, how, cross or says_cross(path) or not A.measures_distance, path, **known)

    def _came_out(self, A: AttentionMap, output: Tensor) -> None:
        """The output of a map of ours; interfaces of others give it themselves."""
        frame = self.frame
        if frame is not None and getattr(self._thread, "asked", None) is None:
            self.give(frame.path, output, lambda x: x)

    def _measures(self, name: str) -> bool:
        return self._statistics is None or name in self._statistics

    def _drawn(self, count: int | None, size: int, *what: str | int) -> Tensor | None:
        """`count` of `size` numbers, in their order, by a generator of its own for `what` they are; None: all."""
        if count is None or count >= size:
            return None
        key = repr((self._seed, size, *what)).encode()
        generator = torch.Generator().manual_seed(int.from_bytes(blake2b(key, digest_size=7).digest()))
        return torch.randperm(size, generator=generator)[:count].sort().values

    def _shown(self, name: str) -> str:
        return shown(self.model, name)


def _as_is(x: Tensor) -> Tensor:
    return x


def _attends_elsewhere(kwargs: Any) -> bool:
    return any(isinstance(kwargs.get(name), Tensor) for name in ("key_value_states", "encoder_hidden_states"))


def _crossing(call: Call) -> Call:
    return replace(call, role="cross", statistics=replace(call.statistics, distance=None), padding=None)


def _matches(path: str, pattern: str) -> bool:
    return under(path, pattern) or fnmatchcase(path, pattern)
