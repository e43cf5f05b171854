"""What a configuration would be trained on, before it is."""

from collections.abc import Sequence
from typing import cast

from clearhead.data import Files, Survey, Tokenizer
from clearhead.data import survey as survey_files
from clearhead.data.examples import unreadable
from clearhead.data.layouts import Columns
from clearhead.data.sources import SPLITS, Split
from clearhead.data.surveys import SHOWN, Finding
from clearhead.errors import InputError
from clearhead.train.config import Config
from clearhead.train.material import make_tokenizers
from clearhead.train.settings import read_config


def survey(files: Sequence[str], settings: Sequence[str] = ()) -> list[Survey]:
    """What files hold that the task seq2seq would learn from: train, then valid and test where they are given.

    files: each a path, or two with a comma between. settings: as for `read_config`.
    """
    if not 1 <= len(files) <= len(SPLITS):
        raise InputError(f"{len(files)} files: give those of train, then of valid, then of test")
    config = read_config("seq2seq", settings)
    paths = {split: [part.strip() for part in given.split(",")] for split, given in zip(SPLITS, files, strict=False)}
    source = Files(paths, Columns(config.data.source_column, config.data.target_column))
    limit = None if config.data.truncate else config.model.max_length
    found = survey_files(source, limit)
    if not any(one.refused for one in found) and _tokens_matter(source, config, limit):
        tokenizers = make_tokenizers(source, config.data, source.check("train"))
        for one in found:
            _add_unreadable(one, source, tokenizers, limit)
    return found


def _tokens_matter(source: Files, config: Config, limit: int | None) -> bool:
    """Can a text be refused for its tokens? Only what is longer in bytes has too many, and only symbols are unknown."""
    if any(side.kind == "symbols" for side in config.data.tokenizers()):
        return True
    texts = (text for split in source.splits for pair in source.pairs(split) for text in pair)
    growth = 2 if config.data.lowercase else 1  # some small letters have more bytes than their capitals
    return limit is not None and any(growth * len(text.encode()) >= limit for text in texts)


def _add_unreadable(one: Survey, source: Files, tokenizers: tuple[Tokenizer, Tokenizer], limit: int | None) -> None:
    split, kinds = cast(Split, one.split), dict[str, Finding]()
    for side, number, why in unreadable(source, split, tokenizers, limit):
        unknown = "unknown symbol" in why
        kind = f"{side}s of {'unknown symbols' if unknown else f'more tokens than the model reads ({limit})'}"
        found = kinds.setdefault(kind, Finding(kind))
        shown = len(found.examples) < SHOWN  # a place is looked up in the file
        found.add(1, [f"{source.where(split, number, side)}: the {side} {why}"] if shown else [])
    one.refused += kinds.values()
