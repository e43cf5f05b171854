"""`packed`: fused attention over packed documents on GPUs, each document as if it were alone (Dao 2023).

Shapes: q (B, H, N, D), k and v (B, Hkv, N, D), out (B, H, N, D); T tokens that are in a document, of all samples.
"""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clearhead.kernels.call import Call
from clearhead.kernels.kept import Kept
from clearhead.kernels.score import Score, as_given
from clearhead.kernels.visible import Visible
from clearhead.patterns import Pattern, causal, names_of, window

WIDEST = 192
"""Of a head: the backward pass of wider ones needs more memory on the chip than every GPU has."""


def misfit(call: Call) -> str | None:
    """Why documents are not attended to one by one; None: they are."""
    see, (width, value_width) = call.visible, call.widths
    if call.device.type != "cuda":
        return "is for GPUs"
    if documents_and_reach(see.pattern) is None:
        return "is for documents, alone or with causal and window"
    if reason := call.lacking("statistics", "sinks", "dropout", "softcap", "bias"):
        return reason
    if see.mask is not None or not (see.unpadded and see.aligned):
        return "takes no mask, lengths or positions"
    if call.dtype.itemsize != 2:
        return f"computes in half precision, not {str(call.dtype).removeprefix('torch.')}"
    if width != value_width or width % 8 or not 0 < width <= WIDEST:
        return f"needs keys and values of one width, a multiple of 8 up to {WIDEST}, not {width} and {value_width}"
    if not _available():
        return "needs a newer PyTorch, with flash attention"
    return None if packing(see, call.shape[0]) else "needs documents of contiguous positions"


@lru_cache
def _available() -> bool:
    if not torch.backends.cuda.is_flash_attention_available():
        return False
    return (
        importlib.util.find_spec("torch.nn.attention.varlen") is not None
        and "window_size" in inspect.signature(_operator()).parameters
    )


def _operator() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn  # takes a second to import

    return varlen_attn


def documents_and_reach(pattern: Pattern) -> tuple[Tensor, tuple[int, int]] | None:
    """Names of documents (`names_of`), and how many positions before and after itself a query sees at most, -1: all.

    None if `pattern` is no `documents`, nor that and `causal` or windows.
    """
    names, before, after = None, [], []
    for part in pattern.joined():
        if isinstance(part, causal):
            after.append(0)
        elif isinstance(part, window):
            before.append(part.before)
            after.append(part.before if part.after is None else part.after)
        elif names is None and names_of(part) is not None:
            names = names_of(part)
        else:
            return None
    return None if names is None else (names, (min(before, default=-1), min(after, default=-1)))


@dataclass(frozen=True, eq=False)
class Packing:
    """Where documents begin among the T tokens, and T, (documents + 1,) int32; the longest one's length; how many pairs
    they hold; the tokens' places among all B · N, or None if they are all."""

    begins: Tensor
    longest: int
    pairs: int
    places: Tensor | None


_packings: Kept[Packing | None] = Kept()


def packing(see: Visible, samples: int) -> Packing | None:
    """The documents of a call; None if the positions of one are not contiguous.

    To look at the documents is to wait for the GPU: it happens once for ids, and not again in each layer.
    """
    found = documents_and_reach(see.pattern)
    if found is None:
        return None
    names = found[0]
    return _packings.of((samples, see.n_queries), [names], lambda: _packed(names[:, : see.n_queries], samples))


def _packed(names: Tensor, samples: int) -> Packing | None:
    device, names = names.device, names.expand(samples, -1).cpu()
    real, begins = names >= 0, names == torch.arange(names.shape[-1])
    before = torch.nn.functional.pad(names, (1, 0), value=-1)[:, :-1]
    if not torch.equal(real, begins | (real & (names == before))):
        return None
    places = real.flatten().nonzero().squeeze(-1)
    first = begins.flatten()[places].nonzero().squeeze(-1).to(torch.int32)
    ends = torch.cat([first, torch.tensor([len(places)], dtype=torch.int32)])
    sizes = ends.diff().long()
    longest, pairs = (int(sizes.max()), int(sizes.square().sum())) if len(sizes) else (0, 0)
    return Packing(ends.to(device), longest, pairs, None if bool(real.all()) else places.to(device))


def visited(see: Visible, samples: int) -> int:
    """The pairs of a head, over all samples, that lie in documents and within reach."""
    found, parts = documents_and_reach(see.pattern), packing(see, samples)
    if found is None or parts is None:
        return 0
    before, after = found[1]
    if before < 0:
        return parts.pairs // (2 if after == 0 else 1)
    return min(parts.pairs, samples * see.n_queries * (before + after + 1))


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    score: Score,
    dropout: float = 0.0,
    attend: Callable[..., Tensor] | None = None,
) -> Tensor:
    """The output alone, of a call that `misfit` takes. `attend` takes what `varlen_attn` takes, and is that."""
    (b, h, n, width), found, parts = q.shape, documents_and_reach(visible.pattern), packing(visible, q.shape[0])
    if found is None or parts is None:
        raise TypeError(f"no packed documents: {visible.pattern!r}")
    tokens = [_tokens(x, parts.places) for x in (q, k, v)]
    reach = tuple(min(far, parts.longest) for far in found[1])
    options = {"scale": score.scale, "window_size": reach, "enable_gqa": h != k.shape[1]}
    with as_given(q.device):
        if parts.longest:
            out = (attend or _operator())(*tokens, parts.begins, parts.begins, parts.longest, parts.longest, **options)
        else:
            out = sum(x.sum() for x in tokens) + tokens[0]  # no tokens, and gradients of 0
    if parts.places is not None:
        out = out.new_zeros(b * n, h, width).index_copy(0, parts.places, out)
    return out.view(b, n, h, width).transpose(1, 2)


def _tokens(x: Tensor, places: Tensor | None) -> Tensor:
    """The tokens that are in a document, (T, H, D), of `x` (B, H, N, D)."""
    every = x.transpose(1, 2).flatten(0, 1)
    every = every if every.stride(-1) == 1 else every.contiguous()
    return every if places is None else every.index_select(0, places)
