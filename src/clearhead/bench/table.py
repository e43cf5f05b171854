"""What a benchmark found: seconds of every arm in every round, errors, memory, what did not run and why; as a table."""

from dataclasses import asdict, dataclass, field
from typing import Any

from clearhead.bench.comparison import Comparison, shown

UNMEASURED = "not measured"


@dataclass(frozen=True)
class Table:
    """One question and its answer: the `times` of the arms that ran, and by arm what else was measured.

    `errors` are relative, ‖found − float64‖ / ‖float64‖ ("output", "gradients", "statistics"); `memory` is the most
    that was held beyond the arguments, in bytes; `work` the floating point operations that the arm's visible pairs
    need; `limit` what a plain matrix product reached in turns with the arms, in operations a second.
    """

    times: Comparison
    case: dict[str, Any]
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    missing: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def arms(self) -> list[str]:
        """Those that ran."""
        return list(self.times.seconds)

    def of_limit(self, arm: str) -> float | None:
        """The share of the matrix product's speed that `arm` reached, counting visible pairs alone."""
        work = self.work.get(arm)
        return None if work is None or self.limit is None else work / self.times.median(arm) / self.limit

    def lines(self) -> list[str]:
        """As a table; columns that nothing was measured for are left out."""
        titles = ["output", "gradients", "statistics"]
        kinds = [kind for kind in titles if any(kind in found for found in self.errors.values())]
        head = ["", "median", f"× {self.times.peer}", "quartiles"]
        head += ["of the limit"] if self.limit and self.work else []
        head += [f"error, {kind}" for kind in kinds] + (["memory"] if self.memory else [])
        rows = [head, *(self._row(arm, kinds) for arm in self.arms)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        first = max([widths[0], *map(len, self.missing)])
        body = [
            f"  {row[0]:<{first}}" + "".join(f"  {x:>{w}}" for x, w in zip(row[1:], widths[1:], strict=True))
            for row in rows
        ]
        absent = [f"  {arm:<{first}}  {reason}" for arm, reason in self.missing.items()]
        return [self.times.title, *body, *absent, *(f"  {note}" for note in self.notes), ""]

    def _row(self, arm: str, kinds: list[str]) -> list[str]:
        middle, low, high = self.times.ratio(arm)
        row = [arm, shown(self.times.median(arm)), f"{middle:.3f}", f"{low:.3f}–{high:.3f}"]
        if self.limit and self.work:
            share = self.of_limit(arm)
            row.append(UNMEASURED if share is None else f"{share:.0%}")
        found = self.errors.get(arm, {})
        row += [f"{found[kind]:.1e}" if kind in found else UNMEASURED for kind in kinds]
        if self.memory:
            row.append(f"{self.memory[arm] / 2**20:,.0f} MiB" if arm in self.memory else UNMEASURED)
        return row

    def record(self) -> dict[str, Any]:
        """For JSON; what was not measured is null."""
        shares = {arm: self.of_limit(arm) for arm in self.arms}
        rest = {key: value for key, value in asdict(self).items() if key != "times"}
        return {**self.times.record(), **rest, "of_limit": shares}
