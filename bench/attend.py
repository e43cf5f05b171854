"""What Clearhead costs beside PyTorch, measured in pairs in one run: `python bench/attend.py [--json]`.

- start-up: `import clearhead` beyond `import torch`, and `clearhead --help`, each in fresh processes;
- a bare `ch.attend` beside `scaled_dot_product_attention` at 8 tokens, one head, in microseconds;
- the output with all row statistics, `received` and `pool`, beside scaled_dot_product_attention alone, as ratios, with
  eager attention and its matrix as the peer.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

import clearhead as ch


def pairs(a: Callable[[], object], b: Callable[[], object], rounds: int, repeat: int) -> list[tuple[float, float]]:
    """Seconds that one call of `a` and of `b` takes, measured in turn."""

    def seconds(function: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(repeat):
            function()
        return (time.perf_counter() - start) / repeat

    a(), b()
    return [(seconds(a), seconds(b)) for _ in range(rounds)]


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "quarter": low, "three_quarters": high}


def process(*arguments: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def start_up() -> dict[str, dict[str, float]]:
    use = "import torch, clearhead as ch; ch.attend, ch.nn, ch.Softmax, ch.causal"
    bare = pairs(process("-c", "import torch, clearhead"), process("-c", "import torch"), 3, 1)
    full = pairs(process("-c", use), process("-c", "import torch"), 3, 1)
    answer = pairs(process("-m", "clearhead.cli", "--help"), process("-c", "pass"), 3, 1)
    return {
        "import clearhead beyond import torch, s": spread([a - b for a, b in bare]),
        "with attend, nn, Softmax and causal used, s": spread([a - b for a, b in full]),
        "clearhead --help, s": spread([a for a, _ in answer]),
    }


@torch.no_grad()
def small() -> dict[str, dict[str, float]]:
    x = torch.randn(1, 1, 8, 64)
    plain = pairs(lambda: ch.attend(x, x, x), lambda: sdpa(x, x, x), 21, 2000)
    causal = ch.causal()
    masked = pairs(lambda: ch.attend(x, x, x, causal), lambda: sdpa(x, x, x, is_causal=True), 21, 500)
    return {
        "attend beyond sdpa, 8 tokens, µs": spread([1e6 * (a - b) for a, b in plain]),
        "causal attend beyond sdpa, 8 tokens, µs": spread([1e6 * (a - b) for a, b in masked]),
    }


@torch.no_grad()
def sight(n: int, heads: int) -> dict[str, dict[str, float]]:
    q, k, v = (torch.randn(1, heads, n, 64) for _ in range(3))
    A = ch.Softmax()(q, k)

    def eager() -> object:
        weights = torch.softmax(q @ k.mT / 8, -1)
        return weights @ v, torch.special.entr(weights).sum(-1), weights.amax(-1), weights[..., 0]

    candidates = {
        "output + all row statistics": lambda: A.apply(v, statistics=True),
        "eager: matrix, output, three statistics": eager,
        "received": lambda: A.received(),
        "pool(64, 64)": lambda: A.pool(64, 64),
        "statistics of 64 sampled rows": lambda: A.statistics(range(0, n, n // 64)),
    }
    plain = lambda: sdpa(q, k, v)  # noqa: E731
    return {
        f"{name}, n {n}, × sdpa": spread([a / b for a, b in pairs(run, plain, 7, 1)])
        for name, run in candidates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    results = {**start_up(), **small(), **sight(1024, 8), **sight(4096, 4)}
    if parser.parse_args().json:
        print(json.dumps(results, indent=2))
        return
    for name, row in results.items():
        print(f"{name:<48} {row['median']:>8.3f}   ({row['quarter']:.3f} to {row['three_quarters']:.3f})")


if __name__ == "__main__":
    main()
