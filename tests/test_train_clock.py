import math

import pytest

from clearhead.train import clock
from clearhead.train.clock import Clock, learning_rate
from clearhead.train.config import Duration


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_rate_rises_to_its_peak_and_falls_to_zero(decay):
    rates = [learning_rate(i / 1000, 0.1, decay) for i in range(1001)]
    assert rates[0] == 0
    assert rates[100] == 1 == max(rates)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[550] == pytest.approx(0.5)


def test_without_warmup_it_begins_at_the_peak():
    assert learning_rate(0.0, 0.0, "linear") == 1


def test_steps_and_epochs_do_not_look_at_the_time():
    steps, epochs = Clock(Duration(amount=200, unit="steps"), 50), Clock(Duration(amount=4, unit="epochs"), 50)
    assert [steps.progress(n, elapsed=1e9) for n in (0, 50, 200, 300)] == [0, 0.25, 1, 1]
    assert [epochs.progress(n) for n in (50, 200)] == [0.25, 1]
    assert not steps.timed


def test_minutes_are_counted_from_the_start_and_go_on_after_a_resume(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    budget = Clock(Duration(amount=2, unit="minutes"), 50)
    now[0] = 1100.0  # getting ready is not training
    budget.start()
    now[0] = 1130.0
    assert (budget.elapsed, budget.progress(1), budget.left(1)) == (30, 0.25, 90)
    budget.start(elapsed=90.0)
    now[0] = 1150.0
    assert budget.progress(1) == pytest.approx(110 / 120)
    now[0] = math.inf
    assert (budget.progress(1), budget.left(1)) == (1, 0)
