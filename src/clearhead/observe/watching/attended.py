"""From the tensors that someone's attention was called with to the attention map that it is.

Shapes: q (B, H, Nq, D), k (B, Hkv, Nk, D), masks and biases broadcastable to (B, H, Nq, Nk).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from clearhead.kernels import FAR, Score, Visible
from clearhead.maps import AttentionMap, SoftmaxMap
from clearhead.patterns import causal, everything

Line = Literal["beginnings", "ends"]
"""What lines up where there are fewer queries than keys: PyTorch's `is_causal` means the beginnings."""


class ForeignMap(SoftmaxMap):
    """The map of an attention that someone else computed.

    `blank` rows (B or 1, H or 1, Nq) are those all of whose keys a finite mask hides. Softmax ignores what all logits
    of a row share, so such a row attends, nearly uniformly, to what was meant to be hidden, and sees its keys.
    """

    def __init__(self, A: SoftmaxMap, blank: Tensor | None) -> None:
        super().__init__(A._q, A._k, A.visible, A._score, A._axes, A._distance, A._sinks)
        self.blank = blank

    def detach(self, copy: bool = False) -> "ForeignMap":
        return ForeignMap(super().detach(copy), self.blank)

    def of(self, samples: Tensor) -> "ForeignMap":
        blank = self.blank
        if blank is not None and len(blank) > 1:
            blank = blank.index_select(0, samples)
        return ForeignMap(super().of(samples), blank)

    @property
    def meant(self) -> Visible:
        """Who was meant to see whom: what blank rows see by rounding alone left out."""
        see = self.visible
        if self.blank is None:
            return see
        shown = ~self.blank[..., None]
        return replace(see, mask=shown if see.mask is None else see.mask & shown)

    def _first_key(self) -> Tensor:
        return self.meant.first_key()


def attention_map(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    causal_from: Line | None = None,
    q_positions: Tensor | None = None,
    cross: bool = False,
) -> ForeignMap:
    """softmax(softcap(q · k · scale) + bias) over the keys that `mask` and causality leave.

    The mask is as others give it: boolean (True = may attend), or added to the logits. Distances are known where
    `q_positions` say in which key's slot each query stands, and else in self-attention of as many queries as keys, or
    of a causal call.
    """
    n_queries, n_keys = q.shape[2], k.shape[2]
    read = read_masks(mask, bias, beside_sinks=sinks is not None)
    if read.top is not None:
        q = q.masked_fill(_absorbed(read.top, q.dtype), 0)
    at_keys = None
    if causal_from == "beginnings" and n_queries != n_keys:
        q_positions = torch.arange(n_queries, device=q.device)[None, None]
    if q_positions is not None:
        at_keys = torch.arange(n_keys, device=q.device)[None, None]
    pattern = everything() if causal_from is None else causal()
    see = Visible(pattern, n_queries, n_keys, q.device, read.shown, None, None, q_positions, at_keys)
    score = Score(1 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale, softcap, read.bias)
    known = q_positions is not None or n_queries == n_keys or causal_from is not None
    A = SoftmaxMap(q, k, see, score, 4, distance=known and not cross, sinks=sinks)
    return ForeignMap(A, read.blank)


def logits_map(logits: Tensor, cross: bool = False) -> ForeignMap:
    """The map whose logits (B, H, Nq, Nk) somebody computed: queries without width, and the logits as a bias."""
    b, h, n_queries, n_keys = logits.shape
    q, k = logits.new_zeros(b, h, n_queries, 1), logits.new_zeros(b, h, n_keys, 1)
    return attention_map(q, k, scale=1.0, mask=logits, cross=cross)


@dataclass(frozen=True, eq=False)
class Masks:
    """What masks mean: which pairs they leave, True = may attend, what they add to these, and rows that are `blank`
    (see `ForeignMap`), whose greatest number `top` is taken from what is added. None: nothing."""

    shown: Tensor | None = None
    bias: Tensor | None = None
    blank: Tensor | None = None
    top: Tensor | None = None


def read_masks(mask: Tensor | None, bias: Tensor | None = None, *, beside_sinks: bool = False) -> Masks:
    """What a mask as others give it, boolean (True = may attend) or added to the logits, and a bias mean together.

    A number hides its key where it lies `FAR` or more below the greatest of its row, or is −inf. Beside learned sinks,
    to which nothing is added, a row always has a 0.
    """
    shown = None
    if mask is not None:
        mask = _unexpanded(four(mask))
        if mask.is_floating_point():
            bias = mask if bias is None else mask + bias
        else:
            shown = mask.bool()
    if bias is None:
        return Masks(shown)
    added = _unexpanded(four(bias))
    if not added.numel():
        return Masks(shown, added)
    if shown is not None:
        added = added.masked_fill(~shown, -math.inf)
    elif _narrow(added):
        return Masks(bias=added)
    return _split(added, beside_sinks)


def _narrow(added: Tensor) -> bool:
    """Do all numbers lie so close together, and so high, that none hides anything?"""
    low, high = (float(x) for x in added.detach().aminmax())
    return high - low < FAR and low > -FAR


def _split(added: Tensor, beside_sinks: bool) -> Masks:
    """Added numbers as those that hide their key and those that are a bias."""
    still = added.detach()
    top = still.amax(-1, keepdim=True)
    top = top.clamp(min=0) if beside_sinks else top
    hidden = (still - top <= -FAR) | (still == -math.inf)
    blank = (top <= -FAR) & (top > -math.inf)
    some = bool(blank.any())
    if some:
        added = torch.where(blank, added - top, added)
    bias = added.masked_fill(hidden, 0)
    return Masks(
        None if not bool(hidden.any()) else ~hidden,
        None if not bool(bias.detach().any()) else bias,
        blank[..., 0] if some else None,
        top if some else None,
    )


def _absorbed(top: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a number is so great that logits added to it are lost in rounding, (B or 1, H or 1, Nq, 1)."""
    return (top <= -FAR) & (top.double() * torch.finfo(dtype).eps <= -1)


def last_visible(shown: Tensor) -> Tensor:
    """The slot of the last key that each query may see, (B, 1, Nq): its own, in causal attention."""
    seen = shown.any(1, keepdim=True)
    at = torch.arange(seen.shape[-1], device=shown.device)
    return at.expand(seen.shape).masked_fill(~seen, 0).amax(-1)


def padding(A: SoftmaxMap, cross: bool) -> Tensor | None:
    """Which queries are padding, (B or 1, Nq): in self-attention those whose own key nobody sees. None: none is."""
    see = A.meant if isinstance(A, ForeignMap) else A.visible
    if cross or see.n_queries != see.n_keys:
        return None
    if see.k_lengths is not None and see.q_lengths is None:  # keys alone: the queries have rows
        hidden = torch.arange(see.n_keys, device=see.device) >= see.k_lengths[:, None]
    elif see.mask is not None and see.mask.shape[-1] == see.n_keys:
        hidden = ~see.mask.any(2).any(1)
    else:
        return None
    return hidden if bool(hidden.any()) else None


def received_from(A: AttentionMap, real: Tensor) -> Tensor:
    """What each key received from the queries that are `real` (B or 1, Nq) alone, (B, H, Nk)."""
    b, h, n_queries, n_keys = A.full_shape
    each = real.expand(b, n_queries)[:, None, :, None].expand(b, h, n_queries, 1)
    given = each.to(torch.promote_types(A.dtype, torch.float32)).reshape(*A.shape[:-1], 1)
    return (A.T @ given).reshape(b, h, n_keys)


def four(x: Tensor) -> Tensor:
    """`x` with four axes; those before the last three are one."""
    if x.dim() == 4:
        return x
    return x.reshape((1,) * (4 - x.dim()) + x.shape) if x.dim() < 4 else x.flatten(0, x.dim() - 4)


def _unexpanded(x: Tensor) -> Tensor:
    """`x` with size 1 where it repeats itself without memory of its own: four axes, of which the last stays."""
    for axis in range(3):
        if x.shape[axis] > 1 and x.stride(axis) == 0:
            x = x.narrow(axis, 0, 1)
    return x
