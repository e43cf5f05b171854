"""The files of an inspection: the text that is read, and the folder that is written, never one with other things."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from clearhead.errors import DataError, InputError
from clearhead.writing import check_place, together

STATISTICS = "statistics.json"
MADE_BY = "clearhead inspect"


def read_text(path: str | Path) -> str:
    """The text of a file, its lines and paragraphs as they are.

    Raises DataError, naming file and line, for a file that is missing, empty or not UTF-8.
    """
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        line = 1 + raw[: error.start].count(b"\n")
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02X}); save the file as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path}: there is no text in it")
    return text.strip()


class Folder:
    """A folder that is new, empty, or holds an earlier inspection, which is replaced.

    Raises InputError for any other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if os.path.isfile(path):
            raise InputError(f"{path} is a file: choose another --out")
        check_place(path, folder=True)
        self._earlier = self._read_earlier()

    def _read_earlier(self) -> list[str]:
        """The files of an earlier inspection."""
        there = sorted(file.name for file in self.path.iterdir()) if self.path.exists() else []
        others = [name for name in there if not name.startswith(".")]  # of which none is ever written
        if not others:
            return []
        try:
            record = json.loads((self.path / STATISTICS).read_text(encoding="utf-8"))
            if record["made_by"] == MADE_BY:
                names = [Path(name).name for name in record["files"]]
                return [name for name in names if (self.path / name).is_file() or (self.path / name).is_symlink()]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise InputError(f"{self.path} holds other things, such as {others[0]}: choose another --out")

    def write(
        self, pictures: Iterable[tuple[str, Any]], files: list[Path], record: Callable[[], dict[str, Any]]
    ) -> None:
        """Save figures by their names, and then the record; `files` are told one by one."""
        try:
            with together(self.path, self._earlier) as place:
                for name, figure in pictures:
                    figure.savefig(place / name)
                    files.append(self.path / name)
                files.append(self.path / STATISTICS)
                whole = json.dumps({"made_by": MADE_BY, **record()}, ensure_ascii=False, allow_nan=False, indent=1)
                (place / STATISTICS).write_text(whole + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {(error.strerror or str(error)).lower()}") from None
