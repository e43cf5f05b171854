"""The monitor as a callback of trainers: the same numbers, the same weights, and a resume that nobody notices."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad
from torch.nn.utils import clip_grad_norm_ as shorten
from torch.nn.utils import clip_grad_value_ as clamp

from clearhead.observe import HuggingFaceAttentionMonitor, LightningAttentionMonitor
from clearhead.observe.health.remedies import QKClip, StopWithLastGood
from clearhead.observe.health.rules import EntropyFall
from clearhead.observe.monitoring.monitor import AttentionMonitor


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- Lightning


def lightning(folder, *callbacks, steps=12, resume=None, accumulate=2, batches=12, **options):
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
            drawn = [torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(i)) for i in range(batches)]
            return torch.utils.data.DataLoader(drawn, batch_size=None)

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
    assert found[2]["loss"] == pytest.approx(sum(plain.losses[10:12]) / 2, rel=1e-3)  # of the whole step
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


def test_lightning_records_the_loss_of_the_batches_that_a_step_has(tmp_path, quiet):
    """Three batches accumulated by two: the last step of an epoch has one."""
    module, _ = lightning(tmp_path, LightningAttentionMonitor(every=1), steps=4, batches=3)
    groups = [module.losses[:2], module.losses[2:3], module.losses[3:5], module.losses[5:6]]
    assert [record["loss"] for record in records(tmp_path)] == pytest.approx(
        [sum(x) / len(x) for x in groups], rel=1e-3
    )


def test_two_lightning_monitors_have_a_state_each(tmp_path, quiet):
    def monitors(folder):
        options = {"every": 1, "rows": None, "samples": None}
        return (
            LightningAttentionMonitor(**options, log=folder / "one.jsonl"),
            LightningAttentionMonitor(**options, part="model", log=folder / "two.jsonl", rules=[EntropyFall()]),
        )

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    lightning(whole, *monitors(whole))
    lightning(parts, *monitors(parts), steps=8)
    resume = str(next((parts / "kept").glob("*step=6.ckpt")))
    states = torch.load(resume, weights_only=True)["callbacks"]
    one, two = (state for key, state in states.items() if key.startswith("LightningAttentionMonitor"))
    assert [*one["baseline"]["heads"]] == ["model.layers.0.self_attn"]
    assert [*two["baseline"]["heads"]] == ["layers.0.self_attn"]
    lightning(parts, *monitors(parts), resume=resume)
    for name in ("one.jsonl", "two.jsonl"):
        assert (parts / name).read_text() == (whole / name).read_text()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("older", [True, False])
def test_a_state_of_an_older_version_or_of_other_options_is_taken_up(tmp_path, quiet, older):
    lightning(tmp_path, LightningAttentionMonitor(every=1), steps=6)
    resume = next((tmp_path / "kept").glob("*step=6.ckpt"))
    checkpoint = torch.load(resume, weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if key.startswith("LightningAttentionMonitor"))
    state = checkpoint["callbacks"][key]
    if older:
        checkpoint["callbacks"]["LightningAttentionMonitor"] = {
            name: x for name, x in checkpoint["callbacks"].pop(key).items() if name != "number"
        }
        torch.save(checkpoint, resume)
    monitor = LightningAttentionMonitor(every=4, rows=5)
    lightning(tmp_path, monitor, steps=7, resume=str(resume))
    assert monitor.monitor.state_dict()["baseline"] == state["baseline"]


def test_an_error_in_a_step_leaves_nothing_behind(tmp_path, quiet):
    def fail(*_):
        raise ZeroDivisionError

    from lightning.pytorch.callbacks import LambdaCallback

    before = clip_grad._group_tensors_by_device_and_dtype
    monitor = LightningAttentionMonitor(every=1)
    with pytest.raises(ZeroDivisionError):
        lightning(tmp_path, monitor, LambdaCallback(on_before_backward=fail))
    assert not monitor.monitor.running
    assert clip_grad._group_tensors_by_device_and_dtype is before
    assert not nn.modules.module._global_forward_hooks


def test_where_a_batch_makes_two_optimizer_steps_they_are_one(tmp_path, quiet):
    pl = pytest.importorskip("lightning.pytorch")

    class Two(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.one, self.two = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

        def training_step(self, batch, index):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.two(self.one(batch, batch, batch)[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.one, self.two)]

        def train_dataloader(self):
            return torch.utils.data.DataLoader([torch.randn(2, 9, 8)] * 8, batch_size=None)

    def train(folder, steps, resume=None):
        options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        kept = pl.callbacks.ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1, filename="{step}")
        monitor = LightningAttentionMonitor(every=4)
        trainer = pl.Trainer(default_root_dir=folder, max_steps=steps, callbacks=[monitor, kept], **options)
        trainer.fit(Two(), ckpt_path=resume)

    train(tmp_path, 16)
    assert [record["step"] for record in records(tmp_path)] == [1, 5, 9, 13]
    train(tmp_path, 16, tmp_path / "step=4.ckpt")
    assert [record["step"] for record in records(tmp_path)] == [1, 5, 9, 13]


# ---- gradients as they were before they were clipped


def loop(folder, clip):
    """A plain loop with clipping inside the monitored block, by functions imported under names of their own."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    monitor = AttentionMonitor(model, every=1, log=folder / "metrics.jsonl")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        with monitor.step():
            optimizer.zero_grad()
            loss = model(torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))).pow(3).mean()
            other = nn.Linear(2, 2)
            other(torch.ones(2)).sum().backward()
            shorten(other.parameters(), 1e-3)  # another model's, before this one has any
            loss.backward()
            if clip == "norm":
                shorten(model.parameters(), 1e-3)
                shorten(model.parameters(), 1e-4)
            elif clip == "value":
                clamp(model.parameters(), 1e-4)
            optimizer.step()


def gradient_norms(folder):
    """Those of the first step."""
    return [layer["gradient_norm"] for layer in records(folder)[0]["attention"].values()]


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_a_plain_loop_records_gradients_before_clipping(tmp_path, clip):
    loop(tmp_path / "clipped", clip)
    loop(tmp_path / "plain", None)
    assert gradient_norms(tmp_path / "clipped") == gradient_norms(tmp_path / "plain")
    assert gradient_norms(tmp_path / "plain")[0] > 1e-2


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_lightning_records_gradients_before_clipping(tmp_path, quiet, algorithm):
    options = {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": algorithm}
    lightning(tmp_path / "clipped", LightningAttentionMonitor(every=1), steps=1, **options)
    lightning(tmp_path / "plain", LightningAttentionMonitor(every=1), steps=1)
    assert gradient_norms(tmp_path / "clipped") == gradient_norms(tmp_path / "plain")
    assert gradient_norms(tmp_path / "plain")[0] > 1e-3


def test_lightning_stops_when_a_remedy_asks(tmp_path, quiet):
    class Impatient(StopWithLastGood):
        def act(self, **given):
            self.stop = True
            return ["enough"]

    monitor = LightningAttentionMonitor(every=2, remedies=[Impatient()], log=None)
    assert lightning(tmp_path, monitor)[1].global_step == 1
    assert not (tmp_path / "metrics.jsonl").exists()


# ---- transformers


def hugging_face(folder, *callbacks, steps=8, resume=None, make=None, **options):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

    transformers.logging.set_verbosity_error()
    set_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = BertForSequenceClassification(config) if make is None else make()
    ids = torch.randint(1, 30, (64, 14), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": int(row[0] % 2)} for row in ids]
    given = {
        "max_steps": steps, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_steps": 4,
        "logging_steps": 1000, "report_to": [], "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2, "seed": 0,
        "dataloader_pin_memory": False, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4, **options,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **given)
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


def test_two_hugging_face_monitors_have_a_state_each(tmp_path):
    def monitors(folder):
        lower, upper = (f"bert.encoder.layer.{i}" for i in (0, 1))
        rules = [EntropyFall(updates=3)]
        return (
            HuggingFaceAttentionMonitor(every=1, layers=lower, rules=rules, log=folder / "one.jsonl"),
            HuggingFaceAttentionMonitor(every=1, layers=upper, rules=rules, log=folder / "two.jsonl"),
        )

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    hugging_face(whole, *monitors(whole), save_steps=2)
    hugging_face(parts, *monitors(parts), steps=6, save_steps=2)
    again = monitors(parts)
    hugging_face(parts, *again, save_steps=2, resume=str(parts / "checkpoint-4"))
    for name in ("one.jsonl", "two.jsonl"):
        assert (parts / name).read_text() == (whole / name).read_text()
    for i, monitor in enumerate(again):
        assert list(monitor.monitor.baseline.state_dict()["heads"]) == [f"bert.encoder.layer.{i}.attention.self"]
    state = json.loads((whole / "checkpoint-8" / "trainer_state.json").read_text())
    assert len(state["stateful_callbacks"]["HuggingFaceAttentionMonitor"]) <= 4  # not more with each checkpoint


def test_what_a_hugging_face_checkpoint_does_not_say_of_a_monitor(tmp_path, caplog):
    hugging_face(tmp_path / "none", steps=4)
    late = HuggingFaceAttentionMonitor(every=1)
    hugging_face(tmp_path / "none", late, steps=8, resume=str(tmp_path / "none" / "checkpoint-4"))
    assert [record["step"] for record in records(tmp_path / "none")] == [5, 6, 7, 8]

    resume = tmp_path / "none" / "checkpoint-8"  # as an older version wrote it
    state = json.loads((resume / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"]["HuggingFaceAttentionMonitor"]
    state["stateful_callbacks"]["HuggingFaceAttentionMonitor"] = {
        "args": {"every": 1}, "attributes": {"kept": kept["attributes"]["kept"]}
    }  # fmt: skip
    (resume / "trainer_state.json").write_text(json.dumps(state))
    baseline = late.monitor.baseline.state_dict()
    after = HuggingFaceAttentionMonitor(every=20, remedies=[QKClip()], log=[].append)
    hugging_face(tmp_path / "none", after, steps=9, resume=str(resume), restore_callback_states_from_checkpoint=False)
    assert after.monitor.baseline.state_dict() == baseline


@pytest.mark.parametrize("lost", [{}, {"log": [].append}])
def test_a_monitor_that_the_trainer_makes_anew_says_which_options_are_lost(tmp_path, caplog, lost):
    hugging_face(tmp_path, HuggingFaceAttentionMonitor(every=2, rows=5, **lost), steps=4)
    with caplog.at_level("WARNING", "clearhead.observe"):
        resume = {"resume": str(tmp_path / "checkpoint-4"), "restore_callback_states_from_checkpoint": True}
        hugging_face(tmp_path, HuggingFaceAttentionMonitor(every=1), steps=7, **resume)
    said = [record.message for record in caplog.records if "made the monitor anew" in record.message]
    assert len(said) == len(lost)
    assert all("without its options log: leave it off" in line for line in said)
    assert [record["step"] for record in records(tmp_path)] == ([6] if lost else [1, 2, 4, 6])


class Small(nn.Module):
    """What the Trainer can train, and the compiler compiles in a second."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(30, 8), nn.Linear(8, 2)

    def forward(self, input_ids, labels):
        x = self.table(input_ids)[:, None]
        x = nn.functional.scaled_dot_product_attention(x, x, x)[:, 0]
        return {"loss": nn.functional.cross_entropy(self.last(x.mean(1)), labels)}


@pytest.mark.filterwarnings("ignore")
def test_the_hugging_face_trainer_compiles_the_model(tmp_path, caplog):
    options = {"torch_compile": True, "torch_compile_backend": "eager", "make": Small}
    with caplog.at_level("WARNING", "clearhead.observe"):
        model, _ = hugging_face(tmp_path / "with", HuggingFaceAttentionMonitor(every=1), steps=2, **options)
    plain, _ = hugging_face(tmp_path / "without", steps=2, make=Small)  # this backend runs the same operations
    for name, weight in plain.state_dict().items():
        assert weight.equal(model.state_dict()[name]), name
    (line,) = [record.message for record in caplog.records if record.name == "clearhead.observe"]
    assert line.startswith("Small is not monitored: compiled")
    assert [record["attention"] for record in records(tmp_path / "with")] == [{}] * 2


def test_the_hugging_face_trainer_records_gradients_before_clipping(tmp_path):
    for name, most in (("clipped", 1e-4), ("plain", 0)):
        hugging_face(tmp_path / name, HuggingFaceAttentionMonitor(every=1), steps=1, max_grad_norm=most)
    assert gradient_norms(tmp_path / "clipped") == gradient_norms(tmp_path / "plain")
    assert gradient_norms(tmp_path / "plain")[0] > 1e-3
