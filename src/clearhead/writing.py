"""How files are written: at every moment either the old or the new one is there, whole."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from clearhead.errors import InputError


def write(path: Path, content: Callable[[IO[bytes]], object]) -> None:
    """Write a file by `content`, which is given the open file. A kill or a full disk leaves what was there before.

    The new file is written beside the old, brought to the disk, and then takes its name; a link of that name is
    replaced, and not followed. Raises OSError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        bring_to_disk(path.parent)
    except RuntimeError as error:
        temporary.unlink(missing_ok=True)
        raise _of_the_system(error) or error from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, as `write` does."""
    write(path, lambda file: file.write(text.encode()))


def write_figure(path: Path, figure: Any, **options: Any) -> None:
    """Write a figure of matplotlib, as `write` does; the ending of the path chooses the format."""
    write(path, lambda file: figure.savefig(file, format=path.suffix[1:] or "png", **options))


@contextmanager
def together(folder: Path, earlier: Iterable[str] = ()) -> Iterator[Path]:
    """A block with a hidden place, whose files move into `folder` when it ends, in the place of `earlier` ones.

    Where the block raises, the earlier ones stay. Raises OSError where nothing can be written.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as hidden:
            yield Path(hidden)
            made = [file.name for file in Path(hidden).iterdir()]
            for name in set(earlier) - set(made):
                (folder / name).unlink(missing_ok=True)
            for name in made:
                os.replace(Path(hidden, name), folder / name)
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def check_place(path: Path, argument: str = "--out", *, folder: bool = False) -> None:
    """Raise InputError unless a file can be written there; with `folder`, files in it, and it may not be there yet.

    To be asked before the work whose results are written. Nothing is changed.
    """
    if not folder and os.path.isdir(path):
        raise InputError(f"{argument} {path} is a folder: give the name of a file")
    try:
        with suppress(FileNotFoundError):
            os.lstat(path)  # which says so where the name is too long
        with tempfile.TemporaryFile(dir=_there(path) if folder else path.parent):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not folder:
            words = f"there is no folder {path.parent}; make it, or choose another"
            raise InputError(f"{argument} {path}: {words}") from None
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{argument} {path} cannot be written: {why.lower()}") from None


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))


def bring_to_disk(folder: Path) -> None:
    """A new name is only safe once its folder is on the disk, where the system can say so (not on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _of_the_system(error: RuntimeError) -> OSError | None:
    """What the system said: torch raises an error of its own ("unexpected pos") while it handles that."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__context__
    return inner
