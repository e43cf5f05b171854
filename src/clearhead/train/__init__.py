"""Training from a configuration to a run folder, and using what is in one.

    train(read_config("g2p", ["model.layers=4"]))     # runs/g2p
    load("runs/g2p").predict(["attention"])

What learns needs Lightning and is imported with it; `load` needs neither.
"""

from typing import TYPE_CHECKING, Any

from clearhead.errors import attribute

_HOME = {
    "Config": "clearhead.train.config",
    "Interrupted": "clearhead.train.interrupt",
    "Model": "clearhead.train.model",
    "evaluate": "clearhead.train.scores",
    "load": "clearhead.train.model",
    "read_config": "clearhead.train.settings",
    "survey": "clearhead.train.surveys",
    "train": "clearhead.train.run",
}

__all__ = ["Config", "Interrupted", "Model", "evaluate", "load", "read_config", "survey", "train"]

if TYPE_CHECKING:
    from clearhead.train.config import Config as Config
    from clearhead.train.interrupt import Interrupted as Interrupted
    from clearhead.train.model import Model as Model
    from clearhead.train.model import load as load
    from clearhead.train.run import train as train
    from clearhead.train.scores import evaluate as evaluate
    from clearhead.train.settings import read_config as read_config
    from clearhead.train.surveys import survey as survey


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clearhead.train' has no attribute {name!r}")
    return attribute(_HOME[name], name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
