"""How far a training has come, from 0 to 1: in steps, or in elapsed time when it has a budget of minutes."""

import math
import time

from clearhead.train.config import Duration


class Clock:
    """Progress and time left; elapsed time goes on where a resumed run stopped."""

    def __init__(self, duration: Duration, steps_per_epoch: int) -> None:
        amount = duration.amount
        self.seconds = 60 * amount if duration.unit == "minutes" else math.inf
        self.steps = {"steps": amount, "epochs": amount * steps_per_epoch}.get(duration.unit, math.inf)
        self._before, self._since = 0.0, time.monotonic()

    @property
    def timed(self) -> bool:
        """Is it a budget of time, and not of steps?"""
        return math.isfinite(self.seconds)

    def start(self, elapsed: float = 0.0) -> None:
        """Let the time run, after the seconds that passed before."""
        self._before, self._since = elapsed, time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training."""
        return self._before + time.monotonic() - self._since

    def progress(self, step: int, elapsed: float | None = None) -> float:
        """The share that is done after `step` steps; `elapsed` in the place of the own clock's (another process's)."""
        if self.timed:
            return min(1.0, (self.elapsed if elapsed is None else elapsed) / self.seconds)
        return min(1.0, step / self.steps)

    def left(self, step: int) -> float:
        """Seconds still to go, at the speed so far."""
        if self.timed:
            return max(0.0, self.seconds - self.elapsed)
        return (self.steps - step) * self.elapsed / max(1, step)


def learning_rate(progress: float, warmup: float, decay: str) -> float:
    """The factor on the peak learning rate: a straight rise during `warmup`, then half a cosine or a line down to 0."""
    if progress < warmup:
        return progress / warmup
    rest = (progress - warmup) / (1 - warmup)
    return 0.5 * (1 + math.cos(math.pi * rest)) if decay == "cosine" else 1 - rest
