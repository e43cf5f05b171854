"""Rows of tokens of different lengths, end to end, in memory or in a file that is mapped into it.

Shapes: R rows, T tokens in all of them, B rows that are asked for, N the length of the longest of those.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt
from torch import Tensor

from clearhead.data.tokens import PAD

_DROP_EVERY = 4
"""Batches after which the system may take back the pages they were on: some 16 MiB each, and a millisecond to find."""


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, end to end: row i is `flat[starts[i] : starts[i] + lengths[i]]`."""

    flat: Int[Tensor, "T"] | UInt[Tensor, "T"]
    starts: Int64[Tensor, "R"]
    lengths: Int[Tensor, "R"]
    file: mmap.mmap | None = None
    _asked: list[int] = field(default_factory=lambda: [0], repr=False)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """From rows of any lengths."""
        flat = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
        return cls._with(flat, torch.tensor([len(row) for row in rows], dtype=torch.int32))

    @classmethod
    def _with(cls, flat: Tensor, lengths: Tensor, file: mmap.mmap | None = None) -> "Ragged":
        starts = lengths.cumsum(0, dtype=torch.int64).sub_(lengths)
        return cls(flat, starts, lengths, file)

    @classmethod
    def open(cls, path: Path) -> "Ragged | None":
        """What a Writer has finished, None where there is none."""
        lengths, tokens = _lengths_beside(path), sorted(path.parent.glob(f"{path.name}.uint*"))
        if not lengths.exists() or not tokens:
            return None
        with open(tokens[0], "rb") as file:  # a copy of its own where it is written to, which nobody does
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        dtype = getattr(torch, tokens[0].suffix[1:])
        flat = torch.frombuffer(mapped, dtype=dtype)
        return cls._with(flat, torch.from_numpy(np.fromfile(lengths, dtype=np.int32)), mapped)

    def gather(self, rows: Int64[Tensor, "B"]) -> tuple[Int64[Tensor, "B N"], Int64[Tensor, "B"] | None]:
        """Some rows side by side, padded on the right, and their lengths: None when there is no padding."""
        lengths = self.lengths[rows].long()
        shortest, width = (int(size) for size in lengths.aminmax())
        index = self.starts[rows, None] + torch.arange(width)
        if shortest == width:
            return self._take(index), None
        padding = torch.arange(width) >= lengths[:, None]
        return self._take(index.clamp_(max=len(self.flat) - 1)).masked_fill_(padding, PAD), lengths

    def _take(self, index: Tensor) -> Tensor:
        taken = self.flat[index].long()
        if self.file is not None and hasattr(self.file, "madvise"):  # or an epoch later the whole file is in memory
            self._asked[0] = (self._asked[0] + 1) % _DROP_EVERY
            if not self._asked[0]:
                self.file.madvise(mmap.MADV_DONTNEED)
        return taken


class Writer:
    """Collects rows, in memory, or in a file beside which their lengths come to lie when all are there."""

    def __init__(self, path: Path | None, dtype: np.dtype) -> None:
        self.path, self.dtype = path, dtype
        self._lengths: list[np.ndarray] = []
        self._rows: list[bytes] = []
        self._file: IO[bytes] | None = None
        if path is not None:
            _lengths_beside(path).unlink(missing_ok=True)
            for old in path.parent.glob(f"{path.name}.uint*"):
                old.unlink()
            self._file = open(path.with_name(f"{path.name}.{dtype.name}"), "wb")  # noqa: SIM115

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, rows: Sequence[bytes]) -> None:
        """Rows as the bytes of arrays of the dtype."""
        sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        self._lengths.append((sizes // self.dtype.itemsize).astype(np.int32))
        if self._file is None:
            self._rows += rows
        else:
            self._file.write(b"".join(rows))

    def finish(self) -> Ragged:
        """All rows that were added."""
        lengths = np.concatenate(self._lengths)
        if self._file is None or self.path is None:
            flat = np.frombuffer(bytearray(b"".join(self._rows)), dtype=self.dtype)
            return Ragged._with(torch.from_numpy(flat), torch.from_numpy(lengths))
        self._file.close()
        finished = _lengths_beside(self.path)
        lengths.tofile(finished.with_suffix(".tmp"))
        os.replace(finished.with_suffix(".tmp"), finished)  # it is there once all is
        found = Ragged.open(self.path)
        assert found is not None
        return found


def _lengths_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.lengths")
