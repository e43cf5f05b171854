"""What watching costs: one call, and a model of BERT's shape, beside eager attention that returns its matrix."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from clearhead.bench.comparison import Comparison, Say, compare, peak_memory
from clearhead.errors import InputError, extra
from clearhead.maps import Softmax
from clearhead.observe import watch
from clearhead.train.sizes import beyond

WATCHED, EAGER, PLAIN = "watched, all statistics", "output_attentions and entropy", "not watched"


def bench_watch(
    length: int = 2048, layers: int = 12, rounds: int = 5, long: int | None = None, say: Say | None = None
) -> list[Comparison]:
    """Time and memory of statistics and of watching, against eager attention with the entropy of its weights.

    Args:
        length: tokens.
        layers: of the model, which else has BERT-base's shape (width 768, 12 heads).
        long: a length that is watched as well, in a process of its own, for its memory; None: none.
    """
    eager = f"{length:,} tokens, {layers:,} layers: eager attention and the model"
    if (problem := beyond(2 * 4 * 12 * length**2 + 4 * 7_000_000 * layers, eager)) is not None:
        raise InputError(f"{problem}; write smaller ones, and see what watching holds at a great length with --long")
    if (problem := beyond(3 * 4 * 768 * (long or 0), f"--long {long}: a layer")) is not None:
        raise InputError(f"{problem}; write a smaller one")
    found = [one_call(length, rounds, say), whole_model(length, layers, rounds, say)]
    if long is not None:
        found.append(long_model(long, say))
    return found


def one_call(length: int, rounds: int, say: Say | None = None) -> Comparison:
    """Exact statistics of one attention call, 8 heads of width 64, beside the fused call itself."""
    q, k, v = calls(length)
    A = Softmax()(q, k)
    arms: dict[str, Callable[[], object]] = {
        "fused attention": lambda: scaled_dot_product_attention(q, k, v),
        "its statistics": A.statistics,
        "both in one pass": lambda: A.apply(v, statistics=True),
        "eager attention, entropy": lambda: eager(q, k, v),
    }
    with torch.no_grad():
        return compare(f"one call, {length:,} tokens, 8 heads", arms, "fused attention", rounds, say)


def calls(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values whose logits vary about as much as those of trained models."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 8, length, 64, generator=generator) for _ in range(3))
    return q * 1.5, k * 1.5, v


def eager(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention with its matrix, and the entropy of each row."""
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return weights @ v, torch.special.entr(weights).sum(-1)


def whole_model(length: int, layers: int, rounds: int, say: Say | None = None) -> Comparison:
    """A forward pass of BERT-base's shape, randomly initialised."""
    arms = {arm: prepared(arm, length, layers) for arm in (EAGER, WATCHED, PLAIN)}
    found = compare(f"BERT-base's shape, {length:,} tokens, {layers} layers", arms, EAGER, rounds, say)
    memory = {}
    for arm in arms:
        if say:
            say(f"memory: {arm}")
        memory[arm] = peak_memory(__name__, "prepared", arm=arm, length=length, layers=layers)
    return Comparison(found.title, found.seconds, found.peer, memory)


def long_model(length: int, say: Say | None = None) -> Comparison:
    """One layer of that shape at a length where eager attention would hold a matrix of 12 heads × n²."""
    if say:
        say(f"memory at {length:,} tokens")
    memory = {WATCHED: peak_memory(__name__, "prepared", arm=WATCHED, length=length, layers=1)}
    matrix = {"one eager matrix would hold": 12 * 4 * length**2}
    title = f"peak memory, one layer, {length:,} tokens"
    seconds = {arm: [float("nan")] for arm in (*memory, *matrix)}
    return Comparison(title, seconds, "one eager matrix would hold", memory | matrix)


def prepared(arm: str, length: int, layers: int) -> Callable[[], object]:
    """One arm of `whole_model`, ready to run."""
    transformers: Any = extra("transformers", "transformers")
    room = {"max_position_embeddings": max(512, length), "vocab_size": 1000}
    config = transformers.BertConfig(num_hidden_layers=layers, **room)
    torch.manual_seed(0)
    way = "eager" if arm == EAGER else "sdpa"
    model = transformers.BertModel._from_config(config, attn_implementation=way).eval()
    ids = torch.randint(0, 1000, (1, length), generator=torch.Generator().manual_seed(0))
    run = {EAGER: _eager, WATCHED: _watched, PLAIN: _plain}[arm]
    return lambda: run(model, ids)


@torch.no_grad()
def _eager(model: Any, ids: Tensor) -> object:
    out = model(ids, output_attentions=True)
    return [torch.special.entr(weights).sum(-1) for weights in out.attentions]


@torch.no_grad()
def _watched(model: Any, ids: Tensor) -> object:
    with watch(model) as seen:
        model(ids)
    return seen


@torch.no_grad()
def _plain(model: Any, ids: Tensor) -> object:
    return model(ids)
