import json
import os
import signal

import pytest
import torch

from ablation import importance_by_hand
from clearhead.data import Batches, Examples, Tokenizer
from clearhead.errors import ConfigError, DataError, InputError, RunError
from clearhead.observe import head_importance
from clearhead.train import Interrupted, Model, evaluate, load, precision, train
from clearhead.train.evaluation import validation_loss
from clearhead.train.folder import RunFolder
from clearhead.train.model import build
from clearhead.train.report import attention, draw
from tiny_task import Tiny, at_batch, small

LETTERS = Tokenizer.characters(word for word, _ in Tiny().pairs("train"))
SYMBOLS = Tokenizer.symbols(text for _, text in Tiny().pairs("train"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A run that was trained until it can spell."""
    said = []
    settings = ("model.embed_dim=32", "train.duration=600 steps", "train.learning_rate=1e-2", "data.byte_share=0.05")
    train(small(*settings, "train.precision=auto"), name="run", runs=tmp_path_factory.mktemp("runs"), say=said.append)
    return RunFolder(tmp_path_factory.getbasetemp() / "runs0" / "run"), said


def test_it_learns(learnt):
    run, _ = learnt
    scores = json.loads(run.scores.read_text())
    assert scores["words"] == len(Tiny().references("test"))
    assert 0 <= scores["per"] <= scores["wer"] < 0.2
    records = run.read_metrics()
    losses = [record["train_loss"] for record in records if "train_loss" in record]
    assert losses[-1] < losses[0] / 2
    valid = [record for record in records if "valid_loss" in record]
    assert [record["step"] for record in valid] == [200, 400, 600]
    assert valid[-1]["valid_wer"] < 0.3
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)
    assert records[-1]["progress"] == 1


def test_the_run_folder_holds_everything(learnt):
    run, said = learnt
    for path in (run.config, run.source, run.target, run.model, run.metrics, run.scores, run.report):
        assert path.stat().st_size > 0, path
    assert len(list(run.checkpoints.iterdir())) == 3
    assert any(run.tensorboard.iterdir())
    assert run.read_config().train.precision in precision.NAMES
    assert "padding" in said[0]
    assert said[1].startswith(f"precision {run.read_config().train.precision}: float32 ")
    assert "<script" in run.report.read_text()


def test_what_was_saved_is_what_was_scored(learnt):
    run, _ = learnt
    model = load(run.path)
    again = evaluate(model)
    assert {key: json.loads(run.scores.read_text())[key] for key in again} == again
    assert evaluate(model, "valid", beam=1)["words"] == len(Tiny().references("valid"))
    assert not model.module.training


def test_the_heads_of_a_trained_model_are_scored(learnt):
    module = load(learnt[0].path).module.double()
    drawn = torch.Generator().manual_seed(0)
    tables = module.source_embedding, module.target_embedding
    batch = tuple(torch.randint(3, table.num_embeddings, (4, 6), generator=drawn) for table in tables)

    def loss(module, batch):
        said, right = module(*batch)[:, :-1], batch[1][:, 1:]
        return torch.nn.functional.cross_entropy(said.mT, right, reduction="none").mean(1)

    found, expected = head_importance(module, [batch], loss), importance_by_hand(module, batch, loss)
    assert found.unseen == {}
    assert set(found.scores) == set(expected)
    for path, scores in expected.items():
        torch.testing.assert_close(found[path].double(), scores, rtol=1e-4, atol=1e-6)


def test_predictions_do_not_depend_on_their_company(learnt):
    model = load(learnt[0].path)
    words = ["abc", "fa", "deadbeef", "ab", "cafe", "a", "beé"]
    together = model.predict(words)
    assert together == [model.predict([word])[0] for word in words]
    assert together[3] == "A1 B"
    assert model.unfamiliar(words) == ["é"]


def test_n_best_are_different_and_in_order(learnt):
    model = load(learnt[0].path)
    (found,) = model.predict(["fade"], beam=5, n_best=4)
    assert len({one.text for one in found}) == 4
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert model.predict(["fade"], beam=5) == [found[0].text]
    with pytest.raises(InputError, match="n_best is 3 and beam 2"):
        model.predict(["fade"], beam=2, n_best=3)


def test_words_that_cannot_be_predicted(learnt):
    model = load(learnt[0].path)
    with pytest.raises(DataError, match="text 2: 'abcdefabcdefabcdef' has 18 tokens, the model reads 12"):
        model.predict(["ab", "abcdef" * 3])
    assert len(model.predict(["ab", "abcdef" * 3], truncate=True)) == 2
    with pytest.raises(DataError, match="nothing to predict"):
        model.predict([])


def test_attention_has_names_on_its_axes(learnt, tmp_path):
    model = load(learnt[0].path)
    seen = attention(model, "bedé")
    assert seen["source"] == ["b", "e", "d", "<0xC3>", "<0xA9>"]
    for path, weights in seen["maps"].items():
        rows, columns = seen["axes"][path]
        assert weights.shape == (2, len(rows), len(columns)), path
        torch.testing.assert_close(torch.from_numpy(weights).sum(-1), torch.ones(weights.shape[:-1]))
    assert seen["axes"]["decoder.layers.0.cross_attention"][0][-1] == "end"
    draw(model, "bed", tmp_path / "bed.png")
    assert (tmp_path / "bed.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match=r"cannot write .*bed\.xyz"):
        draw(model, "bed", tmp_path / "bed.xyz")


def test_a_damaged_model_is_refused(learnt, tmp_path):
    run, _ = learnt
    for path in (run.config, run.source, run.target):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(run.model.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        load(tmp_path)


def test_a_finished_run_is_not_resumed_nor_overwritten(learnt):
    run, _ = learnt
    with pytest.raises(RunError, match="has been trained to its end"):
        train("g2p", name="run", runs=run.path.parent, resume=True)
    with pytest.raises(RunError, match="go on with --resume"):
        train("g2p", name="run", runs=run.path.parent)
    with pytest.raises(ConfigError, match="exclude each other"):
        train("g2p", name="run", runs=run.path.parent, resume=True, overwrite=True)


def _weights(config, folder) -> dict[str, torch.Tensor]:
    return train(config, name="run", runs=folder, say=lambda _: None).module.state_dict()


def test_the_seed_decides_everything(tmp_path):
    one, two, other = (_weights(small(f"seed={seed}"), tmp_path / str(i)) for i, seed in enumerate((1, 1, 2)))
    assert all(one[name].equal(two[name]) for name in one)
    assert not all(one[name].equal(other[name]) for name in one)


def test_accumulated_batches_equal_the_full_batch(tmp_path):
    # One batch holds all examples, or several of different sizes do: the same gradient, and so the same weights.
    # By AdamW, since Muon's bfloat16 iterations make more of the last digits in which the two sums differ. A key's bias
    # adds the same to all logits of a row, so that its gradient is nothing but such digits.
    settings = ("model.dropout=0", "train.duration=6 epochs", "data.byte_share=0", "train.average=1")
    settings = (*settings, "train.optimizer=adamw", "train.learning_rate=3e-3")
    examples = Examples.read(Tiny(), "train", LETTERS, SYMBOLS)
    parts = len(Batches(examples, 4000))
    assert parts > 3
    whole = _weights(small(*settings, "data.batch_tokens=1000000"), tmp_path / "whole")
    cut = _weights(small(*settings, "data.batch_tokens=4000", f"train.accumulate={parts}"), tmp_path / "cut")
    for name in whole:
        if not name.endswith("key.bias"):
            torch.testing.assert_close(cut[name], whole[name], rtol=1e-3, atol=2e-4)


def test_training_stops_early_and_takes_the_best(tmp_path):
    # A learning rate that destroys what was learnt: validation gets worse after a while.
    config = small("train.duration=400 steps", "train.evaluations=40", "train.patience=2", "train.learning_rate=0.3",
                   "train.warmup=0.9", "train.average=1")  # fmt: skip
    model = train(config, name="run", runs=tmp_path, say=lambda _: None)
    run = RunFolder(tmp_path / "run")
    losses = [record["valid_loss"] for record in run.read_metrics() if "valid_loss" in record]
    assert len(losses) < 40
    assert min(losses) < min(losses[-2:])
    valid = Batches(Examples.read(Tiny(), "valid", LETTERS, SYMBOLS), 1000, shuffle=False)
    assert validation_loss(model.module, valid) == pytest.approx(min(losses), rel=1e-4)


def test_a_budget_of_time_is_kept(tmp_path):
    config = small("train.duration=0.05 minutes", "train.average=1")
    train(config, name="run", runs=tmp_path, say=lambda _: None)
    records = RunFolder(tmp_path / "run").read_metrics()
    assert records[-1]["progress"] == 1
    assert 3 <= records[-1]["seconds"] < 5
    rates = [record["learning_rate"] for record in records if "learning_rate" in record]
    assert rates[-1] < 0.05 * max(rates)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step .*: lower train.learning_rate"):
        train(
            small("train.learning_rate=1e30", "train.duration=200 steps"), name="run", runs=tmp_path, say=lambda _: None
        )


def test_a_pattern_in_the_configuration():
    module = build(small("model.pattern=window(1)"), LETTERS, SYMBOLS)
    model = Model(module, LETTERS, SYMBOLS, small())
    weights = model.maps("abcdef")["encoder.layers.0.attention"].weights()
    assert (weights.triu(2) == 0).all()
    assert (weights.tril(-2) == 0).all()
    with pytest.raises(ConfigError, match=r"model\.pattern: .*windw.*did you mean 'window'"):
        build(small("model.pattern=windw(1)"), LETTERS, SYMBOLS)


def test_measuring_leaves_random_numbers_and_weights_alone():
    module = build(small(), LETTERS, SYMBOLS)
    before, state = {name: w.clone() for name, w in module.state_dict().items()}, torch.get_rng_state()
    speeds = precision.measure(module, Batches(Examples.read(Tiny(), "train", LETTERS, SYMBOLS), 500), rounds=1)
    assert set(speeds) == set(precision.NAMES)
    assert all(len(found) == 1 and found[0] > 0 for found in speeds.values())
    assert torch.get_rng_state().equal(state)
    assert all(w.equal(before[name]) for name, w in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("gains", "best"),
    [
        ([1.0, 1.02, 0.98, 1.1, 0.9], "float32"),  # a near tie, with the noise of a machine
        ([1.15, 1.19, 1.19, 1.1, 1.18], "float32"),
        ([1.0, 1.5, 1.0, 1.6, 1.1], "float32"),  # two rounds in which something else ran
        ([1.5, 1.4, 1.6, 0.7, 0.8], "bfloat16"),
        ([0.5] * 5, "float32"),
        ([1.21] * 3, "bfloat16"),
    ],
)
def test_a_near_tie_of_precisions_goes_one_way(gains, best):
    assert precision.choose({"float32": [100.0] * len(gains), "bfloat16": [100 * gain for gain in gains]}) == best


def test_what_was_decided_is_part_of_the_run(monkeypatch, tmp_path):
    speeds = {"float32": [100.0], "bfloat16": [130.0]}
    monkeypatch.setattr(precision, "measure", lambda *_, **__: speeds)
    said = []
    with at_batch(20, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Interrupted) as caught:
        train(small("train.precision=auto", "train.duration=40 steps"), name="run", runs=tmp_path, say=said.append)
    assert caught.value.status == 143
    assert any(line.startswith("precision bfloat16: ") and "--set train.precision=bfloat16" in line for line in said)
    assert RunFolder(tmp_path / "run").read_config().train.precision == "bfloat16"
    speeds["float32"] = [200.0]  # it would be decided otherwise now
    train("g2p", name="run", runs=tmp_path, resume=True, say=said.append)
    assert load(tmp_path / "run").config.train.precision == "bfloat16"
    assert sum(line.startswith("precision ") for line in said) == 1
