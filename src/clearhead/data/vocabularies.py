"""Vocabularies made from texts: bytes, characters, byte-pair encoding, unigram, words; and a closed set of symbols.

All but symbols hold every byte, so that any text can be written in them and comes back as it was. In bytes, bpe,
unigram and words a text is UTF-8 of which each byte is a letter (the byte-level alphabet of GPT-2). It is cut before
spaces, and between letters, digits and other characters; no token reaches across a cut. The rule of the cuts looks at
nothing beyond them, so that the tokens of a text are those of its pieces between spaces, one after the other.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from clearhead.errors import InputError, extra, nearest

SPECIAL = ("padding token", "begin token", "end token")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_CUT = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s"

_STEP = 1e-4
"""Between the scores that the library gives bytes that it never saw."""

Texts = Iterable[str]


def _letters_of_bytes() -> tuple[str, ...]:
    """What stands for each byte in GPT-2's alphabet: its character where that can be seen, else one from U+0100."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in seen else next(others)) for byte in range(256))


LETTERS = _letters_of_bytes()


def make(kind: str, texts: Texts, size: int, lowercase: bool = False) -> Any:
    """A tokenizer of the `tokenizers` library of at most `size` tokens (and never fewer than all bytes)."""
    if kind not in KINDS:
        raise InputError(f"unknown kind of tokenizer {kind!r}{nearest(kind, KINDS)}")
    backend = KINDS[kind](texts, size, lowercase)
    backend.encode_special_tokens = True  # whoever types the name of a special token means these letters
    if lowercase:
        backend.normalizer = _library().normalizers.Lowercase()
    return backend


def _library() -> Any:
    return extra("tokenizers", "train")


def _characters(texts: Texts, size: int, lowercase: bool) -> Any:
    """Byte-pair encoding without a merge is a character each, and falls back to bytes by itself."""
    library, counts = _library(), Counter[str]()
    for text in texts:
        counts.update(text.lower() if lowercase else text)
    known = sorted(character for character, _ in counts.most_common(max(0, size - len(SPECIAL) - len(BYTES))))
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *BYTES, *known))}
    backend = library.Tokenizer(library.models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = library.decoders.Sequence([library.decoders.ByteFallback(), library.decoders.Fuse()])
    return backend


def _symbols(texts: Texts, size: int, lowercase: bool) -> Any:
    """What white space separates, and nothing else: the one kind that has no bytes."""
    library, known = _library(), {symbol for text in texts for symbol in text.split()}
    if len(known) + len(SPECIAL) > size:
        raise InputError(
            f"{len(known):,} different symbols do not fit into {size:,} tokens: take words, or a larger size"
        )
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *sorted(known)))}
    backend = library.Tokenizer(library.models.WordLevel(vocabulary))
    backend.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    return backend


def _with_cuts(model: Any) -> Any:
    library = _library()
    backend, cuts = library.Tokenizer(model), library.pre_tokenizers
    backend.pre_tokenizer = cuts.Sequence(
        [
            cuts.Split(library.Regex(_CUT), "isolated"),
            cuts.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    backend.decoder = library.decoders.ByteLevel()
    return backend


def _bytes(texts: Texts, size: int, lowercase: bool) -> Any:
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *LETTERS))}
    return _with_cuts(_library().models.BPE(vocabulary, []))


def _words(texts: Texts, size: int, lowercase: bool) -> Any:
    """The most frequent pieces between cuts, each with the space before it; others are spelled by bytes."""
    cuts, counts = _with_cuts(_library().models.BPE()).pre_tokenizer, Counter[str]()
    for text in texts:
        counts.update(piece for piece, _ in cuts.pre_tokenize_str(text.lower() if lowercase else text))
    for letter in LETTERS:
        del counts[letter]
    best = sorted(counts, key=lambda piece: (-counts[piece], piece))[: max(0, size - len(SPECIAL) - len(LETTERS))]
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *LETTERS, *best))}
    return _with_cuts(_library().models.BPE(vocabulary, [], ignore_merges=True))


def _learnt(model: str, trainer: str) -> Callable[[Texts, int, bool], Any]:
    def learn(texts: Texts, size: int, lowercase: bool) -> Any:
        library = _library()
        backend = _with_cuts(getattr(library.models, model)())
        teacher = getattr(library.trainers, trainer)(
            vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=list(LETTERS), show_progress=False
        )
        backend.train_from_iterator((text.lower() for text in texts) if lowercase else texts, teacher)
        # without the special tokens as words that a text could hold
        return _with_cuts(_in_order(backend) if model == "Unigram" else backend.model)

    return learn


def _in_order(backend: Any) -> Any:
    """The unigram model, the same each time it is learnt.

    The library leaves ties in the order of a hash table, adds up in any order, and gives bytes that it never saw scores
    one step below the other, in any order too: these get the lowest of them all.
    """
    scores = {token: round(score, 9) for token, score in json.loads(backend.to_str())["model"]["vocab"][len(SPECIAL) :]}
    lowest = last = min(scores.values())
    for token in sorted(scores, key=lambda token: (scores[token], token)):
        if len(token) > 1 or scores[token] - last > 1.01 * _STEP:
            break
        scores[token], last = lowest, scores[token]
    known = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return _library().models.Unigram([*((name, 0.0) for name in SPECIAL), *known], None, False)


KINDS: dict[str, Callable[[Texts, int, bool], Any]] = {
    "bpe": _learnt("BPE", "BpeTrainer"),
    "bytes": _bytes,
    "characters": _characters,
    "symbols": _symbols,
    "unigram": _learnt("Unigram", "UnigramTrainer"),
    "words": _words,
}
"""Byte-pair encoding (Sennrich 2016) and the unigram language model (Kudo 2018) are learnt; the others are counted."""
