"""Code that torch.compile has compiled is left alone: it runs as it would unwatched, and is listed as unseen.

A function mode or a hook that is in force would be compiled along, or fail its guards. So the watch goes away each time
the compiler's evaluation of frames is switched on, and comes back when it is switched off.
"""

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

REASON = "compiled; watch(..., compiled='eager') runs it uncompiled"
FLEX = "FlexAttention, called directly: its score_mod may be anything"


@contextmanager
def compiled_code_apart(model: nn.Module, eager: bool, watch: Any) -> Iterator[None]:
    """The block of a watch: `watch.go_away()` and `watch.come_back()` enclose what runs compiled.

    With `eager`, nothing does.
    """
    with ExitStack() as block:
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                watch.cannot_see(path, "scripted, and opaque to Python")
            elif not eager and _is_compiled(module):
                watch.cannot_see(path.removesuffix("._orig_mod"), REASON)
        if eager:
            block.enter_context(_stance("force_eager"))
        if "torch._dynamo.eval_frame" in sys.modules:
            block.enter_context(_told_of_compiled_code(watch))
        else:
            block.enter_context(_told_of_first_compilation(block, watch))
        yield


def _is_compiled(module: nn.Module) -> bool:
    """By `torch.compile(module)`, or by `module.compile()`."""
    return type(module).__name__ == "OptimizedModule" or module.__dict__.get("_compiled_call_impl") is not None


@contextmanager
def _told_of_first_compilation(block: ExitStack, watch: Any) -> Iterator[None]:
    """The compiler takes long to import, and nothing may be compiled in the block: wait until something is."""
    given = torch.compile

    def compile(*args: Any, **kwargs: Any) -> Any:
        if torch.compile is compile:
            torch.compile = given
            block.enter_context(_told_of_compiled_code(watch))
        return given(*args, **kwargs)

    torch.compile = compile
    try:
        yield
    finally:
        torch.compile = given


@contextmanager
def _told_of_compiled_code(watch: Any) -> Iterator[None]:
    from torch._dynamo import eval_frame

    given = eval_frame._maybe_set_eval_frame

    thread = threading.local()  # .outermost: torch's frame that began to run compiled code; what it runs may do so too

    def maybe_set_eval_frame(callback: Any) -> Any:
        caller, outermost = _frame_of(eval_frame.__file__), getattr(thread, "outermost", None)
        if outermost is None and callback is not None:
            thread.outermost = caller
            flex = "flex_attention" in getattr(caller.f_locals.get("fn"), "__name__", "")
            watch.go_away(FLEX if flex else REASON)
        elif outermost is caller:
            thread.outermost = None
            watch.come_back()
        return given(callback)

    eval_frame._maybe_set_eval_frame = maybe_set_eval_frame
    try:
        with warnings.catch_warnings():
            # torch warns that a compiled module fires global hooks itself, which is wanted here
            warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")
            yield
    finally:
        eval_frame._maybe_set_eval_frame = given


def _frame_of(file: str) -> Any:
    """The innermost frame of that file; checks of types may have wrapped the function that asks."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    return frame


@contextmanager
def _stance(name: str) -> Iterator[None]:
    with torch.compiler.set_stance(name):
        yield
