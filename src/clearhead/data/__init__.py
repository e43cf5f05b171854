"""Data: where pairs of texts come from (sources), how they become numbers (tokens), and how numbers become batches.

source = open_source("cmudict")
letters = Tokenizer.characters(word for word, _ in source.pairs("train"))
phonemes = Tokenizer.symbols(text for _, text in source.pairs("train"))
batches = Batches(Examples.read(source, "train", letters, phonemes), budget=4096)
"""

from clearhead.data.batches import Batch, Batches
from clearhead.data.examples import Examples
from clearhead.data.files import Files
from clearhead.data.ragged import Ragged
from clearhead.data.sources import CMUdict, Source, open_source
from clearhead.data.surveys import Survey, survey
from clearhead.data.texts import SourceTexts
from clearhead.data.tokens import BOS, EOS, PAD, Tokenizer

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "Batch",
    "Batches",
    "CMUdict",
    "Examples",
    "Files",
    "Ragged",
    "Source",
    "SourceTexts",
    "Survey",
    "Tokenizer",
    "open_source",
    "survey",
]
