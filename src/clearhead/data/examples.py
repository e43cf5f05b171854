"""The pairs of a split as numbers: tokenised once, kept flat, gathered by row without a loop.

Where there is a folder, tokens are kept in files, of 2 bytes each (4, where a vocabulary has more than 65,536), that
are mapped into memory and never read as a whole; memory then holds 24 bytes a pair: where each row begins, and its
length.

**Bytes must be trained.** What training never saw is spelled by bytes whose embeddings would then be noise. So a
share of the examples is added a second time with one token spelled by bytes: half of the time its own bytes (a byte
means its character), half of the time those of another, random character (a stranger: pronounce the word from its
other letters). They are part of the data, drawn once from the seed: lengths, and so batches, stay the same in every
epoch.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clearhead.data.ragged import Ragged, Writer
from clearhead.data.sources import Source, Split
from clearhead.data.tokens import BOS, EOS, Tokenizer
from clearhead.errors import DataError, InputError

_SIDES = ("source", "target")

# Code points by the number of their UTF-8 bytes, and how often each is drawn.
_STRANGERS = ((range(0x21, 0x7F), 2), (range(0xA0, 0x800), 4), (range(0x800, 0xD800), 1), (range(0x10000, 0x20000), 1))


@dataclass(frozen=True)
class Examples:
    """Source tokens, and target tokens between begin and end, of the same number of examples."""

    source: Ragged
    target: Ragged

    def __len__(self) -> int:
        return len(self.source.lengths)

    @classmethod
    def read(
        cls,
        source: Source,
        split: Split,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        *,
        limit: int = 2**31,
        truncate: bool = False,
        byte_share: float = 0.0,
        seed: int = 0,
        folder: Path | None = None,
    ) -> "Examples":
        """Tokenise a split of a source.

        limit: of tokens on either side; what is longer is cut with `truncate`, and else a DataError.
        byte_share: the share of examples that is added a second time with one token spelled by bytes.
        folder: where tokens are kept, so that memory does not grow with them; `open` finds them there again.
        Raises DataError when the split is empty.
        """
        count = source.check(split)
        if not count:
            raise DataError(f"the split {split!r} is empty: there is nothing to learn from")
        sides = ((source_tokenizer, limit), (target_tokenizer, limit - 1))  # begin or end is the last
        again = _Again(
            source_tokenizer, _draw(count, byte_share if source_tokenizer.spells else 0.0, seed), seed, limit
        )
        begin, end = (np.array([token], dtype=target_tokenizer.dtype).tobytes() for token in (BOS, EOS))
        first = 0
        with ExitStack() as opened:
            writers = [
                opened.enter_context(Writer(None if folder is None else folder / f"{split}.{side}", tokenizer.dtype))
                for side, (tokenizer, _) in zip(_SIDES, sides, strict=True)
            ]
            for block in source.blocks(split):
                place = _Place(source, split, first)
                sources, targets = (
                    _rows(texts, tokenizer, most, truncate, side, place)
                    for side, texts, (tokenizer, most) in zip(_SIDES, block, sides, strict=True)
                )
                targets = [begin + row + end for row in targets]
                again.note(first, sources, targets)
                for writer, rows in zip(writers, (sources, targets), strict=True):
                    writer.add(rows)
                first += len(sources)
            for writer, rows in zip(writers, (again.sources, again.targets), strict=True):
                writer.add(rows)
            return cls(writers[0].finish(), writers[1].finish())

    @classmethod
    def open(cls, folder: Path, split: Split) -> "Examples | None":
        """What `read` left in a folder, None where it did not come to its end."""
        sides = [Ragged.open(folder / f"{split}.{side}") for side in _SIDES]
        return None if sides[0] is None or sides[1] is None else cls(sides[0], sides[1])


class _Place(NamedTuple):
    """Where a block of pairs begins."""

    source: Source
    split: Split
    first: int


def _rows(
    texts: Sequence[str], tokenizer: Tokenizer, most: int, truncate: bool, side: str, place: _Place
) -> list[bytes]:
    """The tokens of each text, at most `most`; raises DataError for one that has others, or more without `truncate`."""
    width = tokenizer.dtype.itemsize
    rows = tokenizer.pack(texts) if tokenizer.spells else []
    if not rows or (max(map(len, rows)) > most * width and not truncate):
        for i, why in _unreadable(texts, tokenizer, None if truncate else most):
            raise DataError(f"{place.source.where(place.split, place.first + i, side)}: the {side} {why}")
        rows = tokenizer.pack(texts)
    return [row[: most * width] for row in rows] if truncate else rows


def unreadable(
    source: Source, split: Split, tokenizers: tuple[Tokenizer, Tokenizer], limit: int | None
) -> Iterator[tuple[str, int, str]]:
    """What `Examples.read` refuses of a split: the side, the number of the pair, why. limit: None with `truncate`."""
    first = 0
    for block in source.blocks(split):
        for side, texts, tokenizer, own in zip(_SIDES, block, tokenizers, (0, 1), strict=True):
            for i, why in _unreadable(texts, tokenizer, None if limit is None else limit - own):
                yield side, first + i, why
        first += len(block[0])


def _unreadable(texts: Sequence[str], tokenizer: Tokenizer, most: int | None) -> Iterator[tuple[int, str]]:
    """The texts that hold an unknown symbol, or more than `most` tokens, by their numbers: why they cannot be read."""
    unknown = set()
    for i, text in enumerate(texts) if not tokenizer.spells else ():
        try:
            tokenizer.check([text])
        except InputError as error:
            unknown.add(i)
            yield i, f"has an {error}"
    if most is None:
        return
    long = [i for i, text in enumerate(texts) if i not in unknown and tokenizer.may_exceed(text, most)]
    for i, row in zip(long, tokenizer.pack([texts[i] for i in long]), strict=True):
        if (count := len(row) // tokenizer.dtype.itemsize) > most:
            what = f"has {count} tokens, the model reads {most}"
            yield i, f"{what}: shorten it, raise model.max_length, or set data.truncate=true"


class _Again:
    """The examples that are added a second time, with one token spelled by bytes."""

    def __init__(self, tokenizer: Tokenizer, chosen: Sequence[int], seed: int, limit: int) -> None:
        self.tokenizer, self.generator, self.limit = tokenizer, random.Random(seed), limit
        self.sources: list[bytes] = []
        self.targets: list[bytes] = []
        self._chosen = iter(chosen)
        self._next = next(self._chosen, None)

    def note(self, first: int, sources: Sequence[bytes], targets: Sequence[bytes]) -> None:
        """Take what was chosen from rows that begin with number `first`."""
        while self._next is not None and self._next < first + len(sources):
            i, dtype = self._next - first, self.tokenizer.dtype
            row = np.frombuffer(sources[i], dtype=dtype).tolist()
            spelled = spell_a_token(row, self.tokenizer, self.generator)
            kept = spelled if len(spelled) <= self.limit else row
            self.sources.append(np.array(kept, dtype=dtype).tobytes())
            self.targets.append(targets[i])
            self._next = next(self._chosen, None)


def _draw(count: int, share: float, seed: int) -> list[int]:
    return sorted(random.Random(seed + 1).sample(range(count), round(count * share)))


def spell_a_token(row: list[int], tokenizer: Tokenizer, generator: random.Random) -> list[int]:
    """The row with one of its tokens spelled by bytes: its own, or those of a stranger."""
    place = generator.randrange(len(row))
    own = generator.random() < 0.5
    instead = tokenizer.spell_token(row[place]) if own else tokenizer.spell(_stranger(generator))
    return row[:place] + instead + row[place + 1 :]


def _stranger(generator: random.Random) -> str:
    ranges, weights = [part for part, _ in _STRANGERS], [weight for _, weight in _STRANGERS]
    return chr(generator.choice(generator.choices(ranges, weights)[0]))
