"""What pydantic finds wrong with a configuration, in our words: the place, the key, what it must be, what came."""

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from clearhead.train import wording
from clearhead.train.config import Config
from clearhead.train.wording import shown


def message(error: Any, where: dict[str, str], name: str) -> str:
    """One error in one line. `where`: the place of each key that was set; `name`: the place of all others."""
    path = ".".join(str(part) for part in error["loc"])
    words = wording.words(error)
    if not path:  # of the whole: the words begin with the key
        path, _, words = words.partition(" ")
    place = place_of(path, where) or name
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key {shown(path)}{_nearest_path(path)}"
    inside = isinstance(error["input"], (dict, BaseModel)) and error["type"] != "literal_error"
    found = "" if inside else wording.instead(error)
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
