"""The pairs of a split as numbers: tokenised once, kept flat, gathered by row without a loop.

**Bytes must be trained.** A character that training never saw is spelled by bytes whose embeddings would then be noise.
So
a share of the examples is added a second time with one letter spelled by bytes: half of the time its own bytes (a byte
means its character), half of the time those of another, random character (a stranger: pronounce the word from its other
letters). They are part of the data, drawn once from the seed: lengths, and so batches, stay the same in every epoch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from clearhead.data.checks import check_lengths
from clearhead.data.sources import Source, Split
from clearhead.data.tokens import BOS, EOS, PAD, Tokenizer
from clearhead.errors import DataError

# Code points by the number of their UTF-8 bytes, and how often each is drawn.
_STRANGERS = ((range(0x21, 0x7F), 2), (range(0xA0, 0x800), 4), (range(0x800, 0xD800), 1), (range(0x10000, 0x20000), 1))


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, end to end: row i is `flat[starts[i] : starts[i] + lengths[i]]`."""

    flat: Int64[Tensor, "T"]
    starts: Int64[Tensor, "R"]
    lengths: Int64[Tensor, "R"]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """From rows of any lengths."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        flat = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
        return cls(flat, lengths.cumsum(0) - lengths, lengths)

    def gather(self, rows: Int64[Tensor, "B"]) -> tuple[Int64[Tensor, "B N"], Int64[Tensor, "B"] | None]:
        """Some rows side by side, padded on the right, and their lengths: None when there is no padding."""
        lengths = self.lengths[rows]
        shortest, width = (int(size) for size in lengths.aminmax())
        index = self.starts[rows, None] + torch.arange(width)
        if shortest == width:
            return self.flat[index], None
        padding = torch.arange(width) >= lengths[:, None]
        return self.flat[index.clamp_(max=len(self.flat) - 1)].masked_fill_(padding, PAD), lengths


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
    ) -> "Examples":
        """Tokenise a split of a source.

        limit: of tokens on either side; what is longer is cut with `truncate`, and else a DataError.
        byte_share: the share of examples that is added a second time with one letter spelled by bytes.
        Raises DataError when the split is empty.
        """
        pairs = list(source.pairs(split))
        if not pairs:
            raise DataError(f"the split {split!r} is empty: there is nothing to learn from")
        texts, answers = zip(*pairs, strict=True)
        rows = check_lengths(texts, source_tokenizer.encode(texts), limit, truncate)
        targets = check_lengths(
            answers, target_tokenizer.encode(answers), limit - 1, truncate
        )  # begin or end is the last one
        if source_tokenizer.spells and byte_share:
            chosen = _draw(len(rows), byte_share, seed)
            rows += spell_a_letter([rows[i] for i in chosen], source_tokenizer, random.Random(seed))
            targets += [targets[i] for i in chosen]
        return cls(Ragged.of(rows), Ragged.of([[BOS, *row, EOS] for row in targets]))


def _draw(count: int, share: float, seed: int) -> list[int]:
    return sorted(random.Random(seed + 1).sample(range(count), round(count * share)))


def spell_a_letter(rows: Sequence[list[int]], letters: Tokenizer, generator: random.Random) -> list[list[int]]:
    """Each row with one of its letters spelled by bytes: its own, or those of a stranger."""
    spelled = []
    for row in rows:
        place = generator.randrange(len(row))
        own = generator.random() < 0.5
        character = letters.decode(row[place : place + 1]) if own else _stranger(generator)
        spelled.append(row[:place] + letters.spell(character) + row[place + 1 :])
    return spelled


def _stranger(generator: random.Random) -> str:
    ranges, weights = [part for part, _ in _STRANGERS], [weight for _, weight in _STRANGERS]
    return chr(generator.choice(generator.choices(ranges, weights)[0]))
