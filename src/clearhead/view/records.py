"""The records of a run that are still being written: each time, only what is new is read."""

import json
import os
from pathlib import Path
from typing import Any


class Records:
    """The lines of metrics.jsonl that are objects with a step; of others, how many were `bad`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_again(None)

    def _start_again(self, file: int | None) -> None:
        self._file, self._at = file, 0
        self.kept: list[dict[str, Any]] = []
        self.bad = 0

    def read(self) -> list[dict[str, Any]]:
        """All that are there now; a last line without its end is still being written."""
        try:
            with open(self.path, "rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._file or now.st_size < self._at:  # a resumed run has written it anew
                    self._start_again(now.st_ino)
                file.seek(self._at)
                self._take(file.read())
        except OSError:
            self._start_again(None)
        return self.kept

    def _take(self, read: bytes) -> None:
        whole = read.rfind(b"\n") + 1
        self._at += whole
        for line in read[:whole].splitlines():
            record = _parsed(line)
            if record is None:
                self.bad += 1
            else:
                self.kept.append(record)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None
