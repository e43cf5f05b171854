"""What pydantic finds wrong with a configuration, in our words: the place, the key, what it must be, what came."""

import difflib
import re
import reprlib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from clearhead.train.config import Config

_NUMBER, _SWITCH, _TEXT = "must be a number", "must be true or false", "must be a text"
WORDS = {
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
    "finite_number": _NUMBER,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_type": "must be a whole number",
    "invalid_key": "must be a name",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "model_type": "must be a section of keys",
    "string_type": _TEXT,
    "string_unicode": _TEXT,
    "too_long": "must be at most {max_length} values",
    "tuple_type": "must be a list",
    "value_error": "{error}",
}
"""By pydantic's type of error; `tests/test_train_config.py` sets every key to every kind of wrong value."""


def message(error: Any, where: dict[str, str], name: str) -> str:
    """One error in one line. `where`: the place of each key that was set; `name`: the place of all others."""
    path = ".".join(str(part) for part in error["loc"])
    words = WORDS.get(error["type"], "cannot be that").format(**error.get("ctx", {}))
    if not path:  # of the whole: the words begin with the key
        path, _, words = words.partition(" ")
    place = place_of(path, where) or name
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key {shown(path)}{_nearest_path(path)}"
    inside = isinstance(error["input"], (dict, BaseModel)) and error["type"] != "literal_error"
    found = "" if inside else f", not {shown(error['input'])}{_nearest_choice(error)}"
    return f"{place}: {path}: {words}{found}"


def place_of(path: str, where: dict[str, str]) -> str | None:
    """Where a key was set: itself, something in it, or what it is in."""
    inside = next((place for key, place in where.items() if f"{key}.".startswith(f"{path}.")), None)
    around = [place for key, place in where.items() if path.startswith(f"{key}.")]
    return where.get(path) or inside or (around[-1] if around else None)


def paths(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every key that can be set, by its path."""
    for key, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and key != "duration":
            yield from paths(inner, f"{prefix}{key}.")
        else:
            yield prefix + key


def shown(value: object) -> str:
    """A value as YAML writes it, in at most 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 100:  # Python refuses to write very long ones
        return f"a number of {value.bit_length()} bits"
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _nearest_choice(error: Any) -> str:
    """The choice that was meant, where a word was misspelt."""
    choices = re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", ""))
    close = difflib.get_close_matches(str(error["input"])[:60], choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _nearest_path(path: str) -> str:
    """The key meant: of the same name in another section, or else spelled most like it, its own section first."""
    known, (section, _, leaf) = list(paths()), path[:200].rpartition(".")
    places: dict[str, list[str]] = {}
    for other in known:
        places.setdefault(other.rpartition(".")[2], []).append(other)
    places |= {unit: ["train.duration"] for unit in ("minutes", "epochs", "steps")}
    if not section:
        places |= {other.partition(".")[0]: [other.partition(".")[0]] for other in known}
    siblings = [name for name, found in places.items() if f"{section}.{name}" in found]
    close = difflib.get_close_matches(leaf, siblings, n=1) or difflib.get_close_matches(leaf, places, n=1)
    if close:
        return f"; did you mean {places[close[0]][0]!r}?"
    keys = siblings or dict.fromkeys(other.partition(".")[0] for other in known)
    return f"; {section if siblings else 'the configuration'} has {', '.join(keys)}"
