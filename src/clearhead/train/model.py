"""A trained model: the network with its tokenizers, from source texts to target texts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save

from clearhead.data import BOS, EOS, Ragged, SourceTexts, Tokenizer
from clearhead.data.checks import check_lengths, check_texts, too_long, unusable
from clearhead.data.texts import Asked, in_blocks
from clearhead.errors import ConfigError, DataError, InputError, RunError
from clearhead.maps import AttentionMap, Softmax
from clearhead.nn import Hypothesis, Seq2Seq, generate, maps
from clearhead.patterns import parse
from clearhead.train import sizes
from clearhead.train.config import Config
from clearhead.train.folder import RunFolder, write_atomically

_BLOCK = 1024
_BATCH_TOKENS = 16_384  # of all beams together, so that memory does not depend on how much is asked


@dataclass(frozen=True)
class Prediction:
    """One target text, the score that ranks it (higher is better), and whether it ended within the limit."""

    text: str
    score: float
    finished: bool


def build(config: Config, source: Tokenizer, target: Tokenizer) -> Seq2Seq:
    """The network that a configuration describes, newly initialised from torch's global generator."""
    network = config.model
    if (problem := sizes.of_weights(network, len(source), len(target))) is not None:
        raise ConfigError(f"model: {problem}")
    mechanism = None if network.pattern is None else Softmax(parse(network.pattern))
    return Seq2Seq(
        len(source),
        len(target),
        embed_dim=network.embed_dim,
        num_heads=network.num_heads,
        ff_dim=network.ff_dim,
        encoder_layers=network.encoder_layers or network.layers,
        decoder_layers=network.decoder_layers or network.layers,
        kv_heads=network.kv_heads,
        mechanism=mechanism,
        positions=network.positions,
        max_length=network.max_length,
        dropout=network.dropout,
        attention_dropout=network.attention_dropout,
        share_embeddings=network.share_embeddings,
    )


class Model:
    """What a run folder predicts with.

    config, source_tokenizer, target_tokenizer: the settings, and how texts become tokens. module: the network, in
    evaluation mode. folder: where its run lies, None where it has none.
    """

    def __init__(
        self,
        module: Seq2Seq,
        source: Tokenizer,
        target: Tokenizer,
        config: Config,
        folder: RunFolder | None = None,
    ) -> None:
        self.module, self.config, self.folder = module.eval(), config, folder
        self.source_tokenizer, self.target_tokenizer = source, target

    def predict_each(
        self,
        texts: Iterable[str] | SourceTexts,
        *,
        beam: int | None = None,
        n_best: int = 1,
        truncate: bool = False,
        unfamiliar: Callable[[list[str]], None] | None = None,
        refused: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[str, list[Prediction]]]:
        """Each text with its `n_best` predictions, in their order, in memory that does not grow with their number.

        unfamiliar: called once with what training never saw. refused: called for each text that arrives, such as
        through a pipe, and cannot be read; it has no predictions, and others go on. Any other text that cannot be read
        raises DataError, those of files before anything is predicted. Other arguments are as for `predict`.
        """
        beam = self._beam(beam, n_best)
        if isinstance(texts, SourceTexts):
            for block in texts.known():
                self._read(block, truncate)
        known, first = set[str](), True
        for block in texts.blocks(_BLOCK) if isinstance(texts, SourceTexts) else in_blocks(texts, _BLOCK):
            rows = self._read(block, truncate, refused)
            read = [text for text, row in zip(block.texts, rows, strict=True) if row is not None]
            strange = [part for part in self.unfamiliar(read) if part not in known]
            if strange and unfamiliar:
                unfamiliar(strange)
            known.update(strange[: _BLOCK - len(known)])
            found = iter(self._found([row for row in rows if row is not None], beam, n_best))
            for text, row in zip(block.texts, rows, strict=True):
                yield text, [] if row is None else next(found)
            first = False
        if first:
            check_texts([])

    def _read(
        self, asked: Asked, truncate: bool, refused: Callable[[str], None] | None = None
    ) -> list[list[int] | None]:
        """The tokens of each text; of one that cannot be read, None where that is said, else DataError."""
        whys = [self._unreadable(text) for text in asked.texts]
        tokens = iter(self.source_tokenizer.encode([t for t, why in zip(asked.texts, whys, strict=True) if not why]))
        limit = self.config.model.max_length
        rows: list[list[int] | None] = []
        for number, (text, why) in enumerate(zip(asked.texts, whys, strict=True)):
            row = None if why else next(tokens)
            if row and len(row) > limit and not truncate:
                why, row = too_long(text, len(row), limit), None
            if why and not (refused and asked.arriving):
                raise DataError(f"{asked.where(number)}: {why}")
            if why and refused:
                refused(f"{asked.where(number)}: {why}")
            rows.append(row and row[:limit])
        return rows

    def _unreadable(self, text: str) -> str | None:
        """Why a text has no tokens, None where it has."""
        if why := unusable(text):
            return why
        try:
            self.source_tokenizer.check([text])
        except InputError as error:
            return str(error)
        return None

    @overload
    def predict(
        self, texts: Sequence[str], *, beam: int | None = None, n_best: None = None, truncate: bool = False
    ) -> list[str]: ...

    @overload
    def predict(
        self, texts: Sequence[str], *, beam: int | None = None, n_best: int, truncate: bool = False
    ) -> list[list[Prediction]]: ...

    def predict(
        self, texts: Sequence[str], *, beam: int | None = None, n_best: int | None = None, truncate: bool = False
    ) -> list[str] | list[list[Prediction]]:
        """The target of each source text, or with `n_best` the best so many of each, with their scores.

        beam: hypotheses that are kept while searching; None: as configured, 1: greedy. At least n_best.
        truncate: cut texts longer than the model reads, instead of raising DataError.
        """
        count = n_best or 1
        beam = self._beam(beam, count)
        check_texts(texts)
        tokens = self.source_tokenizer.encode(texts)
        found = self._found(check_lengths(texts, tokens, self.config.model.max_length, truncate), beam, count)
        return [best[0].text for best in found] if n_best is None else found

    def _beam(self, beam: int | None, n_best: int) -> int:
        beam = max(self.config.decode.beam, n_best) if beam is None else beam
        if not 1 <= n_best <= beam:
            raise InputError(f"n_best is {n_best} and beam {beam}: 1 <= n_best <= beam is needed")
        if (problem := sizes.of_beam(beam, len(self.target_tokenizer))) is not None:
            raise InputError(f"beam is {beam:,}: {problem}")
        return beam

    def _found(self, rows: Sequence[Sequence[int]], beam: int, n_best: int) -> list[list[Prediction]]:
        decode = self.target_tokenizer.decode
        return [
            [Prediction(decode(one.tokens), one.score, one.finished) for one in best]
            for best in self._search(Ragged.of(rows), beam, n_best)
        ]

    def unfamiliar(self, texts: Sequence[str]) -> list[str]:
        """What is in the texts that training never saw; it is read as bytes."""
        return list(dict.fromkeys(part for text in texts for part in self.source_tokenizer.spelled(text)))

    def maps(self, text: str, target: str | None = None) -> dict[str, AttentionMap]:
        """The attention of every layer while the model turns a source text into its target (as predicted, or as given).

        Keys are module paths: "encoder.layers.0.attention", "decoder.layers.0.cross_attention". Columns of encoder and
        cross attention are `source_tokenizer.labels(text)`; rows of the decoder are those at which each target token,
        and then the end, is predicted.
        """
        written = self.predict([text])[0] if target is None else target
        tokens = [BOS, *self.target_tokenizer.encode([written])[0]]
        device = next(self.module.parameters()).device
        read = torch.tensor(self.source_tokenizer.encode([text]), device=device)
        with torch.no_grad():
            return maps(self.module, read, torch.tensor([tokens], device=device))

    @torch.no_grad()
    def _search(self, source: Ragged, beam: int, n_best: int) -> list[list[Hypothesis]]:
        """Sources of one length together: no padding, and the first batches are the slowest."""
        device = next(self.module.parameters()).device
        order = source.lengths.argsort(descending=True, stable=True)
        found: list[list[Hypothesis]] = [[] for _ in order]
        start = 0
        while start < len(order):
            length = int(source.lengths[order[start]])
            stop = min(start + max(1, _BATCH_TOKENS // (length * beam)), len(order))
            stop = start + int((source.lengths[order[start:stop]] == length).sum())
            rows = order[start:stop]
            results = generate(
                self.module,
                source.gather(rows)[0].to(device),
                bos=BOS,
                eos=EOS,
                max_length=self.config.model.max_length,
                beam=beam,
                length_penalty=self.config.decode.length_penalty,
                n_best=n_best,
            )
            for row, result in zip(rows.tolist(), results, strict=True):
                if not result:
                    raise RunError("the model's output is NaN: its weights are too large; train it anew")
                found[row] = result
            start = stop
        return found

    def save(self, folder: RunFolder) -> None:
        """Write the weights into a run folder; what is tied is written once."""
        once = {weight.data_ptr(): name for name, weight in reversed(self.module.state_dict().items())}
        weights = {
            name: weight.contiguous() for name, weight in self.module.state_dict().items() if name in once.values()
        }
        made_with = {"source": self.source_tokenizer.digest, "target": self.target_tokenizer.digest}
        write_atomically(folder.model, lambda file: file.write(save(weights, made_with)))


def load(path: str | Path) -> Model:
    """The model of a run folder, such as "runs/g2p".

    Raises RunError when the folder is missing, half-written, damaged or of a newer version.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    if not folder.model.exists():
        raise RunError(
            f"{path} has no model.safetensors: its training has not ended; go on with "
            f"`clearhead train {config.task} --name {folder.path.name} --resume`"
        )
    source, target = folder.read_tokenizers()
    made_with, shapes = _header(folder)
    for path_of, tokenizer in ((folder.source, source), (folder.target, target)):
        if made_with.get(path_of.stem, tokenizer.digest) != tokenizer.digest:
            raise RunError(f"{path_of} is not the tokenizer that this model was trained with, but that of another run")
    module = build(config, source, target)
    _check_shapes(folder, module, shapes)
    try:
        load_model(module, folder.model)
    except Exception as error:  # safetensors raises bare Exceptions
        raise _damaged(folder, _first_line(error)) from None
    _check_finite(folder, module)
    return Model(module, source, target, config, folder)


def _header(folder: RunFolder) -> tuple[dict[str, str], dict[str, list[int]]]:
    """What model.safetensors says about itself, and the shape of each of its tensors."""
    try:
        folder.model.open("rb").close()
        with safe_open(folder.model, "pt") as file:
            return file.metadata() or {}, {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises bare Exceptions
        raise _damaged(folder, _first_line(error)) from None


def _check_shapes(folder: RunFolder, module: Seq2Seq, shapes: dict[str, list[int]]) -> None:
    """Raise RunError unless there is one tensor for each of the network's; what is tied is there once."""
    names: dict[int, list[str]] = {}
    for name, weight in module.state_dict().items():
        names.setdefault(weight.data_ptr(), []).append(name)
    known = {name: weight.shape for name, weight in module.state_dict().items()}
    for name, shape in shapes.items():
        if name not in known:
            raise _damaged(folder, f"it holds {name!r}, which the network of {folder.config.name} does not have")
        if tuple(shape) != tuple(known[name]):
            wanted = f"{tuple(known[name])}, as {folder.config.name} and the tokenizers say"
            raise _damaged(folder, f"{name} has shape {tuple(shape)}; expected {wanted}")
    for tied in names.values():
        if not shapes.keys() & set(tied):
            raise _damaged(folder, f"{tied[0]} is missing")


def _check_finite(folder: RunFolder, module: Seq2Seq) -> None:
    for name, weight in module.state_dict().items():
        if not bool(weight.isfinite().all()):
            raise RunError(
                f"{folder.model}: {name} holds NaN or Inf: the training has diverged; train again with a lower "
                "train.learning_rate"
            )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _damaged(folder: RunFolder, problem: str) -> RunError:
    return RunError(f"{folder.model} is damaged: {problem}")
