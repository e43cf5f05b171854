"""Batches by a budget of tokens, with little padding, in an order that can be taken up again anywhere.

Examples are sorted by (source length, target length) and cut wherever the padded batch would pass the budget. Nearly
every batch then has sources of one length, so that the model needs no lengths at all; targets of several lengths are
padded on the right, behind the end, where no row of a causal decoder looks.

What each epoch draws from (seed, epoch) is which examples of the same lengths come together, and the order of the
batches. The cuts depend on lengths alone: every epoch, and every rank, has the same number of batches.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from clearhead.data.examples import Examples
from clearhead.errors import InputError


class Batch(NamedTuple):
    """source (B, Ns); its lengths (B,), or None where there is no padding; target (B, Nt) from begin to end."""

    source: Int64[Tensor, "B Ns"]
    source_lengths: Int64[Tensor, "B"] | None
    target: Int64[Tensor, "B Nt"]

    def to(self, device: torch.device) -> "Batch":
        """On a device."""
        lengths = None if self.source_lengths is None else self.source_lengths.to(device)
        return Batch(self.source.to(device), lengths, self.target.to(device))

    def split(self, count: int) -> "list[Batch]":
        """In `count` parts of nearly as many examples; fewer where there are not so many."""
        sources, targets = self.source.chunk(count), self.target.chunk(count)
        lengths = [None] * len(sources) if self.source_lengths is None else self.source_lengths.chunk(count)
        return [Batch(*part) for part in zip(sources, lengths, targets, strict=True)]


class Batches:
    """The batches of one rank: an iterable of an epoch each time, whose state is (epoch, batches given).

    budget: of tokens in a batch, source and target, padding included (an example longer than that is a batch of its
    own).
    shuffle: draw the order anew each epoch; without, it is by length.
    rank, world: every world-th batch is ours. Batches are split until each rank has as many; none is dropped or
    repeated.

    The count is of batches *as the consumer receives them*, and reads (epoch + 1, 0) while the last is being used, so
    that a state saved at the end of any training step goes on with the next batch (Lightning saves it with its
    checkpoints).
    """

    def __init__(
        self, examples: Examples, budget: int, *, seed: int = 0, shuffle: bool = True, rank: int = 0, world: int = 1
    ) -> None:
        self.examples, self.seed, self.shuffle, self.rank, self.world = examples, seed, shuffle, rank, world
        self.epoch = self.given = 0
        self._key = _sorting_key(examples)
        order = self._key.argsort(stable=True)
        sizes = np.stack([examples.source.lengths[order].numpy(), examples.target.lengths[order].numpy()])
        self._cuts = _split_until_even(_cuts(sizes, budget), world)
        self.tokens = int(sizes.sum(dtype=np.int64))
        """Tokens in an epoch, of all ranks, without padding."""
        self._padded = _padded(sizes, self._cuts)
        self.padding = 1 - self.tokens / int(self._padded.sum())
        """The share of padding among all that the model is given, 0 to 1."""

    def __len__(self) -> int:
        return (len(self._cuts) - 1) // self.world

    def __iter__(self) -> Iterator[Batch]:
        order, turns = self._epoch(self.epoch)
        for turn in turns[self.given :]:
            last = self.given + 1 == len(self)
            self.epoch, self.given = (self.epoch + 1, 0) if last else (self.epoch, self.given + 1)
            yield self.collate(order[self._cuts[turn] : self._cuts[turn + 1]])

    def collate(self, rows: Int64[Tensor, "B"]) -> Batch:
        """The batch of some examples, by their numbers."""
        return Batch(*self.examples.source.gather(rows), self.examples.target.gather(rows)[0])

    def largest(self) -> Batch:
        """That which holds the most, padding included."""
        turn = int(self._padded.argmax())
        return self.collate(self._key.argsort(stable=True)[self._cuts[turn] : self._cuts[turn + 1]])

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.given = state["epoch"], state["given"]

    def _epoch(self, epoch: int) -> tuple[Int64[Tensor, "R"], list[int]]:
        """The examples in order of length, equal ones drawn anew, and which batches are ours, in their order."""
        count = len(self._cuts) - 1
        if not self.shuffle:
            return self._key.argsort(stable=True), list(range(self.rank, count, self.world))
        generator = torch.Generator().manual_seed(hash_seed(self.seed, epoch))
        mixed = torch.randperm(len(self._key), generator=generator)
        turns = torch.randperm(count, generator=generator)[self.rank :: self.world]
        return mixed[self._key[mixed].argsort(stable=True)], turns.tolist()


def hash_seed(*numbers: int) -> int:
    """One seed out of several numbers, such that (1, 0) and (0, 1) differ."""
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


def _sorting_key(examples: Examples) -> Int[Tensor, "R"]:
    """By source length, then by target length: up and down in turn, so that neighbours across source lengths fit."""
    source, target = examples.source.lengths, examples.target.lengths
    span = int(target.max()) + 1
    if (int(source.max()) + 1) * span >= 2**31:
        source, target = source.long(), target.long()
    return source * span + torch.where(source % 2 == 0, target, span - 1 - target)


def _padded(sizes: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Tokens in each batch, padding included."""
    widths = np.maximum.reduceat(sizes, cuts[:-1], axis=1).sum(axis=0, dtype=np.int64)
    return np.diff(cuts) * widths


def _cuts(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Where batches of sorted examples begin, and the end: each as long as its padded size stays within the budget."""
    cuts, total = [0], sizes.shape[1]
    while cuts[-1] < total:
        start = cuts[-1]
        most = max(1, budget // int(sizes[:, start].min()))
        widths = np.maximum.accumulate(sizes[:, start : start + most], axis=1).sum(axis=0)
        fits = int(np.searchsorted(widths * np.arange(1, len(widths) + 1), budget, side="right"))
        cuts.append(start + max(1, fits))
    return np.array(cuts)


def _split_until_even(cuts: np.ndarray, world: int) -> np.ndarray:
    """Halve the largest batches until their number is a multiple of `world`."""
    while (len(cuts) - 1) % world:
        counts = np.diff(cuts)
        largest = int(counts.argmax())
        if counts[largest] < 2:
            raise InputError(f"{world} processes cannot share {len(counts)} batches of one example: raise the budget")
        cuts = np.insert(cuts, largest + 1, cuts[largest] + counts[largest] // 2)
    return cuts
