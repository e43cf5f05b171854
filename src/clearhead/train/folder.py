"""The run folder: where everything about one training lies, and how it is written so that nothing is ever half there.

runs/g2p/
  config.yaml                  all settings, with the version of this layout (`format`)
  data.json                    which files were learnt from, and how many pairs of each
  source.json, target.json     the tokenizers
  model.safetensors            the weights that predict; there once training has ended
  checkpoints/                 what `--resume` goes on from
  tokens/                      the pairs as numbers, until training has ended
  metrics.jsonl, tensorboard/  the course of the training
  maps/                        the attention of a few examples, by step
  scores.json, report.html     how good it is, and what it looks at
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from clearhead import writing
from clearhead.data.tokens import Tokenizer
from clearhead.errors import ConfigError, InputError, RunError
from clearhead.observe.monitoring.record_file import RecordFile
from clearhead.train.config import Config
from clearhead.train.settings import from_tree, to_yaml
from clearhead.train.trees import parse, read_text

FORMAT = 1


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.source = self.path / "source.json"
        self.target = self.path / "target.json"
        self.data = self.path / "data.json"
        self.tokens = self.path / "tokens"
        self.model = self.path / "model.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.maps = self.path / "maps"
        self.scores = self.path / "scores.json"
        self.report = self.path / "report.html"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def beside(self, what: str) -> Path:
        """A hidden place in the same folder, such as runs/.NAME.lock: see `clearhead.train.starting`."""
        path = self.path if self.path.name not in ("", "..") else self.path.resolve()
        return path.parent / f".{path.name}.{what}"

    def is_run(self) -> bool:
        """Return whether a run of `clearhead train` is here, of whatever version."""
        try:
            return type(self._tree()[0]) is int
        except ConfigError:
            return False

    def write_config(self, config: Config) -> None:
        write_text(self.config, to_yaml(config, format=FORMAT))

    def read_config(self) -> Config:
        """The configuration of the run; raises RunError when there is no run, or one of a newer version."""
        if not _there(self.config):
            there = "has no config.yaml" if self.path.exists() else "does not exist"
            raise RunError(f"{self.path} {there}: no run is there; make one with `clearhead train`{self._others()}")
        version, tree, lines = self._tree()
        if type(version) is not int:
            raise RunError(f"{self.config} does not say its format: it was not written by `clearhead train`")
        if version > FORMAT:
            raise RunError(
                f"{self.path} was made by a newer Clearhead (format {version}, this one reads {FORMAT}): upgrade it"
            )
        return from_tree(tree, lines, str(self.config))

    def _tree(self) -> tuple[Any, Any, dict[str, int]]:
        """The format of the configuration, what else is in it, and the line of each of its keys."""
        tree, lines = parse(read_text(self.config), str(self.config))
        return tree.pop("format", None) if isinstance(tree, dict) else None, tree, lines

    def read_tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """Those of the source and of the target; raises RunError when they are not there."""
        for path in (self.source, self.target):
            if not path.exists():
                raise RunError(f"{self.path} is half-written: {path.name} is missing; train it again with --overwrite")
        try:
            return Tokenizer.load(self.source), Tokenizer.load(self.target)
        except InputError as error:
            raise RunError(f"{self.path} is damaged: {error}") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; a last line that a kill cut off is left out."""
        return RecordFile(self.metrics).read()

    def snapshots(self) -> dict[int, Path]:
        """The files of maps/ by step, in order."""
        named = [(re.fullmatch(r"step-(\d{9,18})\.json", path.name), path) for path in self.maps.glob("step-*.json")]
        return dict(sorted((int(match[1]), path) for match, path in named if match))

    def _others(self) -> str:
        parent = self.path.parent
        if self.beside("older").exists():
            return f"; {self.beside('older')} is what a killed --overwrite left of it: move it back"
        runs = sorted(str(other.parent) for other in parent.glob("[!.]*/config.yaml")) if parent.is_dir() else []
        return f" (runs here: {', '.join(runs[:8])})" if runs else ""


def _there(path: Path) -> bool:
    """Is this there? Raises RunError for a name that no file can have."""
    try:
        return path.exists()
    except OSError as error:
        raise RunError(f"cannot read {path.parent}: {(error.strerror or str(error)).lower()}") from None


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file as `clearhead.writing.write` does; raises RunError when it cannot be written."""
    try:
        writing.write(path, write)
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise RunError(f"cannot write {path}: {why}; what was there before is whole") from error
