"""Which module is running: a stack of module paths for each thread, kept by hooks on all modules.

The hooks are torch's global ones, because a hook on a module itself switches off the fused fast path of
`nn.TransformerEncoderLayer`, and the outputs would differ in their last bits.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from clearhead.observe.paths import paths_of


@dataclass(eq=False)
class Pass:
    """A forward pass: one call of the model, or of a part of it from outside, in one thread."""

    step: int
    """Its number among all, from 0, in the order in which they began."""
    number: int
    """Its number among those of the thread that watches; 0 in other threads, whose order is an accident of time."""
    turns: dict[str, int] = field(default_factory=dict)
    """How many calls of each path were recorded in it."""
    drawn: dict[int, torch.Tensor | None] = field(default_factory=dict)
    """The samples that were chosen in it from as many."""

    def turn(self, path: str) -> int:
        """How many calls of this path were recorded before the one that asks."""
        turn = self.turns[path] = self.turns.get(path, -1) + 1
        return turn


@dataclass(eq=False)
class Frame:
    """A module that is running: its path in the watched model, or its caller's where it is not of the model."""

    module: nn.Module
    path: str
    run: Pass
    followed: bool
    """Are its functions followed?"""
    calls: list[int] = field(default_factory=list)
    """Which calls were seen while this module was on top."""
    size: tuple[int, int] = (0, 0)
    """Samples and queries of the last of them, before a choice was made."""
    attended: bool = False
    """Did it, or a module in it, attend?"""
    listed: bool = False
    """Was it, or a module in it, listed as unseen?"""
    compiled: str | None = None
    """Why nothing is seen of the compiled code that it ran, if it did."""


_active: "list[Frames]" = []
"""Those between `start` and `end`, of all threads."""

UNCLEAR = "it ran in a thread that watches nothing while several threads watch: which watch it belongs to is unknown"


class Frames:
    """The modules of `model` that run, by thread, between `start` and `end`.

    `follows(module)` says whether its functions are to be followed; None: it is but an operation of its caller, and has
    no frame of its own. `changed()` is called when another one is on top, and `done(frame, args, kwargs, output)` when
    one has computed its output and is still on top. `beside()` is in force as long as the hooks are. A step is one call
    of the model, or of a part of it from outside.

    A pass belongs to the watches of its own thread. In a thread that does not watch the module, such as a worker's, it
    belongs to the watch of another thread; where several other threads watch, to none.
    """

    def __init__(
        self,
        model: nn.Module,
        follows: Callable[[nn.Module], bool | None],
        changed: Callable[[], None],
        done: Callable[[Frame, Any, Any, Any], None],
        beside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.paths = paths_of(model)
        self._follows, self._changed, self._done, self._beside = follows, changed, done, beside
        self._thread, self._lock = threading.local(), threading.Lock()
        self._handles: list[Any] = []
        self._installed = ExitStack()
        self._watching: int | None = None  # the thread that watches
        self._steps = self._own = 0  # passes so far, and those of that thread
        self.elsewhere: set[int] = set()
        """The steps that ran in other threads."""
        self.unclear: set[str] = set()
        """Paths of modules that ran in a thread of which nobody knows for whom it works."""
        self._away = 0  # threads that run what must not be followed

    @property
    def stack(self) -> list[Frame]:
        """The running modules of this thread, outermost first."""
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
        return self._thread.stack

    @property
    def top(self) -> Frame | None:
        """The running module of this thread; None after the end, which may come from another thread."""
        return self.stack[-1] if self._watching is not None and self.stack else None

    @property
    def passes(self) -> int:
        """How many passes have begun."""
        return self._steps

    def start(self) -> None:
        """Follow what runs from here on; this thread is the one that watches."""
        with self._lock:
            self._watching = threading.get_ident()
            _active.append(self)
            self._install()

    def end(self) -> None:
        """Follow nothing any more, whatever still runs in other threads."""
        with self._lock:
            self._watching = None
            if self in _active:
                _active.remove(self)
            self._remove()

    def leave(self) -> bool:
        """Follow nothing while this thread runs what must not be followed; hooks are for all threads or for none.

        Return whether it is the first thread to leave.
        """
        with self._lock:
            self._away += 1
            self._remove()
            return self._away == 1

    def come_back(self) -> bool:
        """Undo `leave`. Return whether all threads are back, in time to go on."""
        with self._lock:
            self._away -= 1
            back = self._watching is not None and not self._away
            if back:
                self._install()
            return back

    def _install(self) -> None:
        self._installed.enter_context(self._beside())
        self._handles = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    def _remove(self) -> None:
        self._installed.close()
        for handle in self._handles:
            handle.remove()
            # torch (2.13) forgets this entry, and would go on taking the slow way through each call
            _global_forward_hooks_with_kwargs.pop(handle.id, None)
        self._handles = []

    def _before(self, module: nn.Module, args: Any) -> None:
        stack, followed = self.stack, self._follows(module)
        if stack and followed is None:
            return
        caller = stack[-1] if stack else None
        path = self._path(module, caller)
        if (path is None and not stack) or recomputing():
            return
        if not stack and not self._is_ours(module):
            return
        run = caller.run if caller else self._new_pass()
        stack.append(Frame(module, caller.path if path is None and caller else path or "", run, followed is not False))
        self._changed()

    def _is_ours(self, module: nn.Module) -> bool:
        """Does a pass of `module` that begins in this thread belong to this watch?"""
        here = threading.get_ident()
        watching = {each._watching for each in [*_active] if module in each.paths}
        if here in watching or len(watching) < 2:
            return here == self._watching or here not in watching
        self.unclear.add(self.paths[module])
        return False

    def _path(self, module: nn.Module, caller: Frame | None) -> str | None:
        """The path of a module of the model, which may have been put there since the start (BigBird does so)."""
        if module not in self.paths and caller is not None and caller.module in self.paths:
            for name, child in caller.module.named_children():
                if child is module:
                    self.paths[module] = f"{self.paths[caller.module]}.{name}".removeprefix(".")
        return self.paths.get(module)

    def _new_pass(self) -> Pass:
        with self._lock:
            step, self._steps = self._steps, self._steps + 1
            if threading.get_ident() != self._watching:
                self.elsewhere.add(step)
                return Pass(step, 0)
            number, self._own = self._own, self._own + 1
            return Pass(step, number)

    def _after(self, module: nn.Module, args: Any, *rest: Any) -> None:
        # (kwargs, output), or (output,) alone where the module raised
        stack = self.stack
        if not stack or (stack[-1].module is not module and all(frame.module is not module for frame in stack)):
            return
        if recomputing():
            return
        while stack[-1].module is not module:  # left by an exception that ran no hook, such as Ctrl-C caught inside
            stack.pop()
        if len(rest) == 2:
            self._done(stack[-1], args, *rest)
        stack.pop()
        self._changed()


def says_cross(path: str) -> bool:
    """Does the name of a module say that it attends to another sequence?"""
    name = path.lower()
    return any(word in name for word in ("cross", "encoder_attn", "encdecattention", "enc_attn"))


def recomputing() -> bool:
    """Is a backward pass running? What attends in it was checkpointed, and has been seen already."""
    return torch._C._current_graph_task_id() != -1
