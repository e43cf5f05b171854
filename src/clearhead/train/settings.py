"""From a task's name or a YAML file, and `key=value` settings, to a checked configuration.

Every mistake is one ConfigError: FILE:LINE or `--set`, the path of the key, what was wrong, and the nearest valid path,
also when the key exists in another section.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from clearhead.errors import ConfigError, nearest
from clearhead.train.config import TASKS, Config

_Tree = dict[str, Any]


def read_config(task_or_file: str, settings: Sequence[str] = ()) -> Config:
    """The configuration of a built-in task, or of a YAML file, with settings such as "model.layers=4" on top.

    Raises ConfigError, naming the key and the nearest valid one, for whatever cannot be.
    """
    if Path(task_or_file).suffix in {".yaml", ".yml"}:
        return from_yaml(read_text(Path(task_or_file)), task_or_file, settings)
    return check({"task": known_task(task_or_file), **TASKS[task_or_file]}, settings, task_or_file)


def read_text(path: Path) -> str:
    """The text of a configuration file; raises ConfigError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: {why}") from None


def from_yaml(text: str, name: str, settings: Sequence[str] = ()) -> Config:
    """The configuration that a YAML text holds; `name` is that of its file, for messages."""
    try:
        tree = yaml.safe_load(text) or {}
        node = yaml.compose(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: sections are needed, such as 'model:', and not {type(tree).__name__}")
    lines = dict(_lines(node)) if node else {}
    task = known_task(str(tree.get("task", "g2p")))
    return check(_merge(TASKS[task], tree), settings, name, lines)


def known_task(name: str) -> str:
    """The name, if there is a task of that name; raises ConfigError with the nearest otherwise."""
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}{nearest(name, TASKS)}; a configuration file ends in .yaml")
    return name


def check(tree: _Tree, settings: Sequence[str], name: str, lines: dict[str, int] | None = None) -> Config:
    """The configuration of a nested dictionary with settings on top; `lines`: where its keys are in the file `name`."""
    where = {path: f"{name}:{line}" for path, line in (lines or {}).items()}
    given = {*where, *(setting.partition("=")[0] for setting in settings)}
    if "model.layers" in given:  # it is of both sides, whatever the task sets one of them to
        sides = {"model.encoder_layers", "model.decoder_layers"} - given
        tree = _merge(tree, {"model": {side.removeprefix("model."): None for side in sides}})
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {setting}: write key=value, such as model.layers=4")
        tree = _merge(tree, _nest(path.split("."), _value(setting, value)))
        where[path] = f"--set {setting}"
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_message(error.errors()[0], where, name)) from None


def to_yaml(config: Config, **above: Any) -> str:
    """The text that `from_yaml` reads back as the same configuration, with keys `above` it."""
    return yaml.safe_dump({**above, **config.model_dump(mode="json")}, sort_keys=False)


def paths(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every key that can be set, by its path."""
    for key, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and key != "duration":
            yield from paths(inner, f"{prefix}{key}.")
        else:
            yield prefix + key


def _message(error: Any, where: dict[str, str], name: str) -> str:
    path = ".".join(str(part) for part in error["loc"])
    place = _place(path, where) or name
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key {path!r}{_nearest_path(path)}"
    problem = error["msg"].removeprefix("Value error, ").removeprefix("Input ").partition(" or instance of")[0]
    shown = "" if isinstance(error["input"], (dict, BaseModel)) else f", not {error['input']!r}"
    return f"{place}: {path}: {problem}{shown}"


def _place(path: str, where: dict[str, str]) -> str | None:
    """Where a key was set: itself, something in it, or what it is in."""
    inside = next((place for key, place in where.items() if f"{key}.".startswith(f"{path}.")), None)
    around = [place for key, place in where.items() if path.startswith(f"{key}.")]
    return where.get(path) or inside or (around[-1] if around else None)


def _nearest_path(path: str) -> str:
    """The key meant: of the same name in another section, or else spelled most like it, its own section first."""
    known, (section, _, leaf) = list(paths()), path.rpartition(".")
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
    return f"; {section or 'the configuration'} has {', '.join(keys)}"


def _lines(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _lines(value, f"{prefix}{key.value}.")


def _value(setting: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {setting}: the value is not YAML") from None


def _nest(keys: list[str], value: Any) -> _Tree:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(below: _Tree, above: _Tree) -> _Tree:
    merged = dict(below)
    for key, value in above.items():
        inside = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if inside else value
    return merged
