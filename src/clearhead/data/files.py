"""Pairs from people's own files, a block at a time, and each time checked line by line."""

from collections.abc import Iterator, Mapping, Sequence

from clearhead.data.formats import Block, blocks
from clearhead.data.layouts import ANY, Columns, counted
from clearhead.data.sources import SPLITS, Source, Split
from clearhead.errors import DataError, InputError


class Files(Source):
    """The pairs of files, a file or two parallel ones for each split.

    files: for each split the path of a TSV, CSV, JSONL or Parquet file, or of two files whose lines belong together;
    all but Parquet may be gzipped. columns: which columns hold source and target, by name or by number from 1; None:
    what can only be meant.

    Nothing is kept in memory: each time the files are read as a stream.
    """

    def __init__(self, files: Mapping[Split, Sequence[str] | None], columns: Columns = ANY) -> None:
        self.files = {split: tuple(paths) for split in SPLITS if (paths := files.get(split))}
        self.columns = columns
        self._counts: dict[Split, int] = {}

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(self.files)

    def check(self, split: Split) -> int:
        """How many pairs there are; raises DataError, with file and line, for the first that cannot be learnt from."""
        if split not in self._counts:
            count = 0
            for block in self.checked(split):
                _refuse(block)
                count += len(block.sources)
            self._counts[split] = count
        return self._counts[split]

    def checked(self, split: Split) -> Iterator[Block]:
        """The pairs with their lines and with what is wrong, as `clearhead.data.formats.blocks`.

        Raises DataError where there is neither a pair nor anything wrong.
        """
        empty = True
        for block in blocks(self._files(split), self.columns):
            empty = empty and not (block.sources or block.problems)
            yield block
        if empty:
            raise DataError(f"{self._name(split)}: no pairs below the names of the columns")

    def blocks(self, split: Split) -> Iterator[tuple[list[str], list[str]]]:
        """The sources and targets by blocks; raises DataError as `check`."""
        expected, count = self.check(split), 0
        for block in self.checked(split):
            _refuse(block)
            count += len(block.sources)
            if block.sources:
                yield block.sources, block.targets
        if count != expected:  # neither guess nor go on
            raise DataError(
                f"{self._name(split)} changed while it was read: {counted(expected, 'pair')}, then {count:,}"
            )

    def pairs(self, split: Split) -> Iterator[tuple[str, str]]:
        for sources, targets in self.blocks(split):
            yield from zip(sources, targets, strict=True)

    def where(self, split: Split, number: int, side: str = "source") -> str:
        """FILE:LINE of a pair, counted from 0."""
        files = self._files(split)
        for block in self.checked(split):
            if number < len(block.lines):
                return f"{files[-1] if side == 'target' else files[0]}:{block.lines[number]}"
            number -= len(block.lines)
        return self._name(split)

    def _files(self, split: Split) -> tuple[str, ...]:
        if split not in self.files:
            raise InputError(f"there is no {split} file: give one by --{split}, or as data.{split}")
        return self.files[split]

    def _name(self, split: Split) -> str:
        return ",".join(self._files(split))


def _refuse(block: Block) -> None:
    """Raise DataError for the first line that cannot be learnt from."""
    if block.problems:
        raise DataError(str(min(block.problems, key=lambda problem: problem.line or 0)))
