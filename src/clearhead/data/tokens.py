"""Texts as numbers, and back, with no unknown token: nothing that can be typed is lost.

What a vocabulary does not hold is spelled by its UTF-8 bytes, all 256 of which are in it, so that decoding what was
encoded gives the same text for any text. *Symbols* (phonemes) alone are a closed set: what white space separates.

The names of the special tokens contain a blank, and are longer than a character: no text can be taken for one of them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.data import vocabularies
from clearhead.data.vocabularies import BYTES, LETTERS, SPECIAL
from clearhead.errors import InputError, extra, nearest

PAD, BOS, EOS = 0, 1, 2
_KEPT_WORDS = 100_000
"""Words whose tokens are remembered; more would only need memory, since frequent ones come early."""


class Tokenizer:
    """A reversible map between texts and token numbers, kept in the JSON format of the `tokenizers` library."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.vocabulary: dict[str, int] = backend.get_vocab()
        self.dtype = np.dtype(np.uint16 if len(self.vocabulary) <= 2**16 else np.uint32)
        self._first: dict[str, bytes] = {}
        self._others: dict[str, bytes] = {}

    @classmethod
    def train(cls, kind: str, texts: Iterable[str], size: int = 8000, lowercase: bool = False) -> "Tokenizer":
        """Make a vocabulary of at most `size` tokens from texts; never fewer than all bytes and the special tokens.

        kind: "bpe", "bytes", "characters", "unigram", "words" or "symbols". With `lowercase`, texts lose their case
        before anything else; without, the round trip is exact.
        """
        return cls(vocabularies.make(kind, texts, size, lowercase))

    @classmethod
    def characters(cls, texts: Iterable[str], lowercase: bool = False) -> "Tokenizer":
        """A token for each character of the texts, and one for each byte."""
        return cls.train("characters", texts, 2**31, lowercase)

    @classmethod
    def symbols(cls, texts: Iterable[str]) -> "Tokenizer":
        """A token for each symbol of the texts; symbols are separated by white space."""
        return cls.train("symbols", texts, 2**31)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a tokenizer that `save` wrote; raises InputError when the file holds something else."""
        library = extra("tokenizers", "train")
        try:
            backend = library.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(f"{path}: not a tokenizer: {error}".replace("\n", " ")) from None
        backend.encode_special_tokens = True
        tokenizer = cls(backend)
        if [tokenizer.vocabulary.get(name) for name in SPECIAL] != [PAD, BOS, EOS]:
            raise InputError(f"{path}: not one of Clearhead's tokenizers: its special tokens are missing")
        return tokenizer

    def to_json(self) -> str:
        """The content of a file that `load` reads."""
        return self.backend.to_str(pretty=True)

    @cached_property
    def digest(self) -> str:
        """A number that no other tokenizer has."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def spells(self) -> bool:
        """Can it spell by bytes what it does not know? All can but the closed set of symbols."""
        return self._bytes is not None

    @cached_property
    def _bytes(self) -> list[int] | None:
        """The tokens of the 256 bytes, None where there are none."""
        if BYTES[0] in self.vocabulary:
            return [self.vocabulary[name] for name in BYTES]
        if any(letter not in self.vocabulary for letter in LETTERS):
            return None
        return [self.vocabulary[letter] for letter in LETTERS]

    def pack(self, texts: Sequence[str]) -> list[bytes]:
        """The token numbers of each text, without begin and end, as the bytes of an array of `dtype`.

        A text's tokens are those of its words, each but the first with the space before it; most come again and again.
        """
        cut = [text.split(" ") for text in texts]
        first = self._known(self._first, {words[0] for words in cut}, "")
        others = self._known(self._others, set(chain.from_iterable(words[1:] for words in cut)), " ")
        return [b"".join([first[words[0]], *map(others.__getitem__, words[1:])]) for words in cut]

    def _known(self, kept: dict[str, bytes], words: set[str], before: str) -> dict[str, bytes]:
        """The tokens of words, and of whatever else was kept."""
        fresh = list(words - kept.keys())
        found = self.backend.encode_batch_fast([before + word for word in fresh], add_special_tokens=False)
        packed = (np.array(encoding.ids, dtype=self.dtype).tobytes() for encoding in found)
        new = dict(zip(fresh, packed, strict=True))
        if len(kept) + len(new) <= _KEPT_WORDS:
            kept |= new
            return kept
        return {**{word: kept[word] for word in words & kept.keys()}, **new}

    def may_exceed(self, text: str, most: int) -> bool:
        """Can a text have more tokens than that? None has more of them than bytes."""
        plain = text.lower() if self.backend.normalizer else text
        return max(len(plain.encode()), len(text.encode())) > most

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token numbers of each text, without begin and end.

        Raises InputError for a text that no encoding can hold (half of a surrogate pair), and for an unknown symbol.
        """
        self.check(texts)
        return [np.frombuffer(row, dtype=self.dtype).tolist() for row in self.pack(texts)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token numbers; begin, end and padding have none."""
        return self.backend.decode([token for token in tokens if token >= len(SPECIAL)], skip_special_tokens=False)

    def labels(self, text: str) -> list[str]:
        """A name for each token of a text, for the axes of a picture: é, never seen, is <0xC3> and <0xA9>."""
        return [self._label(token) for token in self.encode([text])[0]]

    def _label(self, token: int) -> str:
        name = self.backend.id_to_token(token)
        if not self._byte_level:
            return name
        raw = bytes(LETTERS.index(letter) for letter in name)
        try:
            return raw.decode()
        except UnicodeDecodeError:  # a part of a character
            return "".join(BYTES[byte] for byte in raw)

    @cached_property
    def _byte_level(self) -> bool:
        return self.spells and BYTES[0] not in self.vocabulary

    def spelled(self, text: str) -> list[str]:
        """What of a text training never saw, and is therefore spelled by its bytes: characters, or words.

        Byte-pair encoding and unigram take what they do not know to pieces, which has no such limit: nothing.
        """
        normalizer = self.backend.normalizer
        plain = normalizer.normalize_str(text) if normalizer else text
        if not self._byte_level:
            return [character for character in dict.fromkeys(plain) if character not in self.vocabulary]
        if not getattr(self.backend.model, "ignore_merges", False):
            return []
        pieces = dict.fromkeys(piece for piece, _ in self.backend.pre_tokenizer.pre_tokenize_str(plain))
        return [self.backend.decoder.decode([piece]).strip() for piece in pieces if piece not in self.vocabulary]

    def spell(self, text: str) -> list[int]:
        """The tokens of a text's UTF-8 bytes, whether or not it has tokens of its own."""
        if self._bytes is None:
            raise InputError(f"{text!r}: a closed set of symbols spells nothing")
        return [self._bytes[byte] for byte in text.encode()]

    def spell_token(self, token: int) -> list[int]:
        """The tokens of the bytes that a token stands for."""
        if self._byte_level:
            return [self.vocabulary[letter] for letter in self.backend.id_to_token(token)]
        return [token] if token in self._byte_tokens else self.spell(self.decode([token]))

    @cached_property
    def _byte_tokens(self) -> set[int]:
        return set(self._bytes or ())

    def check(self, texts: Sequence[str]) -> None:
        """Raise InputError for a text that cannot be encoded; see `encode`."""
        for text in texts:
            self._check(text)

    def _check(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}"
            raise InputError(
                f"{text!r}: character {error.start} is {half}, half of a surrogate pair; no text holds it"
            ) from None
        if not self.spells:
            for symbol in text.split():
                if symbol not in self.vocabulary:
                    raise InputError(f"unknown symbol {symbol!r}{nearest(symbol, set(self.vocabulary) - set(SPECIAL))}")
