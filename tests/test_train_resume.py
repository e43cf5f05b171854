import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clearhead.errors import ConfigError
from clearhead.train import Interrupted, checkpoints, load, read_config, train
from clearhead.train.folder import RunFolder
from clearhead.train.starting import begun
from tiny_task import SMALL, at_batch, small

TINY = Path(__file__).with_name("tiny_task.py")
# Dropout draws random numbers in every step; an epoch has 15 batches, and a step takes two of them.
LONG = [*SMALL, "data.batch_tokens=1000", "train.accumulate=2", "train.duration=40 steps", "train.average=2",
        "monitor.every=2", "monitor.examples=1"]  # fmt: skip


def _train(folder: Path, *arguments: str, **environment: object) -> subprocess.CompletedProcess:
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    own |= {key: str(value) for key, value in environment.items()}
    command = [sys.executable, str(TINY), "train", "g2p", "--name", "run", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=120, check=False
    )


def _settings(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    return _weights(tmp_path_factory.mktemp("whole"))


def _weights(folder: Path, **options: bool) -> dict[str, torch.Tensor]:
    train(read_config("g2p", LONG), name="run", runs=folder / "runs", say=lambda _: None, **options)
    return load_file(folder / "runs/run/model.safetensors")


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_interrupted_killed_and_resumed_it_is_the_run_that_never_stopped(never_stopped, tmp_path):
    run = RunFolder(tmp_path / "runs/run")
    done = _train(tmp_path, *_settings(LONG), SIGNAL=int(signal.SIGINT), BATCH=23)
    assert done.returncode == 130, done.stderr
    assert "interrupted at step 12 and saved: go on with --resume" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not run.model.exists()

    done = _train(tmp_path, "--resume", SIGNAL=int(signal.SIGKILL), BATCH=20)
    assert done.returncode == -signal.SIGKILL
    assert checkpoints.newest(run.checkpoints).name == "step-000000014.ckpt"
    with open(run.metrics, "a") as file:
        file.write('{"step": 1')  # the line that was being written
    (run.maps / "step-000000099.json").write_text("{}")

    done = _train(tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # results alone go to standard output, and a training has none
    assert "lightning" not in done.stderr.lower()
    assert "Warning" not in done.stderr
    assert _equal(load_file(run.model), never_stopped)
    steps = [record["step"] for record in run.read_metrics()]
    assert steps == sorted(steps)
    assert [record["step"] for record in run.read_metrics() if "valid_loss" in record] == [14, 27, 40]
    watched = [record["step"] for record in run.read_metrics() if "attention" in record]
    assert watched == [1, *range(2, 41, 2)]
    assert [*run.snapshots()] == [*range(1, 41)]  # of a step behind the one it went on from none is left


class Killed(BaseException):
    """Ends a training without a chance to save."""


def _kill() -> None:
    raise Killed


@pytest.mark.parametrize("batch", [1, 15, 16])  # around the end of an epoch, where states are delicate
def test_wherever_it_is_interrupted(batch, never_stopped, tmp_path):
    with at_batch(batch, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(Interrupted):
        _weights(tmp_path)
    with at_batch(25, _kill), pytest.raises(Killed):
        _weights(tmp_path, resume=True)
    assert _equal(_weights(tmp_path, resume=True), never_stopped)


def test_a_run_stopped_after_its_last_step_is_finished_by_resuming(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clearhead.train.run.write_report", full)
    with pytest.raises(KeyboardInterrupt):
        train(small(), name="run", runs=tmp_path, say=lambda _: None)
    monkeypatch.undo()
    model = train("g2p", name="run", runs=tmp_path, resume=True, say=lambda _: None)
    assert load(tmp_path / "run").predict(["ab"]) == model.predict(["ab"])
    assert checkpoints.newest(RunFolder(tmp_path / "run").checkpoints).name == "step-000000012.ckpt"


def test_resuming_does_not_change_the_configuration(tmp_path):
    run = RunFolder(tmp_path / "run")
    with begun(run) as new:
        new.write_config(small())
    with pytest.raises(ConfigError, match="differs from what is asked for, and --resume cannot change it"):
        train(small("model.layers=2"), name="run", runs=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="--resume cannot change it"):
        train("g2p", ["model.layers=2"], name="run", runs=tmp_path, resume=True)
