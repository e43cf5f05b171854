"""Initialisation that keeps activations and gradients of one size from the first layer to the last."""

import torch
from torch import nn


def xavier(linear: nn.Linear, scale: float = 1.0) -> None:
    """Xavier-uniform weights (Glorot & Bengio 2010) times `scale`, and biases of zero."""
    nn.init.xavier_uniform_(linear.weight, gain=scale)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def branch_scale(branches: int) -> float:
    """What the last projection of each of `branches` residual branches is scaled by: their sum then has one's size.

    GPT-2 (Radford 2019) scales by 1/√branches; so does this.
    """
    return branches**-0.5


def embedding(table: nn.Embedding) -> None:
    """Vectors of length about 1, to be multiplied by √E where they are looked up (Vaswani 2017, section 3.4).

    Tied to the output projection they then give logits of about unit size.
    """
    with torch.no_grad():
        table.weight.normal_(0, table.embedding_dim**-0.5)
