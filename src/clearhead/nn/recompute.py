"""Layers whose activations are not kept, but computed again in the backward pass (Chen 2016)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clearhead.nn.dropout import drawing_from, drawn_from


def recomputed(layer: nn.Module, *given: Any, **call: Any) -> Tensor:
    """layer(*given, **call), of which the backward pass keeps no more than the arguments.

    Gradients are those of the layer itself, bit for bit: what is computed again drops the same entries.
    """
    own = drawn_from()
    state = None if own is None else own.get_state()
    first = True

    def run(*given: Any, **call: Any) -> Tensor:
        nonlocal first
        again, first = not first, False
        if state is None or not again:
            return layer(*given, **call)
        generator = torch.Generator()
        generator.set_state(state)
        with drawing_from(generator):
            return layer(*given, **call)

    # torch's own generator belongs to all threads: it is put back only where there is no other
    return checkpoint(run, *given, use_reentrant=False, preserve_rng_state=own is None, **call)
