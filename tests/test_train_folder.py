import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from clearhead.errors import ConfigError, RunError
from clearhead.train import checkpoints, load
from clearhead.train.folder import FORMAT, RunFolder, write_atomically, write_text
from clearhead.train.starting import begun
from tiny_task import small


def test_the_configuration_comes_back_with_its_format(tmp_path):
    run = RunFolder(tmp_path)
    run.write_config(small("seed=5"))
    assert run.read_config() == small("seed=5")
    assert f"format: {FORMAT}\n" in run.config.read_text()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (f"format: {FORMAT + 1}\nnews: 1\n", RunError, "made by a newer Clearhead"),
        ("task: g2p\n", RunError, "does not say its format"),
        ("- a\n", RunError, "does not say its format"),
        ("format: true\n", RunError, "does not say its format"),
        ("format: [\n", ConfigError, r"config\.yaml:2: not YAML"),
        (f"format: {FORMAT}\nmodel: &all [*all]\n", ConfigError, r"config\.yaml:2: not YAML: \*all is within &all"),
        (f"format: {FORMAT}\n# \n\nmodel: {{layers: 0}}\n", ConfigError, r"config\.yaml:4: model\.layers: must be at"),
        (f"format: {FORMAT}\nmodel: {{layrs: 2}}\n", ConfigError, "unknown key 'model.layrs'"),
        (f"format: {FORMAT}\n", RunError, r"no model\.safetensors: its training has not ended"),
        (None, RunError, r"has no config\.yaml: no run is there"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(content, error, message, tmp_path):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_a_missing_run_names_those_that_are_there(tmp_path):
    with begun(RunFolder(tmp_path / "first")) as first:
        first.write_config(small())
    with pytest.raises(RunError, match=r"frist does not exist: .* \(runs here: .*first\)"):
        load(tmp_path / "frist")


def test_half_written_and_damaged_runs(tmp_path):
    run = RunFolder(tmp_path)
    run.write_config(small())
    run.model.write_bytes(b"\x00" * 64)
    with pytest.raises(RunError, match=r"half-written: source\.json is missing"):
        load(tmp_path)
    run.source.write_text("{")
    run.target.write_text("{")
    with pytest.raises(RunError, match=r"is damaged: .*source\.json: not a tokenizer"):
        load(tmp_path)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def half(file):
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"cannot write .*file: No space left on device; what was there before is whole"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def _process(code: str, folder, **options) -> subprocess.Popen:
    head = "import os, resource, sys, torch\nfrom clearhead.train.checkpoints import AtomicCheckpoints"
    code = f"{head}\nio, path = AtomicCheckpoints(), {str(folder / 'step-1.ckpt')!r}\n{textwrap.dedent(code)}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def _saved(folder) -> float:
    return float(checkpoints.read(folder / "step-1.ckpt")["weight"].mean())


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    process = _process(
        """
        io.save_checkpoint({"weight": torch.ones(1000)}, path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the disk is full from here on
        io.save_checkpoint({"weight": torch.zeros(1_000_000)}, path)
        """,
        tmp_path,
    )
    _, errors = process.communicate(timeout=60)
    assert b"step-1.ckpt: File too large; what was there before is whole" in errors.splitlines()[-1]
    assert _saved(tmp_path) == 1
    assert os.listdir(tmp_path) == ["step-1.ckpt"]


def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before(tmp_path):
    process = _process(
        """
        io.save_checkpoint({"weight": torch.ones(1000)}, path)
        fsync = os.fsync
        def stop(handle):  # everything is written, nothing has its name yet
            print("saving", flush=True)
            sys.stdin.read()
        os.fsync = stop
        io.save_checkpoint({"weight": torch.zeros(1_000_000)}, path)
        """,
        tmp_path,
        stdin=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline() == b"saving\n"
        process.send_signal(signal.SIGKILL)
    assert _saved(tmp_path) == 1
    assert len(os.listdir(tmp_path)) == 2  # the half-written one lies beside it
    checkpoints.clean(tmp_path)
    assert os.listdir(tmp_path) == ["step-1.ckpt"]


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def test_reading_a_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "step-1.ckpt")
    with pytest.raises(RunError, match=r"step-1.ckpt is damaged .*: remove it"):
        checkpoints.read(tmp_path / "step-1.ckpt")
    assert not (tmp_path / "evil").exists()


def test_the_average_of_checkpoints(tmp_path):
    for step, value in enumerate((1.0, 2.0, 6.0)):
        torch.save(
            {"state_dict": {"model.w": torch.full((3,), value), "model.n": torch.tensor(step)}},
            tmp_path / f"step-{step}.ckpt",
        )
    mean = checkpoints.average(checkpoints.kept(tmp_path))
    assert mean["w"].tolist() == [3.0] * 3
    assert int(mean["n"]) == 2
