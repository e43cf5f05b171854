"""From a folder to the model in it: a run of `clearhead train`, or what `save_pretrained` of Hugging Face wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clearhead.data import BOS
from clearhead.data.checks import check_lengths, check_texts
from clearhead.errors import InputError
from clearhead.inspect.hugging_face import HuggingFaceModel
from clearhead.inspect.models import Inspected, Question, Reading, Special
from clearhead.observe.monitoring.record_file import RecordFile
from clearhead.train import load
from clearhead.train.folder import RunFolder

PICKLED = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
"""Endings of files that can run any code when they are loaded."""


def open_model(path: str | Path) -> Inspected:
    """The model in a folder.

    Raises InputError for a folder that holds none, or holds pickled weights alone; RunError for a run that cannot be
    used; MissingExtra where transformers is needed and not installed.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a run folder, or one that save_pretrained wrote")
    _refuse_pickles(path)
    if not path.is_dir():
        raise InputError(f"{path} is a file; give the folder that it is in")
    if (path / "config.yaml").exists():
        return RunModel(path)
    if (path / "config.json").exists() and any(path.glob("*.safetensors")):
        return HuggingFaceModel(path)
    raise InputError(
        f"{path} holds no model: there is neither config.yaml with model.safetensors (a run of `clearhead train`) nor "
        "config.json with model.safetensors (Hugging Face's save_pretrained)"
    )


def _refuse_pickles(path: Path) -> None:
    """Pickle can run any code while it is read, so such files are never opened (CVE-2025-32434)."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    pickled = [file.name for file in files if file.suffix in PICKLED and file.name != "training_args.bin"]
    if pickled and not any(file.suffix == ".safetensors" for file in files):
        raise InputError(
            f"{path} holds its weights as {pickled[0]} and not as safetensors: such a file can run any code when it is "
            "loaded, so it is not; where you trust it, load it there and call model.save_pretrained(folder)"
        )


class RunModel(Inspected):
    """A model that `clearhead train` made: it reads a word and pronounces it."""

    paired = True

    def __init__(self, path: Path) -> None:
        self.path, self._trained = path, load(path)
        self.model = self._trained.module

    def read(self, question: Question) -> Reading:
        """A word's letters, and its pronunciation as given or else as predicted."""
        if question.text is None:
            raise InputError(f"{self.path} is a run of `clearhead train`, which reads words: give --text")
        check_texts([question.text])
        trained, limit = self._trained, self._trained.config.model.max_length
        source = check_lengths([question.text], trained.source_tokenizer.encode([question.text]), limit)
        said = trained.predict([question.text])[0] if question.target is None else question.target
        encoded, predicted = trained.target_tokenizer.encode([said]), question.target is None
        target = check_lengths([said], encoded, limit - 1, truncate=predicted)[0]  # a prediction may fill all positions
        phonemes = trained.target_tokenizer.labels(said)[: len(target)]
        return Reading(
            {"source": torch.tensor(source), "target": torch.tensor([[BOS, *target]])},
            trained.source_tokenizer.labels(question.text),
            [Special("begin"), *phonemes],
            [*phonemes, Special("end")],
        )

    def weights(self, reading: Reading, layers: Sequence[str] | None = None) -> int:
        network, source, target = self._trained.config.model, len(reading.source or ()), len(reading.target or ())
        if layers is not None:
            return network.num_heads * min(source, target) ** 2
        encoder, decoder = network.encoder_layers or network.layers, network.decoder_layers or network.layers
        return network.num_heads * (encoder * source**2 + decoder * (target**2 + target * source))

    def history(self) -> list[dict[str, Any]]:
        """The records of its metrics.jsonl, as far as they can be read."""
        return RecordFile(RunFolder(self.path).metrics).read_good()
