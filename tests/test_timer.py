"""The time that is left of a whole run."""

import pytest

from util.training import timer


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (89, "89 s"), (90, "1.5 min"), (1500, "25 min"), (3 * 3600, "3 h"), (5 * 86400, "5 days")],
)
def test_durations_are_short_and_have_a_unit(seconds, text):
    assert timer.duration_text(seconds) == text


def test_the_time_left_covers_all_fits(monkeypatch):
    """Three fits of 4 epochs of 10 s: after the first epoch 11 are left, after the last none."""
    now = [100.0]
    monkeypatch.setattr(timer.time, "monotonic", lambda: now[0])
    left, found = timer.TimeLeft(fits=4), []
    left.skip(True)  # one was done before
    for fit in "abc":
        for epoch in (1, 2, 3, 4):
            now[0] += 10
            found.append(left.after_epoch(epoch, 4, fit=fit))
            assert left.note == (f" ({found[-1]} left in all)" if found[-1] else "")
    assert found[0] == timer.duration_text(110) and found[5] == timer.duration_text(60)
    assert left.note == ""
    assert found[-2] == "10 s" and found[-1] == ""


def test_the_time_since_the_last_reading_is_stored_without_pauses(monkeypatch):
    """Trained 10 s and read, 7 s more, then 100 s of validation in which a checkpoint is saved."""
    now = [0.0]
    monkeypatch.setattr(timer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(timer.time, "process_time", lambda: 2 * now[0])
    first = timer.TrainingTimer()
    now[0] = 10
    first.read(1)
    now[0] = 17
    with first.paused():
        now[0] = 117
        stored = first.state()
    assert stored == {"trained_s": 17, "trained_cpu_s": 34} == first.state()
    first.read(1)
    assert (first.trained_s, first.trained_cpu_s) == (17, 34)
    resumed = timer.TrainingTimer()
    resumed.resume(stored)
    now[0] = 120
    assert resumed.state() == {"trained_s": 20, "trained_cpu_s": 40}
