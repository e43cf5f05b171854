"""What a configuration asks for at least, beside the memory of this machine: said before any is taken.

Counted is what cannot be done without: the weights of the network in float32, what the layers hand on for the largest
batch, the hypotheses of a search, the processes. What a training holds in all is measured later: see `forecast`.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import torch

from clearhead.train.config import Config, Network, Tokens

_FLOAT = 4
_PROCESS = 2**27
"""Bytes of a process that has torch in it, at least."""
_LEARNT = ("bpe", "unigram")
"""Kinds of vocabularies that take memory by the size that is asked for, whatever the texts hold."""


class Problem(NamedTuple):
    """A key that asks for too much, and what is said about it."""

    path: str
    words: str


def too_large(config: Config) -> Problem | None:
    """The key that asks for more than this machine has; None where all could fit."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < config.train.devices:
        words = f"{config.train.devices:,} GPUs are asked for, and this machine has {gpus}: write a smaller number"
        return Problem("train.devices", words)
    has = memory()
    for what, needs, keys in _needs(config):
        if needs > has:
            path = max(keys, key=lambda key: _excess(config, key))
            words = f"{_value(config, path):,} would need {_said(needs)} for {what} alone, and this machine has"
            return Problem(path, f"{words} {_said(has)}: write a smaller number")
    return None


def beyond(needs: int, what: str) -> str | None:
    """What is to be said where `what` needs more bytes than this machine has; or None."""
    has = memory()
    return None if needs <= has else f"{what} would need {_said(needs)}, and this machine has {_said(has)}"


def of_weights(network: Network, source: int, target: int) -> str | None:
    """What is to be said where the weights, for vocabularies of `source` and `target` tokens, do not fit; or None."""
    return beyond(_FLOAT * weights(network, source, target), "its weights")


def of_beam(beam: int, vocabulary: int) -> str | None:
    """Return a message if the scores of this number of hypotheses do not fit into memory, else None."""
    return beyond(_FLOAT * beam * vocabulary, "its scores")


def weights(network: Network, source: int, target: int) -> int:
    """The weights of the network's matrices, for vocabularies of `source` and `target` tokens."""
    width, half = network.embed_dim, network.embed_dim * (network.kv_heads or network.num_heads) // network.num_heads
    attention, feed = 2 * width * (width + half), 2 * width * (network.ff_dim or 4 * width)
    encoder, decoder = (network.encoder_layers or network.layers), (network.decoder_layers or network.layers)
    learned = 2 * network.max_length * width if network.positions == "learned" else 0
    tables = width * (target if network.share_embeddings else source + target)
    return encoder * (attention + feed) + decoder * (2 * attention + feed) + tables + learned


def memory() -> int:
    """Bytes of memory of this machine, or of its largest GPU, whichever is more."""
    gpus = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return max([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *gpus])


def _needs(config: Config) -> Iterator[tuple[str, int, list[str]]]:
    """What is needed, its bytes, and the keys that it depends on."""
    network, width = config.model, config.model.embed_dim
    source, target = (_vocabulary(side) for side in config.data.tokenizers())
    layers = (network.encoder_layers or network.layers) + (network.decoder_layers or network.layers)
    sides = [f"model.{key}" for key in ("layers", "encoder_layers", "decoder_layers")]
    sizes = [f"data.{key}.size" for key in ("tokenizer", "source_tokenizer", "target_tokenizer")]
    shape = [*sides, *(f"model.{key}" for key in ("embed_dim", "ff_dim", "max_length"))]
    yield "its weights", _FLOAT * weights(network, source, target), [*shape, *sizes]
    yield "a batch", _FLOAT * config.data.batch_tokens * width * layers, ["data.batch_tokens", *shape]
    yield "the hypotheses", _FLOAT * config.decode.beam * width, ["decode.beam"]
    yield "the processes", _PROCESS * config.train.devices * (not torch.cuda.is_available()), ["train.devices"]


def _vocabulary(side: Tokens) -> int:
    return side.size if side.kind in _LEARNT else 0


def _value(config: Config, path: str) -> int:
    value: object = config
    for key in path.split("."):
        value = getattr(value, key, None)
    return value if isinstance(value, int) else 0


def _excess(config: Config, path: str) -> float:
    """How many times what is usual a key asks for."""
    usual = {"ff_dim": 512, "encoder_layers": 2, "decoder_layers": 2}.get(path.rpartition(".")[2])
    return _value(config, path) / (usual or _value(Config(), path) or Tokens().size)


def _said(count: int) -> str:
    for name, size in (("EB", 10**18), ("TB", 10**12), ("GB", 10**9)):
        if count >= size:
            return f"{count / size:,.0f} {name}"
    return f"{count / 10**6:,.0f} MB"
