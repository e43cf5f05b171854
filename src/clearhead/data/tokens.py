"""Texts as numbers, and back, with no unknown token: nothing that can be typed is lost.

*Characters* have a token each; a character that training never saw is spelled by its UTF-8 bytes, all 256 of which are
in the vocabulary, so that decoding what was encoded gives the same text for any text. *Symbols* (phonemes) are what
white space separates; the set is closed.

The names of the special tokens contain a blank, and are longer than a character: no text can be taken for one of them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clearhead.errors import InputError, extra, nearest

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("padding token", "begin token", "end token")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_FIRST_BYTE = len(SPECIAL)


class Tokenizer:
    """A reversible map between texts and token numbers, kept in the JSON format of the `tokenizers` library."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.vocabulary: dict[str, int] = backend.get_vocab()

    @classmethod
    def characters(cls, texts: Iterable[str], lowercase: bool = False) -> "Tokenizer":
        """A token for each character of the texts, and one for each byte.

        With `lowercase`, texts lose their case before anything else; without, the round trip is exact.
        """
        library = extra("tokenizers", "train")
        known = {character for text in texts for character in (text.lower() if lowercase else text)}
        vocabulary = {token: number for number, token in enumerate((*SPECIAL, *_BYTES, *sorted(known)))}
        # Byte-pair encoding without a merge is a character each, and falls back to bytes by itself.
        backend = library.Tokenizer(library.models.BPE(vocabulary, [], byte_fallback=True))
        backend.decoder = library.decoders.Sequence([library.decoders.ByteFallback(), library.decoders.Fuse()])
        if lowercase:
            backend.normalizer = library.normalizers.Lowercase()
        return cls(backend)

    @classmethod
    def symbols(cls, texts: Iterable[str]) -> "Tokenizer":
        """A token for each symbol of the texts; symbols are separated by white space."""
        library = extra("tokenizers", "train")
        known = {symbol for text in texts for symbol in text.split()}
        vocabulary = {token: number for number, token in enumerate((*SPECIAL, *sorted(known)))}
        backend = library.Tokenizer(library.models.WordLevel(vocabulary))
        backend.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
        return cls(backend)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a tokenizer that `save` wrote; raises InputError when the file holds something else."""
        library = extra("tokenizers", "train")
        try:
            tokenizer = cls(library.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(f"{path}: not a tokenizer: {error}".replace("\n", " ")) from None
        if [tokenizer.vocabulary.get(name) for name in SPECIAL] != [PAD, BOS, EOS]:
            raise InputError(f"{path}: not one of Clearhead's tokenizers: its special tokens are missing")
        return tokenizer

    def to_json(self) -> str:
        """The content of a file that `load` reads."""
        return self.backend.to_str(pretty=True)

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def spells(self) -> bool:
        """Can it spell by bytes what it does not know? Characters can; the set of symbols is closed."""
        return _BYTES[0] in self.vocabulary

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token numbers of each text, without begin and end.

        Raises InputError for a text that no encoding can hold (half of a surrogate pair), and for an unknown symbol.
        """
        for text in texts:
            self._check(text)
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token numbers; begin, end and padding have none."""
        return self.backend.decode([token for token in tokens if token >= len(SPECIAL)], skip_special_tokens=False)

    def labels(self, text: str) -> list[str]:
        """A name for each token of a text, for the axes of a picture: é, never seen, is <0xC3> and <0xA9>."""
        return [self.backend.id_to_token(token) for token in self.encode([text])[0]]

    def spelled(self, text: str) -> list[str]:
        """The characters of a text that training never saw, and that are therefore spelled by their bytes."""
        normalizer = self.backend.normalizer
        plain = normalizer.normalize_str(text) if normalizer else text
        return [character for character in dict.fromkeys(plain) if character not in self.vocabulary]

    def spell(self, character: str) -> list[int]:
        """The tokens of a character's UTF-8 bytes, whether or not it has a token of its own."""
        return [_FIRST_BYTE + byte for byte in character.encode()]

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
