"""What transformers says about who sees whom, kept as what it is: a pattern, padding and positions, not n² numbers.

transformers builds masks from functions of indices, which it composes: causal, sliding window, chunks, packed
sequences. Those that are known here are read; of any other the boolean mask is written out.

Shapes: B samples, Nq queries, Nk keys.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.patterns import Pattern, causal, chunks, documents, everything, window

_OURS = __name__.partition(".")[0]
_Place = Callable[[Tensor], Tensor]
"""From slots (N,) to positions (B, N)."""


@dataclass(frozen=True, eq=False)
class Sight:
    """Who sees whom, as a mechanism's call takes it. Positions are (B or 1, 1, N), `keys` a mask (B, 1, 1, Nk)."""

    pattern: Pattern
    lengths: Tensor | None = None
    keys: Tensor | None = None
    positions: tuple[Tensor, Tensor] | None = None
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        options: dict[str, Any] = {"pattern": self.pattern, "mask": self.keys}
        if self.lengths is not None:
            options["lengths"] = (None, self.lengths)
        if self.positions is not None:
            options["q_positions"], options["k_positions"] = self.positions
        object.__setattr__(self, "options", options)


class Mask(Tensor):
    """A boolean mask (B, 1, Nq, Nk), True = may attend, that is written out only where somebody looks into it.

    It travels through a model as any mask does; `sight` is what it holds, as far as that is known. What keeps its
    meaning gives a mask again: parts, copies, other shapes, "and" and "or" with booleans. What reads it as the boolean
    that it is (`~`, `torch.where`) gives plain tensors. Anything else raises InputError: the model expects a mask of
    another kind, such as numbers that are added to logits, and would be wrong without a word.
    """

    sight: Sight | None
    _write: Callable[[], Tensor]
    _written: Tensor | None

    @staticmethod
    def of(sight: Sight | None, write: Callable[[], Tensor], shape: tuple[int, ...], device: Any) -> "Mask":
        """A mask of this shape whose pairs `write` computes."""
        mask = Tensor._make_subclass(Mask, torch.zeros((), dtype=torch.bool, device=device).expand(shape))
        mask.sight, mask._write, mask._written = sight, write, None
        return mask

    def written(self) -> Tensor:
        """All pairs, as a plain tensor."""
        if self._written is None:
            with torch._C.DisableTorchFunctionSubclass():
                self._written = self._write()
        return self._written

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        with torch._C.DisableTorchFunctionSubclass():
            if name in _ABOUT and not any(isinstance(x, Tensor) for x in args[1:]):
                found = func(*args, **kwargs)
                if not isinstance(found, Tensor):  # what `data`, `T` and their like give holds nothing
                    return found
            if name in _COPIES:
                return cls.of(args[0].sight, args[0].written, args[0].shape, args[0].device)
            if not _understood(name, args, kwargs):
                raise InputError(_not_understood(name))
            result = func(*_plain(args), **_plain(kwargs))
        return result if name in _READS else _masks(result)


_ABOUT = {
    "__get__", "__set__", "size", "dim", "ndimension", "numel", "nelement", "__len__", "__hash__", "is_floating_point",
    "is_complex", "stride", "storage_offset", "element_size", "is_contiguous", "get_device", "is_tensor",
}  # fmt: skip
"""Functions that ask what kind of tensor it is, never what it holds."""
_COPIES = {"detach", "clone", "contiguous"}
_KEEP = {
    "__getitem__", "narrow", "select", "index_select", "chunk", "split", "unbind", "to", "cpu", "cuda", "expand",
    "expand_as", "broadcast_to", "repeat", "repeat_interleave", "squeeze", "unsqueeze", "view", "reshape", "flatten",
    "unflatten", "transpose", "permute",
}  # fmt: skip
"""Functions that leave a mask a mask."""
_JOIN = {
    "__and__", "__rand__", "__iand__", "logical_and", "bitwise_and", "__or__", "__ror__", "logical_or", "bitwise_or",
}  # fmt: skip
"""Functions that leave masks a mask, where the other operand is one too."""
_READS = {
    "__invert__", "logical_not", "bitwise_not", "where", "scaled_dot_product_attention", "__repr__", "__format__",
}  # fmt: skip
"""Functions that nobody calls with a mask of another kind."""


def _understood(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Does this call mean the same for a mask of booleans as for the mask that its caller expects?"""
    given = [*args, *kwargs.values()]
    if name in _JOIN:
        return all(x.dtype == torch.bool for x in given if isinstance(x, Tensor))
    if name in ("cat", "concat", "stack"):
        return all(isinstance(x, Mask) for x in (args[0] if args else kwargs["tensors"]))
    if name == "where":
        return isinstance(args[0] if args else kwargs.get("condition"), Mask)
    # `.to(torch.bool)` of numbers that hide would say the contrary
    return name in _READS or (name in _KEEP and not any(isinstance(x, torch.dtype) for x in given))


def _not_understood(name: str) -> str:
    """One line that says what was done to a mask, and where."""
    frame: Any = sys._getframe()
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("transformers"):
        frame = frame.f_back
    where = "" if frame is None else f" ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
    return (
        f"attn_implementation={_OURS!r}: this model computes with masks itself, by {name}{where}, and may expect "
        "another kind of mask; write attn_implementation='eager'"
    )


def _masks(x: Any) -> Any:
    """`x` with the tensors in it as masks again."""
    if isinstance(x, tuple | list):
        return type(x)(map(_masks, x))
    return Mask.of(None, lambda: x, x.shape, x.device) if isinstance(x, Tensor) else x


def _plain(x: Any) -> Any:
    """`x` with the masks in it written out."""
    if isinstance(x, Mask):
        return x.written()
    if isinstance(x, tuple | list):
        return type(x)(map(_plain, x))
    return {key: _plain(value) for key, value in x.items()} if isinstance(x, dict) else x


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: Any = "cpu",
    **_: Any,
) -> Tensor:
    """What transformers asks of an attention with `AttentionMaskInterface`: the mask of one forward pass."""
    from transformers import masking_utils

    function = masking_utils.causal_mask_function if mask_function is None else mask_function
    write: Callable[[], Any] = partial(
        masking_utils.sdpa_mask, batch_size, q_length, kv_length, q_offset, kv_offset, function, attention_mask,
        allow_is_causal_skip=False, allow_is_bidirectional_skip=False, use_vmap=use_vmap, device=device,
    )  # fmt: skip
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return write()
    shape, known = (batch_size, 1, q_length, kv_length), _read(function)
    if known is None:
        return Mask.of(None, write, shape, device)
    pattern, place = known
    q_slots, k_slots = (
        torch.arange(n, device=device) + start for n, start in ((q_length, q_offset), (kv_length, kv_offset))
    )
    keys = None
    if attention_mask is not None:
        padded: Any = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
        keys = padded[:, k_slots]
    lengths, keys = _padding(keys)
    positions = None
    if place is not None:
        positions = place(q_slots)[:, None], place(k_slots)[:, None]
    elif lengths is not None or not _ends_line_up(q_length, kv_length, q_offset, kv_offset):
        # queries of padding have rows too; those of another sequence (cross-attention) stand nowhere
        if not (isinstance(pattern, everything) and q_length != kv_length):
            positions = q_slots[None, None], k_slots[None, None]
    elif q_length == 1 and isinstance(pattern, causal):
        pattern = everything()  # a step of decoding: the last token sees all
    return Mask.of(Sight(pattern, lengths, keys, positions), write, shape, device)


def _ends_line_up(q_length: int, kv_length: int, q_offset: Any, kv_offset: Any) -> bool:
    """Is the last query the last key? Where a static cache keeps offsets in tensors, that is not asked."""
    fixed = isinstance(q_offset, int) and isinstance(kv_offset, int)
    return fixed and q_offset + q_length == kv_offset + kv_length


def _padding(keys: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The keys (B, Nk) that are there: nothing to say, or lengths (B,) for right padding, or a mask (B, 1, 1, Nk)."""
    if keys is None or bool(keys.all()):
        return None, None
    lengths = keys.sum(1)
    if bool((keys == (torch.arange(keys.shape[1], device=keys.device) < lengths[:, None])).all()):
        return lengths, None
    return None, keys[:, None, None]


def _read(function: Callable[..., Any]) -> tuple[Pattern, _Place | None] | None:
    """The pattern that a mask function of transformers means, and where tokens stand; None: not one that is known."""
    parts = dict(_conjuncts(function))
    cells = {name: _cells(part) for name, part in parts.items()}
    match sorted(parts):
        case ["causal_mask_function"]:
            return causal(), None
        case ["bidirectional_mask_function"]:
            return everything(), None
        case ["causal_mask_function", "sliding_window_overlay"]:
            before = cells["sliding_window_overlay"]["sliding_window"] - 1
            # a window of 0 sees nothing; it stands in configurations whose layers do not use it
            return None if before < 0 else (causal() & window(before), None)
        case ["bidirectional_mask_function", "sliding_window_bidirectional_overlay"]:
            return window(cells["sliding_window_bidirectional_overlay"]["sliding_window"]), None
        case ["causal_mask_function", "chunked_overlay"]:
            chunk = cells["chunked_overlay"]
            return causal() & chunks(chunk["chunk_size"]), partial(_behind, chunk["left_padding"])
        case ["packed_sequence_mask_function", "remap_positions_for_packed_sequence"]:
            packed, own = cells["packed_sequence_mask_function"], cells["remap_positions_for_packed_sequence"]
            sequences, inner = packed["packed_sequence_mask"], _read(own["mask_function"])
            if inner is None or inner[1] is not None or not _rise_by_one(own["position_ids"], sequences):
                return None
            return inner[0] & documents(sequences), _themselves
    return None


def _behind(padding: Tensor, slots: Tensor) -> Tensor:
    """Positions counted from the first real token of each sample."""
    return slots - padding.to(slots.device)[:, None]


def _rise_by_one(positions: Tensor, sequences: Tensor) -> bool:
    """Are tokens of a packed sequence as far apart as their slots are?"""
    return bool(((positions.diff(dim=-1) == 1) | (sequences.diff(dim=-1) != 0)).all())


def _themselves(slots: Tensor) -> Tensor:
    return slots[None]


def _conjuncts(function: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions that `function` and-s together, each with the name of what made it."""
    name = _maker(function)
    if name == "and_masks":
        for part in _cells(function)["mask_functions"]:
            yield from _conjuncts(part)
    else:
        yield name, function


def _maker(function: Callable[..., Any]) -> str:
    """The name of the function of transformers that `function` is, or that returned it."""
    name = getattr(function, "__qualname__", "").split(".")[0]
    return name if getattr(function, "__module__", "") == "transformers.masking_utils" else f"another: {name}"


def _cells(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function closes over."""
    closure = getattr(function, "__closure__", None) or ()
    names = function.__code__.co_freevars if closure else ()
    return {name: cell.cell_contents for name, cell in zip(names, closure, strict=True)}
