"""What `save_pretrained` wrote, looked at before it is loaded: a mistake is named with the file that holds it."""

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open

from clearhead.errors import InputError, nearest

ATTENTIONS = ("eager", "sdpa", "flex_attention")
"""Ways to attend for which transformers loads nothing more."""


def check_saved(path: Path, known: Iterable[str]) -> None:
    """Raises InputError for a config.json that is none, of a kind of model that is not `known`, or that asks for code
    from elsewhere; and for weights that are not whole, or not in this folder."""
    config = read_object(path / "config.json")
    kind = config.get("model_type")
    if isinstance(kind, str) and kind not in (names := list(known)):
        raise InputError(
            f"{path} cannot be loaded: config.json says model_type {kind!r}, which the installed transformers does not "
            f"know{nearest(kind, names)}"
        )
    _check_attention(path / "config.json", config)
    for file in sorted(path.glob("*.index*.json")):
        _check_index(file)
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is no whole safetensors file ({error}): copy or save it again") from None


def _check_attention(file: Path, config: dict[str, Any]) -> None:
    """Raises InputError where any part of a configuration asks for an attention that is not PyTorch's: transformers
    would look for a kernel, and run it."""
    parts: list[tuple[str, Any, bool]] = [("", config, False)]
    while parts:
        path, value, asks = parts.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                name = f"{path}.{key}".lstrip(".")
                parts.append((name, inner, asks or "attn_implementation" in key))
        elif asks and value is not None and value not in ATTENTIONS:
            raise InputError(
                f"{file}: {path} is {value!r}, a kernel from elsewhere, which would be run: remove it, or write "
                f"{' or '.join(repr(each) for each in ATTENTIONS)}"
            )


def _check_index(file: Path) -> None:
    """Raises InputError for an index of weights that is none, or that leads out of its folder."""
    names = read_object(file).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{file} has no weight_map from weights to files: save the model again")
    for name in sorted(set(names.values())):
        if name != PurePosixPath(name).name or name != PureWindowsPath(name).name or name == "..":
            raise InputError(
                f"{file} says that weights are in {name!r}; write the name of a file beside it, with no folder"
            )
        if not (file.parent / name).is_file():
            raise InputError(f"{file} says that weights are in {name}, which is not there: copy or save it again")


def check_loaded(path: Path, info: dict[str, Any], model: str) -> None:
    """Raises InputError where weights are missing or of another shape than the configuration says: random ones would be
    looked into in their place."""
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{path} lacks {len(missing)} weights of {model}, such as {missing[0]}; random ones in their place would "
            "say nothing: save the whole model"
        )
    if others := sorted(info["mismatched_keys"]):
        name, saved, expected = others[0]
        raise InputError(
            f"{path}: config.json and the weights do not belong together: {name} has shape {tuple(saved)}, and by the "
            f"configuration {tuple(expected)}; save the whole model again"
        )


def check_tokenizer(path: Path) -> None:
    """Raises InputError for files of a tokenizer that are no JSON."""
    for file in sorted(path.glob("tokenizer*.json")):
        read_object(file)


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises InputError, naming file and line, for any other."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: not JSON ({error.msg.lower()}): save the model again") from None
    except RecursionError:
        raise InputError(f"{file}: its JSON is nested too deeply: save the model again") from None
    if not isinstance(config, dict):
        raise InputError(f"{file} is JSON, but no {{…}}: it was not written by save_pretrained")
    return config
