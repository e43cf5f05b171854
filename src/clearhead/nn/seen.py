"""The maps of a model made of Clearhead's modules, by module path."""

from typing import Any

import torch
from torch import nn

from clearhead.maps import AttentionMap, observing
from clearhead.nn.attention import CrossAttention, SelfAttention


@torch.no_grad()
def maps(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, AttentionMap]:
    """Run `model(*args, **kwargs)` in evaluation mode and return the map of each attention, by module path.

    A module that runs several times in one forward pass is listed with its last map. For models that are made of
    anything else, and for statistics without maps, there is `clearhead.watch`.
    """
    running: list[str] = []
    seen: dict[str, AttentionMap] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, SelfAttention | CrossAttention):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
            hooks.append(module.register_forward_hook(lambda *_: running.pop() and None))
    was_training = model.training
    model.eval()
    try:
        with observing(lambda A: seen.__setitem__(running[-1], A) if running else None):
            model(*args, **kwargs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return seen
