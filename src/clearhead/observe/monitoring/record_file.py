"""A file of records: an object of JSON a line, in the order of their steps."""

import json
import os
from pathlib import Path
from typing import IO, Any

from clearhead.errors import InputError
from clearhead.observe.monitoring.lines import Lines


class RecordFile:
    """Appends records to a file, such as metrics.jsonl; its folder is made when the first one is written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __call__(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            _end(file)
            file.write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """All records; a last line that a kill cut off is left out.

        Raises InputError for any other line that is no record.
        """
        records, lines = [], self._lines()
        for number, line in enumerate(lines, 1):
            record = _record(line)
            if record is not None:
                records.append(record)
            elif number < len(lines):
                raise InputError(f"{self.path}:{number}: no record of JSON with a step: remove the line")
        return records

    def read_good(self) -> list[dict[str, Any]]:
        """What can be read of the records, as for `Lines`."""
        lines = Lines()
        found = (lines.read(line)[0] for line in self._lines())
        return [record for record in found if record is not None]

    def _lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self.path}: {(error.strerror or str(error)).lower()}") from None

    def go_back(self, step: int) -> None:
        """Drop what is behind a step that training goes on from, whole or not at all."""
        if not self.path.exists():
            return
        kept = [record for record in self.read() if record["step"] <= step]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(temporary, self.path)


def _end(file: IO[bytes]) -> None:
    """End the last line, or cut it off if a kill or a full disk left a part of a record."""
    if not (size := file.seek(0, os.SEEK_END)):
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    whole, newline, last = file.read().rpartition(b"\n")
    if _record(last) is None:
        file.truncate(len(whole + newline))
    else:
        file.write(b"\n")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (RecursionError, ValueError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None
