"""The loss of a language model's last layer, without ever holding its logits.

Shapes: R rows, E model width, V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import cross_entropy

from clearhead.kernels.score import as_given, autocast, traced

_ROOM = 1 << 21
"""Logits held at a time: few enough for the cache."""


def linear_cross_entropy(
    hidden: Float[Tensor, "... e"],
    weight: Float[Tensor, "v e"],
    labels: Int[Tensor, "..."],
    ignore: int,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The summed cross entropy of `labels` (…) under softmax(hidden · weightᵀ), those equal to `ignore` left out.

    What `torch.nn.functional.cross_entropy` gives with `label_smoothing` (Szegedy 2016) and reduction "sum". Logits are
    formed for some rows at a time, and their gradients with them, so that neither is read from memory again: R × V
    numbers are the largest tensor of a small model's training. Products are taken as autocast says, the softmax in
    float32.
    """
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    if traced():
        logits = hidden @ weight.T
        return cross_entropy(logits.float(), labels, ignore_index=ignore, label_smoothing=smoothing, reduction="sum")
    rows = (labels != ignore).nonzero().squeeze(1)
    hidden, labels = hidden[rows], labels[rows]
    if autocast(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    return _LinearCrossEntropy.apply(hidden, weight, labels, smoothing)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        needed = any(ctx.needs_input_grad[:2])  # type: ignore[attr-defined]
        with as_given(hidden.device):
            table, count = weight.detach().to(hidden.dtype), max(1, _ROOM // len(weight))
            total = hidden.new_zeros((), dtype=torch.float32)
            d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
            for i in range(0, len(hidden), count):
                rows, right = hidden[i : i + count], labels[i : i + count, None]
                log_p = (rows @ table.T).float().log_softmax(-1)
                total -= (1 - smoothing) * log_p.gather(1, right).sum()
                if smoothing:
                    total -= smoothing / len(weight) * log_p.sum()
                if needed:
                    d_logits = _gradient(log_p, right, smoothing).to(hidden.dtype)
                    torch.mm(d_logits, table, out=d_hidden[i : i + count])
                    _add_product(d_weight, d_logits, rows)
        if needed:
            ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        return d_hidden * d_loss.to(d_hidden.dtype), d_weight * d_loss.to(d_weight.dtype), None, None


def _gradient(log_p: Tensor, right: Tensor, smoothing: float) -> Tensor:
    """That of the loss in the logits, softmax − smoothed labels, in the place of the log-probabilities."""
    p = log_p.exp_()
    if smoothing:
        p -= smoothing / p.shape[1]
    return p.scatter_add_(1, right, torch.full_like(right, smoothing - 1, dtype=p.dtype))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += leftᵀ · right, summed in the total's dtype."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right
