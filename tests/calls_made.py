"""Calls as a watch records them, made directly from maps, and their dense weights in float64."""

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import clearhead as ch
from clearhead.observe.calls import Call, Seen

_INPUTS: WeakKeyDictionary = WeakKeyDictionary()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(name="layer", *, b=2, h=4, nq=9, nk=None, seed=0, gain=1.0, role="self", lengths=None, rows=None, **more):
    """A call of random queries and keys, causal in self-attention."""
    q, k = gain * random(b, h, nq, 8, seed=seed), random(b, h, nq if nk is None else nk, 8, seed=seed + 1000)
    A = ch.Softmax(ch.causal() if role == "self" else None)(q, k, lengths=lengths)
    _INPUTS[A] = q, k, lengths
    return Call(name, role, "test", A.full_shape, A.statistics(rows), rows=rows, map=A, **more)


def stack(layers=3, names="encoder.layer.{}.self", seed=0, **options):
    """What a watch sees of a stack of layers."""
    return Seen([made(names.format(i), seed=seed + i, **options) for i in range(layers)])


def dense(call: Call) -> Tensor:
    """The weights of a call that was made here, (B, H, Nq, Nk) in float64, by the textbook."""
    q, k, lengths = _INPUTS[call.map]
    s = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    b, _, nq, nk = s.shape
    n = torch.full((b,), max(nq, nk)) if lengths is None else lengths
    i, j = torch.arange(nq)[:, None], torch.arange(nk)[None, :]
    seen = (i < n[:, None, None]) & (j < n[:, None, None])
    if call.role == "self":
        seen = seen & (j <= i)
    return s.masked_fill(~seen[:, None], -math.inf).softmax(-1).nan_to_num(0.0)


def tokens_of(call: Call) -> tuple[Tensor, Tensor]:
    """The queries and keys that a call was made of."""
    return _INPUTS[call.map][:2]
