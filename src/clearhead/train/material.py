"""What a training learns from: a source of pairs, tokenizers made from it, and its splits as tokens."""

from collections.abc import Callable
from dataclasses import dataclass

from clearhead.data import Batches, Examples, Source, Tokenizer, open_source
from clearhead.train.config import Config, Data


@dataclass(frozen=True)
class Material:
    """The pairs, how texts become tokens, what is learnt from, and what is validated on."""

    source: Source
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    train: Examples
    valid: Examples


def open_data(data: Data) -> Source:
    """The pairs that a configuration names."""
    return open_source(data.source)


def gather(config: Config, say: Callable[[str], None]) -> Material:
    """Read, tokenise and count."""
    source, data, limit = open_data(config.data), config.data, config.model.max_length
    ours = Tokenizer.characters((text for text, _ in source.pairs("train")), data.lowercase)
    theirs = Tokenizer.symbols(text for _, text in source.pairs("train"))
    train = Examples.read(
        source, "train", ours, theirs, limit=limit, truncate=data.truncate, byte_share=data.byte_share, seed=config.seed
    )
    valid = Examples.read(source, "valid", ours, theirs, limit=limit, truncate=data.truncate)
    batches = Batches(train, data.batch_tokens)
    say(
        f"{len(train):,} examples, {batches.tokens:,} tokens in {len(batches):,} batches, {batches.padding:.1%} padding"
    )
    return Material(source, ours, theirs, train, valid)
