"""A model of Hugging Face from a folder on this machine: nothing is fetched, and no code but the library's own runs.

Shapes: N tokens of the source, M tokens that a decoder reads.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clearhead.errors import ClearheadError, InputError, extra
from clearhead.inspect.models import Inspected, Names, Question, Reading, Special
from clearhead.inspect.saved import check_loaded, check_saved, check_tokenizer
from clearhead.observe import Seen

TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.spm")
"""Files of which a tokenizer has one. Without any, transformers makes an empty one, in silence."""
GENERATED = 64
"""Tokens of a target that the model is asked to predict, at most."""
SHORTENING = ("canine", "funnel", "perceiver")
"""Models whose layers attend to fewer tokens than they read."""
LOCAL = {"local_files_only": True, "trust_remote_code": False}


class HuggingFaceModel(Inspected):
    """A folder that `save_pretrained` wrote: the model, and its tokenizer or image processor if it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library: Any = extra("transformers", "transformers")
        check_saved(path, self._library.CONFIG_MAPPING.keys())
        with _quiet(self._library), _refused(path, "cannot be loaded"):
            self._config = self._library.AutoConfig.from_pretrained(path, **LOCAL)
            self.model = _load(self._library, path, self._config)
        self.paired = bool(self._config.is_encoder_decoder)

    def read(self, question: Question) -> Reading:
        """The tokens of a text or the patches of an image, and for an encoder-decoder those of its target."""
        if question.target is not None and not self.paired:
            raise InputError(f"--target is for encoder-decoder models; {type(self.model).__name__} is none")
        wanted = self._any_model.main_input_name
        if question.image is not None:
            self._check(wanted == "pixel_values", "images", "reads text: give --text")
            inputs, source = {wanted: self._pixels(question.image)}, None
        else:
            self._check(wanted == "input_ids", "text", f"takes {wanted}: give --image where these are pixels")
            ids = self._ids(question)
            inputs, source = {wanted: torch.tensor([ids])}, self._names(ids)
        if not self.paired:
            return Reading(inputs, source)
        read, predicted = self._target(question.target, inputs)
        inputs["decoder_input_ids"] = torch.tensor([read])
        return Reading(inputs, source, self._names(read), self._names(predicted))

    def look(self, reading: Reading, layers: Sequence[str] | None = None, rows: int | None = None) -> Seen:
        """As of any model; where something could not be seen it is looked at once more, with plain attention.

        Not where `rows` are sampled: of what is too long for all of them, plain attention's matrix does not fit.
        """
        with _quiet(self._library), _refused(self.path, "cannot run on this"):
            seen = super().look(reading, layers, rows)
            if not seen.unseen or rows is not None:
                return seen
            self._any_model.set_attn_implementation("eager")
            plain = super().look(reading, layers)
        return plain if len(plain.unseen) < len(seen.unseen) else seen

    def weights(self, reading: Reading, layers: Sequence[str] | None = None) -> int:
        """Those of one layer: of which kind the others are only their modules know."""
        text = self._config.get_text_config()
        if reading.source is None or self.paired or getattr(text, "model_type", "") in SHORTENING:
            return 0
        heads = getattr(text, "num_attention_heads", 0)
        return heads * len(reading.source) ** 2 if isinstance(heads, int) else 0

    @property
    def encoder(self) -> str:
        encoder = self._any_model.get_encoder()
        return next((path for path, module in self.model.named_modules() if module is encoder), "encoder")

    @property
    def longest(self) -> int:
        """How many tokens of a target the model is asked to predict, at most."""
        limit = _positions(self._config, self.model)
        return GENERATED if limit is None else min(GENERATED, limit - 1)

    @property
    def _any_model(self) -> Any:
        return self.model

    def _check(self, fits: bool, what: str, instead: str) -> None:
        if not fits:
            raise InputError(f"{type(self.model).__name__} does not read {what}: it {instead}")

    # tokens

    @cached_property
    def _tokenizer(self) -> Any:
        if not any(file for pattern in TOKENIZERS for file in self.path.glob(pattern)):
            raise InputError(
                f"{self.path} has no tokenizer: add tokenizer.json (tokenizer.save_pretrained), or give token numbers "
                "with --tokens 1,2,3"
            )
        check_tokenizer(self.path)
        with _quiet(self._library), _refused(self.path, "has a tokenizer that cannot be loaded"):
            return self._library.AutoTokenizer.from_pretrained(self.path, **LOCAL)

    def _ids(self, question: Question) -> list[int]:
        if question.tokens is None:
            ids = self._tokenizer(question.text)["input_ids"]
            self._check_numbers(ids, ": its tokenizer belongs to another model; save the two together")
        else:
            ids = list(question.tokens)
            self._check_numbers(ids)
        if not ids:
            raise InputError("the text has no tokens; give one that is not empty")
        self._check_length(ids, "the text")
        return ids

    def _check_numbers(self, ids: list[int], why: str = "") -> None:
        table = self._any_model.get_input_embeddings()
        for number in ids:
            if not 0 <= number < table.num_embeddings:
                raise InputError(
                    f"token {number} is not in the model's vocabulary, 0 … {table.num_embeddings - 1}{why}"
                )

    def _check_length(self, ids: list[int], what: str) -> None:
        limit = _positions(self._config, self.model)
        if limit is not None and len(ids) > limit:
            raise InputError(f"{what} has {len(ids)} tokens, and the model positions for {limit}: shorten it")

    def _names(self, ids: list[int]) -> Names:
        """What each token is called: its text where that can be read, else its name in the vocabulary or its number."""
        try:
            tokenizer = self._tokenizer
        except InputError:
            return [str(number) for number in ids]
        return [_name(tokenizer, number) for number in ids]

    def _pixels(self, image: Path) -> torch.Tensor:
        pillow: Any = extra("PIL.Image", "transformers")
        try:
            picture = pillow.open(image).convert("RGB")
        except OSError as error:
            why = error.strerror or "it is no picture that can be read"
            raise InputError(f"{image}: {why.lower()}") from None
        with _quiet(self._library), _refused(self.path, "has no image processor that can be loaded"):
            processor = self._library.AutoImageProcessor.from_pretrained(self.path, **LOCAL)
            return processor(picture, return_tensors="pt")["pixel_values"].to(self._any_model.dtype)

    # the target of an encoder-decoder

    def _target(self, target: str | None, inputs: dict[str, Any]) -> tuple[list[int], list[int]]:
        """What the decoder reads and what it is to predict, M numbers each."""
        if target is None:
            return self._predicted(inputs)
        labels = self._tokenizer(text_target=target)["input_ids"]
        start, end = self._special("decoder_start_token_id", "bos_token_id"), self._special("eos_token_id")
        if start is None:
            raise InputError(f"{self.path}: its configuration has no decoder_start_token_id: add it")
        if end is not None and labels[-1:] != [end]:
            labels = [*labels, end]
        self._check_length(labels, "the target")
        return [start, *labels[:-1]], labels

    def _special(self, *names: str) -> int | None:
        """A special token by the first of its names under which it is configured; of several, their first."""
        for settings in (getattr(self.model, "generation_config", None), self._config):
            for name in names:
                number = getattr(settings, name, None)
                if number is not None:
                    return int(number[0] if isinstance(number, Sequence) else number)
        return None

    def _predicted(self, inputs: dict[str, Any]) -> tuple[list[int], list[int]]:
        """The same for the target that the model predicts greedily."""
        if not self._any_model.can_generate():
            raise InputError(f"{type(self.model).__name__} has no head that predicts a target: give --target")
        greedily = {"do_sample": False, "num_beams": 1, "max_new_tokens": self.longest}
        with _quiet(self._library), _refused(self.path, "cannot predict a target"):
            out = self._any_model.generate(**inputs, **greedily)
        ids = out[0].tolist()
        return ids[:-1], ids[1:]


def _load(library: Any, path: Path, config: Any) -> nn.Module:
    """The model as the class that was saved, so that module paths are those its users know."""
    named = getattr(library, (config.architectures or [""])[0] or "AutoModel", None)
    known = isinstance(named, type) and issubclass(named, library.PreTrainedModel)
    options: dict[str, Any] = {"config": config, "use_safetensors": True, "dtype": "auto", **LOCAL}
    loader: Any = named if known else library.AutoModel
    # where shapes differ the library asks for a report that nobody reads; it is told to go on, and then judged
    model, info = loader.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    check_loaded(path, info, type(model).__name__)
    return model.eval()


def _positions(config: Any, model: nn.Module) -> int | None:
    """How many tokens the model has positions for; None: any number."""
    limits = [getattr(config.get_text_config(), "max_position_embeddings", None)]
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:  # positions begin behind it (RoBERTa)
            limits.append(table.num_embeddings - table.padding_idx - 1)
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)


def _name(tokenizer: Any, number: int) -> str:
    token = tokenizer.convert_ids_to_tokens(number)
    if token is None:
        return str(number)
    text = tokenizer.decode([number]).strip()
    name = text if text and "\N{REPLACEMENT CHARACTER}" not in text else str(token)
    stands_for_text = number not in tokenizer.all_special_ids or number == tokenizer.unk_token_id
    return name if stands_for_text else Special(name)


@contextmanager
def _refused(path: Path, what: str) -> Iterator[None]:
    """Whatever the library raises about a folder or an input, as one line; it raises nearly anything."""
    try:
        yield
    except ClearheadError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path} {what}: {lines[0]}") from error


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """The library's own advice and progress bars, which are not for who looks into a model, left out."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
