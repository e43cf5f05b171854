"""Tokens as a page shows them: white space and control characters can be seen, and none can turn the text around."""

from __future__ import annotations

_SEEN = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def legible(token: str) -> str:
    """`token` with what cannot be printed spelt out, and with white space shown where nothing else is there.

    >>> legible(" "), legible("a b"), legible("x" + chr(0x202E)), legible("")
    ('␣', 'a b', 'x\\\\u202e', '∅')
    """
    if not token or token.isspace():
        return "".join(_SEEN.get(c, "␣") for c in token) or "∅"
    return "".join(c if c.isprintable() else _SEEN.get(c) or c.encode("unicode_escape").decode() for c in token)
