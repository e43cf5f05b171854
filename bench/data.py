"""How long it takes to check, tokenise and batch pairs from a file, and how much memory.

    python bench/data.py --pairs 1000000                       # words of the CMU dictionary, shuffled into sentences
    python bench/data.py --pairs 1000000 --like train.en.gz,train.de.gz   # sentences of these, words shuffled

Each size runs in a process of its own. Memory is its peak resident size (VmHWM on Linux), mapped files included.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sentences(like: str | None, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Pairs without end."""
    from clearhead.data import Files, open_source

    if like is None:
        entries = list(open_source("cmudict").pairs("train"))
        while True:
            chosen = [entries[min(draw.randrange(len(entries)), draw.randrange(len(entries)))] for _ in range(12)]
            yield " ".join(word for word, _ in chosen), " ".join(said.lower().replace(" ", "") for _, said in chosen)
    pairs = list(Files({"train": like.split(",")}).pairs("train"))
    while True:
        source, target = (text.split() for text in draw.choice(pairs))
        draw.shuffle(source)
        draw.shuffle(target)
        yield " ".join(source), " ".join(target)


def write(path: Path, count: int, like: str | None) -> None:
    made = sentences(like, random.Random(0))
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            file.write("\t".join(next(made)) + "\n")


def measure(path: Path) -> dict[str, Any]:
    """Seconds, and those of all cores together, of each part; the peak of memory before and after."""
    from clearhead.data import Batches, Examples, Files
    from clearhead.train import read_config
    from clearhead.train.material import make_tokenizers

    config = read_config("seq2seq", ["data.tokenizer.joint=true"])
    source, before, took = Files({"train": [str(path)]}), _peak(), {}
    now = time.perf_counter(), time.process_time()

    def done(part: str) -> None:
        nonlocal now
        later = time.perf_counter(), time.process_time()
        took[part], now = [end - start for start, end in zip(now, later, strict=True)], later

    count = source.check("train")
    done("check")
    ours, theirs = make_tokenizers(source, config.data, count)
    done("vocabulary")
    with tempfile.TemporaryDirectory() as folder:
        examples = Examples.read(source, "train", ours, theirs, limit=256, byte_share=0.02, folder=Path(folder))
        done("tokenise")
        batches = Batches(examples, config.data.batch_tokens)
        done("sort")
        given = sum(len(batch.target) for batch in batches)
        done("an epoch of batches")
    assert given == len(examples)
    return {"took": took, "before": before, "peak": _peak(), "tokens": batches.tokens, "padding": batches.padding}


def _peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--like", help="a file of pairs, or two parallel files with a comma between")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(chosen.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for count in chosen.pairs:
            path = Path(folder) / "pairs.tsv"
            write(path, count, chosen.like)
            done = subprocess.run(
                [sys.executable, __file__, "--measure", str(path)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout)
            took, tokens = found["took"], found["tokens"]
            wall, cores = (sum(parts) for parts in zip(*took.values(), strict=True))
            size, padding = path.stat().st_size / 2**20, found["padding"]
            parts = ", ".join(f"{part} {one:.1f} ({together:.1f})" for part, (one, together) in took.items())
            print(f"{count:,} pairs, {size:,.0f} MiB, {tokens:,} tokens in an epoch, {padding:.1%} padding")
            print(f"  {wall:.1f} s, {cores:.1f} s of all cores together: {parts}")
            print(f"  peak memory {found['peak']:,.0f} MiB, of which {found['before']:,.0f} before the file was opened")


if __name__ == "__main__":
    main()
