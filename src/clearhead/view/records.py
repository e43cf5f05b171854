"""The records of a run that are still being written: each time, only what is new is read."""

import os
import stat
from pathlib import Path
from typing import IO, Any

from clearhead.observe.monitoring.lines import Lines

BLOCK = 2**24
"""Bytes that are read at once; a line that is longer is no record."""


class Records:
    """The lines of metrics.jsonl that are objects with a step.

    Attributes:
        kept: what was read so far.
        bad: how many lines are no records.
        odd: how many records hold something that is left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_again(None)

    def _start_again(self, file: int | None, why: str = "") -> None:
        self._file, self._at, self._line, self._long = file, 0, 0, False
        self.kept: list[dict[str, Any]] = []
        self.bad = self.odd = 0
        self._why, self._first = why, ""
        self._lines = Lines()

    def read(self) -> list[dict[str, Any]]:
        """All that are there now; a last line without its end is still being written."""
        try:
            if self.path.exists() and not stat.S_ISREG(self.path.stat().st_mode):
                self._start_again(None, "it is no file")
                return self.kept
            with open(self.path, "rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._file or now.st_size < self._at:  # a resumed run has written it anew
                    self._start_again(now.st_ino)
                self._take(file)
        except FileNotFoundError:
            self._start_again(None)
        except OSError as error:
            self._start_again(None, (error.strerror or str(error)).lower())
        return self.kept

    @property
    def trouble(self) -> str:
        """What cannot be shown, in a sentence; "" where all can."""
        parts = [f"{self.path}: {self._why}"] if self._why else []
        for count, words in ((self.bad, "no record"), (self.odd, "in part no record")):
            if count:
                parts.append(f"{count} line{'s are' if count > 1 else ' is'} {words}")
        if not parts:
            return ""
        return f"{self.path}: {', '.join(parts)}; the first is {self._first}." if self._first else f"{parts[0]}."

    def _take(self, file: IO[bytes]) -> None:
        while True:
            file.seek(self._at)
            block = file.read(BLOCK)
            whole = block.rfind(b"\n") + 1
            if not whole and len(block) < BLOCK:
                return
            self._at += whole or len(block)
            lines = block[:whole].splitlines()
            if self._long and whole:  # the end of a line that was too long
                lines, self._long = lines[1:], False
            elif not whole and not self._long:
                self._long = True
                self._note_bad()
            for line in lines:
                self._add(line)

    def _add(self, line: bytes) -> None:
        record, left_out = self._lines.read(line)
        if record is None:
            self._note_bad()
            return
        self._line += 1
        if left_out:
            self.odd += 1
            self._first = self._first or f"line {self._line}: {left_out[0]}"
        self.kept.append(record)

    def _note_bad(self) -> None:
        self._line += 1
        self.bad += 1
        self._first = self._first or f"line {self._line}"
