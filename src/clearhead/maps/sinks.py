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
    lse, top, entropy, sink, distance, log_total, count = raw.unbind(0)
    blind = lse == -math.inf  # a row that sees nothing has neither statistics nor gradients
    lse, z = lse.masked_fill(blind, 0), _logits(sinks, lse)
    ahead = top.masked_fill(blind, 0) - z + log_total  # lse - z, with its digits where both are large
    share, log_share, gone = torch.sigmoid(ahead), torch.nn.functional.logsigmoid(ahead), torch.sigmoid(-ahead)
    sink = gone + share * sink.masked_fill(sink.isnan(), 0)  # whoever sees any key sees the learned sink
    lse, entropy, log_total = torch.logaddexp(lse, z), share * (entropy - log_share), log_total - log_share
    return torch.stack([lse, top, entropy, sink, share * distance, log_total, count])


def _logits(sinks: Tensor, lse: Tensor) -> Tensor:
    """(H, 1); finite, since -inf less -inf would be NaN."""
    return sinks.to(lse.dtype).clamp(min=torch.finfo(lse.dtype).min)[:, None]
