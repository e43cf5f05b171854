"""How files are written: at every moment either the old or the new one is there, whole."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


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
