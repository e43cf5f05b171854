"""What a run is made from: one configuration, in sections, each value checked where it is set.

What a task needs differently from the defaults stands in `TASKS`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)

from clearhead.errors import InputError, nearest
from clearhead.patterns import parse


class Section(BaseModel):
    """A part of the configuration: a value, in which no unknown key hides."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Count = Annotated[int, Field(strict=True, ge=1, le=2**53)]  # beyond which it would not be the same as a float
Fraction = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_no_boolean)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(_no_boolean)]
NotNegative = Annotated[float, Field(ge=0), BeforeValidator(_no_boolean)]


class Duration(Section):
    """How long to train: so many steps, epochs or minutes."""

    amount: Positive
    unit: Literal["steps", "epochs", "minutes"]

    @classmethod
    def parse(cls, value: Any) -> Any:
        """Read "5 minutes"; other types are left to pydantic."""
        if isinstance(value, (cls, dict)):
            return value
        match = re.fullmatch(r"\s*([0-9.]+)\s*(step|epoch|minute)s?\s*", str(value))
        if not match:
            raise ValueError("write a duration as '5 minutes', '20 epochs' or '3000 steps'")
        return {"amount": match[1], "unit": match[2] + "s"}

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit[:-1] if self.amount == 1 else self.unit}"


class Tokens(Section):
    """How texts become tokens; see `clearhead.data.Tokenizer`."""

    kind: Literal["bpe", "bytes", "characters", "symbols", "unigram", "words"] = "bpe"
    size: Count = 8000
    """Tokens of the vocabulary at most."""
    joint: bool = False
    """One vocabulary for both sides."""

    @classmethod
    def named(cls, value: Any) -> Any:
        """Read "characters" as {kind: characters}."""
        return {"kind": value} if isinstance(value, str) else value


OfSide = Annotated[Tokens | None, BeforeValidator(Tokens.named)]


def _files(value: Any) -> Any:
    """Read "a,b" as two files."""
    if isinstance(value, str):
        value = tuple(part.strip() for part in value.split(","))
    if isinstance(value, (list, tuple)) and not (1 <= len(value) <= 2 and all(value)):
        raise ValueError("one file of pairs is needed, or two parallel files with a comma between")
    return value


Paths = Annotated[tuple[str, ...], BeforeValidator(_files)] | None


def _column(value: Any) -> Any:
    named = isinstance(value, str) and value
    if not (value is None or named or (type(value) is int and value >= 1)):
        raise ValueError("write the name of a column, or its number from 1")
    return value


Column = Annotated[int | str | None, PlainValidator(_column)]


class Data(Section):
    """What is learnt from, and how it is cut into batches."""

    source: str | None = None
    """What is built in and learnt from: "cmudict"; None: files."""
    train: Paths = None
    """A TSV, CSV, JSONL or Parquet file of pairs, or two parallel files of lines; so are `valid` and `test`."""
    valid: Paths = None
    test: Paths = None
    source_column: Column = None
    """By name, or by number from 1; None: what can only be meant. So is `target_column`."""
    target_column: Column = None
    tokenizer: Annotated[Tokens, BeforeValidator(Tokens.named)] = Tokens()
    source_tokenizer: OfSide = None
    """Where this side differs; so does `target_tokenizer`."""
    target_tokenizer: OfSide = None
    tokenizer_lines: Count = 100_000
    """Pairs that vocabularies are made from at most, at equal distances in `train`."""
    lowercase: bool = False
    """The case of sources is ignored."""
    truncate: bool = False
    """Cut what is longer than the model reads, instead of refusing it."""
    byte_share: Fraction = 0.02
    """The share of examples that is added a second time with one token spelled by bytes."""
    batch_tokens: Count = 4096
    """Tokens in a batch, source and target, padding included."""

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        if self.source is not None and self.train is not None:
            raise ValueError(f"source ({self.source}) and train exclude each other: set source=null")
        if self.tokenizer.joint and (self.source_tokenizer or self.target_tokenizer):
            raise ValueError("a joint tokenizer has no sides: source_tokenizer and target_tokenizer must be null")
        if any(side and side.joint for side in (self.source_tokenizer, self.target_tokenizer)):
            raise ValueError("joint belongs to data.tokenizer, which is of both sides")
        if self.tokenizer.joint and self.lowercase:
            raise ValueError("a joint tokenizer would lose the case of targets too: lowercase must be false")
        return self

    def tokenizers(self) -> tuple[Tokens, Tokens]:
        """How sources and targets become tokens."""
        return self.source_tokenizer or self.tokenizer, self.target_tokenizer or self.tokenizer


class Network(Section):
    """The model: see `clearhead.nn.Seq2Seq`."""

    embed_dim: Count = 128
    num_heads: Count = 4
    kv_heads: Count | None = None
    ff_dim: Count | None = None
    """None: 4 × embed_dim."""
    layers: Count = 2
    """Of the encoder and of the decoder, where `encoder_layers` or `decoder_layers` does not say otherwise."""
    encoder_layers: Count | None = None
    decoder_layers: Count | None = None
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    pattern: str | None = None
    """Who may attend to whom in the encoder, as in "window(8)"; None: everyone. The decoder is causal."""
    max_length: Count = 64
    """Tokens that the model reads or writes at most."""
    share_embeddings: bool = False
    """One table of embeddings for both sides, which needs a joint tokenizer."""
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _heads_divide(self) -> "Network":
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide embed_dim ({self.embed_dim})")
        if self.num_heads % (self.kv_heads or self.num_heads):
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide num_heads ({self.num_heads})")
        if self.positions == "sinusoidal" and self.embed_dim % 2:
            raise ValueError(f"embed_dim ({self.embed_dim}) must be even for sinusoidal positions")
        if self.positions == "rotary" and self.embed_dim // self.num_heads % 2:
            raise ValueError(f"embed_dim / num_heads ({self.embed_dim // self.num_heads}) must be even for rotary ones")
        return self

    @field_validator("pattern")
    @classmethod
    def _pattern_can_be_read(cls, pattern: str | None) -> str | None:
        try:
            _ = pattern is None or parse(pattern)
        except InputError as error:
            raise ValueError(str(error)) from None
        return pattern


class Training(Section):
    """How it learns."""

    duration: Annotated[
        Duration, BeforeValidator(Duration.parse), PlainSerializer(str)
    ] = Duration(amount=4.5, unit="minutes")  # fmt: skip
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: for the matrices between hidden states, with AdamW for the rest; adamw: for everything."""
    learning_rate: Positive = 6e-3
    """At its peak."""
    warmup: Fraction = 0.05
    """The share of the training in which the learning rate rises to its peak."""
    decay: Literal["cosine", "linear"] = "cosine"
    weight_decay: NotNegative = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    label_smoothing: Fraction = 0.1
    clip: Positive = 1.0
    """The norm to which longer gradients are cut."""
    accumulate: Count = 1
    """Batches whose gradients are added up before each step."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: whichever of the two was measured to be faster on this model and machine."""
    parts: Count | None = None
    """Into how many parts each batch is cut, computed side by side; None: as many as there are cores, up to 4, where
    that can be repeated bit for bit (on a CPU, without attention dropout)."""
    evaluations: Count = 5
    """How often during the training it is validated and a checkpoint is kept, at equal distances."""
    validation_samples: Count = 500
    """Validation examples whose greedy predictions are scored; the loss is of all of them."""
    patience: Count | None = None
    """Evaluations without a lower validation loss after which training stops; None: never early."""
    average: Count = 3
    """The last checkpoints whose weights are averaged into the final model, if that lowers the validation loss."""
    checkpoint: bool = False
    """Compute activations again in the backward pass instead of keeping them (Chen 2016): less memory, more time."""
    devices: Count = 1
    """GPUs, or processes on a CPU."""

    @model_validator(mode="after")
    def _parts_are_of_one_process(self) -> "Training":
        if self.devices > 1 and (self.parts or 1) > 1:  # processes add up the gradients of their own part alone
            raise ValueError(f"parts must be 1, or null, with several devices ({self.devices})")
        return self


class Monitoring(Section):
    """How attention is watched while it learns: see `clearhead.observe.AttentionMonitor`."""

    every: Count | None = 20
    """Every so many steps, and the first; None: never."""
    rows: Count | None = 16
    samples: Count | None = 16
    """So many rows of so many samples of a batch (of each of its parts) are measured, drawn at random; None: all."""
    remedies: tuple[Literal["qk-clip", "lower-learning-rate", "stop"], ...] = ()
    """What is done about alarms."""
    examples: Annotated[int, Field(strict=True, ge=0, le=16)] = 3
    """Validation examples whose maps are kept by step: see `clearhead.train.snapshots`; 0: none."""


class Decoding(Section):
    """How it predicts."""

    beam: Count = 4
    length_penalty: NotNegative = 1.0


class Config(Section):
    """All that determines a run."""

    task: str = "g2p"
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    score: Literal["auto", "exact", "pronunciation", "summary", "translation"] = "auto"
    """How predictions are judged: see `clearhead.train.judges`; auto: as the lengths of the texts suggest."""
    data: Data = Data()
    model: Network = Network()
    train: Training = Training()
    monitor: Monitoring = Monitoring()
    decode: Decoding = Decoding()

    @field_validator("task")
    @classmethod
    def _is_known(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"must be {' or '.join(TASKS)}{nearest(task, TASKS)}")
        return task

    @model_validator(mode="after")
    def _can_share(self) -> "Config":
        if self.model.share_embeddings and not self.data.tokenizer.joint:
            raise ValueError("model.share_embeddings needs one vocabulary: set data.tokenizer.joint=true")
        return self


TASKS: dict[str, dict[str, Any]] = {
    "g2p": {
        "score": "pronunciation",
        "data": {
            "source": "cmudict",
            "source_tokenizer": {"kind": "characters"},
            "target_tokenizer": {"kind": "symbols"},
            "lowercase": True,
        },
        "model": {"dropout": 0.0, "decoder_layers": 1},
    },
    "seq2seq": {"model": {"max_length": 256}},
}
"""What each built-in task sets differently from the defaults: g2p pronounces English; seq2seq learns from own files."""
