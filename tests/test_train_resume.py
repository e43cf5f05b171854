import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clearhead.errors import ConfigError, RunError
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
    for folder in (run.path, run.maps, run.checkpoints):
        (folder / ".half.1.tmp").write_text("being written")

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
    assert not [*run.path.rglob("*.tmp")]
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is needed")
def test_a_full_disk_while_records_grow_loses_nothing(never_stopped, tmp_path):
    run = RunFolder(tmp_path / "runs/run")

    def fill() -> None:
        run.metrics.unlink()
        run.metrics.symlink_to("/dev/full")

    with (
        at_batch(33, fill),
        pytest.raises(RunError, match=r"cannot write .*: No space left on device; go on with --resume \(.*run\)$"),
    ):
        _weights(tmp_path)
    run.metrics.unlink()
    assert checkpoints.newest(run.checkpoints).name == "step-000000014.ckpt"
    assert _equal(_weights(tmp_path, resume=True), never_stopped)


@pytest.mark.parametrize("most", [2_000, 100_000])  # bytes of a file: TensorBoard's cannot grow, or no checkpoint fits
def test_a_full_disk_loses_nothing(most, never_stopped, tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            at_batch(33, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))),
            pytest.raises(RunError, match=r"cannot write .*: File too large; (go on with --resume|what was there bef)"),
        ):
            _weights(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.newest(RunFolder(tmp_path / "runs/run").checkpoints).name == "step-000000014.ckpt"
    assert _equal(_weights(tmp_path, resume=True), never_stopped)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_it_at_once(number, status, tmp_path):
    def twice() -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with (
        at_batch(5, twice),
        pytest.raises(Interrupted, match=r"^interrupted: go on with --resume \(.*run\)$") as caught,
    ):
        _weights(tmp_path)
    assert caught.value.status == status
    assert not (tmp_path / "runs/run/checkpoints/interrupted.ckpt").exists()
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_signal_before_the_first_step_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("clearhead.train.run.gather", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"^interrupted: nothing was begun$") as caught:
        _weights(tmp_path)
    assert caught.value.status == 143
    assert not (tmp_path / "runs").exists()


def test_sigterm_after_the_last_step_is_no_end(never_stopped, tmp_path, monkeypatch):
    """The scheduler stops it while it is scored: that is done when it goes on."""
    monkeypatch.setattr("clearhead.train.run.evaluate", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"^interrupted: go on with --resume"):
        _weights(tmp_path)
    monkeypatch.undo()
    assert _equal(_weights(tmp_path, resume=True), never_stopped)


def test_an_older_checkpoint_is_gone_on_from(never_stopped, tmp_path):
    """One of a process alone held its random state without those of others."""
    with at_batch(23, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Interrupted):
        _weights(tmp_path)
    path = checkpoints.newest(RunFolder(tmp_path / "runs/run").checkpoints)
    content = checkpoints.read(path)
    (content["random"],) = content["random"]
    torch.save(content, path)
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
