"""The learning rate as a function of the step."""

from typing import Any

import pytest

from util.training.lr_sched import Schedule, constant_then_decay, learning_rate

RUN: dict[str, Any] = {"peak": 1e-3, "floor": 1e-5, "warmup_steps": 10, "total_steps": 110}


@pytest.mark.parametrize(
    "step, expected",
    [
        (0, 1e-4),  # the first step is not wasted on a rate of 0
        (4, 5e-4),
        (9, 1e-3),
        (10, 1e-3),  # end of the warm-up
        (35, 1e-5 + 0.99e-3 * (1 + 0.5**0.5) / 2),  # an eighth turn of the cosine
        (60, (1e-3 + 1e-5) / 2),  # half way
        (110, 1e-5),
        (1000, 1e-5),
    ],
)
def test_values(step, expected):
    assert learning_rate(step, **RUN) == pytest.approx(expected, rel=1e-12)


def test_rises_then_falls():
    rates = [learning_rate(step, **RUN) for step in range(111)]
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == RUN["peak"] and min(rates[10:]) == pytest.approx(RUN["floor"])


def test_without_warmup_it_begins_at_the_peak():
    assert learning_rate(0, peak=1.0, floor=0.0, warmup_steps=0, total_steps=10) == 1.0


@pytest.mark.parametrize("warmup", [10, 20])
def test_a_run_no_longer_than_its_warmup(warmup):
    rates = [learning_rate(k, peak=1.0, floor=0.0, warmup_steps=warmup, total_steps=10) for k in range(10)]
    assert rates == [pytest.approx((k + 1) / warmup) for k in range(10)]


def test_schedule_counts_steps_over_all_epochs():
    schedule = Schedule(tiles=70, updates=11, epochs=10, warmup_steps=10, peak_lr=1e-3, min_lr=1e-5, effective_batch=7)
    assert [schedule.lr(step) for step in (0, 10, 60, 110)] == [learning_rate(k, **RUN) for k in (0, 10, 60, 110)]


@pytest.mark.parametrize(
    "step, begin, expected",
    [
        (0, None, 1e-4),
        (9, None, 1e-3),
        (10_000, None, 1e-3),  # constant until the decay is decided
        (99, 100, 1e-3),
        (100, 100, 1e-3),
        (105, 100, (1e-3 + 1e-5) / 2),  # half way through a decay of ten steps
        (110, 100, 1e-5),
        (500, 100, 1e-5),
        (4, 0, 5e-4),  # a decay that begins within the warm-up never exceeds it
        (105, 105, 1e-3),
    ],
)
def test_constant_then_decay(step, begin, expected):
    found = constant_then_decay(step, **RUN, decay_begin=begin)
    assert found == pytest.approx(expected, rel=1e-12)
