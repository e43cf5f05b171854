"""What the curves of losses say, on curves that were made up."""

import math
import random

import pytest

from clearhead.picture.diagnosis import diagnose


def course(train, valid, steps=1000, evaluations=10, noise=0.004):
    """Records with a training loss every 10 steps, and validations; losses are functions of 0 … 1."""
    luck = random.Random(0)
    records = [
        {"step": step, "train_loss": train(step / steps) * (1 + luck.gauss(0, noise)), "tokens_per_second": 9.0}
        for step in range(10, steps + 1, 10)
    ]
    every = steps // evaluations
    return records + [{"step": step, "valid_loss": valid(step / steps)} for step in range(every, steps + 1, every)]


def falls(low, high=5.0, speed=8.0):
    return lambda t: low + (high - low) * math.exp(-speed * t)


@pytest.mark.parametrize(
    ("train", "valid", "said"),
    [
        (falls(0.2, speed=4), lambda t: 2 + 2 * (t - 0.4) ** 2, "Overfits: since step 400 validation loss has risen"),
        (falls(1.0, speed=1.5), falls(1.2, speed=1.5), "Still learning: validation loss fell by"),
        (falls(4.2, speed=30), falls(4.3, 4.9, speed=30), "Underfits: neither loss falls any more"),
        (falls(0.5, speed=30), falls(0.6, speed=30), "Has converged"),
        (falls(0.3, speed=3), falls(1.5, speed=30), "At its best: training loss still falls"),
        (lambda t: 2 + 4 * t, lambda t: 2 + 4 * t, "Gets worse: since step 100"),
    ],
)
def test_each_course_has_its_words(train, valid, said):
    assert diagnose(course(train, valid)).startswith(said)


def test_dropout_and_smoothing_may_keep_the_training_loss_above():
    assert diagnose(course(falls(2.5, speed=1.5), falls(0.8, speed=1.5))).startswith("Still learning")
    overfit = diagnose(course(lambda t: 4 - t, lambda t: 1 + (t - 0.5) ** 2))
    assert overfit.startswith(
        "Overfits: since step 500 validation loss has risen from 1 to 1.25, while training loss fell"
    )


def test_little_is_said_of_little():
    assert diagnose([]) == ""
    assert diagnose([{"step": 1, "learning_rate": 0.1}]) == ""
    assert "too few times" in diagnose(course(falls(1), falls(1), evaluations=2))
    assert "too few times" in diagnose([{"step": i, "valid_loss": 1.0} for i in range(5)])
    broken = [*course(falls(1.0, speed=1.5), falls(1.2, speed=1.5)), {"step": 5, "train_loss": math.nan}]
    assert diagnose(broken).startswith("Still learning")
