"""Which kernel computes A v: an ordered list, read from the top, and what each is predicted to cost."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.kernels import flex, packed
from clearhead.kernels.call import SMALL, Call
from clearhead.kernels.costs import Cost, as_bytes, by_matrix_units, how_streamed, in_bytes, measured, predicted
from clearhead.kernels.runs import ROWS
from clearhead.kernels.score import ByDistance, traced
from clearhead.kernels.sdpa import sdpa

WORTH = 0.9
"""The share of all pairs that may lie in blocks that are seen, for `blocks` to save work."""
FASTER = 0.8
"""A kernel is passed over for one further down that is predicted to take less than this part of its time."""
UNITS = 1 << 24
"""Pairs from which on matrix units of `stream` make up for packing what they multiply: 4 heads of 2,048 tokens."""
LATER = "later"
"""What is chosen where no tensor can be read, under the compiler and vmap: `blocks` or `stream`, when it runs."""


def _sdpa(call: Call) -> str | None:
    if reason := call.lacking("statistics", "sinks", "softcap"):
        return reason
    if isinstance(call.score.bias, ByDistance) and call.score.learns:
        return "gives a bias by distance its gradient pair by pair"
    if _always(call.pairs <= SMALL):
        return None
    if not _always((cells := call.mask_cells) <= SMALL):
        return f"would need a dense mask of {_counted(cells)} pairs; at most {SMALL:,} are held"
    if cause := call.unfused:
        return f"is not fused on this device {cause}: it would hold {_counted(call.pairs)} weights"
    return None


def _always(condition: bool) -> bool:
    """Is it so; in a program that is exported, whatever its sizes? To ask about those it has now would bound them."""
    if not torch.compiler.is_exporting():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def _counted(number: int) -> str:
    """A number as people write it; while the compiler traces, it may have no value yet."""
    return "n²" if torch.compiler.is_compiling() else f"{number:,}"


def _blocks(call: Call) -> str | None:
    if reason := _beyond_blocks(call):
        return reason
    if call.brief:
        return f"has nothing to leave out of at most {2 * ROWS} queries or keys"
    share = call.in_blocks / max(1, call.pairs)
    return f"leaves nothing out: {share:.0%} of all pairs lie in blocks that are seen" if share > WORTH else None


def _beyond_blocks(call: Call) -> str | None:
    """What `blocks` cannot do, whatever the layout."""
    width, value_width = call.widths
    if call.device.type != "cpu":
        return "is for CPUs"
    if reason := call.lacking("statistics", "sinks", "dropout", "softcap"):
        return reason
    if call.score.learns:
        return "gives a bias no gradient"
    if width != value_width or not width:
        return f"needs values as wide as keys, not {value_width} and {width}"
    return "has nothing to leave out" if call.visible.full else None


KERNELS: tuple[tuple[str, Callable[[Call], str | None]], ...] = (
    ("sdpa", _sdpa),
    ("blocks", _blocks),
    ("packed", packed.misfit),
    ("flex", flex.misfit),
    ("stream", lambda call: None),
)
"""Name, and why it does not fit a call (None: it fits), in order of preference."""
OUTPUT_ALONE: dict[str, Callable[..., Tensor]] = {"sdpa": sdpa, "packed": packed.packed}
"""Kernels that return the output alone: of q, k, v, what is visible, score and dropout."""


_budget: ContextVar[int | None] = ContextVar("clearhead_memory", default=None)


@contextmanager
def memory_budget(size: int | str) -> Iterator[None]:
    """A block in which only kernels run that are predicted to hold at most `size`, such as "1.5GB" or bytes.

    What counts is what they hold beside inputs, output and gradients, in forward and backward pass. A call that no
    kernel computes within it raises InputError.
    """
    token = _budget.set(as_bytes(size))
    try:
        yield
    finally:
        _budget.reset(token)


def choose(call: Call, among: Collection[str] = ()) -> str:
    """The name of the kernel that runs: the first that fits, unless a later one is predicted to be much faster.

    `among` names the kernels in question, if not all are. Raises InputError where no kernel meets the memory budget.
    """
    kernels = [(name, misfit) for name, misfit in KERNELS if name in among] if among else KERNELS
    if len(kernels) > 1 and traced():
        return "sdpa" if _sdpa(call) is None else "stream" if _beyond_blocks(call) else LATER
    budget, fits = _budget.get(), []
    if budget is None and _units_pay(call):
        return "stream"
    for name, misfit in kernels:
        if misfit(call) is None:
            fits.append(name)
            if budget is None and (call.brief or (name == "sdpa" and not call.mask_cells)):
                return name  # nothing is left out, and nothing is faster
    if budget is not None:
        fits = _within(budget, {name: predicted(name, call) for name in fits})
    refined = len(fits) > 1 and not {"blocks", "packed", "flex"}.isdisjoint(fits)
    return _fastest({name: predicted(name, call) for name in fits}) if refined else fits[0]


def _units_pay(call: Call) -> bool:
    """Is `stream` faster than `sdpa`, though nothing is left out, because it keeps matrix units busy?

    Their way back is not written, and a causal call is as fast either way.
    """
    dense = call.dtype == torch.bfloat16 and not call.backward and call.visible.full and call.visible.unpadded
    return dense and call.score.bias is None and call.pairs >= UNITS and by_matrix_units(call)


def _within(budget: int, costs: dict[str, Cost]) -> list[str]:
    fits = [name for name, cost in costs.items() if cost.memory <= budget]
    if not fits:
        least = min(costs, key=lambda name: costs[name].memory)
        needs = in_bytes(1.01 * costs[least].memory)  # rounded, but not below
        raise InputError(
            f"memory budget of {in_bytes(budget)}: no kernel fits, {least} needs least, about {needs}; "
            f"write memory_budget('{needs}') or attend to fewer samples, heads or queries at a time"
        )
    return fits


def _fastest(costs: dict[str, Cost]) -> str:
    """The first, unless a later one is predicted to be much faster; a rate that is not measured predicts nothing."""
    best = next(iter(costs))
    for name, cost in costs.items():
        if cost.seconds is not None and (known := costs[best].seconds) is not None and cost.seconds < FASTER * known:
            best = name
    return best


@dataclass(frozen=True)
class Explanation:
    """Which kernel runs, why each other one does not, and what those that fit are predicted to cost; a table."""

    chosen: str
    reasons: dict[str, str]
    costs: dict[str, Cost] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        cells = [("kernel", "time", "memory", "")]
        for name, reason in self.reasons.items():
            cost = self.costs.get(name)
            cells.append((name, *(("", "") if cost is None else cost.words()), reason))
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        lines = []
        for name, seconds, memory, reason in cells:
            mark = "▸" if name == self.chosen else " "
            line = f"{mark} {name:<{widths[0]}}  {seconds:>{widths[1]}}  {memory:>{widths[2]}}  {reason}"
            lines.append(line.rstrip())
        return "\n".join([*lines, *self.notes])

    __repr__ = __str__


def explain(call: Call) -> Explanation:
    """The choice for `call` with its reasons, and what forward and backward pass are predicted to cost."""
    chosen, budget = choose(call), _budget.get()
    units = budget is None and _units_pay(call)
    misfits = {name: misfit(call) for name, misfit in KERNELS}
    costs = {name: predicted(name, call) for name, misfit in misfits.items() if misfit is None}
    reasons = {name: misfit or _passed_over(name, chosen, costs, budget, units) for name, misfit in misfits.items()}
    if "stream" in reasons and misfits["stream"] is None:
        reasons["stream"] += f"; {how_streamed(call)}"
    return Explanation(chosen, reasons, costs, (_source(call.device.type),))


def _source(device: str) -> str:
    if measured().get(device):
        return "Times are predicted from rates measured on this machine."
    if device == "cpu":
        return "Times are predicted from rates measured elsewhere: see calibrate."
    return "Rates of this device are not measured: the order decides; see calibrate."


def _passed_over(name: str, chosen: str, costs: dict[str, Cost], budget: int | None, units: bool) -> str:
    names = list(costs)
    if name == chosen:
        return "chosen: the first that fits" if name == names[0] else "chosen: predicted to be faster"
    if budget is not None and costs[name].memory > budget:
        return f"would hold more than the memory budget of {in_bytes(budget)}"
    if units:
        return f"fits, but without gradients {chosen} is faster by its matrix units"
    own, best = costs[name].seconds, costs[chosen].seconds
    if names.index(name) < names.index(chosen) and own is not None and best is not None:
        return f"fits, but {chosen} is predicted to take {best / own:.2g} of its time"
    return f"fits, but {chosen} comes first"
