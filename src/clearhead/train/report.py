"""What the report of a run shows: its scores, curves, predictions, and what its heads look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from clearhead.data import Source
from clearhead.errors import InputError
from clearhead.picture import heatmap, training_report
from clearhead.train.folder import RunFolder
from clearhead.train.judges import Judge
from clearhead.train.model import Model
from clearhead.train.scores import Example, examples, judge_of, table
from clearhead.writing import check_place, write_figure

SHOWN = 200
"""Predictions looked at."""
DRAWN = 4
"""Examples whose attention is drawn."""
LONGEST = 128
"""Tokens on either side up to which attention is drawn: every head of every layer is in the file."""
_END = "end"


def write_report(run: RunFolder, model: Model, source: Source, scores: Mapping[str, Any]) -> None:
    """Write report.html: one file that needs nothing else."""
    kind = model.config.score
    judge = judge_of(kind)
    every = examples(source, scores["split"], judge)
    chosen = every[:: max(1, len(every) // SHOWN)][:SHOWN]
    predictions = model.predict([one.source for one in chosen], truncate=model.config.data.truncate)
    samples = [_sample(one, guess, judge) for one, guess in zip(chosen, predictions, strict=True)]
    training_report(
        run.report,
        title=_title(model.config.task, run.path.name),
        subtitle=_subtitle(model),
        scores=table(kind, scores),
        curves=run.read_metrics(),
        examples=samples,
        attention=[attention(model, text, name) for name, text in _drawn(model, samples)],
    )


def _sample(example: Example, prediction: str, judge: Judge) -> dict[str, Any]:
    """One row of the predictions; of texts with what each scores by itself."""
    row: dict[str, Any] = {
        "source": example.source,
        "prediction": prediction.split(),
        "references": [answer.split() for answer in example.answers],
    }
    if judge.measure:
        row |= {"score": judge.one(prediction, example.answers), "measure": judge.measure}
    return row


def _drawn(model: Model, samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What to draw the attention of, under which name: words of a usual length; of texts the best, one from the middle,
    and the worst."""
    if not any("score" in sample for sample in samples):
        words = [sample["source"] for sample in samples]
        return [(word, word) for word in sorted(words, key=lambda word: (abs(len(word) - 9), word))[:DRAWN]]
    tokens, most = model.source_tokenizer.encode([one["source"] for one in samples]), model.config.model.max_length
    short = [one for one, row in zip(samples, tokens, strict=True) if 3 <= len(row) <= min(LONGEST, most)]
    ordered = sorted(short, key=lambda one: -one["score"])
    places = {"best": 0, "good": len(ordered) // 4, "middle": len(ordered) // 2, "worst": len(ordered) - 1}
    return [
        (f"{name}: {shortened(ordered[i]['source'])}", ordered[i]["source"]) for name, i in places.items() if ordered
    ]


def shortened(text: str, most: int = 48) -> str:
    """A text, or its beginning where it is long."""
    return text if len(text) <= most else text[: most - 1].rsplit(" ", 1)[0] + " …"


def attention(model: Model, word: str, title: str | None = None, target: str | None = None) -> dict[str, Any]:
    """The weights of every head for one source, as arrays (H, Nq, Nk), with the names of their rows and columns.

    target: what the decoder reads; None: what the model predicts.
    """
    pronunciation = model.predict([word])[0] if target is None else target
    letters, phonemes = model.source_tokenizer.labels(word), model.target_tokenizer.labels(pronunciation)
    read, said = ["begin", *phonemes], [*phonemes, _END]
    axes = {"encoder": (letters, letters), "self": (read, read), "cross": (said, letters)}
    with torch.no_grad():
        maps = model.maps(word, pronunciation)
        weights = {path: seen.weights()[0].float().cpu().numpy() for path, seen in maps.items()}
    return {
        "title": title or word,
        "source": letters,
        "target": phonemes,
        "maps": weights,
        "axes": {path: axes[_kind(path)] for path in weights},
    }


def check_picture(path: Path, argument: str) -> None:
    """Raise InputError unless a picture can be written there; its ending is its kind."""
    from matplotlib.backend_bases import FigureCanvasBase

    kind = path.suffix.removeprefix(".").lower()
    if kind and kind not in FigureCanvasBase.filetypes:
        raise InputError(f"{argument} {path}: unknown kind of picture {kind!r}: write .png, .svg or .pdf")
    check_place(path, argument)


def draw(model: Model, word: str, path: str | Path) -> None:
    """Save a heatmap of the last layer's cross-attention, the mean of its heads: phonemes down, letters across.

    path: its ending chooses the format (png, svg, pdf). Raises InputError when the picture cannot be written.
    """
    seen = attention(model, word)
    last = [name for name in seen["maps"] if _kind(name) == "cross"][-1]
    rows, columns = seen["axes"][last]
    figure = heatmap(torch.from_numpy(seen["maps"][last].mean(0)), rows=rows, columns=columns, title=word)
    try:
        write_figure(Path(path), figure)
    except (OSError, ValueError) as error:  # a folder that is not there, an unknown ending
        raise InputError(f"cannot write {path}: {str(error).splitlines()[0]}") from None


def _kind(path: str) -> str:
    if path.startswith("encoder."):
        return "encoder"
    return "cross" if "cross" in path else "self"


def _title(task: str, name: str) -> str:
    return name if name == task else f"{task}: {name}"


def _subtitle(model: Model) -> str:
    network, data = model.config.model, model.config.data
    learnt_from = data.source or " and ".join(Path(file).name for file in data.train or ())
    weights = sum(weight.numel() for weight in model.module.parameters())
    layers = f"{network.encoder_layers or network.layers} + {network.decoder_layers or network.layers} layers"
    train = model.config.train
    return (
        f"{layers} of width {network.embed_dim}, {network.num_heads} heads, {weights:,} parameters; "
        f"{learnt_from}, {train.duration}, {train.precision}, seed {model.config.seed}"
    )
