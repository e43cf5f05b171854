"""From a task's name or a YAML file, and `key=value` settings, to a checked configuration.

Every mistake is one ConfigError: FILE:LINE or `--set`, the path of the key, what was wrong, and the nearest valid path,
also when the key exists in another section.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from clearhead.errors import ConfigError, nearest
from clearhead.train.config import TASKS, Config
from clearhead.train.mistakes import message, paths, place_of
from clearhead.train.sizes import too_large
from clearhead.train.trees import DEEPEST, Tree, merge, nest, parse, read_text
from clearhead.train.wording import shown

__all__ = ["check", "from_tree", "from_yaml", "known_task", "paths", "read_config", "read_text", "to_yaml"]


def read_config(task_or_file: str, settings: Sequence[str] = ()) -> Config:
    """The configuration of a built-in task, or of a YAML file, with settings such as "model.layers=4" on top.

    Raises ConfigError, naming the key and the nearest valid one, for whatever cannot be; also for what this machine
    cannot hold.
    """
    if Path(task_or_file).suffix in {".yaml", ".yml"}:
        tree, lines = parse(read_text(Path(task_or_file)), task_or_file)
        tree = _with_task(tree, task_or_file, lines)
    else:
        tree, lines = {"task": known_task(task_or_file), **TASKS[task_or_file]}, {}
    tree, where = _with_settings(tree, settings, task_or_file, lines)
    config = _checked(tree, where, task_or_file)
    if (problem := too_large(config)) is not None:
        raise ConfigError(f"{place_of(problem.path, where) or task_or_file}: {problem.path}: {problem.words}")
    return config


def from_yaml(text: str, name: str, settings: Sequence[str] = ()) -> Config:
    """The configuration that a YAML text holds; `name` is that of its file, for messages."""
    return from_tree(*parse(text, name), name, settings)


def from_tree(tree: Any, lines: dict[str, int], name: str, settings: Sequence[str] = ()) -> Config:
    """The configuration that the tree of a YAML text holds; `lines`: where its keys are in the file `name`."""
    return check(_with_task(tree, name, lines), settings, name, lines)


def known_task(name: str, place: str = "") -> str:
    """The name, if there is a task of that name; raises ConfigError with the nearest otherwise."""
    if name not in TASKS:
        words = f"unknown task {shown(name)}{nearest(name[:60], TASKS)}"
        raise ConfigError(f"{place}: {words}" if place else f"{words}; a configuration file ends in .yaml")
    return name


def check(tree: Tree, settings: Sequence[str], name: str, lines: dict[str, int] | None = None) -> Config:
    """The configuration of a nested dictionary with settings on top; `lines`: where its keys are in the file `name`."""
    tree, where = _with_settings(tree, settings, name, lines or {})
    return _checked(tree, where, name)


def to_yaml(config: Config, **above: Any) -> str:
    """The text that `from_yaml` reads back as the same configuration, with keys `above` it."""
    return yaml.safe_dump({**above, **config.model_dump(mode="json")}, sort_keys=False)


def _with_task(tree: Any, name: str, lines: dict[str, int]) -> Tree:
    """What a file holds, on top of what its task sets."""
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: sections are needed, such as 'model:', and not {type(tree).__name__}")
    task = tree.get("task", "g2p")
    place = f"{name}:{lines['task']}" if "task" in lines else name
    if not isinstance(task, str):
        raise ConfigError(f"{place}: task: must be {' or '.join(TASKS)}, not {shown(task)}")
    return merge(TASKS[known_task(task, place)], tree)


def _with_settings(
    tree: Tree, settings: Sequence[str], name: str, lines: dict[str, int]
) -> tuple[Tree, dict[str, str]]:
    """The tree with the settings in it, and where each key was set."""
    where = {path: f"{name}:{line}" for path, line in lines.items()}
    given = {*where, *(setting.partition("=")[0] for setting in settings)}
    if "model.layers" in given:  # it is of both sides, whatever the task sets one of them to
        sides = {"model.encoder_layers", "model.decoder_layers"} - given
        tree = merge(tree, {"model": {side.removeprefix("model."): None for side in sides}})
    for setting in settings:
        path, place = _path(setting), _place_of_setting(setting)
        value, _ = parse(setting.partition("=")[2], place)
        if path == "task" and value != tree["task"]:
            raise ConfigError(f"{place}: the task is chosen first: `clearhead train {value}`, or `task:` in a file")
        tree = merge(tree, nest(path.split("."), value))
        where[path] = place
    return tree, where


def _path(setting: str) -> str:
    path, equals, _ = setting.partition("=")
    if not equals or not re.fullmatch(r"[\w.]+", path) or path.count(".") >= DEEPEST:
        raise ConfigError(f"{_place_of_setting(setting)}: write key=value, such as model.layers=4")
    return path


def _place_of_setting(setting: str) -> str:
    return f"--set {setting if len(setting) <= 80 else setting[:79] + '…'}"


def _checked(tree: Tree, where: dict[str, str], name: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(message(error.errors()[0], where, name)) from None
