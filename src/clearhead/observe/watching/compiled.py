"""Code that torch.compile has compiled is left alone: it runs as it would unwatched, and is listed as unseen.

A function mode or a hook that is in force would be compiled along, or fail its guards. So the watch goes away each time
the compiler's evaluation of frames is switched on, and comes back when it is switched off.
"""

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from clearhead.observe.paths import paths_of
from clearhead.observe.watching.replacing import frame_of, replaced, shared

REASON = "compiled; watch(..., compiled='eager') runs it uncompiled"
FLEX = "FlexAttention, called directly: its score_mod may be anything"


@contextmanager
def compiled_code_apart(model: nn.Module, eager: bool, watch: Any) -> Iterator[None]:
    """The block of a watch: `watch.go_away()` and `watch.come_back()` enclose what runs compiled.

    With `eager`, nothing does.
    """
    with ExitStack() as block:
        for module, path in paths_of(model).items():
            if isinstance(module, torch.jit.ScriptModule):
                watch.cannot_see(path, "scripted, and opaque to Python")
            elif not eager and _is_compiled(module):
                watch.cannot_see(path, REASON)
        if eager:
            block.enter_context(shared("stance", lambda: torch.compiler.set_stance("force_eager")))
        if "torch._dynamo.eval_frame" in sys.modules:
            block.enter_context(_told_of_compiled_code(watch))
        else:
            block.enter_context(_told_of_first_compilation(block, watch))
        yield


def _is_compiled(module: nn.Module) -> bool:
    """By `torch.compile(module)`, or by `module.compile()`."""
    return type(module).__name__ == "OptimizedModule" or module.__dict__.get("_compiled_call_impl") is not None


def _told_of_first_compilation(block: ExitStack, watch: Any) -> AbstractContextManager[None]:
    """The compiler takes long to import, and nothing may be compiled in the block: wait until something is."""
    told: list[bool] = []

    def wrap(given: Callable[..., Any]) -> Callable[..., Any]:
        def compile(*args: Any, **kwargs: Any) -> Any:
            if not told:
                told.append(True)
                block.enter_context(_told_of_compiled_code(watch))
            return given(*args, **kwargs)

        return compile

    return replaced(torch, "compile", wrap)


@contextmanager
def _told_of_compiled_code(watch: Any) -> Iterator[None]:
    from torch._dynamo import eval_frame

    thread = threading.local()  # .outermost: torch's frame that began to run compiled code; what it runs may do so too

    def wrap(given: Callable[..., Any]) -> Callable[..., Any]:
        def maybe_set_eval_frame(callback: Any) -> Any:
            caller, outermost = frame_of(eval_frame), getattr(thread, "outermost", None)
            if outermost is None and callback is not None:
                thread.outermost = caller
                function = caller.f_locals.get("fn")
                flex = "flex_attention" in getattr(function, "__name__", "")
                watch.go_away(FLEX if flex else REASON, _module_of(function))
            elif outermost is caller:
                thread.outermost = None
                watch.come_back()
            return given(callback)

        return maybe_set_eval_frame

    # torch warns that a compiled module fires global hooks itself, which is wanted here
    with shared("warnings", _without_warning), replaced(eval_frame, "_maybe_set_eval_frame", wrap):
        yield


@contextmanager
def _without_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")
        yield


def _module_of(function: Any) -> nn.Module | None:
    """Return the module whose method has been compiled; None where it is another function."""
    while (inner := getattr(function, "__wrapped__", None)) is not None:
        function = inner
    owner = getattr(function, "__self__", function)
    return owner if isinstance(owner, nn.Module) else None
