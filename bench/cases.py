"""Run the cases that Clearhead is held up to, keep what each command prints as JSON, and make the table of the docs.

python bench/cases.py [CASE ...] [--out FOLDER]      # run `clearhead bench …`, one command after another
python bench/cases.py --out FOLDER --only-table      # the table again, of the JSON that is there
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

OURS, SEEN = "Clearhead", "output + row statistics"


class Figure(NamedTuple):
    """A number of a case: its name, the goal ("" if there is none), and what reads it from the comparisons."""

    name: str
    goal: str
    read: Callable[[list[dict[str, Any]]], str]


def ratio(arm: str, to: str, case: int = 0) -> Callable[[list[dict[str, Any]]], str]:
    """How much longer an arm takes than another: the median of the rounds, and their quartiles."""

    def read(found: list[dict[str, Any]]) -> str:
        seconds = found[case]["seconds"]
        ratios = [own / other for own, other in zip(seconds[arm], seconds[to], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [*ratios] * 3
        return f"{median(ratios):.2f} ({low:.2f}–{high:.2f})"

    return read


def of_limit(found: list[dict[str, Any]]) -> str:
    return f"{found[0]['of_limit'][OURS]:.0%}"


def error(kind: str, arm: str = OURS, to: str = "SDPA", case: int = 0) -> Callable[[list[dict[str, Any]]], str]:
    return lambda found: f"{found[case]['errors'][arm][kind] / found[case]['errors'][to][kind]:.2f}"


def held(arm: str, case: int) -> Callable[[list[dict[str, Any]]], str]:
    return lambda found: f"{found[case]['bytes'][arm] / 2**20:,.0f} MiB"


def grown(found: list[dict[str, Any]]) -> str:
    [fit] = found[0]["exponents"].values()
    return f"{fit['time']:.2f} of time, {fit['memory']:.2f} of memory"


def beyond(call: str) -> Callable[[list[dict[str, Any]]], str]:
    def read(found: list[dict[str, Any]]) -> str:
        return ", ".join(f"{1e6 * found[0]['calls'][f'{call}, {n} tokens']['beyond']['median']:+.0f}" for n in (8, 64))

    return read


LOCAL = "local-attention"
_WINDOW = 'attention --pattern "window(256)" --length 8192 --heads 8 --no-memory --rounds 3'
_DENSE = "attention --dtype bfloat16 --deviation 1 --deviation 2 --deviation 4 --no-memory"
CASES: dict[str, tuple[str, tuple[Figure, ...]]] = {
    "window": (
        _WINDOW,
        (Figure(f"× {LOCAL}", "0.36", ratio(OURS, LOCAL)), Figure("of the limit", "75%", of_limit)),
    ),
    "window, with gradients": (
        f"{_WINDOW} --backward",
        (Figure(f"× {LOCAL}", "0.50", ratio(OURS, LOCAL)), Figure("of the limit", "75%", of_limit)),
    ),
    "window, bfloat16": (
        f"{_WINDOW} --dtype bfloat16",
        (Figure(f"× {LOCAL}", "0.8", ratio(OURS, LOCAL)), Figure("error, × SDPA's", "1.5", error("output"))),
    ),
    "window, bfloat16, with gradients": (
        f"{_WINDOW} --dtype bfloat16 --backward",
        (Figure(f"× {LOCAL}", "0.9", ratio(OURS, LOCAL)), Figure("error, × SDPA's", "1.5", error("output"))),
    ),
    "causal window, 65,536 tokens": (
        'memory --pattern "window(255, 0)" --length 65536',
        (Figure("memory", "1.5 GB", held(OURS, 0)), Figure("memory of statistics, 1 head", "200 MB", held(SEEN, 1))),
    ),
    "its growth": (
        'scaling --pattern "window(255, 0)" --length 65536 --backward',
        (Figure("exponents", "1.1", grown),),
    ),
    "Longformer": (
        "patterns --only longformer --length 4096 --heads 8 --backward",
        (Figure("× transformers' layer", "0.40", ratio(OURS, "transformers' Longformer")),),
    ),
    "BigBird": (
        "patterns --only bigbird --length 4096 --heads 8 --backward",
        (Figure("× transformers' layer", "1", ratio(OURS, "transformers' BigBird")),),
    ),
    "dense bfloat16": (
        _DENSE,
        tuple(
            figure
            for i, deviation in enumerate((1, 2, 4))
            for figure in (
                Figure(f"× SDPA, logits of deviation {deviation}", "0.50", ratio(OURS, "SDPA", i)),
                Figure(f"error, × SDPA's, deviation {deviation}", "1.5", error("output", case=i)),
            )
        ),
    ),
    "output and statistics": (
        "statistics --no-memory",
        (
            Figure("× SDPA alone", "1.35", ratio(SEEN, "SDPA")),
            Figure("eager × SDPA", "", ratio("eager", "SDPA")),
            Figure("`received` × SDPA", "", ratio("received", "SDPA")),
        ),
    ),
    "output and statistics, bfloat16": (
        "statistics --dtype bfloat16 --no-memory",
        (Figure("× SDPA alone", "0.6", ratio(SEEN, "SDPA")), Figure("error, × SDPA's", "1.5", error("output", SEEN))),
    ),
    "output and statistics, with gradients": (
        "statistics --backward --no-memory",
        (Figure("× SDPA alone", "2.0", ratio(SEEN, "SDPA")),),
    ),
    "documents": (
        "patterns --only documents --heads 8 --backward",
        (
            Figure("× padded SDPA", "0.15", ratio(OURS, "SDPA, padded")),
            Figure("× a loop of SDPA calls", "0.8", ratio(OURS, "a loop of SDPA calls")),
        ),
    ),
    "picture of 65,536 tokens": (
        'statistics --length 65536 --heads 1 --only "pool(64, 64)" --rounds 3 --no-memory',
        (Figure("`pool(64, 64)` × SDPA", "1.1", ratio("pool(64, 64)", "SDPA")),),
    ),
    "small calls": (
        "attention --small --heads 1",
        tuple(
            Figure(f"{call}, µs at 8 and 64 tokens", "+5" if call == "plain" else "+50", beyond(call))
            for call in ("plain", "causal", "window", "lengths", "mask", "statistics")
        ),
    ),
}
"""What is run, and what is read from it."""


def run(command: str) -> dict[str, Any]:
    program = [sys.executable, "-m", "clearhead.cli", "bench", *shlex.split(command), "--json"]
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def table(folder: Path, names: list[str]) -> list[str]:
    """In Markdown, a row for each figure."""
    lines = ["| case | figure | goal | reached |", "|---|---|---|---|"]
    for name in names:
        for i, figure in enumerate(CASES[name][1]):
            found = json.loads(_file(folder, name).read_text(encoding="utf-8"))["comparisons"]
            lines.append(f"| {'' if i else name} | {figure.name} | {figure.goal} | {figure.read(found)} |")
    return lines


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(', ', '-').replace(' ', '-').replace(',', '')}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the cases that are held up to, and print their table.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"All, or some of: {'; '.join(CASES)}.")
    parser.add_argument("--out", type=Path, default=Path("measured"), help="Where the JSON is kept.")
    parser.add_argument("--only-table", action="store_true", help="Run nothing.")
    options = parser.parse_args()
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; choose among: {'; '.join(CASES)}")
    names = options.cases or list(CASES)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in names if not options.only_table else []:
        print(f"clearhead bench {CASES[name][0]}", file=sys.stderr, flush=True)
        _file(options.out, name).write_text(json.dumps(run(CASES[name][0]), indent=1), encoding="utf-8")
    print("\n".join(table(options.out, [name for name in names if _file(options.out, name).exists()])))


if __name__ == "__main__":
    main()
