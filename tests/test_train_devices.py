"""Training on several processes: one run folder, made and scored once, watched in all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clearhead.data import Batches, Examples
from clearhead.errors import ConfigError
from clearhead.observe import AttentionMonitor
from clearhead.train.folder import RunFolder
from clearhead.train.model import build
from clearhead.train.task import summed_loss
from conftest import TRIALS
from tiny_task import SMALL, Tiny, small

TINY = Path(__file__).with_name("tiny_task.py")
STEPS = 20 if TRIALS else 4
SETTINGS = [*SMALL, "train.devices=2", f"train.duration={STEPS} steps", "train.evaluations=2", "monitor.every=2",
            "monitor.remedies=[qk-clip]", "monitor.rows=null", "monitor.samples=null", "model.dropout=0"]  # fmt: skip


def run(folder: Path) -> tuple[RunFolder, str]:
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    chosen = [part for value in SETTINGS for part in ("--set", value)]
    command = [sys.executable, str(TINY), "train", "g2p", "--name", "run", *chosen]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / "runs/run"), done.stderr


@pytest.mark.trial
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_train_one_run(tmp_path):
    folder, said = run(tmp_path)
    assert said.count("final weights") == 1
    assert said.count("examples,") == 1
    assert "exists" not in said
    records = folder.read_metrics()
    watched = [record["step"] for record in records if "attention" in record]
    assert watched == [1, *range(2, STEPS + 1, 2)]
    assert [record["step"] for record in records if "valid_loss" in record] == [STEPS // 2, STEPS]
    assert len({(record["step"], *record) for record in records}) == len(records)  # no record is written twice
    assert json.loads(folder.scores.read_text())["split"] == "test"
    assert folder.report.exists()
    assert not [*folder.path.rglob("*.tmp")]
    assert folder.read_config().train.devices == 2

    # the numbers of the first step are those of the first batches of both, from the same weights
    config, source = folder.read_config(), Tiny()
    letters, symbols = folder.read_tokenizers()
    more = {"limit": config.model.max_length, "byte_share": config.data.byte_share, "seed": config.seed}
    examples = Examples.read(source, "train", letters, symbols, **more)
    torch.manual_seed(config.seed)
    net = build(config, letters, symbols)
    monitor = AttentionMonitor(net, every=1, rows=None, samples=None)
    with monitor.step(), torch.no_grad():
        for rank in (0, 1):
            summed_loss(net, next(iter(Batches(examples, 256, seed=config.seed, rank=rank, world=2))))
    first = next(record["attention"] for record in records if "attention" in record)
    assert first.keys() == monitor.record["attention"].keys()
    for layer, numbers in monitor.record["attention"].items():
        for name in ("entropy", "normalized_entropy", "sink", "max_logit", "max_weight"):
            assert first[layer][name] == pytest.approx(numbers[name], rel=2e-3), (layer, name)


def test_gradients_of_parts_are_not_shared_with_other_devices():
    with pytest.raises(ConfigError, match="parts must be 1"):
        small("train.devices=2", "train.parts=2")
    assert small("train.devices=2", "train.parts=1").train.parts == 1
