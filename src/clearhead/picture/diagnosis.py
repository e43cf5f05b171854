"""What the curves of losses say, in words: whether a training overfits, underfits, or is not at its end.

It goes by how losses change from one validation to the next, never by how far apart they are: in training there may be
dropout and label smoothing, and validation has neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

FLAT = 0.01
"""A loss that changes by less, as a share of itself, from one validation to the next is flat."""
WORSE = 0.02
"""A validation loss this much above its lowest has risen."""
HIGH = 0.5
"""A training loss that is still this share of the first one is high."""

Records = Sequence[Mapping[str, Any]]


def diagnose(records: Records) -> str:
    """A sentence or two on the losses of metrics.jsonl, {"step", "train_loss", "valid_loss", …}; "" without any.

    For each validation the training loss is the mean of the records since the one before it.
    """
    train, valid = _course(records, "train_loss"), _course(records, "valid_loss")
    if not train and not valid:
        return ""
    steps = [step for step, _ in valid]
    before = [0.0, *steps]
    means = [_mean([loss for at, loss in train if before[i] < at <= step]) for i, step in enumerate(steps)]
    if len(valid) < 3 or any(map(math.isnan, means)):
        return "Validated too few times to say how it learns: set train.evaluations to at least 3."
    losses = [loss for _, loss in valid]
    return _judged(steps, losses, means, train[0][1])


def _judged(steps: list[float], valid: list[float], train: list[float], first: float) -> str:
    best = min(range(len(valid)), key=valid.__getitem__)
    since = f"since step {steps[best]:,.0f} validation loss has risen from {valid[best]:.3g} to {valid[-1]:.3g}"
    if valid[-1] > valid[best] * (1 + WORSE):
        if train[-1] < train[best]:
            return (
                f"Overfits: {since}, while training loss fell from {train[best]:.3g} to {train[-1]:.3g}. Try more "
                "data, more dropout or weight decay, a smaller model, or a patience, which stops the training there."
            )
        return f"Gets worse: {since}, and training loss has not fallen either. Try a lower learning rate."
    falls, learns = _fall(valid[-2], valid[-1]), _fall(train[-2], train[-1])
    if falls > FLAT:
        return (
            f"Still learning: validation loss fell by {falls:.1%} from the last validation but one to the last. "
            "Training longer would help."
        )
    if learns > FLAT:
        return (
            "At its best: training loss still falls, and validation loss no longer does. Training longer would "
            "overfit; more data, or more dropout, may help."
        )
    if first > 0 and train[-1] > HIGH * first:
        return (
            f"Underfits: neither loss falls any more, and training loss is still {train[-1] / first:.0%} of what it "
            "was at first. Try a larger model, another learning rate, or less dropout and weight decay."
        )
    return "Has converged: neither loss falls any more. A larger model or more data may go further."


def _fall(before: float, after: float) -> float:
    """By which share of itself a loss fell."""
    return (before - after) / (abs(before) or 1.0)


def _course(records: Records, key: str) -> list[tuple[float, float]]:
    found = [(float(record["step"]), float(record[key])) for record in records if record.get(key) is not None]
    return sorted((step, loss) for step, loss in found if math.isfinite(loss))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
