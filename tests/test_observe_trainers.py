"""The monitor as a callback of trainers: the same numbers, the same weights, and a resume that nobody notices."""

import json

import pytest
import torch
from torch import nn

from clearhead.observe import HuggingFaceAttentionMonitor, LightningAttentionMonitor
from clearhead.observe.health.remedies import StopWithLastGood
from clearhead.observe.monitoring.monitor import AttentionMonitor


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- Lightning


def lightning(folder, *callbacks, steps=12, resume=None, accumulate=2, **options):
    pl = pytest.importorskip("lightning.pytorch")

    class Learns(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.losses = []

        def training_step(self, batch, index):
            loss = (self.model(batch) - batch.roll(1, 1)).square().mean()
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-2)

        def train_dataloader(self):
            batches = [torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(i)) for i in range(2 * 6)]
            return torch.utils.data.DataLoader(batches, batch_size=None)

    checkpoints = pl.callbacks.ModelCheckpoint(folder / "kept", every_n_train_steps=6, save_top_k=-1)
    trainer = pl.Trainer(
        default_root_dir=folder, max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=accumulate, callbacks=[*callbacks, checkpoints], **options,
    )  # fmt: skip
    module = Learns()
    trainer.fit(module, ckpt_path=resume)
    return module, trainer


@pytest.fixture
def quiet():
    pytest.importorskip("lightning")
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", module="torch.jit")
        yield


def test_lightning_monitors_the_first_batch_of_a_step(tmp_path, quiet):
    monitor = LightningAttentionMonitor(every=3, part="model", rows=None, samples=None)
    module, _ = lightning(tmp_path / "with", monitor)
    plain, _ = lightning(tmp_path / "without")
    for name, weight in plain.state_dict().items():
        assert weight.equal(module.state_dict()[name])
    found = records(tmp_path / "with")
    assert [record["step"] for record in found] == [1, 3, 6, 9, 12]
    fresh, _ = lightning(tmp_path / "none", steps=0)
    alone = AttentionMonitor(fresh.model, every=1, rows=None, samples=None)
    with alone.step(1):
        fresh.model.train()(next(iter(fresh.train_dataloader())))
    for name, values in found[0]["attention"]["layers.0.self_attn"].items():
        if name not in ("weight_norm", "gradient_norm"):
            assert values == alone.record["attention"]["layers.0.self_attn"][name], name
    assert found[0]["attention"]["layers.0.self_attn"]["gradient_norm"] > 0
    assert found[2]["loss"] == pytest.approx(plain.losses[11], rel=1e-3)
    assert found[0]["learning_rate"] == 1e-2


def test_lightning_resumes_as_if_it_had_not_stopped(tmp_path, quiet):
    lightning(tmp_path / "whole", LightningAttentionMonitor(every=1))
    parts = tmp_path / "parts"
    lightning(parts, LightningAttentionMonitor(every=1), steps=8)
    resume = str(next((parts / "kept").glob("*step=6.ckpt")))
    state = torch.load(resume, weights_only=True)["callbacks"]
    assert any(key.startswith("LightningAttentionMonitor") for key in state)
    _, trainer = lightning(parts, LightningAttentionMonitor(every=1), resume=resume)
    assert records(parts) == records(tmp_path / "whole")
    assert trainer.global_step == 12


def test_lightning_stops_when_a_remedy_asks(tmp_path, quiet):
    class Impatient(StopWithLastGood):
        def act(self, **given):
            self.stop = True
            return ["enough"]

    monitor = LightningAttentionMonitor(every=2, remedies=[Impatient()], log=None)
    assert lightning(tmp_path, monitor)[1].global_step == 1
    assert not (tmp_path / "metrics.jsonl").exists()


# ---- transformers


def hugging_face(folder, *callbacks, steps=8, resume=None):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

    transformers.logging.set_verbosity_error()
    set_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = BertForSequenceClassification(config)
    ids = torch.randint(1, 30, (64, 14), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": int(row[0] % 2)} for row in ids]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        save_steps=4, logging_steps=1000, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=1e-2, seed=0,
        dataloader_pin_memory=False, lr_scheduler_type="constant_with_warmup", warmup_steps=4,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return model, trainer


def test_the_hugging_face_trainer(tmp_path):
    model, _ = hugging_face(tmp_path / "with", HuggingFaceAttentionMonitor(every=2))
    plain, _ = hugging_face(tmp_path / "without")
    for name, weight in plain.state_dict().items():
        assert weight.equal(model.state_dict()[name]), name
    found = records(tmp_path / "with")
    assert [record["step"] for record in found] == [1, 2, 4, 6, 8]
    for record in found:
        assert list(record["attention"]) == [f"bert.encoder.layer.{i}.attention.self" for i in (0, 1)]
        assert all(0 < x < 3 for layer in record["attention"].values() for x in layer["entropy"])
        assert all(layer["gradient_norm"] > 0 for layer in record["attention"].values())
    assert [record["learning_rate"] for record in found] == [0, 2.5e-3, 7.5e-3, 1e-2, 1e-2]

    parts = tmp_path / "parts"
    hugging_face(parts, HuggingFaceAttentionMonitor(every=2), steps=6)
    _, trainer = hugging_face(parts, HuggingFaceAttentionMonitor(every=2), resume=str(parts / "checkpoint-4"))
    assert records(parts) == found
    assert trainer.state.global_step == 8
