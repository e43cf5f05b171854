"""What tells the monitors of one trainer apart in its checkpoints: what they measure, and how."""

from collections.abc import Mapping
from typing import Any

_ELSEWHERE = ("log", "tensorboard", "optimizer", "compiled")
"""Options that say where records go, or come with the trainer; a monitor that writes to another file is the same."""


def identity(**options: Any) -> str:
    """Return the options of a monitor in a line of text; those left at None are left out."""
    said = {name: _said(value) for name, value in sorted(options.items()) if name not in _ELSEWHERE}
    return ", ".join(f"{name}={text}" for name, text in said.items() if text)


def _said(value: Any) -> str:
    """Return a value as text, without addresses: rules and remedies by their names and thresholds."""
    if value is None or value == "":
        return ""
    if isinstance(value, list | tuple):
        return f"[{' '.join(_said(each) for each in value)}]"
    if isinstance(value, str | int | float):
        return str(value)
    return f"{type(value).__name__}({getattr(value, 'threshold', '')})"


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that JSON can hold."""
    return {name: value for name, value in options.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)
