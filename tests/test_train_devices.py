"""Training on several processes: one run folder, made and scored once, watched in all of them."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clearhead.data import PAD, Batches, Examples
from clearhead.errors import ConfigError
from clearhead.observe import AttentionMonitor
from clearhead.train.folder import RunFolder
from clearhead.train.model import build
from clearhead.train.processes import Launcher, begin_random
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
    batches = [next(iter(Batches(examples, 256, seed=config.seed, rank=rank, world=2))) for rank in (0, 1)]
    with monitor.step(), torch.no_grad():
        loss = sum(float(summed_loss(net, batch, config.train.label_smoothing)) for batch in batches)
    first = next(record["attention"] for record in records if "attention" in record)
    assert first.keys() == monitor.record["attention"].keys()
    losses = [record["train_loss"] for record in records if "train_loss" in record]
    assert losses[0] == pytest.approx(
        loss / sum(int((batch.target[:, 1:] != PAD).sum()) for batch in batches), rel=1e-5
    )
    for layer, numbers in monitor.record["attention"].items():
        for name in ("entropy", "normalized_entropy", "sink", "max_logit", "max_weight"):
            assert first[layer][name] == pytest.approx(numbers[name], rel=2e-3), (layer, name)


def test_gradients_of_parts_are_not_shared_with_other_devices():
    with pytest.raises(ConfigError, match="parts must be 1"):
        small("train.devices=2", "train.parts=2")
    assert small("train.devices=2", "train.parts=1").train.parts == 1


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which `two_processes.py` has run, and how each of its processes ended."""
    folder = tmp_path_factory.mktemp("two")
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(TINY.with_name("two_processes.py"))],
        cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


needs_fork = pytest.mark.skipif(
    not torch.distributed.is_available() or not hasattr(os, "fork"), reason="processes must be forked and meet"
)


def said(folder: Path, name: str, rank: int) -> list[str]:
    return (folder / f"{name}.{rank}.txt").read_text().splitlines()


@needs_fork
def test_processes_that_are_started_together_train_one_run(two):
    folder, ended = two
    assert ended["whole"] == [0, 0]
    assert said(folder, "whole", 1) == []
    assert RunFolder(folder / "runs/whole").model.exists()
    states = [(folder / f"whole.{rank}.state").read_bytes() for rank in (0, 1)]
    assert states[0] != states[1]  # each drops other values


@needs_fork
def test_two_processes_resume_to_the_bit(two):
    folder, ended = two
    assert ended["part"] == [143, 143]  # one of them was asked to stop
    assert said(folder, "part", 0)[-1] == "interrupted at step 7 and saved: go on with --resume (runs/part)"
    assert said(folder, "part", 1) == []
    assert ended["resumed"] == [0, 0]
    whole, part = (load_file(RunFolder(folder / "runs" / name).model) for name in ("whole", "part"))
    assert all(whole[name].equal(part[name]) for name in whole)


@needs_fork
def test_a_process_that_is_killed_is_one_line(two):
    folder, ended = two
    assert ended["killed"] == [2, -signal.SIGKILL]
    lines = said(folder, "killed", 0)
    assert lines[-1] == "error: another process of this training has ended: go on with --resume (runs/killed)"
    assert [line for line in lines if "Traceback" in line or "gloo" in line] == []


@needs_fork
@pytest.mark.parametrize(
    ("name", "words"),
    [("refused", "nowhere.tsv"), ("devices", "torchrun started 2 processes, and train.devices is 1: --set train.dev")],
)
def test_what_the_first_process_refuses_ends_all_in_one_line(name, words, two):
    folder, ended = two
    assert ended[name] == [2, 2]
    assert said(folder, name, 1) == []
    (line,) = said(folder, name, 0)
    assert words in line
    assert not (folder / "runs" / name).exists()


@needs_fork
def test_a_checkpoint_of_another_number_of_processes_says_so(two):
    folder, ended = two
    assert ended["fewer"] == [0, 0]
    words = "the checkpoint holds the random numbers of 1 of 2 processes: weights will differ"
    assert sum(line.startswith(words) for line in said(folder, "fewer", 0)) == 1
    assert said(folder, "fewer", 1) == []


def test_random_numbers_begin_differently_in_each_process(monkeypatch):
    seeds = set()
    for rank in range(8):
        monkeypatch.setenv("RANK", str(rank))
        with torch.random.fork_rng(devices=[]):
            begin_random(0)
            seeds.add(torch.initial_seed() & 0xFFFFFFFF)  # of which torch takes 32 bits
    assert len(seeds - {0}) == 8


def test_which_process_was_lost(monkeypatch, capsys):
    ended = []
    launcher = Launcher(None, 3, 1)
    launcher.procs = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    assert launcher.lost() is None
    launcher.procs[0].communicate(b"\n")
    assert launcher.lost() is None  # it has come to its end
    launcher.kill(signal.SIGKILL)
    launcher.procs[1].communicate()
    lost = f"process 3 of 3 (PID {launcher.procs[1].pid}) was killed by signal 9"
    assert launcher.lost() == lost

    monkeypatch.setattr("clearhead.train.processes._GRACE", 0.0)  # the first process waits for the lost one for ever
    monkeypatch.setattr(os, "_exit", ended.append)
    launcher._watch(threading.Event())
    assert ended == [2]
    assert capsys.readouterr().err == f"error: {lost}\n"
