"""The command line: each command reads its arguments, calls one function of the library, returns the lines to print.

Results alone go to standard output. Every mistake is one line on standard error and exit status 2.
"""

import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import clearhead
from clearhead.errors import ClearheadError, InputError, nearest

app = typer.Typer(
    name="clearhead",
    help="Self-attention for PyTorch that is fast, right, and can be seen through.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/g2p.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Beam = Annotated[
    int | None, typer.Option(min=1, help="Hypotheses kept while searching; 1 is greedy.", show_default=False)
]


def _print_version(asked: bool | None) -> None:
    if asked:
        _print([f"clearhead {clearhead.__version__}"])
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = None,
) -> None:
    pass


@app.command()
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
) -> None:
    """Train a model into a run folder, and score it."""
    from clearhead.train import Interrupted, train

    chosen = [*(settings or [])]
    chosen += [] if minutes is None else [f"train.duration={minutes} minutes"]
    chosen += [] if seed is None else [f"seed={seed}"]
    try:
        train(task, chosen, name, resume=resume, overwrite=overwrite)
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def evaluate(run: Run, as_json: AsJson = False, beam: Beam = None) -> list[str]:
    """Score a model on all words of the test split, beside published figures."""
    from clearhead.train import evaluate, load, scores

    found = evaluate(load(run), beam=beam)
    if as_json:
        return [json.dumps(found)]
    return [f"{row['value']:>7.2%}  {row['name']} ({row['note']})" for row in scores.table(found)]


@app.command()
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


@app.command()
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


bench = typer.Typer(help="Measure: ratios beside real peers in the same run.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Rounds = Annotated[int, typer.Option(min=1, help="Times that each arm runs, in turns.")]


Length = Annotated[int, typer.Option(help="Tokens.")]
Heads = Annotated[int, typer.Option(help="Heads.")]
Dim = Annotated[int, typer.Option(help="Width of a head.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Backward = Annotated[bool, typer.Option("--backward/--no-backward", help="With gradients in queries, keys, values.")]
Memory = Annotated[bool, typer.Option("--memory/--no-memory", help="Peak memory too, each in a process of its own.")]
Folder = Annotated[Path | None, typer.Option("--out", help="Write the picture and the JSON there.")]


@bench.command("attention")
def bench_attention(
    pattern: Annotated[str, typer.Option(help="As in 'causal() & window(256)'.")] = "everything()",
    length: Length = 4096,
    heads: Heads = 4,
    dim: Dim = 64,
    dtype: Dtype = "float32",
    deviation: Annotated[
        list[float] | None, typer.Option(help="Standard deviation of the logits, 1 if not said; repeatable.")
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="Instead: what calls of 8 and 64 tokens cost.")] = False,
    backward: Backward = False,
    memory: Memory = True,
    device: Device = "cpu",
    rounds: Rounds = 5,
    out: Folder = None,
    as_json: AsJson = False,
) -> list[str]:
    """One call of any pattern, beside every peer that knows it: time, error, memory."""
    from clearhead.bench import Case, bench_attention, bench_small

    case = Case(length, heads, dim, dtype, device, pattern, backward)
    if small:
        return _found(bench_small(case, rounds, say=_progress()), "small", case, out, as_json)
    return _found(bench_attention(case, deviation or (), rounds, memory, _progress()), "attention", case, out, as_json)


@bench.command("statistics")
def bench_statistics(
    pattern: Annotated[str, typer.Option(help="As in 'causal() & window(256)'.")] = "everything()",
    length: Length = 4096,
    heads: Heads = 4,
    dim: Dim = 64,
    dtype: Dtype = "float32",
    only: Annotated[list[str] | None, typer.Option(help="An arm, such as received; repeatable.")] = None,
    backward: Backward = False,
    memory: Memory = True,
    device: Device = "cpu",
    rounds: Rounds = 5,
    out: Folder = None,
    as_json: AsJson = False,
) -> list[str]:
    """What it costs to see: statistics, received, pooled maps, beside SDPA alone and eager attention."""
    from clearhead.bench import Case, bench_statistics

    case = Case(length, heads, dim, dtype, device, pattern, backward)
    return _found(bench_statistics(case, only or (), rounds, memory, _progress()), "statistics", case, out, as_json)


@bench.command("patterns")
def bench_patterns(
    length: Length = 4096,
    heads: Heads = 4,
    dim: Dim = 64,
    dtype: Dtype = "float32",
    only: Annotated[list[str] | None, typer.Option(help="A pattern, such as longformer; repeatable.")] = None,
    backward: Backward = False,
    memory: Memory = False,
    device: Device = "cpu",
    rounds: Rounds = 3,
    out: Folder = None,
    as_json: AsJson = False,
) -> list[str]:
    """Every kind of pattern at one length, and packed documents, beside the peers that know it."""
    from clearhead.bench import Case, bench_patterns

    case = Case(length, heads, dim, dtype, device, backward=backward)
    return _found(bench_patterns(case, only or (), rounds, memory, _progress()), "patterns", case, out, as_json)


@bench.command("memory")
def bench_memory(
    pattern: Annotated[str, typer.Option(help="As in 'causal() & window(256)'.")] = "window(255, 0)",
    length: Length = 65536,
    heads: Heads = 4,
    dim: Dim = 64,
    dtype: Dtype = "float32",
    backward: Backward = True,
    device: Device = "cpu",
    out: Folder = None,
    as_json: AsJson = False,
) -> list[str]:
    """Peak memory of a pattern with gradients, and of output with statistics, where n² weights do not fit."""
    from clearhead.bench import Case, bench_memory

    case = Case(length, heads, dim, dtype, device, pattern, backward)
    return _found(bench_memory(case, _progress()), "memory", case, out, as_json)


@bench.command("scaling")
def bench_scaling(
    pattern: Annotated[str | None, typer.Option(help="This one instead of five kinds.")] = None,
    length: Annotated[int, typer.Option(help="The longest.")] = 8192,
    points: Annotated[int, typer.Option(help="So many lengths, each twice the one before.")] = 4,
    heads: Heads = 2,
    dim: Dim = 64,
    dtype: Dtype = "float32",
    backward: Backward = False,
    memory: Memory = True,
    device: Device = "cpu",
    rounds: Rounds = 3,
    out: Folder = None,
    as_json: AsJson = False,
) -> list[str]:
    """Exponents of growth of time and memory with the length, for full, global, local and sparse patterns."""
    from clearhead.bench import Case, bench_scaling

    case = Case(length, heads, dim, dtype, device, backward=backward)
    found = bench_scaling(case, pattern, points, rounds, memory, _progress())
    return _found(found, "scaling", case, out, as_json)


@bench.command("watch")
def bench_watch(
    length: Annotated[int, typer.Option(min=2, help="Tokens.")] = 2048,
    layers: Annotated[int, typer.Option(min=1, help="Of a model of BERT-base's shape.")] = 12,
    long: Annotated[int | None, typer.Option(min=2, help="Watch a layer at this length too, for its memory.")] = None,
    rounds: Rounds = 5,
    as_json: AsJson = False,
) -> list[str]:
    """What watching costs, beside eager attention that returns its matrix: time and peak memory."""
    from clearhead.bench import bench_watch

    return _compared(bench_watch(length, layers, rounds, long, _progress()), as_json)


@bench.command("monitor")
def bench_monitor(rounds: Rounds = 10, as_json: AsJson = False) -> list[str]:
    """What monitoring attention costs in training, at the monitor's defaults."""
    from clearhead.bench import bench_monitor

    return _compared(bench_monitor(rounds, _progress()), as_json)


def _compared(found: list[Any], as_json: bool) -> list[str]:
    from clearhead.bench import machine

    if as_json:
        return [json.dumps({"machine": machine(), "comparisons": [one.record() for one in found]})]
    return [line for one in found for line in one.lines()]


def _found(found: list[Any], name: str, case: Any, out: Path | None, as_json: bool) -> list[str]:
    from clearhead.bench import machine
    from clearhead.bench.plots import save

    written = [] if out is None else save(found, out, name, case.device)
    if as_json:
        return [json.dumps({"machine": machine(case.device), "comparisons": [one.record() for one in found]})]
    return [line for one in found for line in one.lines()] + written


def _progress() -> Any:
    """Says what is being measured, on a line that is written over, where there is a terminal."""
    if not sys.stderr.isatty():
        return None
    return lambda words: print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


@app.command()
def advise(
    length: Annotated[int, typer.Option(help="Tokens.")],
    embed_dim: Annotated[int, typer.Option(help="Width of the model.")],
    heads: Heads,
    causal: Annotated[bool, typer.Option("--causal", help="No token sees the future.")] = False,
    memory: Annotated[str | None, typer.Option(help="That a layer's attention may hold, such as 2GB.")] = None,
    layers: Annotated[int, typer.Option(help="Through which information travels.")] = 12,
    seconds: Annotated[float, typer.Option(help="About so long may candidates run at that length.")] = 90.0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> list[str]:
    """Recommend pattern, kernel and precision for a shape, from what candidates take on this machine."""
    from clearhead.bench import advise

    found = advise(length, embed_dim, heads, causal, memory, device, layers, seconds, _progress())
    return [json.dumps(found.record())] if as_json else found.lines()


@app.command()
def calibrate(device: Device = "cpu", rounds: Rounds = 3, as_json: AsJson = False) -> list[str]:
    """Measure how fast the kernels are here, once, for the choice between them; kept in the user's cache folder."""
    from clearhead.bench import calibrated

    found = calibrated(device, rounds, _progress())
    return [json.dumps(found.record())] if as_json else found.lines()


@app.command()
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
    told = collapse(seed, out=folder, progress=_progress())
    if as_json:
        return [json.dumps(told.record(), allow_nan=False)]
    return [*told.lines(shutil.get_terminal_size().columns), "", f"written to {folder}: collapse.png, collapse.json"]


def _words(words: list[str], files: list[Path]) -> list[str]:
    from clearhead.data import read_lines
    from clearhead.data.checks import decode_lines

    if words or files:
        return [*words, *(line for file in files for line in read_lines(file))]
    return decode_lines(sys.stdin.buffer, "standard input")


def main(arguments: list[str] | None = None) -> None:
    """Run the program; ends it with status 0, 2 after a mistake, 130 after Ctrl-C."""
    # Before torch is imported: its threads then sleep while they wait for each other. By default they spin, and where
    # anything else is running on the same cores a training takes many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        results = app(arguments, standalone_mode=False)  # what the command returns, or the status it exits with
    except ClearheadError as error:
        results = _refuse(str(error))
    except _UsageError as error:
        results = _refuse(error.format_message())
    except typer.Abort:  # Ctrl-C, in some versions of typer
        results = 130
    sys.exit(results if isinstance(results, int) else _print(results or []))


def _print(lines: list[str]) -> int:
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough; the interpreter must not complain when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


_UsageError: Any = typer.BadParameter.__mro__[2]
"""The root of what the parser raises: click's, of which some versions of typer carry their own copy."""


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
