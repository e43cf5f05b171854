"""Checkpoints: written atomically, read without running code, averaged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from clearhead.errors import RunError
from clearhead.train.folder import write_atomically

LAST = "interrupted.ckpt"


class AtomicCheckpoints(CheckpointIO):
    """Lightning's own moves a file from the default temporary folder, which is not atomic across file systems."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(Path(path), map_location)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's content; raises RunError when it is damaged. Nothing in it is executed."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads to
        raise RunError(
            f"{path} is damaged ({type(error).__name__}): remove it, and --resume goes on from the one before"
        ) from None


def kept(folder: Path) -> list[Path]:
    """The checkpoints of evaluations, oldest first."""
    return sorted(folder.glob("step-*.ckpt"))


def newest(folder: Path) -> Path | None:
    """What to go on from: of evaluations and an interruption the latest; None when there is nothing yet."""
    found = [path for path in [*kept(folder), folder / LAST] if path.exists()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def clean(folder: Path) -> None:
    """Remove what a kill left behind in the middle of a save."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def average(paths: Sequence[Path], prefix: str = "model.") -> dict[str, Tensor]:
    """The mean of the weights in several checkpoints, without the prefix that Lightning gives their names."""
    total: dict[str, Tensor] = {}
    for path in paths:
        for name, weight in read(path)["state_dict"].items():
            if weight.is_floating_point():
                weight = total.get(name, 0) + weight.double() / len(paths)
            total[name] = weight
    return {name.removeprefix(prefix): weight for name, weight in total.items()}
