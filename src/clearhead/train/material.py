"""What a training learns from: a source of pairs, tokenizers made from it, and its splits as tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from clearhead.data import Batches, Examples, Files, Source, Tokenizer, open_source
from clearhead.data.layouts import Columns
from clearhead.data.sources import SPLITS, Split
from clearhead.errors import ConfigError, DataError
from clearhead.train import fingerprints
from clearhead.train.config import Config, Data
from clearhead.train.folder import RunFolder, write_text


@dataclass(frozen=True)
class Material:
    """The pairs, how texts become tokens, what is learnt from, and what is validated on."""

    source: Source
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    train: Examples
    valid: Examples


def open_data(data: Data) -> Source:
    """The pairs that a configuration names: what is built in, or files."""
    if data.source is not None:
        return open_source(data.source)
    for key in ("train", "valid"):
        if getattr(data, key) is None:
            raise ConfigError(f"data.{key}: a file of pairs is needed, or two parallel files: give --{key}")
    files: dict[Split, tuple[str, ...] | None] = {split: getattr(data, split) for split in SPLITS}
    return Files(files, Columns(data.source_column, data.target_column))


def gather(config: Config, say: Callable[[str], None], run: RunFolder | None = None, along: bool = False) -> Material:
    """Check, tokenise and count.

    run: where the tokens are left, or found where an earlier start has left them; without, they are in memory.
    along: beside the process that writes there. Raises DataError, with file and line, for what cannot be learnt from,
    and for a file that is no longer what it was.
    """
    source = open_data(config.data)
    found = None if run is None else _gathered(source, run)
    found = found or _made(source, config, None if along else run)
    batches = Batches(found.train, config.data.batch_tokens)
    say(
        f"{len(found.train):,} examples, {batches.tokens:,} tokens in {len(batches):,} batches, "
        f"{batches.padding:.1%} padding"
    )
    return found


def _made(source: Source, config: Config, run: RunFolder | None) -> Material:
    """Tokenised anew, and left in the run folder where there is one."""
    if run is not None:
        run.data.unlink(missing_ok=True)
        run.tokens.mkdir(exist_ok=True)
    counts = {split: source.check(split) for split in source.splits}
    tokenizers = make_tokenizers(source, config.data, counts["train"])
    read = partial(_read, source, config, tokenizers, folder=None if run is None else run.tokens)
    train, valid = read("train", byte_share=config.data.byte_share, seed=config.seed), read("valid")
    if "test" in source.splits:
        read("test")  # it is scored when all is done, which is too late to hear that a line is too long
    if run is not None:
        write_text(run.source, tokenizers[0].to_json())
        write_text(run.target, tokenizers[1].to_json())
        fingerprints.write(run, source, counts)
    return Material(source, *tokenizers, train, valid)


def _gathered(source: Source, run: RunFolder) -> Material | None:
    """What an earlier start of the run has left, None where it did not come so far."""
    if not run.data.exists():
        return None
    for words in fingerprints.changed(run, source):
        raise DataError(f"{words}: put the old one back, or start another run")
    train, valid = (Examples.open(run.tokens, split) for split in ("train", "valid"))
    if train is None or valid is None:
        return None
    return Material(source, *run.read_tokenizers(), train, valid)


def _read(
    source: Source, config: Config, tokenizers: tuple[Tokenizer, Tokenizer], split: Split, **options: Any
) -> Examples:
    return Examples.read(
        source, split, *tokenizers, limit=config.model.max_length, truncate=config.data.truncate, **options
    )


def make_tokenizers(source: Source, data: Data, count: int) -> tuple[Tokenizer, Tokenizer]:
    """Made from train alone; what must be learnt, from lines at equal distances where there are very many."""
    ours, theirs = data.tokenizers()
    step = -(-count // data.tokenizer_lines)

    def texts(every: int, *sides: int) -> Iterator[str]:
        return (pair[side] for pair in islice(source.pairs("train"), 0, None, every) for side in sides)

    if data.tokenizer.joint:
        both = Tokenizer.train(ours.kind, texts(step, 0, 1), ours.size)
        return both, both
    steps = [1 if side.kind in ("characters", "symbols") else step for side in (ours, theirs)]  # which are soon counted
    return (
        Tokenizer.train(ours.kind, texts(steps[0], 0), ours.size, data.lowercase),
        Tokenizer.train(theirs.kind, texts(steps[1], 1), theirs.size),
    )
