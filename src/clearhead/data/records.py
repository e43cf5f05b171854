"""The records of a CSV file, each with the line where it begins; a field may hold ends of lines between its quotes."""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager

from clearhead.data.lines import Lines, Problem, lines

_ROWS = 10_000
_LONGEST = 1 << 24
"""Characters of a record, about. What is longer begins with a quote that nobody closes, and would fill the memory."""
_OPENS = re.compile(r'(?:\A|(?<=,))"')
_CLOSES = re.compile(r'[^"]*(?:""[^"]*)*"')


class _TooLong(Exception):
    pass


class Records:
    """Reads a CSV file by blocks. problems: of the lines that were read since they were taken away."""

    def __init__(self, file: str) -> None:
        self.file, self.problems = file, list[Problem]()
        self.ended = False
        self._line = 1  # where the record begins that is being read
        self._kept = list[Lines]()  # from that line on
        self._reader = csv.reader(self._lines(), strict=True)

    def block(self) -> tuple[list[int], list[list[str]]]:
        """Some records that follow each other: the line of each, and its cells."""
        where: list[int] = []
        cells: list[list[str]] = []
        reader = self._reader
        with _fields_of_any_length():
            try:
                while len(cells) < _ROWS:
                    self._line = line = reader.line_num + 1
                    cells.append(next(reader))
                    where.append(line)
            except StopIteration:
                self.ended = True
            except (csv.Error, _TooLong) as error:  # where the next record begins is unknown
                self.problems.append(self._misread(error, reader.line_num))
                self.ended = True
        return where, cells

    def _lines(self) -> Iterator[str]:
        for block in lines(self.file, keep_ends=True):
            self.problems += block.problems
            self._kept = [kept for kept in self._kept if kept.first + len(kept.texts) > self._line]
            if sum(sum(map(len, kept.texts)) for kept in self._kept) > _LONGEST:
                raise _TooLong
            self._kept.append(block)
            yield from block.texts

    def _misread(self, error: Exception, last: int) -> Problem:
        """The problem, at the line where the quote opens that may have swallowed what follows it.

        last: the line that was read last.
        """
        texts = [text for kept in self._kept for text in kept.texts]
        begin = self._line - self._kept[0].first if self._kept else 0
        record = "".join(texts[begin : begin + last - self._line + 1])
        quote = _last_quote(record)
        opens = last if quote is None else self._line + record.count("\n", 0, quote)
        if isinstance(error, _TooLong) or "unexpected end" in str(error):
            said = "the quote that opens here is not closed" if quote is not None else "a record that is too long"
        elif "new-line" in str(error):
            said = "a carriage return outside of quotes; remove it"
        else:
            said = str(error) + (f" in line {last}, where the quote that opens here is closed" if last > opens else "")
        return Problem(self.file, opens, "lines that are not CSV", f"not CSV: {said}")


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """The limit is the module's, not the reader's."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _last_quote(record: str) -> int | None:
    """Where the last field in quotes begins."""
    last, at = None, 0
    while opened := _OPENS.search(record, at):
        last, closed = opened.start(), _CLOSES.match(record, opened.end())
        if not closed:
            break
        at = closed.end()
    return last
