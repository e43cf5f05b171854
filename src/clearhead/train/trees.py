"""A YAML text as a tree of sections, with the line of each key.

A text is refused, by line, where a reader could be misled: a key that is there twice (of which YAML keeps the last), a
key that is no name, an anchor that holds itself, and more levels than any configuration has.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from clearhead.errors import ConfigError

Tree = dict[str, Any]

LONGEST = 2**20
"""Bytes of a configuration file."""
DEEPEST = 16
"""Levels of a configuration file."""


def read_text(path: Path) -> str:
    """The text of a configuration file; raises ConfigError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read(LONGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: {why.lower()}") from None
    if len(content) > LONGEST:
        raise ConfigError(f"{path}: more than {LONGEST:,} bytes, which is no configuration")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ConfigError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02X}); save the file as UTF-8") from None


def parse(text: str, name: str) -> tuple[Any, dict[str, int]]:
    """What a YAML text holds, and the line of each key by its path; `name` is that of the file, for messages.

    Raises ConfigError where the text is not YAML.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        tree = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{_place(error, text, name)}: not YAML: {_problem(error)}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # what a tag such as !!int raises
        raise ConfigError(f"{name}: not YAML: a value that its tag does not fit") from None
    return tree, dict(_lines(node, "", set()))


def nest(keys: list[str], value: Any) -> Tree:
    """The tree that holds a value at the end of a path."""
    for key in reversed(keys):
        value = {key: value}
    return value


def merge(below: Tree, above: Tree) -> Tree:
    """Both trees in one; where both hold a value, that of `above`."""
    merged = dict(below)
    for key, value in above.items():
        inside = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if inside else value
    return merged


class _Loader(yaml.SafeLoader):
    """PyYAML's reader of plain values, which refuses what can only be a mistake."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[str | None] = []  # the anchors, if any, of the nodes that are being read

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent) and anchor in self._open:
            raise _mistake(f"*{anchor} is within &{anchor}, and would hold itself", event)
        if len(self._open) == DEEPEST:
            raise _mistake(f"more than {DEEPEST} levels", event)
        self._open.append(anchor)
        try:
            return super().compose_node(parent, index)
        finally:
            self._open.pop()

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _NAMES:
                raise _mistake("a key must be a name, such as 'model'", key)
            if key.value in names:
                raise _mistake(f"{key.value!r} is there twice: leave one of them out", key)
            names.add(key.value)
        return node


_NAMES = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}


def _mistake(problem: str, there: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=there.start_mark)


def _place(error: yaml.YAMLError, text: str, name: str) -> str:
    """The name with the line, where there are several."""
    if "\n" not in text:
        return name
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return f"{name}:{mark.line + 1}"
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    return name if position is None else f"{name}:{text.count(chr(10), 0, position) + 1}"


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character U+{error.character:04X} is not allowed"
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _lines(node: yaml.Node | None, prefix: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """The line of each key; what an alias repeats is named where it was written first."""
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return
    seen.add(id(node))
    for key, value in node.value:
        yield f"{prefix}{key.value}", key.start_mark.line + 1
        yield from _lines(value, f"{prefix}{key.value}.", seen)
