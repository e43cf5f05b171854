"""How a run begins: nothing is removed that this start did not make, whatever the name and wherever it is killed."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from clearhead.errors import DataError, InputError, RunError
from clearhead.train import train
from clearhead.train.folder import RunFolder
from clearhead.train.starting import LONGEST, begun, check_name, held
from tiny_task import small


def quiet(_: str) -> None:
    pass


def old_run(path: Path) -> RunFolder:
    run = RunFolder(path)
    with begun(run) as new:
        new.write_config(small())
    run.model.write_text("old")
    return run


def listed(folder: Path) -> dict[str, str]:
    """All that is in a folder, with its content."""
    return {
        str(path.relative_to(folder)): "" if path.is_dir() else path.read_text() for path in sorted(folder.rglob("*"))
    }


NO_NAMES = ("..", ".", "", " ", "../models", "../models/m1", "a/b", "/etc/g2p", "a/", "..\\models", "C:run", "C:\\run",
            ".hidden", ".g2p.older", " g2p", "g2p ", "a\nb", "a\tb", "a\x00b", "\udcff", "\u202eg2p", "a" * 300,
            "é" * (LONGEST // 2 + 1))  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_is_a_name(name):
    with pytest.raises(InputError, match=r"--name '.*'") as caught:
        check_name(name)
    assert len(str(caught.value)) < 160
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["g2p", "g2p-1.5", "a b", "Füße", "語", "<img src=x>", "-x", "a..b", "a" * LONGEST])
def test_other_names_are_taken(name, tmp_path):
    assert check_name(name) == name
    old_run(tmp_path / name)


@pytest.mark.parametrize("name", ["..", ".", "../models", "../models/m1", "../../work/models"])
@pytest.mark.parametrize("task", ["good", "bad"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_path_as_name_touches_nothing(name, task, overwrite, tmp_path, monkeypatch):
    work = tmp_path / "work"
    (work / "models").mkdir(parents=True)
    (work / "models" / "thesis.tex").write_text("years of work")
    old_run(work / "models" / "m1")
    (work / "t.tsv").write_text("a\tb\n")
    before = listed(tmp_path)
    monkeypatch.chdir(work)
    config = small() if task == "good" else small("data.source=null", "data.train=t.tsv", "data.valid=nope.tsv")
    with pytest.raises(InputError, match="--name"):
        train(config, name=name, overwrite=overwrite, say=quiet)
    assert listed(tmp_path) == before


def test_a_run_is_never_overwritten_silently(tmp_path):
    run = old_run(tmp_path / "g2p")
    with (
        pytest.raises(
            RunError, match="g2p exists: go on with --resume, choose another --name, or replace it by --over"
        ),
        begun(run),
    ):
        pass
    with begun(run, overwrite=True) as new:
        assert run.model.read_text() == "old"  # it is there until the other is ready
        new.write_config(small())
    assert not run.model.exists()
    assert run.read_config() == small()
    assert [path.name for path in tmp_path.iterdir()] == ["g2p"]


@pytest.mark.parametrize("error", [DataError("nothing to learn from"), KeyboardInterrupt()])
@pytest.mark.parametrize("older", [False, True])
def test_a_start_that_fails_leaves_all_as_it_was(error, older, tmp_path):
    run = old_run(tmp_path / "g2p") if older else RunFolder(tmp_path / "g2p")
    before = listed(tmp_path)

    def begin():
        with begun(run, overwrite=True) as new:
            new.write_config(small("seed=7"))
            raise error

    with pytest.raises(type(error)):
        begin()
    assert listed(tmp_path) == before


def test_an_empty_folder_that_was_there_stays(tmp_path):
    (tmp_path / "g2p").mkdir()
    with pytest.raises(DataError), begun(RunFolder(tmp_path / "g2p")):
        raise DataError("nothing to learn from")
    assert [path.name for path in tmp_path.iterdir()] == ["g2p"]
    assert old_run(tmp_path / "g2p").read_config() == small()


@pytest.mark.parametrize("config", [None, "a: configuration of something else\n", "- 1\n", "{", "format: x\n"])
def test_what_is_no_run_is_not_removed(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    if config:
        (tmp_path / "config.yaml").write_text(config)
    before = listed(tmp_path)
    with pytest.raises(RunError, match="is no run folder"), begun(RunFolder(tmp_path), overwrite=True):
        pass
    with pytest.raises(RunError, match="cannot make"), begun(RunFolder(tmp_path / "thesis.tex" / "run")):
        pass
    assert listed(tmp_path) == before


@pytest.mark.parametrize("to", ["real", "nowhere", "empty"])
def test_a_link_is_not_replaced(to, tmp_path):
    old_run(tmp_path / "real")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / to)
    before = listed(tmp_path / "real")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="link is a link"), begun(RunFolder(tmp_path / "link"), overwrite):
            pass
    assert listed(tmp_path / "real") == before
    assert sorted(os.listdir(tmp_path)) == ["empty", "link", "real"]


def test_what_lies_in_the_way_of_a_start_is_not_removed(tmp_path):
    (tmp_path / ".g2p.new").mkdir()
    (tmp_path / ".g2p.new" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"\.g2p\.new is in the way"), begun(RunFolder(tmp_path / "g2p")):
        pass
    assert listed(tmp_path) == {".g2p.new": "", ".g2p.new/thesis.tex": "years of work"}


STEPS = ("preparing", "before the renames", "between the renames", "after both", "removing")
KILLED = """
    import os, pathlib, signal, sys
    from clearhead.train import starting
    from clearhead.train.folder import RunFolder
    from tiny_task import small

    def kill(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def begin(step):
        run, rename = RunFolder(pathlib.Path(step, "g2p")), pathlib.Path.rename
        with starting.held(run, print), starting.begun(run, overwrite=True) as new:
            new.write_config(small("seed=7"))
            match step:
                case "preparing":
                    kill()
                case "before the renames":
                    RunFolder.is_run = kill
                case "between the renames":
                    pathlib.Path.rename = lambda self, to: kill() if self.name == ".g2p.new" else rename(self, to)
                case "after both":
                    starting.bring_to_disk = kill
                case "removing":
                    starting._remove = kill

    for step in sys.argv[1:]:  # imported once, forked before anything has threads
        if not (child := os.fork()):
            begin(step)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, step
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with a finished run for each step at which a start that replaces it was killed."""
    folder = tmp_path_factory.mktemp("killed")
    for step in STEPS:
        (folder / step).mkdir()
        old_run(folder / step / "g2p")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *STEPS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_while_a_run_is_replaced_loses_no_finished_run(step, killed):
    folder = killed / step
    run, said = RunFolder(folder / "g2p"), []
    if step == "after both":
        with pytest.raises(RunError, match=r"\.g2p\.older holds the run"), held(run, said.append):
            pass
        assert (folder / ".g2p.older" / "model.safetensors").read_text() == "old"
        (folder / ".g2p.older").rename(folder / "kept")
    if step == "between the renames":
        with pytest.raises(RunError, match=r"does not exist: .*\.g2p\.older is what a killed --overwrite left of it"):
            run.read_config()
    with held(run, said.append, resume=True):
        new = step in ("after both", "removing")
        assert run.read_config().seed == (7 if new else 0)
        assert new or run.model.read_text() == "old"
    back = f"{run.path} is back: a start with --overwrite was killed while it replaced it"
    assert said == [back] * (step == "between the renames")
    with held(run, said.append), begun(run, overwrite=True) as fresh:
        fresh.write_config(small("seed=8"))
    assert run.read_config().seed == 8
    assert {*os.listdir(folder)} - {"kept"} == {"g2p"}


def test_a_run_is_of_one_process(tmp_path):
    run = old_run(tmp_path / "g2p")
    held_by = f"g2p is in use by process {os.getpid()} on .*: wait for its end, or choose another --name"
    with held(run, quiet):
        for resume in (False, True):
            with pytest.raises(RunError, match=held_by), held(run, quiet, resume):
                pass
        with pytest.raises(RunError, match=held_by):
            train("g2p", name="g2p", runs=tmp_path, resume=True, say=quiet)
        with pytest.raises(RunError, match=held_by):
            train("g2p", name="g2p", runs=tmp_path, overwrite=True, say=quiet)
        with held(RunFolder(tmp_path / "other"), quiet):
            pass
    (tmp_path / "link").symlink_to(run.path)
    with held(run, quiet), pytest.raises(RunError, match="link is in use"):  # noqa: SIM117
        with held(RunFolder(tmp_path / "link"), quiet, resume=True):
            pass
    with held(run, quiet):  # it is free again
        pass
    assert sorted(os.listdir(tmp_path)) == ["g2p", "link"]


def test_a_killed_process_holds_nothing(tmp_path):
    run = old_run(tmp_path / "g2p")
    code = """
        import sys
        from clearhead.train import starting
        from clearhead.train.folder import RunFolder
        with starting.held(RunFolder("g2p"), print):
            print("held", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"in use by process {process.pid} on "), held(run, quiet):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        with held(run, quiet):
            pass
    assert os.listdir(tmp_path) == ["g2p"]


def test_a_start_that_is_refused_makes_no_folder_of_runs(tmp_path):
    config = small("data.source=null", f"data.train={tmp_path}/none.tsv", f"data.valid={tmp_path}/none.tsv")
    with pytest.raises(DataError):
        train(config, runs=tmp_path / "runs", say=quiet)
    assert not [*tmp_path.iterdir()]
    (tmp_path / "runs").mkdir()
    with pytest.raises(DataError):
        train(config, runs=tmp_path / "runs", say=quiet)
    assert [*tmp_path.iterdir()] == [tmp_path / "runs"]


def test_nothing_to_resume_leaves_nothing(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        train("g2p", name="g2p", runs=tmp_path / "runs", resume=True, say=quiet)
    assert not (tmp_path / "runs").exists()
