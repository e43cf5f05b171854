"""Files of pairs, line by line: what each line holds, and what is wrong with it.

The one reader: checks, training, scores and predictions see the same pairs, and the same mistakes. Libraries that read
such files fill in what is missing, skip what is empty, and name no line for what is not UTF-8. Everything goes by
blocks, so that memory does not depend on the file.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clearhead.data import parquet
from clearhead.data.layouts import ANY, Columns, Layout, counted, laid_out, named
from clearhead.data.lines import Problem, Problems, lines
from clearhead.data.records import Records
from clearhead.errors import DataError, nearest

FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass
class Block:
    """Some pairs that follow each other, the line of each, and what was wrong with lines that gave none."""

    lines: Sequence[int]
    sources: list[str]
    targets: list[str]
    problems: list[Problem] = field(default_factory=list)


EMPTY = "empty lines"


def kind_of(files: Sequence[str]) -> str:
    """The format: "tsv", "csv", "jsonl", "parquet", or "text" for two parallel files; raises DataError for others."""
    if len(files) == 2:
        return "text"
    if len(files) != 1:
        raise DataError(f"{', '.join(files)}: give one file of pairs, or two parallel files with a comma between")
    suffix = _suffix(files[0])
    if suffix not in FORMATS:
        raise DataError(
            f"{files[0]}: a file of pairs ends in {', '.join(FORMATS)}, all but the last also with .gz; two parallel "
            "files of lines are written with a comma between, such as train.en,train.de"
        )
    if suffix == ".parquet" and files[0].endswith(".gz"):
        raise DataError(f"{files[0]}: Parquet within gzip is not read; unpack it")
    return FORMATS[suffix]


def blocks(files: Sequence[str], columns: Columns = ANY) -> Iterator[Block]:
    """All pairs of a file, or of two parallel files, with their lines and their problems.

    Raises DataError for what makes lines meaningless: a file that is missing or empty, or a column that is not there.
    """
    kind = kind_of(files)
    if kind == "text":
        return _parallel(*files)
    if kind == "parquet":
        return _parquet(files[0], columns)
    return {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl}[kind](files[0], columns)


def sources(file: str, columns: Columns) -> Iterator[Block]:
    """The source texts alone, from a file of pairs or from one that holds a text on each line; targets are the same."""
    if _suffix(file) in FORMATS:
        return blocks((file,), columns._replace(alone=True))
    return _one_a_line(file)


def _suffix(file: str) -> str:
    return Path(file.removesuffix(".gz")).suffix.lower()


def _one_a_line(file: str) -> Iterator[Block]:
    for first, texts, problems in lines(file):
        found = Problems(problems)
        where = [line for line in range(first, first + len(texts)) if line not in found.lines]
        texts = [texts[line - first] for line in where]
        yield _sound(file, file, where, texts, texts, found)


def _tsv(file: str, columns: Columns) -> Iterator[Block]:
    form: Layout | None = None
    for first, texts, problems in lines(file):
        skipped = 0
        if form is None:
            form = _layout(file, texts[0].split("\t"), "tabs", columns, problems)
            skipped = int(form.header)
        where = range(first + skipped, first + len(texts))
        yield _of_cells(file, form, where, [text.split("\t") for text in texts[skipped:]], problems)


def _csv(file: str, columns: Columns) -> Iterator[Block]:
    form: Layout | None = None
    records = Records(file)
    while not records.ended:
        where, cells = records.block()
        if form is None:
            form = _layout(file, cells[0] if cells else [], "commas", columns, records.problems)
            where, cells = where[form.header :], cells[form.header :]
        yield _of_cells(file, form, where, cells, records.problems, returns=True)
        records.problems.clear()


_SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "bars"}


def _layout(file: str, first: list[str], separated: str, columns: Columns, problems: Sequence[Problem]) -> Layout:
    """From the cells of the first line; raises DataError where it cannot be read: all others depend on it."""
    if not any(first):
        raise DataError(str(problems[0]) if problems else f"{file}:1: an empty line; remove it")
    other = next((name for mark, name in _SEPARATORS.items() if mark in first[0]), None)
    if len(first) == 1 and other and not columns.alone:
        raise DataError(f"{file}:1: 1 column, and a pair has 2: {separated} separate them here, not {other}")
    return laid_out(file, first, columns)


def _of_cells(
    file: str,
    form: Layout,
    where: Sequence[int],
    cells: list[list[str]],
    problems: Sequence[Problem],
    returns: bool = False,
) -> Block:
    """The pairs of lines that were cut into cells."""
    found, width = Problems(problems), len(form.names)
    if found or any(len(row) != width for row in cells):
        pairs = [(line, row) for line, row in zip(where, cells, strict=True) if line not in found.lines]
        for line, row in pairs:
            if not any(row):
                found.add(file, line, EMPTY, "an empty line; remove it")
            elif len(row) != width:
                found.add(
                    file, line, "lines with another number of columns", f"{counted(len(row), 'column')}, not {width}"
                )
        where = [line for line, _ in pairs if line not in found.lines]
        cells = [row for line, row in pairs if line not in found.lines]
    sources, targets = ([row[place] for row in cells] for place in (form.source, form.target))
    return _sound(file, file, where, sources, targets, found, returns)


def _jsonl(file: str, columns: Columns) -> Iterator[Block]:
    names: tuple[str, str] | None = None
    for first, texts, problems in lines(file):
        found, objects = Problems(problems), {}
        for line, text in enumerate(texts, start=first):
            if line not in found.lines and (row := _object(file, line, text, found)) is not None:
                objects[line] = row
        if names is None and objects:
            line, row = next(iter(objects.items()))
            form = named(file, line, tuple(row), columns)
            names = form.names[form.source], form.names[form.target]
        for line, row in objects.items():
            for name in names or ():
                if not isinstance(row.get(name), str):
                    found.add(file, line, "lines without texts", _no_text(row, name))
        kept = [line for line in objects if line not in found.lines]
        sources, targets = ([objects[line][name] for line in kept] for name in names or ("", ""))
        yield _sound(file, file, kept, sources, targets, found, returns=True)


def _object(file: str, line: int, text: str, found: "Problems") -> dict[str, Any] | None:
    if not text.strip():
        found.add(file, line, EMPTY, "an empty line; remove it")
        return None
    try:
        row = json.loads(text, object_pairs_hook=_once)
        why = None if isinstance(row, dict) else f"a JSON object is needed, not {_KINDS[type(row)]}"
    except DataError as error:
        why = str(error)
    except RecursionError:
        why = "not JSON that can be read: lists or objects within each other, too many of them"
    except ValueError as error:
        why = f"not JSON: {str(error).partition(':')[0].lower()}; each line holds an object"
    if why is None:
        return row
    found.add(file, line, "lines that are not JSON", why)
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, none of whose names is repeated: a later value would replace an earlier one without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise DataError(f"{next(name for name in row if names.count(name) > 1)!r} is there twice; remove one")
    return row


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _no_text(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return f"there is no {name!r}{nearest(name, row)}"
    value = row[name]
    shown = _KINDS[type(value)] if isinstance(value, dict | list) else json.dumps(value)[:40]
    return f"{name!r} is {shown}; a text is needed"


def _parquet(file: str, columns: Columns) -> Iterator[Block]:
    for first, sources, targets, found in parquet.rows(file, columns):
        kept = [i for i in range(len(sources)) if first + i not in found.lines]
        where = [first + i for i in kept]
        yield _sound(file, file, where, [sources[i] for i in kept], [targets[i] for i in kept], found, returns=True)


def _parallel(source: str, target: str) -> Iterator[Block]:
    """Two files side by side. Where one ends before the other, the lines that are left over are one problem."""
    ours, theirs = _Ahead(source), _Ahead(target)
    number = 1
    while ours.more() and theirs.more():
        count = min(len(ours.texts), len(theirs.texts))
        found = Problems([*ours.taken_problems(number + count), *theirs.taken_problems(number + count)])
        texts, answers = ours.take(count), theirs.take(count)
        where: Sequence[int] = range(number, number + count)
        if found:
            kept = [i for i in range(count) if number + i not in found.lines]
            where, texts, answers = [number + i for i in kept], [texts[i] for i in kept], [answers[i] for i in kept]
        yield _sound(source, target, where, texts, answers, found)
        number += count
    longer, shorter = (source, target) if ours.more() else (target, source)
    if ours.more() or theirs.more():
        message = f"{shorter} ends after {counted(number - 1, 'line')}; parallel files have as many lines"
        yield Block([], [], [], [Problem(longer, number, "lines without a partner", message)])


class _Ahead:
    """The lines of a file that were read and not yet taken."""

    def __init__(self, file: str) -> None:
        self._blocks = lines(file)
        self.texts: list[str] = []
        self.problems: list[Problem] = []

    def more(self) -> bool:
        """Is there a line left?"""
        while not self.texts:
            block = next(self._blocks, None)
            if block is None:
                return False
            self.texts, self.problems = block.texts, [*self.problems, *block.problems]
        return True

    def take(self, count: int) -> list[str]:
        taken, self.texts = self.texts[:count], self.texts[count:]
        return taken

    def taken_problems(self, until: int) -> list[Problem]:
        taken = [problem for problem in self.problems if problem.line is not None and problem.line < until]
        self.problems = self.problems[len(taken) :]
        return taken


def _sound(
    file: str,
    other: str,
    where: Sequence[int],
    sources: list[str],
    targets: list[str],
    found: Problems,
    returns: bool = False,
) -> Block:
    """The pairs that can be learnt from.

    file, other: where the sources and the targets are. returns: carriage returns end no line here, and may be in texts.
    """
    if not (_suspicious(sources, returns) or _suspicious(targets, returns)):
        return Block(where, sources, targets, found.all)
    for line, source, target in zip(where, sources, targets, strict=True):
        for place, side, text in ((file, "source", source), (other, "target", target)):
            if why := _refused(text, returns):
                kind, message = why
                found.add(place, line, kind, f"the {side} {message}" if file == other else message)
    kept = [i for i, line in enumerate(where) if line not in found.lines]
    return Block([where[i] for i in kept], [sources[i] for i in kept], [targets[i] for i in kept], found.all)


def _suspicious(texts: list[str], returns: bool) -> bool:
    """May one of the texts be refused? Most blocks hold none, and to ask all at once is quicker than to ask each."""
    joined = "\n".join(texts)
    if "\0" in joined or ("\r" in joined and not returns) or not all(map(str.strip, texts)):
        return True
    try:
        joined.encode()
    except UnicodeEncodeError:
        return True
    return False


def _refused(text: str, returns: bool) -> tuple[str, str] | None:
    """What no training can use, and what to do about it."""
    if not text.strip():
        return EMPTY, "is empty; remove the line"
    if "\0" in text:
        return "lines with NUL characters", "holds a NUL character; remove it"
    if "\r" in text and not returns:
        return "lines with carriage returns", "holds a carriage return; remove it"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        return "lines with halves of characters", f"holds {half}, half of a surrogate pair; no text holds it"
    return None
