"""The arms of `clearhead bench train`: a training step of each library, and each library's own way to train."""

import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearhead.data import PAD, Batch, Examples
from clearhead.errors import InputError, extra
from clearhead.nn import Seq2Seq, Sinusoidal
from clearhead.train import parts, precision
from clearhead.train.config import Config, Monitoring
from clearhead.train.config import Training as Settings
from clearhead.train.optimizers import make_optimizer
from clearhead.train.settings import check
from clearhead.train.sizes import of_weights
from clearhead.train.task import Task, summed_loss

if TYPE_CHECKING:
    from clearhead.bench.training import TrainingCase

OURS = "Clearhead"
SMOOTHING = 0.1
Step = Callable[[Batch], object]


def model_of(case: "TrainingCase") -> Seq2Seq:
    """Our model."""
    torch.manual_seed(0)
    return Seq2Seq(
        case.vocabulary,
        case.vocabulary,
        case.embed_dim,
        case.heads,
        case.ff_dim,
        case.layers,
        case.layers,
        max_length=512,
        dropout=case.dropout,
        share_embeddings=True,
    ).train()


def config_of(case: "TrainingCase", **train: Any) -> Config:
    """The configuration of our model; `train` beyond the defaults."""
    config = check(
        {
            "data": {"batch_tokens": case.batch_tokens},
            "model": {
                "embed_dim": case.embed_dim,
                "num_heads": case.heads,
                "ff_dim": case.ff_dim,
                "layers": case.layers,
                "dropout": case.dropout,
                "max_length": 512,
            },
            "train": train,
        },
        (),
        "bench train",
    )
    if (problem := of_weights(config.model, case.vocabulary, case.vocabulary)) is not None:
        raise InputError(f"bench train: {problem}; write smaller sizes")
    count = config.train.parts or parts.decide(config, torch.device("cpu"))
    return config.model_copy(update={"train": config.train.model_copy(update={"parts": count})})


def _ours(case: "TrainingCase") -> Step:
    config = config_of(case, optimizer="adamw", learning_rate=1e-4, precision=case.dtype)
    model, count, half = model_of(case), config.train.parts or 1, case.dtype == "bfloat16"
    with parts.threads(count):
        optimizer = make_optimizer(model, config.train)
        running = parts.Parts(count, model, lambda batch: summed_loss(model, batch, SMOOTHING), half)

    def step(batch: Batch) -> None:
        with parts.threads(count):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = summed_loss(model, running.start(batch), SMOOTHING)
            loss.backward()
            running.add()
            torch._foreach_div_(
                [p.grad for p in model.parameters() if p.grad is not None], float((batch.target[:, 1:] != PAD).sum())
            )
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return step


class _Plain(nn.Module):
    """What one writes around `nn.Transformer`: embeddings, positions, masks, the tied output."""

    def __init__(self, case: "TrainingCase") -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(case.vocabulary, case.embed_dim), Sinusoidal(case.embed_dim)
        nn.init.normal_(self.embedding.weight, std=case.embed_dim**-0.5)
        self.transformer = nn.Transformer(
            case.embed_dim, case.heads, case.layers, case.layers, case.ff_dim, case.dropout, nn.functional.gelu,
            batch_first=True, norm_first=True,
        )  # fmt: skip
        for module in self.transformer.modules():  # dropout where Clearhead has it: not of weights, nor inside
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout = nn.Dropout(0.0)
        self.drop = nn.Dropout(case.dropout)

    def forward(self, batch: Batch) -> Tensor:
        source, target = self._embed(batch.source), self._embed(batch.target[:, :-1])
        padding = None if batch.source_lengths is None else batch.source == PAD
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        out = self.transformer(
            source, target, tgt_mask=causal, src_key_padding_mask=padding, memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )  # fmt: skip
        return out @ self.embedding.weight.T

    def _embed(self, tokens: Tensor) -> Tensor:
        at = torch.arange(tokens.shape[1])[None]
        return self.drop(self.positions(self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim), at))


def _loop(case: "TrainingCase", model: nn.Module, logits: Callable[[Batch], Tensor]) -> Step:
    """A plain training loop around a model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(batch: Batch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
            found = logits(batch)
            loss = cross_entropy(
                found.flatten(0, 1).float(), batch.target[:, 1:].flatten(), ignore_index=PAD, label_smoothing=SMOOTHING
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _plain(case: "TrainingCase") -> Step:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about nested tensors, which norm_first rules out
        model = _Plain(case).train()
    return _loop(case, model, model)


def _marian_model(case: "TrainingCase") -> Any:
    library = extra("transformers", "bench")
    settings = library.MarianConfig(
        vocab_size=case.vocabulary,
        d_model=case.embed_dim,
        encoder_layers=case.layers,
        decoder_layers=case.layers,
        encoder_attention_heads=case.heads,
        decoder_attention_heads=case.heads,
        encoder_ffn_dim=case.ff_dim,
        decoder_ffn_dim=case.ff_dim,
        dropout=case.dropout,
        activation_function="gelu",
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
        scale_embedding=True,
        use_cache=False,
    )
    torch.manual_seed(0)
    return library.MarianMTModel(settings).train()


def _marian(case: "TrainingCase") -> Step:
    model = _marian_model(case)

    def logits(batch: Batch) -> Tensor:
        seen = None if batch.source_lengths is None else (batch.source != PAD).long()
        return model(
            input_ids=batch.source, attention_mask=seen, decoder_input_ids=batch.target[:, :-1], use_cache=False
        ).logits

    return _loop(case, model, logits)


SAME: dict[str, Callable[["TrainingCase"], Step]] = {
    OURS: _ours,
    "torch.nn.Transformer": _plain,
    "Hugging Face Marian": _marian,
}


def end_to_end(case: "TrainingCase", examples: Examples) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """One epoch by Clearhead and by `Seq2SeqTrainer`, each by its defaults, and what these were."""
    ours, said = _our_epoch(case, examples)
    return {OURS: ours, "Seq2SeqTrainer": _their_epoch(case, examples)}, [said]


def _our_epoch(case: "TrainingCase", examples: Examples) -> tuple[Callable[[], object], str]:
    """By Lightning, with the monitor of attention, in the precision that is faster here; the optimizer is Muon."""
    from lightning.pytorch import Trainer

    from clearhead.data import Batches
    from clearhead.observe.monitoring.lightning_callback import LightningAttentionMonitor

    config = config_of(case)
    count, every = config.train.parts or 1, Monitoring().every
    with parts.threads(count):
        speeds = precision.measure(model_of(case), Batches(examples, case.batch_tokens))
    best = max(speeds, key=speeds.__getitem__)
    train: Settings = config.train.model_copy(update={"precision": best})
    config = config.model_copy(update={"train": train})

    def epoch() -> None:
        with _silent(), parts.threads(count), tempfile.TemporaryDirectory() as folder:
            monitor = LightningAttentionMonitor(every or 20, part="model", rows=16, samples=16)
            trainer = Trainer(
                accelerator="cpu", max_epochs=1, precision=precision.lightning(best), logger=False, callbacks=[monitor],
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                default_root_dir=folder,
            )  # fmt: skip
            trainer.fit(Task(model_of(case), examples, config))

    said = f"Clearhead's defaults: {best}, batches of {case.batch_tokens:,} tokens, muon, {count} parts, the monitor on"
    return epoch, said


def _their_epoch(case: "TrainingCase", examples: Examples) -> Callable[[], object]:
    library = extra("transformers", "bench")
    rows = [
        {
            "input_ids": examples.source.gather(torch.tensor([i]))[0][0],
            "labels": examples.target.gather(torch.tensor([i]))[0][0][1:],
        }
        for i in range(len(examples))
    ]

    def collate(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        pad = nn.utils.rnn.pad_sequence
        sources = pad([row["input_ids"] for row in batch], batch_first=True, padding_value=PAD)
        labels = pad([row["labels"] for row in batch], batch_first=True, padding_value=-100)
        return {"input_ids": sources, "attention_mask": (sources != PAD).long(), "labels": labels}

    def epoch() -> None:
        with _silent(), tempfile.TemporaryDirectory() as folder:
            arguments = library.Seq2SeqTrainingArguments(
                folder, num_train_epochs=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
            )  # fmt: skip
            library.Seq2SeqTrainer(_marian_model(case), arguments, data_collator=collate, train_dataset=rows).train()

    return epoch


@contextlib.contextmanager
def _silent() -> Any:
    """Without what trainers print, warn and advertise."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "transformers")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
