"""Head importance by hand: the heads of a model are gated from outside, by scaling their columns of the projection
behind them, and the loss of each sample is taken again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clearhead.nn import CrossAttention, SelfAttention


def projections(model: nn.Module) -> dict[str, tuple[nn.Linear, int]]:
    """The projection behind the heads of every attention and their number, by the path of the module that attends."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, SelfAttention | CrossAttention):
            found[path or type(model).__name__] = module.out, module.num_heads
        elif isinstance(module, nn.MultiheadAttention):
            found[path or type(model).__name__] = module.out_proj, module.num_heads
    return found


@contextmanager
def scaled(projection: nn.Linear, heads: int, head: int, factor: float) -> Iterator[None]:
    """A block in which the output of a head is multiplied by a factor."""
    kept, width = projection.weight.detach().clone(), projection.weight.shape[1] // heads
    with torch.no_grad():
        projection.weight[:, head * width : (head + 1) * width] *= factor
    try:
        yield
    finally:
        with torch.no_grad():
            projection.weight.copy_(kept)


def importance_by_hand(
    model: nn.Module, batch: tuple[Tensor, ...], loss: Callable, step: float = 1e-5
) -> dict[str, Tensor]:
    """E|∂L/∂ξ| by central differences, sample by sample, of ℓ2 norm 1 in each layer."""
    samples, found = [tuple(x[i : i + 1] for x in batch) for i in range(len(batch[0]))], {}
    for path, (projection, heads) in projections(model).items():
        total = torch.zeros(heads, dtype=torch.float64)
        for head in range(heads):
            with torch.no_grad(), scaled(projection, heads, head, 1 + step):
                more = [loss(model, sample).sum() for sample in samples]
            with torch.no_grad(), scaled(projection, heads, head, 1 - step):
                less = [loss(model, sample).sum() for sample in samples]
            total[head] = (torch.stack(more) - torch.stack(less)).abs().sum() / (2 * step)
        found[path] = total / total.norm()
    return found
