"""Checks of texts that are predicted from, before anything is computed."""

from collections.abc import Sequence

from clearhead.errors import DataError


def check_texts(texts: Sequence[str]) -> None:
    """Raise DataError when there is no text, or an empty one."""
    if not texts:
        raise DataError("nothing to predict from; give at least one text")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise DataError(f"text {number} is empty; remove it")


def check_lengths(
    texts: Sequence[str], tokens: Sequence[Sequence[int]], limit: int, truncate: bool = False
) -> list[list[int]]:
    """The tokens of the texts, none longer than `limit`.

    With `truncate`, what is longer is cut; without, DataError names the first, its length and the limit.
    """
    for number, (text, row) in enumerate(zip(texts, tokens, strict=True)):
        if len(row) > limit and not truncate:
            raise DataError(f"{numbered(number)}: {too_long(text, len(row), limit)}")
    return [list(row[:limit]) for row in tokens]


def too_long(text: str, length: int, limit: int) -> str:
    """Return the message about a text of this number of tokens."""
    shown = text if len(text) <= 24 else text[:21] + "..."
    return f"{shown!r} has {length} tokens, the model reads {limit}: shorten or truncate it"


def unusable(text: str) -> str | None:
    """Why nothing can be predicted from a text, None where something can."""
    if not text.strip():
        return "is empty; remove it"
    if "\0" in text:
        return "holds a NUL character; remove it"
    byte = next((ord(character) for character in text if 0xDC80 <= ord(character) <= 0xDCFF), None)
    return None if byte is None else f"not UTF-8 (byte 0x{byte - 0xDC00:02X}); write it in UTF-8"


def numbered(number: int) -> str:
    """Where a text is that came in no file, counted from 0."""
    return f"text {number + 1}"
