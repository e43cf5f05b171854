"""What a configuration would be trained on, before it is."""

from collections.abc import Sequence

from clearhead.data import Files, Survey
from clearhead.data import survey as survey_files
from clearhead.data.layouts import Columns
from clearhead.data.sources import SPLITS
from clearhead.errors import InputError
from clearhead.train.settings import read_config


def survey(files: Sequence[str], settings: Sequence[str] = ()) -> list[Survey]:
    """What files hold that the task seq2seq would learn from: train, then valid and test where they are given.

    files: each a path, or two with a comma between. settings: as for `read_config`.
    """
    if not 1 <= len(files) <= len(SPLITS):
        raise InputError(f"{len(files)} files: give those of train, then of valid, then of test")
    config = read_config("seq2seq", settings)
    paths = {split: [part.strip() for part in given.split(",")] for split, given in zip(SPLITS, files, strict=False)}
    columns = Columns(config.data.source_column, config.data.target_column)
    return survey_files(Files(paths, columns), None if config.data.truncate else config.model.max_length)
