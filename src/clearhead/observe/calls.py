"""What was seen: a record for each attention that ran, and all of them together.

Shapes: B samples, H heads, Nq queries, Nk keys; R of the Nq rows are measured, all of them unless a sample was chosen.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, overload

import torch
from torch import Tensor

from clearhead.errors import InputError, nearest
from clearhead.kernels import Statistics
from clearhead.maps import AttentionMap


@dataclass(frozen=True, eq=False)
class Call:
    """One execution of one attention.

    Attributes:
        name: the path of the module that attended, "encoder.layer.3.attention.self".
        role: "self" or "cross".
        how: what computed it, and how it was seen: "transformers sdpa", "torch.nn.MultiheadAttention", …
        shape: (B, H, Nq, Nk); of the samples that were measured.
        statistics: of its rows, (B, H, R); what was not chosen is None, "not measured".
        rows: (R,), which rows were measured; None: all.
        samples: (B,), which samples of the batch were measured; None: all.
        padding: (B or 1, R), True where the query is padding, whose row says nothing; None: no query is.
        residual: (B,), by how much the rows differ that the module put out, as a share of their size (`rank_residual`);
            NaN for a sample of fewer than 8 rows; None: not measured.
        brought: for each head what brought NaN or Inf into it, "query 3" or "key 17", or None; None: nothing is known.
        map: its attention map, where maps are kept.
        step: in which forward pass of the watched model it ran, from 0. At the end of the watch those of other threads
            come last, in an order that depends on what was measured in them and not on time.
        turn: how many times the module had run in that pass before (layers that share their weights).
    """

    name: str
    role: str
    how: str
    shape: tuple[int, int, int, int]
    statistics: Statistics
    rows: Tensor | None = None
    samples: Tensor | None = None
    padding: Tensor | None = None
    residual: Tensor | None = None
    brought: tuple[str | None, ...] | None = None
    map: AttentionMap | None = None
    step: int = 0
    turn: int = 0

    @property
    def heads(self) -> int:
        return self.shape[1]

    def __repr__(self) -> str:
        b, h, n_queries, n_keys = self.shape
        return f"Call({self.name!r}, {self.role}, {b} × {h} heads × {n_queries} × {n_keys}, by {self.how})"


@dataclass(eq=False)
class Seen(Sequence[Call]):
    """The attention that ran while a model was watched, in the order of the forward passes.

    `seen[3]` is a call; `seen["encoder.layer.3"]` are the calls under a path, with the steps of decoding joined along
    the rows: row i is then the i-th query that came. (Under beam search rows belong to beam slots, not to hypotheses,
    which move between slots.) `unseen` says, by module path, what could not be seen and why.
    """

    calls: list[Call] = field(default_factory=list)
    unseen: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    @overload
    def __getitem__(self, key: int) -> Call: ...

    @overload
    def __getitem__(self, key: slice | str) -> "Seen": ...

    def __getitem__(self, key: int | slice | str) -> "Call | Seen":
        if isinstance(key, int):
            return self.calls[key]
        if isinstance(key, slice):
            return Seen(self.calls[key], self.unseen)
        chosen = [call for call in self.calls if under(call.name, key)]
        if not chosen:
            names = dict.fromkeys(call.name for call in self.calls)
            raise InputError(f"no attention was seen under {key!r}{nearest(key, names)}")
        return Seen(joined(chosen), {path: why for path, why in self.unseen.items() if under(path, key)})

    @property
    def names(self) -> list[str]:
        """The paths of the modules that attended, in their order."""
        return list(dict.fromkeys(call.name for call in self.calls))

    # what is said about it; imported when asked for, because it is made of calls

    def records(self) -> list[dict[str, Any]]:
        """A plain record of each head of each layer: `clearhead.observe.records.records`."""
        from clearhead.observe.numbers.records import records

        return records(self)

    def table(self, heads: bool | None = None, columns: Sequence[str] | None = None) -> Any:
        """A rich Table, layer × head: entropy, sink, max logit, distance and health, and below it what was not seen.

        Args:
            heads: a line for each head (True), or for each layer with the range over its heads (False); None: for each
                head if there are few.
            columns: names of other statistics to show.

        Raises InputError for a statistic of another name.
        """
        from clearhead.observe.numbers.table import grid

        return grid(self, heads, columns).rich()

    def to_pandas(self) -> Any:
        """A pandas DataFrame, one row for each head of each layer. Raises MissingExtra without pandas."""
        from clearhead.observe.numbers.records import to_pandas

        return to_pandas(self)

    def to_json(self, rows: bool = False) -> str:
        """The records as JSON, what is no finite number as null; with `rows` also every value of every call."""
        from clearhead.observe.numbers.records import to_json

        return to_json(self, rows)

    def view(
        self,
        tokens: Sequence[str] | None = None,
        *,
        sample: int = 0,
        port: int = 0,
        browser: bool | None = None,
        block: bool | None = None,
    ) -> Any:
        """Serve a page on which the maps of the last pass can be looked at, whatever their length.

        Args:
            tokens: names of positions, for every axis that has as many of them; None: their numbers.
            sample: which of the batch.
            port: where the page is served; 0: any port that is free.
            browser: open it in one; None: unless a notebook shows it.
            block: wait until Ctrl-C; None: in a program, but neither in a notebook nor at the prompt.

        Returns a `clearhead.view.Shown`, with `url` and `close()`; in a notebook it shows the page in a frame. Raises
        InputError where no maps were kept (`watch(model, keep_maps=True)`), for a sample that is not there, for names
        that fit no axis, and for a port in use.
        """
        from clearhead.view import view  # up the house, when asked for: whoever has seen something wants to look at it

        return view(self, tokens, sample=sample, port=port, browser=browser, block=block)

    def __str__(self) -> str:
        from clearhead.observe.numbers.table import grid

        return grid(self).text()

    def __rich__(self) -> Any:
        return self.table()

    def _repr_html_(self) -> str:
        from clearhead.observe.numbers.table import grid

        return grid(self).html()


def under(name: str, path: str) -> bool:
    """Is the module `name` the one at `path`, or inside it?"""
    return not path or name == path or name.startswith(f"{path}.")


def by_pass(calls: Sequence[Call], elsewhere: Collection[int]) -> list[Call]:
    """The calls pass by pass, numbered anew: last those of the steps `elsewhere`, in an order that is none of time."""
    passes: dict[int, list[Call]] = {}
    for call in calls:
        passes.setdefault(call.step, []).append(call)
    order = sorted(step for step in passes if step not in elsewhere)
    order += sorted((step for step in passes if step in elsewhere), key=lambda step: _content(passes[step]))
    return [replace(call, step=number) for number, step in enumerate(order) for call in passes[step]]


def _content(calls: list[Call]) -> tuple[list[tuple[Any, ...]], list[bytes]]:
    """What tells a pass from another: its shapes, and the numbers of its first call."""
    measured = (getattr(calls[0].statistics, each.name) for each in fields(Statistics))
    numbers = [x.detach().cpu().numpy().tobytes() for x in measured if x is not None]
    return [(call.name, call.shape) for call in calls], numbers


def joined(calls: Sequence[Call]) -> list[Call]:
    """The calls, the steps of one decoding put together along their rows: those of one module, samples and heads."""
    groups: dict[tuple[Any, ...], list[list[Call]]] = {}
    for call in calls:
        decodings = groups.setdefault((call.name, call.role, call.turn, call.shape[:2]), [])
        if decodings and _continues(call, decodings[-1][-1]):
            decodings[-1].append(call)
        else:
            decodings.append([call])
    return [steps[0] if len(steps) == 1 else _join(steps) for group in groups.values() for steps in group]


def _continues(call: Call, last: Call) -> bool:
    """Is it the next step after `last`: more keys by its queries, or a single query, since windows forget keys?"""
    (_, _, n_queries, n_keys), before = call.shape, last.shape[3]
    alone = n_queries == 1 and (n_keys == before if call.role == "cross" else n_keys > 1)
    return alone or n_keys == before + n_queries


def _join(calls: list[Call]) -> Call:
    """One call of all the rows; its keys are the most that any of them had."""
    first, n_keys = calls[0], max(call.shape[3] for call in calls)
    values: dict[str, Tensor | None] = {}
    for name in (each.name for each in fields(Statistics)):
        parts = [getattr(call.statistics, name) for call in calls]
        if all(part is not None for part in parts):
            values[name] = _total(parts, n_keys) if name == "received" else torch.cat(parts, -1)
    starts = torch.tensor([0, *(call.shape[2] for call in calls)]).cumsum(0).tolist()
    rows = padding = None
    if any(call.rows is not None for call in calls):
        rows = torch.cat([_row_numbers(call) + at for call, at in zip(calls, starts, strict=False)])
    if any(call.padding is not None for call in calls):
        padding = torch.cat([_padding(call) for call in calls], -1)
    shape = (*first.shape[:2], starts[-1], n_keys)
    return replace(
        first,
        shape=shape,
        statistics=Statistics(**values),
        rows=rows,
        padding=padding,
        residual=None,
        brought=None,
        map=None,
    )


def _row_numbers(call: Call) -> Tensor:
    return torch.arange(call.shape[2]) if call.rows is None else call.rows % call.shape[2]


def _padding(call: Call) -> Tensor:
    """Which of the measured queries are padding, (B, R)."""
    b, r = call.shape[0], call.shape[2] if call.rows is None else len(call.rows)
    return torch.zeros(b, r, dtype=torch.bool) if call.padding is None else call.padding.cpu().expand(b, r)


def _total(parts: list[Tensor], n_keys: int) -> Tensor:
    """What each key received in all calls; the keys of a cache stay where they are."""
    return torch.stack([torch.nn.functional.pad(part, (0, n_keys - part.shape[-1])) for part in parts]).sum(0)
