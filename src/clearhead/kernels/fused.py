"""`fused.c` called: a tile's rows in one pass, float32 on the CPU. Its twin is `softmax_rows` and `measure`."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clearhead.kernels.compiler import compiled
from clearhead.kernels.score import Score
from clearhead.kernels.tiles import Tile
from clearhead.kernels.visible import Visible, cut


class _Tensor(ctypes.Structure):
    """As in `fused.c`, like `_Call` below."""

    _fields_ = (("at", c_void_p), ("sample", c_int64), ("head", c_int64), ("row", c_int64))


_NUMBERS = ("samples", "heads", "group", "rows", "keys", "width", "value_width", "first_key")


class _Call(ctypes.Structure):
    _fields_ = (
        ("gemm", c_void_p),
        *((name, c_int32) for name in _NUMBERS),
        *((name, c_float) for name in ("scale", "softcap")),
        *((name, _Tensor) for name in ("q", "k", "v", "out", "seen")),
        *((name, c_int32) for name in ("seen_from", "seen_to")),
        *((name, _Tensor) for name in ("bias", "q_at", "k_at", "sums")),
        ("sums_step", c_int64),
        ("received", _Tensor),
        ("sinks", c_void_p),
        ("sinks_sample", c_int64),
        ("n_sinks", c_int32),
        ("room", c_void_p),
    )


@lru_cache
def _library() -> Any:
    """The functions of `fused.c`, or why there are none."""
    library = compiled(Path(__file__).with_name("fused.c"))
    if isinstance(library, str):
        return library
    library.room_for.restype = c_int64
    return library


@lru_cache
def _gemm() -> int | None:
    """The address of single-precision matrix products in the BLAS that PyTorch brings, where it can be had."""
    lib = Path(torch.__file__).parent / "lib"
    for file in (*lib.glob("libtorch_cpu.*"), None):
        try:
            return ctypes.cast(ctypes.CDLL(None if file is None else str(file)).sgemm_, c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def misfit(*tensors: Tensor | None) -> str | None:
    """Why `fused.c` cannot take these tensors (None: it can)."""
    given = [x for x in tensors if x is not None]
    if any(x.device.type != "cpu" or x.dtype == torch.float64 for x in given):
        return "float32 or less on the CPU only"
    if any(type(x) not in (Tensor, torch.nn.Parameter) for x in given) or torch._C._len_torch_dispatch_stack():
        return "something else looks on at what PyTorch computes"
    if isinstance(library := _library(), str):
        return str(library)
    return None if _gemm() else "PyTorch's BLAS hides its matrix products"


class Pass:
    """A pass over tiles, float32, that writes what it finds.

    Args:
        q, k, v: (B, H, Nq, D), (B, Hkv, Nk, D), (B, Hkv, Nk, Dv).
        visible: with its positions written out.
        sinks: (B or 1, S), the keys whose weight is the statistic `sink`; None: totals and greatest logits are enough.
        distance: whether positions say how far keys are.
        out: (B, H, Nq, Dv).
        sums: (2, or with sinks RAW; B, H, Nq), as `measure` returns them.
        received: (B, H, Nk) is added to; (B, H, 0): not wanted.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Visible,
        score: Score,
        sinks: Tensor | None,
        distance: bool,
        out: Tensor,
        sums: Tensor,
        received: Tensor,
    ) -> None:
        self._q, self._k, self._v = (_rows_apart(x) for x in (q, k, v))
        self._visible, self._score, self._sinks = visible, score, sinks
        self._out, self._sums, self._received = out, sums, received
        self._q_at = self._k_at = None
        if distance and sinks is not None:
            self._q_at = visible.positions_of_queries()[:, :, None].float().contiguous()
            self._k_at = visible.positions_of_keys()[:, :, None].float().contiguous()
        self._room = torch.empty(0)

    def __call__(self, tile: Tile) -> None:
        """Takes the rows of a tile."""
        at, below = (tile.b, tile.h, tile.rows), (tile.b, tile.kv, tile.keys)
        q, k, v, sums = self._q[at], self._k[below], self._v[below], self._sums[:, *at]
        every, pairs, bias, first = slice(0, 1), self._pairs(tile), self._bias(tile), tile.keys.start
        sinks = None if self._sinks is None else cut(self._sinks, tile.b).contiguous()
        call = _Call(
            gemm=_gemm(),
            samples=q.shape[0],
            heads=q.shape[1],
            group=q.shape[1] // k.shape[1],
            rows=q.shape[2],
            keys=k.shape[2],
            width=q.shape[3],
            value_width=v.shape[3],
            first_key=first,
            scale=self._score.scale,
            softcap=self._score.softcap or 0.0,
            q=_tensor(q),
            k=_tensor(k),
            v=_tensor(v),
            out=_tensor(self._out[at]),
            seen=_tensor(pairs),
            seen_from=tile.partly.start - first,
            seen_to=tile.partly.stop - first,
            bias=_tensor(bias),
            q_at=_tensor(self._q_at, tile.b, tile.h, every, tile.rows),
            k_at=_tensor(self._k_at, tile.b, tile.h, every, tile.keys),
            sums=_Tensor(sums.data_ptr(), *sums.stride()[1:]),
            sums_step=sums.stride(0),
        )
        if self._received.shape[-1]:
            call.received = _tensor(self._received[:, :, None], tile.b, tile.h, every, tile.keys)
        if sinks is not None:
            call.sinks, call.n_sinks = sinks.data_ptr(), sinks.shape[1]
            call.sinks_sample = sinks.shape[1] if sinks.shape[0] > 1 else 0
        library = _library()
        if (need := library.room_for(ctypes.byref(call))) > self._room.numel():
            self._room = torch.empty(need)
        call.room = self._room.data_ptr()
        library.rows(ctypes.byref(call))

    def _pairs(self, tile: Tile) -> Tensor | None:
        """Which pairs are visible among the keys that not every row of the tile sees, as bytes."""
        size = tile.partly.stop - tile.partly.start
        pairs = tile.pairs(self._visible, tile.partly) if size else None
        return None if pairs is None else _adjacent(pairs, size).view(torch.uint8)

    def _bias(self, tile: Tile) -> Tensor | None:
        bias = self._score.bias
        return None if bias is None else _adjacent(tile.of(bias).float(), tile.keys.stop - tile.keys.start)


def _rows_apart(x: Tensor) -> Tensor:
    """`x` with its last axis side by side, and its rows one behind the other: what a matrix product takes."""
    x = x.resolve_neg()
    lies_so = x.stride(-1) == 1 and x.stride(-2) >= x.shape[-1]
    return x if lies_so or not x.numel() else x.clone(memory_format=torch.contiguous_format)


def _adjacent(x: Tensor, size: int) -> Tensor:
    """`x` (…, size or 1) with `size` columns side by side."""
    x = x if x.shape[-1] == size else x.expand(*x.shape[:-1], size)
    return x if x.stride(-1) == 1 else x.contiguous()


def _tensor(x: Tensor | None, *part: slice) -> _Tensor:
    """Where `x` (B or 1, H or 1, R or 1, columns), or a part of it, lies; the tensor must outlive the call."""
    if x is None:
        return _Tensor()
    x = cut(x, *part)
    return _Tensor(
        x.data_ptr(), *(0 if size == 1 else step for size, step in zip(x.shape[:3], x.stride(), strict=False))
    )
