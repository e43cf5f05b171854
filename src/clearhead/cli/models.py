"""Commands that work with models: train one, score it, ask it, look inside, and tell its story."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from clearhead.cli.options import AsJson, progress
from clearhead.errors import InputError, nearest

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/g2p.")]
Beam = Annotated[
    int | None, typer.Option(min=1, help="Hypotheses kept while searching; 1 is greedy.", show_default=False)
]


def train(
    task: Annotated[
        str, typer.Argument(metavar="TASK|CONFIG.yaml", help="A built-in task (g2p), or a configuration file.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key, such as model.layers=4; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Train into runs/NAME; otherwise NAME is the task.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for so long, with a schedule that fits.")] = None,
    seed: Annotated[int | None, typer.Option(help="Where all randomness begins.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older run of that name.")] = False,
    find_learning_rate: Annotated[
        bool, typer.Option("--find-learning-rate", help="Instead: try rates for 100 steps, and suggest one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rates that were tried as JSON.")] = False,
) -> list[str]:
    """Train a model into a run folder, and score it."""
    from clearhead.train import Interrupted, train
    from clearhead.train.range_test import find_learning_rate as find

    if as_json and not find_learning_rate:
        raise InputError("--json belongs to --find-learning-rate: scores of a training are in its scores.json")

    chosen = [*(settings or [])]
    chosen += [] if minutes is None else [f"train.duration={minutes} minutes"]
    chosen += [] if seed is None else [f"seed={seed}"]
    if find_learning_rate:
        found = find(task, chosen, say=lambda message: print(message, file=sys.stderr))
        return [json.dumps(found.record())] if as_json else found.lines()
    try:
        train(task, chosen, name, resume=resume, overwrite=overwrite)
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        raise typer.Exit(130) from None
    return []


def evaluate(run: Run, as_json: AsJson = False, beam: Beam = None) -> list[str]:
    """Score a model on the whole test split, beside what it compares with."""
    from clearhead.train import evaluate, load, scores

    model = load(run)
    found = evaluate(model, beam=beam)
    return [json.dumps(found)] if as_json else scores.lines(model.config.score, found)


def predict(
    run: Run,
    words: Annotated[list[str] | None, typer.Argument(help="None: one a line from --file or standard input.")] = None,
    files: Annotated[list[Path] | None, typer.Option("--file", help="Words, one a line; repeatable.")] = None,
    beam: Beam = None,
    n_best: Annotated[int | None, typer.Option(min=1, help="So many for each word, with tabs between.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line, with scores.")] = False,
    heatmap: Annotated[Path | None, typer.Option(help="Draw what the phonemes attend to, for one word.")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut words longer than the model reads.")] = False,
) -> list[str]:
    """Pronounce words: one line each, in their order."""
    from clearhead.train import load
    from clearhead.train.report import draw

    asked = _words(words or [], files or [])
    if heatmap and len(asked) != 1:
        raise InputError(f"--heatmap draws one word, not {len(asked)}")
    model = load(run)
    if strange := model.unfamiliar(asked):
        print(f"never seen in training, and read as bytes: {' '.join(strange)}", file=sys.stderr)
    found = model.predict(asked, beam=beam, n_best=n_best or 1, truncate=truncate)
    if heatmap:
        draw(model, asked[0], heatmap)
    if as_json:
        rows = [
            {"source": word, "predictions": [asdict(one) for one in best]}
            for word, best in zip(asked, found, strict=True)
        ]
        return [json.dumps(row, ensure_ascii=False) for row in rows]
    return ["\t".join(one.text for one in best) for best in found]


def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run folder, or one that save_pretrained wrote.")
    ],
    text: Annotated[str | None, typer.Option(help="What the model reads.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with that text.")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="1,2,3", help="Token numbers, where there is no text.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture, for a model of images.")] = None,
    target: Annotated[
        str | None, typer.Option(help="What the decoder of an encoder-decoder reads; else what it predicts greedily.")
    ] = None,
    layers: Annotated[
        list[str] | None, typer.Option(help="Paths of modules to look at, * is anything; repeatable.")
    ] = None,
    heads: Annotated[
        list[str] | None, typer.Option("--head", metavar="LAYER:HEAD", help="A head to draw large; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where pictures and statistics.json go.", show_default="inspected/MODEL")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, and write nothing where there is no --out.")
    ] = False,
) -> list[str]:
    """Show what every head of a trained model does with one text: numbers, health, pictures."""
    from clearhead.inspect import inspect, read_text, report

    if text is not None and file is not None:
        raise InputError("--text and --file were given: give one of them")
    text = text if file is None else read_text(file)
    chosen = None if tokens is None else _numbers(tokens)
    folder = Path("inspected", model.resolve().name) if out is None and not as_json else out
    found = inspect(
        model, text, target=target, tokens=chosen, image=image, layers=layers, heads=heads or (), out=folder
    )
    if as_json:
        return [json.dumps(found.record(), ensure_ascii=False, allow_nan=False)]
    return report(found, shutil.get_terminal_size().columns, colour=sys.stdout.isatty())


def _numbers(tokens: str) -> list[int]:
    try:
        return [int(number) for number in tokens.split(",")]
    except ValueError:
        raise InputError(f"--tokens {tokens}: write whole numbers with commas between, such as 1,2,3") from None


def demo(
    story: Annotated[str, typer.Argument(metavar="STORY", help="collapse: attention collapses, alarm and remedy.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the picture and the JSON go.", show_default="demos/STORY")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Where all randomness begins.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, and write nothing where there is no --out.")
    ] = False,
) -> list[str]:
    """Tell a story by experiment: in two minutes, what the library is for."""
    from clearhead.demo import collapse

    if story != "collapse":
        raise InputError(f"unknown story {story!r}{nearest(story, ['collapse'])}")
    folder = Path("demos", story) if out is None and not as_json else out
    told = collapse(seed, out=folder, progress=progress())
    if as_json:
        return [json.dumps(told.record(), allow_nan=False)]
    return [*told.lines(shutil.get_terminal_size().columns), "", f"written to {folder}: collapse.png, collapse.json"]


def _words(words: list[str], files: list[Path]) -> list[str]:
    from clearhead.data import read_lines
    from clearhead.data.checks import decode_lines

    if words or files:
        return [*words, *(line for file in files for line in read_lines(file))]
    return decode_lines(sys.stdin.buffer, "standard input")
