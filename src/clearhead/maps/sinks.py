"""Learned sinks: a logit for each head that takes part in its softmax and has no value (Miller 2023, gpt-oss).

No kernel knows of them. With lse the logsumexp of a row over its keys and z the sink's logit, the keys keep

    exp(lse) / (exp(lse) + exp(z)) = sigmoid(lse - z)

of what softmax would give them, and the output is so much of what it was; autograd brings the gradients.

Shapes: B samples, H heads, Nq queries, Dv value width; sinks (H,), lse (B, H, Nq).
"""

import math

import torch
from torch import Tensor


def kept(lse: Tensor, sinks: Tensor) -> Tensor:
    """The share of each row that its keys keep, as `lse`; 0 where the row sees nothing."""
    return torch.sigmoid(lse - _logits(sinks, lse))


def beside(raw: Tensor, sinks: Tensor) -> Tensor:
    """The raw statistics (RAW, B, H, Nq) of softmax without sinks as those with them."""
    lse, top, entropy, sink, distance, count = raw.unbind(0)
    lse = lse.masked_fill(lse == -math.inf, 0)  # a row that sees nothing has neither statistics nor gradients
    z = _logits(sinks, lse)
    share, log_share, gone = torch.sigmoid(lse - z), torch.nn.functional.logsigmoid(lse - z), torch.sigmoid(z - lse)
    sink = gone + share * sink.masked_fill(sink.isnan(), 0)  # whoever sees any key sees the learned sink
    return torch.stack([torch.logaddexp(lse, z), top, share * (entropy - log_share), sink, share * distance, count])


def _logits(sinks: Tensor, lse: Tensor) -> Tensor:
    """(H, 1); finite, since -inf less -inf would be NaN."""
    return sinks.to(lse.dtype).clamp(min=torch.finfo(lse.dtype).min)[:, None]
