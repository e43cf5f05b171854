"""What `save_pretrained` wrote, looked at before it is loaded: a mistake is named with the file that holds it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from clearhead.errors import InputError, nearest


def check_saved(path: Path, known: Iterable[str]) -> None:
    """Raises InputError for a config.json that is none, or of a kind of model that is not `known`, and for weights that
    are not whole."""
    kind = read_object(path / "config.json").get("model_type")
    if isinstance(kind, str) and kind not in (names := list(known)):
        raise InputError(
            f"{path} cannot be loaded: config.json says model_type {kind!r}, which the installed transformers does not "
            f"know{nearest(kind, names)}"
        )
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is no whole safetensors file ({error}): copy or save it again") from None


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
    if not isinstance(config, dict):
        raise InputError(f"{file} is JSON, but no {{…}}: it was not written by save_pretrained")
    return config
