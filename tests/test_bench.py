"""Benchmarks compare in turns, say what they measured, and measure memory where it is used."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from clearhead.bench import Comparison, bench_monitor, compare, monitor, peak_memory, watch
from clearhead.cli import main
from clearhead.errors import ClearheadError


def holding(mebibytes: int):
    """Work that holds so much memory; for `peak_memory`, which imports it."""
    return lambda: bytearray(b"x" * (mebibytes << 20)).count(b"y")


def test_arms_take_turns_and_warming_up_is_not_counted():
    order = []
    arms = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = compare("turns", arms, "a", rounds=3)
    assert "".join(order) == "abccbaabccba"
    assert {arm: len(times) for arm, times in found.seconds.items()} == dict.fromkeys("abc", 3)


def test_ratios_are_of_each_round():
    """A machine that became ten times slower in the second round has slowed both."""
    found = Comparison("t", {"own": [2.0, 30.0, 4.0], "peer": [1.0, 10.0, 1.0]}, "peer")
    assert found.ratio("own") == (3.0, 2.5, 3.5)
    assert found.ratio("peer", to="own")[0] == pytest.approx(1 / 3)
    assert "3.000" in found.lines()[2]
    assert found.record()["ratios"]["own"]["median"] == 3.0


def test_peak_memory_is_that_of_the_work_alone(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    held = bytearray(b"x" * (300 << 20))  # by the process that asks: none of the work's
    small, large = (peak_memory("test_bench", "holding", mebibytes=n) / 2**20 for n in (4, 200))
    assert held[-1]
    assert small < 100
    assert 180 < large < 500
    with pytest.raises(ClearheadError, match="'nothing'"):
        peak_memory("test_bench", "nothing")


def test_watching_is_compared(monkeypatch, capsys):
    """Memory takes processes of their own, of which the test above has some."""
    pytest.importorskip("transformers")
    monkeypatch.setattr(
        watch, "peak_memory", lambda *_, arm, **__: {watch.WATCHED: 2, watch.EAGER: 8}.get(arm, 1) << 20
    )
    with pytest.raises(SystemExit) as ended:
        main(["bench", "watch", "--length", "64", "--layers", "1", "--rounds", "1", "--long", "128", "--json"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    call, model, long = found["comparisons"]
    assert call["seconds"]["its statistics"][0] > 0
    assert all(len(seconds) == 1 for seconds in model["seconds"].values())
    assert model["memory"][watch.WATCHED] == 2 << 20
    assert long["memory"]["one eager matrix would hold"] == 12 * 4 * 128**2
    assert found["machine"]["threads"] >= 1


def test_monitoring_is_compared(monkeypatch):
    def small():
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        return monitor._trained(model, lambda: model(torch.randn(1, 4, 8)).square().mean())

    monkeypatch.setattr(monitor, "_encoder", small)
    monkeypatch.setattr(monitor, "_g2p", small)
    found = bench_monitor(rounds=1)
    assert len({each.title for each in found}) == 4
    assert [len(each.seconds[monitor.WITH]) for each in found] == [1, 20, 1, 20]
    assert all(math.isfinite(each.ratio(monitor.WITH)[0]) for each in found)
