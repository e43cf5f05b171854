"""Which files a run was started with, and whether they are still there and the same."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clearhead.data import Files, Source
from clearhead.data.sources import Split
from clearhead.errors import DataError, RunError
from clearhead.train.folder import RunFolder, write_text


class File(NamedTuple):
    """A file of a split, as the configuration names it, and what was known of it when the run was started."""

    split: Split
    path: str
    known: dict[str, Any]


def write(run: RunFolder, source: Source, pairs: dict[Split, int]) -> None:
    """Write data.json: how many pairs, and what tells whether their files are the same later."""
    files = {path: fingerprint(path) for _, path in _paths(source)}
    content = {"pairs": pairs, "folder": os.getcwd(), "files": files}
    write_text(run.data, json.dumps(content, indent=2) + "\n")


def fingerprint(path: str) -> dict[str, Any]:
    """What tells whether a file is still the same."""
    state = Path(path).stat()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": state.st_size, "modified": state.st_mtime_ns, "sha256": digest}


def changed(run: RunFolder, source: Source, split: Split | None = None) -> Iterator[str]:
    """Say of each file of a split (None: of all) that is no longer what it was when the run was started.

    Raises DataError that names all files which cannot be found.
    """
    files, folder = _started_with(run, source)
    files = [file for file in files if split in (None, file.split)]
    _check_there(run, [file for file in files if not Path(file.path).exists()], folder)
    for file in files:
        if not _same(file):
            now = Path(file.path).stat().st_size
            yield f"{file.path} has changed since the run was started ({file.known['bytes']:,} bytes then, {now:,} now)"


def _paths(source: Source) -> list[tuple[Split, str]]:
    return (
        [(split, path) for split, paths in source.files.items() for path in paths] if isinstance(source, Files) else []
    )


def _started_with(run: RunFolder, source: Source) -> tuple[list[File], str | None]:
    """The files, and the folder in which the run was started.

    They are matched by their order: the paths in the configuration may have been corrected since.
    """
    if not run.data.exists():
        return [], None
    try:
        content = json.loads(run.data.read_text(encoding="utf-8"))
        known = [{key: one[key] for key in ("bytes", "modified", "sha256")} for one in content["files"].values()]
        folder = content.get("folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RunError(f"{run.data} is damaged: train it again with --overwrite") from None
    paths = _paths(source)
    once = list(dict.fromkeys(path for _, path in paths))
    if len(once) != len(known):
        raise RunError(f"{run.config} names {len(once)} files, and the run was started with {len(known)}")
    found = dict(zip(once, known, strict=True))
    return [File(split, path, found[path]) for split, path in paths], folder


def _check_there(run: RunFolder, gone: list[File], folder: str | None) -> None:
    if gone:
        named = ", ".join(f"{file.path} (data.{file.split})" for file in gone)
        started = "" if folder is None else f" in {folder}"
        raise DataError(
            f"cannot find what the run was started with{started}: {named}; run this in that folder, put them back, or "
            f"write in {run.config} where they are now"
        )


def _same(file: File) -> bool:
    """Return whether it is the same; a copy with another date is."""
    state, known = Path(file.path).stat(), file.known
    same = (state.st_size, state.st_mtime_ns) == (known["bytes"], known["modified"])
    return same or fingerprint(file.path)["sha256"] == known["sha256"]
