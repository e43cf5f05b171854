"""How a run begins: its name, and its folder, which is prepared beside its place and moved there when it is whole.

runs/
  NAME/            a run
  .NAME.lock       held by the process that works on it: see `lock.py`
  .NAME.new/       being prepared; where a kill left it, the next start removes it
  .NAME.older/     the run that `--overwrite` replaces, for a moment; where a kill left it, the next start puts it back
  .NAME.removed/   being removed
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath

from clearhead.errors import InputError, RunError
from clearhead.train.folder import RunFolder
from clearhead.train.lock import locked
from clearhead.writing import bring_to_disk

LONGEST = 200
"""Bytes of a name at most: file systems take 255, and the names beside it are longer."""
_PREPARED = {"config.yaml", "data.json", "source.json", "target.json", "tokens", "checkpoints"}


def folder_of(runs: str | Path, name: str) -> RunFolder:
    """The folder of a run; raises InputError where `name` is no plain name, so that nothing outside `runs` is meant."""
    return RunFolder(Path(runs) / check_name(name))


def check_name(name: str) -> str:
    """The name of a run, if it is one; raises InputError otherwise."""
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > LONGEST:
        raise InputError(f"--name {name[:20]!r}… has {size} bytes: {LONGEST} are possible")
    if not name.strip() or name != name.strip():
        raise InputError(f"--name {name!r}: a name is needed that neither begins nor ends with a space, such as g2p-1")
    if PureWindowsPath(name).name != name:  # which knows all separators
        raise InputError(f"--name {name!r} is a path: give a name, such as g2p-1; the run is then in runs/g2p-1")
    if name.startswith("."):
        raise InputError(f"--name {name!r} begins with a dot: give a name without, such as g2p-1")
    if not name.isprintable():
        raise InputError(f"--name {name!r} holds characters that cannot be printed: give a name such as g2p-1")
    return name


@contextmanager
def held(run: RunFolder, say: Callable[[str], None], resume: bool = False) -> Iterator[None]:
    """A block in which no other process trains this run; what a kill left undone is put right first.

    Raises RunError where another process holds it, and where there is nothing to resume.
    """
    parent = run.path.parent
    new = not parent.exists()
    if not resume:
        _make(parent)
    elif not run.path.exists() and not run.beside("older").exists():
        run.read_config()
    try:
        with locked(_lock_of(run), str(run.path), say):
            _put_right(run, say)
            yield
    finally:
        if new:  # and stays so, where no run has come into it
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def begun(run: RunFolder, overwrite: bool = False) -> Iterator[RunFolder]:
    """A block that prepares a run in a folder of its own, which takes the place of `run` when the block ends.

    It is gone again where the block raises, and an older run is then as it was. Raises RunError when something is
    there already: a run without `overwrite`, or what is no run.
    """
    _check_free(run, overwrite)
    new = RunFolder(run.beside("new"))
    _remove_prepared(new)
    _make(new.path)
    try:
        _make(new.checkpoints)
        yield new
        _put_in_place(new, run)
    except BaseException:
        shutil.rmtree(new.path, ignore_errors=True)
        raise


def _lock_of(run: RunFolder) -> Path:
    """One for a run, also where a link leads to it."""
    return RunFolder(run.path.resolve()).beside("lock")


def _put_right(run: RunFolder, say: Callable[[str], None]) -> None:
    """Put back, or finish removing, the older run of a start with `--overwrite` that was killed."""
    older = run.beside("older")
    if older.exists():
        if os.path.lexists(run.path):
            raise RunError(
                f"{older} holds the run that a start with --overwrite was to replace when it was killed: keep it under "
                f"another name, or remove it"
            )
        older.rename(run.path)
        say(f"{run.path} is back: a start with --overwrite was killed while it replaced it")
    _remove(run.beside("removed"))


def _check_free(run: RunFolder, overwrite: bool) -> None:
    path = run.path
    if path.is_symlink():
        raise RunError(f"{path} is a link, which no new run replaces: remove the link, or choose another --name")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not run.is_run():
        raise RunError(f"{path} exists and is no run folder: choose another --name")
    if not overwrite:
        raise RunError(f"{path} exists: go on with --resume, choose another --name, or replace it by --overwrite")


def _remove_prepared(new: RunFolder) -> None:
    """Remove what a killed start left, and nothing else."""
    if not os.path.lexists(new.path):
        return
    ours = not new.path.is_symlink() and new.path.is_dir()
    if not ours or any(file.name not in _PREPARED and file.suffix != ".tmp" for file in new.path.iterdir()):
        raise RunError(f"{new.path} is in the way, and holds other things than a run that begins: move it away")
    _remove(new.path)


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)  # what is left of it is removed by the next start


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror}") from None


def _put_in_place(new: RunFolder, run: RunFolder) -> None:
    """Only a kill between the two renames is seen: it leaves the older run whole, which `_put_right` puts back."""
    older, removed = run.beside("older"), run.beside("removed")
    try:
        try:
            if run.is_run():
                run.path.rename(older)
            new.path.rename(run.path)
        except BaseException:
            if older.exists() and not run.path.exists():
                older.rename(run.path)
            raise
        bring_to_disk(run.path.parent)
        if older.exists():
            older.rename(removed)  # from here on it is half there
    except OSError as error:
        raise RunError(f"cannot move {new.path} to {run.path}: {error.strerror}") from None
    _remove(removed)
