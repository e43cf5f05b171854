"""Layers that are copies of each other: their paths differ in numbers alone."""

from collections.abc import Sequence

Parts = tuple[str, ...]


def families(paths: Sequence[str]) -> dict[str, dict[str, str]]:
    """Layers by family: `encoder.layer.*.self` with, for each of its paths, the numbers that stand for `*`.

    Families and their layers are in the order in which they come.

    >>> families(["encoder.layer.0.self", "encoder.layer.1.self"])
    {'encoder.layer.*.self': {'encoder.layer.0.self': '0', 'encoder.layer.1.self': '1'}}
    """
    groups: dict[Parts, list[Parts]] = {}
    for path in dict.fromkeys(paths):
        parts = tuple(path.split("."))
        groups.setdefault(tuple("*" if part.isdecimal() else part for part in parts), []).append(parts)
    return dict(map(_family, groups.values()))


def _family(members: list[Parts]) -> tuple[str, dict[str, str]]:
    varies = [len(set(parts)) > 1 for parts in zip(*members, strict=True)]
    name = ".".join("*" if changing else part for changing, part in zip(varies, members[0], strict=True))
    numbers = [[part for changing, part in zip(varies, path, strict=True) if changing] for path in members]
    return name, {".".join(path): ".".join(own) for path, own in zip(members, numbers, strict=True)}
