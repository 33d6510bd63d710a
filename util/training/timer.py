"""Timer of a training run: total time, time waiting for data, tiles per second."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def duration_text(seconds: float) -> str:
    """A duration in the unit in which it is easiest to read: seconds, minutes, hours or days."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


class TimeLeft:
    """Estimates when a run ends by the pace of its epochs so far; scoring and pictures count as well.

    Args:
        fits: trainings of which the run consists, each as long as those before it.

    Attributes:
        note: the time left after the last epoch, to be put behind the name of the next; empty before the first.
    """

    def __init__(self, fits: int = 1) -> None:
        self._fits, self._begin, self._epochs = fits, time.monotonic(), 0
        self._lengths: dict[str, int] = {}
        self.note = ""

    def skip(self, is_fit: bool) -> None:
        """Leaves out a fit that was done before."""
        self._fits -= is_fit

    def after_epoch(self, done: int, last: int, *, fit: str = "") -> str:
        """Counts an epoch that has just ended; returns the time left as text, empty after the last one.

        Args:
            done: epochs of this fit that are done.
            last: epochs of this fit in all, as far as known.
            fit: name of the fit.
        """
        self._epochs += 1
        self._lengths[fit] = last
        mean = sum(self._lengths.values()) / len(self._lengths)
        epochs = last - done + max(self._fits - len(self._lengths), 0) * mean
        left = duration_text(epochs * (time.monotonic() - self._begin) / self._epochs) if epochs else ""
        self.note = f" ({left} left in all)" * bool(left)
        return left


class TrainingTimer:
    """Measures the time of training and the time spent waiting for data.

    Attributes:
        tiles: tiles trained on since the last reading.
        trained_s: seconds of training up to the last reading.
        trained_cpu_s: CPU seconds of all threads of this process in that time.
    """

    def __init__(self) -> None:
        self.tiles = 0
        self._start, self._cpu_start = time.monotonic(), time.process_time()
        self._waited = 0.0
        self._paused: tuple[float, float] | None = None
        self.trained_s = self.trained_cpu_s = 0.0

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items, counting the time until each arrives as waiting for data."""
        source = iter(items)
        while True:
            begin = time.monotonic()
            item = next(source, None)
            self._waited += time.monotonic() - begin
            if item is None:
                return
            yield item

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside the context."""
        self._paused = begin, cpu_begin = time.monotonic(), time.process_time()
        yield
        self._paused = None
        self._start += time.monotonic() - begin
        self._cpu_start += time.process_time() - cpu_begin

    def read(self, world_size: int) -> dict[str, float]:
        """Returns tiles per second over all ranks, fraction of time waiting and total CPU seconds; resets them."""
        now, cpu_now = time.monotonic(), time.process_time()
        elapsed = max(now - self._start, 1e-9)
        result = {"tiles_per_s": self.tiles * world_size / elapsed, "wait_share": self._waited / elapsed}
        self.trained_s += elapsed
        self.trained_cpu_s += cpu_now - self._cpu_start
        self.tiles, self._waited, self._start, self._cpu_start = 0, 0.0, now, cpu_now
        return result | {"cpu_seconds": self.trained_cpu_s}

    def state(self) -> dict[str, float]:
        """Returns the totals to store in a checkpoint, with the time since the last reading."""
        now, cpu_now = self._paused or (time.monotonic(), time.process_time())
        return {
            "trained_s": self.trained_s + now - self._start,
            "trained_cpu_s": self.trained_cpu_s + cpu_now - self._cpu_start,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restores the totals from a checkpoint; old ones have no CPU seconds."""
        self.trained_s = state.get("trained_s", 0.0)
        self.trained_cpu_s = state.get("trained_cpu_s", 0.0)
