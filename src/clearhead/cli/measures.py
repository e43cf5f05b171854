"""Commands that measure: `clearhead bench …`, `advise` and `calibrate`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from clearhead.cli.options import AsJson, Device, Heads, Rounds, progress
from clearhead.writing import check_place

bench = typer.Typer(help="Measure: ratios beside real peers in the same run.", no_args_is_help=False)

Length = Annotated[int, typer.Option(help="Tokens.")]
Dim = Annotated[int, typer.Option(help="Width of a head.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Backward = Annotated[bool, typer.Option("--backward/--no-backward", help="With gradients in queries, keys, values.")]
Memory = Annotated[bool, typer.Option("--memory/--no-memory", help="Peak memory too, each in a process of its own.")]


def _free(folder: Path | None) -> Path | None:
    if folder is not None:
        check_place(folder, folder=True)
    return folder


Folder = Annotated[Path | None, typer.Option("--out", callback=_free, help="Write the picture and the JSON there.")]


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
        return _found(bench_small(case, rounds, say=progress()), "small", case, out, as_json)
    return _found(bench_attention(case, deviation or (), rounds, memory, progress()), "attention", case, out, as_json)


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
    return _found(bench_statistics(case, only or (), rounds, memory, progress()), "statistics", case, out, as_json)


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
    return _found(bench_patterns(case, only or (), rounds, memory, progress()), "patterns", case, out, as_json)


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
    return _found(bench_memory(case, progress()), "memory", case, out, as_json)


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
    found = bench_scaling(case, pattern, points, rounds, memory, progress())
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

    return _compared(bench_watch(length, layers, rounds, long, progress()), as_json)


@bench.command("monitor")
def bench_monitor(rounds: Rounds = 10, as_json: AsJson = False) -> list[str]:
    """What monitoring attention costs in training, at the monitor's defaults."""
    from clearhead.bench import bench_monitor

    return _compared(bench_monitor(rounds, progress()), as_json)


@bench.command("train")
def bench_train(
    layers: Annotated[int, typer.Option(min=1, help="Of the encoder, and of the decoder.")] = 4,
    embed_dim: Annotated[int, typer.Option(help="Width of the model.")] = 128,
    ff_dim: Annotated[int, typer.Option(help="Width of the feed-forward.")] = 256,
    heads: Heads = 4,
    vocabulary: Annotated[int, typer.Option(min=8, help="Tokens of both languages together.")] = 8000,
    dropout: Annotated[float, typer.Option(help="Of embeddings and residual branches.")] = 0.1,
    batch_tokens: Annotated[int, typer.Option(help="In a batch of the same batches.")] = 4096,
    pairs: Annotated[int, typer.Option(min=8, help="Sentences that are trained on.")] = 1000,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of the same batches.")] = "float32",
    steps: Annotated[int, typer.Option(min=1, help="Batches between two looks at the clock.")] = 3,
    rounds: Rounds = 5,
    as_json: AsJson = False,
) -> list[str]:
    """Training in real tokens a second, beside torch.nn.Transformer, Marian, Seq2SeqTrainer; where the time goes."""
    from clearhead.bench import TrainingCase, bench_training, machine

    case = TrainingCase(layers, embed_dim, ff_dim, heads, vocabulary, dropout, batch_tokens, pairs, dtype=dtype)
    found = bench_training(case, rounds, steps, progress())
    return [json.dumps({"machine": machine(), **found.record()})] if as_json else found.lines()


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

    found = advise(length, embed_dim, heads, causal, memory, device, layers, seconds, progress())
    return [json.dumps(found.record())] if as_json else found.lines()


def calibrate(device: Device = "cpu", rounds: Rounds = 5, as_json: AsJson = False) -> list[str]:
    """Measure how fast the kernels are here, once, for the choice between them; kept in the user's cache folder."""
    from clearhead.bench import calibrated

    found = calibrated(device, rounds, progress())
    return [json.dumps(found.record())] if as_json else found.lines()
