"""Commands that work with models: train one, score it, ask it, look inside, and tell its story."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from clearhead.cli.options import AsJson, json_line, one_line, progress
from clearhead.errors import InputError, nearest

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/g2p.")]
Text = Annotated[str | None, typer.Option(help="What the model reads.")]
Tokens = Annotated[str | None, typer.Option(metavar="1,2,3", help="Token numbers, where there is no text.")]
Target = Annotated[
    str | None, typer.Option(help="What the decoder of an encoder-decoder reads; else what it predicts greedily.")
]
Layers = Annotated[list[str] | None, typer.Option(help="Paths of modules to look at, * is anything; repeatable.")]
RunOrModel = Annotated[
    Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run folder, or one that save_pretrained wrote.")
]
Port = Annotated[int | None, typer.Option(help="Where the page is served; 0 is any port that is free.")]
Opens = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")]
Beam = Annotated[
    int | None, typer.Option(min=1, help="Hypotheses kept while searching; 1 is greedy.", show_default=False)
]


def train(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK|CONFIG.yaml",
            help="A built-in task (g2p, or seq2seq on your own files), or a configuration file.",
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key, such as model.layers=4; repeatable."),
    ] = None,
    learnt: Annotated[
        str | None,
        typer.Option(
            "--train", metavar="FILES", help="Pairs: a TSV, CSV, JSONL or Parquet file, or two parallel files as A,B."
        ),
    ] = None,
    valid: Annotated[str | None, typer.Option("--valid", metavar="FILES", help="Pairs to validate on.")] = None,
    test: Annotated[str | None, typer.Option("--test", metavar="FILES", help="Pairs to score in the end.")] = None,
    name: Annotated[str | None, typer.Option(help="Train into runs/NAME; otherwise NAME is the task.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for so long, with a schedule that fits.")] = None,
    seed: Annotated[int | None, typer.Option(help="Where all randomness begins.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older run of that name.")] = False,
    find_learning_rate: Annotated[
        bool, typer.Option("--find-learning-rate", help="Instead: try rates for 100 steps, and suggest one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rates that were tried as JSON.")] = False,
    view: Annotated[bool, typer.Option("--view", help="Serve a page that shows the run as it trains.")] = False,
    port: Port = None,
    opens: Opens = True,
) -> list[str]:
    """Train a model into a run folder, and score it."""
    from clearhead.train import Interrupted, train
    from clearhead.train.range_test import find_learning_rate as find

    if port is not None and not view:
        raise InputError("--port belongs to --view")
    if view and find_learning_rate:
        raise InputError("--view shows a training, and --find-learning-rate is none: leave one of them out")
    if as_json and not find_learning_rate:
        raise InputError("--json belongs to --find-learning-rate: scores of a training are in its scores.json")

    chosen = [*(settings or []), *_own_files(train=learnt, valid=valid, test=test)]
    chosen += [] if minutes is None else [f"train.duration={minutes} minutes"]
    chosen += [] if seed is None else [f"seed={seed}"]
    if find_learning_rate:
        found = find(task, chosen, say=lambda message: print(message, file=sys.stderr))
        return [json.dumps(found.record())] if as_json else found.lines()
    try:
        with _page(port, opens) if view else nullcontext() as begun:
            train(task, chosen, name, resume=resume, overwrite=overwrite, begun=begun)
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        raise typer.Exit(error.status) from None
    return []


def _page(port: int | None, opens: bool) -> Any:
    """A block within which a page shows the run, in the first of the processes that train."""
    from clearhead.train.processes import is_first
    from clearhead.view import PORT
    from clearhead.view.beside import Beside

    if not is_first():
        return nullcontext()
    return Beside(PORT if port is None else port, browser=opens and sys.stderr.isatty())


def _own_files(**given: str | None) -> list[str]:
    """Settings that say which files are learnt from, in the place of what is built in."""
    files = {split: paths for split, paths in given.items() if paths is not None}
    settings = [f"data.{split}={json.dumps(paths, ensure_ascii=False)}" for split, paths in files.items()]
    return ["data.source=null", *settings] if files else []


def evaluate(run: Run, as_json: AsJson = False, beam: Beam = None) -> list[str]:
    """Score a model on the whole test split, beside what it compares with."""
    from clearhead.train import evaluate, load, scores

    model = load(run)
    found = evaluate(model, beam=beam)
    return [json.dumps(found)] if as_json else scores.lines(model.config.score, found)


def predict(
    run: Run,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Source texts. None: one a line from --file or standard input.")
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--file", help="Source texts, one a line, or a table as in train; - is standard input; repeatable."
        ),
    ] = None,
    beam: Beam = None,
    n_best: Annotated[int | None, typer.Option(min=1, help="So many for each text, with tabs between.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line, with scores.")] = False,
    heatmap: Annotated[Path | None, typer.Option(help="Draw what the target attends to, for one text.")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts longer than the model reads.")] = False,
) -> Iterator[str]:
    """Turn source texts into targets: one line each, in their order, in memory that does not grow."""
    from clearhead.data import SourceTexts
    from clearhead.data.layouts import Columns
    from clearhead.train import load
    from clearhead.train.report import check_picture, draw

    if heatmap and (len(texts or []) != 1 or files):
        raise InputError(f"--heatmap draws one text, not {'those of files' if files else len(texts or [])}")
    if heatmap:
        check_picture(heatmap, "--heatmap")
    model = load(run)
    columns = Columns(model.config.data.source_column)
    asked = SourceTexts(texts or [], files or ([] if texts else ["-"]), columns)
    if heatmap and texts:
        draw(model, texts[0], heatmap)
    refused = _Refused()
    found = model.predict_each(
        asked, beam=beam, n_best=n_best or 1, truncate=truncate, unfamiliar=_say_unfamiliar, refused=refused
    )
    for text, best in found:
        if as_json:
            yield json_line({"source": text, "predictions": [asdict(one) for one in best]})
        else:
            yield "\t".join(one_line(one.text) for one in best)
        if asked.arriving:
            sys.stdout.flush()  # the next text may be waiting for this answer
    if refused.count:
        raise typer.Exit(2)


class _Refused:
    """Says of each line that arrives and cannot be read why; its answer is empty, so that answers go with lines."""

    count = 0

    def __call__(self, why: str) -> None:
        self.count += 1
        print(f"error: {why}", file=sys.stderr)


def _say_unfamiliar(strange: list[str]) -> None:
    print(f"never seen in training, and read as bytes: {' '.join(strange)}", file=sys.stderr)


def inspect(
    model: RunOrModel,
    text: Text = None,
    file: Annotated[Path | None, typer.Option(help="A file with that text.")] = None,
    tokens: Tokens = None,
    image: Annotated[Path | None, typer.Option(help="A picture, for a model of images.")] = None,
    target: Target = None,
    layers: Layers = None,
    heads: Annotated[
        list[str] | None, typer.Option("--head", metavar="LAYER:HEAD", help="A head to draw large; repeatable.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where pictures and statistics.json go; NAME.html is one page.", show_default="inspected/MODEL"
        ),
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


def view(
    model: RunOrModel,
    text: Text = None,
    file: Annotated[Path | None, typer.Option(help="A file with that text, of any length.")] = None,
    tokens: Tokens = None,
    target: Target = None,
    layers: Layers = None,
    port: Port = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on. Any but this machine's own opens the text to the network.")
    ] = "127.0.0.1",
    opens: Opens = True,
) -> Iterator[str]:
    """Serve a page on which the attention of a text of any length can be looked at, or how a run went, until Ctrl-C."""
    from clearhead.inspect import read_text
    from clearhead.view import PORT, Explorer, Server, Site, read
    from clearhead.view.course import Course, is_run

    if text is not None and file is not None:
        raise InputError("--text and --file were given: give one of them")
    server = Server(host, PORT if port is None else port)  # before the model runs, for which this must not wait
    with server:
        if all(one is None for one in (text, file, tokens, target, layers)) and is_run(model):
            site: Site = Course(model)
            shown = f"the run {model}"
        else:
            chosen = None if tokens is None else _numbers(tokens)
            text = text if file is None else read_text(file)
            scene = read(model, text, target=target, tokens=chosen, layers=layers)
            site, shown = Explorer(scene), scene.title
        yield f"{server.url} shows {shown}; Ctrl-C ends it"
        sys.stdout.flush()  # whoever started it through a pipe waits for that line
        server.show(site, browser=opens)


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
