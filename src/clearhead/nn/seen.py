"""The attention maps of a model of Clearhead's modules, by module path."""

from typing import Any

import torch
from torch import nn

from clearhead.maps import AttentionMap, observing


@torch.no_grad()
def maps(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, AttentionMap]:
    """Run `model(*args, **kwargs)` in evaluation mode and return the map of each attention, by module path.

    A module that runs several times in one forward pass is listed with its last map.
    """
    names = {module: name for name, module in model.named_modules()}
    seen: dict[str, AttentionMap] = {}
    was_training = model.training
    model.eval()
    try:
        with observing(lambda module, A: seen.__setitem__(names.get(module, type(module).__name__), A)):
            model(*args, **kwargs)
    finally:
        model.train(was_training)
    return seen
