"""What the report of a run shows: its scores, curves, predictions, and what its heads look at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clearhead.data import Source
from clearhead.errors import InputError
from clearhead.picture import heatmap, training_report
from clearhead.train.folder import RunFolder
from clearhead.train.model import Model
from clearhead.train.scores import table

SHOWN = 200
"""Predictions listed."""
DRAWN = 4
"""Words whose attention is drawn."""
_END = "end"


def write_report(run: RunFolder, model: Model, source: Source, scores: Mapping[str, Any]) -> None:
    """Write report.html: one file that needs nothing else."""
    references = source.references("test")
    words = list(references)[:: max(1, len(references) // SHOWN)][:SHOWN]
    predictions = model.predict(words)
    longest = sorted(words, key=lambda word: (abs(len(word) - 9), word))[:DRAWN]
    training_report(
        run.report,
        title=_title(model.config.task, run.path.name),
        subtitle=_subtitle(model),
        scores=table(scores),
        curves=run.read_metrics(),
        examples=[
            {"source": word, "prediction": guess.split(), "references": [answer.split() for answer in references[word]]}
            for word, guess in zip(words, predictions, strict=True)
        ],
        attention=[attention(model, word) for word in longest],
    )


def attention(model: Model, word: str) -> dict[str, Any]:
    """The weights of every head for one word, as arrays (H, Nq, Nk), with the names of their rows and columns."""
    pronunciation = model.predict([word])[0]
    letters, phonemes = model.source_tokenizer.labels(word), model.target_tokenizer.labels(pronunciation)
    read, said = ["begin", *phonemes], [*phonemes, _END]
    axes = {"encoder": (letters, letters), "self": (read, read), "cross": (said, letters)}
    with torch.no_grad():
        maps = model.maps(word, pronunciation)
        weights = {path: seen.weights()[0].float().numpy() for path, seen in maps.items()}
    return {
        "title": word,
        "source": letters,
        "target": phonemes,
        "maps": weights,
        "axes": {path: axes[_kind(path)] for path in weights},
    }


def draw(model: Model, word: str, path: str | Path) -> None:
    """Save a heatmap of the last layer's cross-attention, the mean of its heads: phonemes down, letters across.

    path: its ending chooses the format (png, svg, pdf). Raises InputError when the picture cannot be written.
    """
    seen = attention(model, word)
    last = [name for name in seen["maps"] if _kind(name) == "cross"][-1]
    rows, columns = seen["axes"][last]
    figure = heatmap(torch.from_numpy(seen["maps"][last].mean(0)), rows=rows, columns=columns, title=word)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # a folder that is not there, an unknown ending
        raise InputError(f"cannot write {path}: {str(error).splitlines()[0]}") from None


def _kind(path: str) -> str:
    if path.startswith("encoder."):
        return "encoder"
    return "cross" if "cross" in path else "self"


def _title(task: str, name: str) -> str:
    return name if name == task else f"{task}: {name}"


def _subtitle(model: Model) -> str:
    network = model.config.model
    weights = sum(weight.numel() for weight in model.module.parameters())
    layers = f"{network.encoder_layers or network.layers} + {network.decoder_layers or network.layers} layers"
    train = model.config.train
    return (
        f"{layers} of width {network.embed_dim}, {network.num_heads} heads, {weights:,} parameters; "
        f"{model.config.data.source}, {train.duration}, {train.precision}, seed {model.config.seed}"
    )
