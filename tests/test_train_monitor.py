"""Attention watched while a run learns: the run is the same, and its records are those of its batches."""

import logging
import sys

import pytest
import torch

from clearhead.data import PAD, Batches, Examples, Tokenizer
from clearhead.observe.health.remedies import StopWithLastGood
from clearhead.observe.monitoring.monitor import AttentionMonitor
from clearhead.train import load, monitoring, train
from clearhead.train.folder import RunFolder
from clearhead.train.model import build
from clearhead.train.task import summed_loss
from tiny_task import Tiny, small

ALL = ("monitor.rows=null", "monitor.samples=null", "monitor.every=3")


pytestmark = pytest.mark.usefixtures("one_thread")


def run(folder, *settings):
    model = train(small(*settings), name="run", runs=folder, say=lambda _: None)
    return model.module.state_dict(), RunFolder(folder / "run")


def attention(folder: RunFolder) -> dict:
    return {record["step"]: record["attention"] for record in folder.read_metrics() if "attention" in record}


def test_weights_are_those_of_a_run_that_is_not_watched(tmp_path):
    plain, off = run(tmp_path / "off", "monitor.every=null")
    watched, on = run(tmp_path / "on", "monitor.every=1")
    assert all(plain[name].equal(watched[name]) for name in plain)
    assert attention(off) == {}
    assert [*attention(on)] == [*range(1, 13)]
    assert any("attention" in path.name or path.stat().st_size > 0 for path in on.tensorboard.iterdir())
    page = on.report.read_text()
    assert "Every head" in page or 'id="strips"' in page
    assert 'id="strips"' not in off.report.read_text()


def test_its_numbers_are_those_of_the_batch_in_parts_or_whole(tmp_path):
    settings = ("model.dropout=0", *ALL)
    _, whole = run(tmp_path / "whole", *settings, "train.parts=1")
    _, parts = run(tmp_path / "parts", *settings, "train.parts=2")
    first, second = attention(whole)[1], attention(parts)[1]
    assert list(first) == list(second)  # the layers, in their order
    for layer, numbers in first.items():
        for name, values in numbers.items():
            assert second[layer][name] == pytest.approx(values, rel=2e-3), (layer, name)

    # the first batch by itself, from the same weights
    config, source = small(*settings), Tiny()
    letters = Tokenizer.characters((word for word, _ in source.pairs("train")), True)
    symbols = Tokenizer.symbols(text for _, text in source.pairs("train"))
    examples = Examples.read(
        source, "train", letters, symbols, limit=12, byte_share=config.data.byte_share, seed=config.seed
    )
    batch = next(iter(Batches(examples, config.data.batch_tokens, seed=config.seed)))
    torch.manual_seed(config.seed)
    net = build(config, letters, symbols)
    monitor = AttentionMonitor(net, every=1, rows=None, samples=None)
    with monitor.step():
        tokens = int((batch.target[:, 1:] != PAD).sum())
        (summed_loss(net, batch, config.train.label_smoothing) / tokens).backward()
    for layer, numbers in monitor.record["attention"].items():
        for name, values in numbers.items():
            if name != "weight_norm":  # which the optimizer has moved by then
                assert first[layer][name] == pytest.approx(values, rel=2e-3), (layer, name)


def test_parts_in_threads_are_repeated_bit_for_bit_with_remedies(tmp_path):
    settings = ("model.dropout=0", "train.parts=4", "monitor.every=1", "monitor.rows=3", "monitor.samples=5")
    more = ("monitor.remedies=[qk-clip, lower-learning-rate]", "train.learning_rate=2", "train.warmup=0")
    short = ("train.duration=8 steps", "train.evaluations=1")

    def once(name):
        weights, folder = run(tmp_path / name, *settings, *more, *short)
        timed = ("seconds", "tokens_per_second")
        return weights, [{k: v for k, v in each.items() if k not in timed} for each in folder.read_metrics()]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        (weights, records), *others = [once(f"run-{number}") for number in range(3)]
    finally:
        sys.setswitchinterval(interval)
    assert any("remedies" in record for record in records)
    for others_weights, others_records in others:
        assert others_records == records
        assert all(weights[name].equal(others_weights[name]) for name in weights)


def test_a_remedy_ends_the_run_with_its_weights(tmp_path, monkeypatch, caplog):
    class Impatient(StopWithLastGood):
        def act(self, **given):
            self.stop = True
            return ["enough"]

    monkeypatch.setitem(monitoring.REMEDIES, "stop", Impatient)
    with caplog.at_level(logging.WARNING, "clearhead.observe"):
        _, folder = run(tmp_path, "monitor.remedies=[stop]", "monitor.every=3")
    assert [record["step"] for record in folder.read_metrics() if "valid_loss" in record] == [1]
    assert [record.message for record in caplog.records] == ["step 1: enough"]
    assert len(load(folder.path).predict(["ab"])) == 1
    assert "Remedies acted 1 time" in folder.report.read_text()


def test_remedies_are_named(tmp_path):
    settings = ("monitor.remedies=[qk-clip, lower-learning-rate]", "monitor.every=2", "train.learning_rate=0.5")
    _, folder = run(tmp_path, *settings, "train.duration=30 steps", "train.warmup=0")
    lines = [line for record in folder.read_metrics() for line in record.get("remedies", [])]
    assert any(line.startswith("QK-clip") for line in lines)
    assert max(max(layer["max_logit"]) for layers in attention(folder).values() for layer in layers.values()) > 100
