"""Running count, mean and variance of pixel values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class RunningMoments:
    """Count, mean, spread and range of numbers that arrive in pieces (Chan, Golub & LeVeque 1983)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    minimum: float = np.inf
    maximum: float = -np.inf

    def add(self, values: np.ndarray) -> None:
        """Merge a one-dimensional float64 array of valid values."""
        if values.size:
            mean = float(values.mean())
            squares = float(np.square(values - mean).sum())
            self.merge(RunningMoments(values.size, mean, squares, float(values.min()), float(values.max())))

    def merge(self, other: RunningMoments) -> None:
        """Merge the moments of another set of numbers."""
        total = self.count + other.count
        if not other.count:
            return
        step = other.mean - self.mean
        self.squares += other.squares + step * step * self.count * other.count / total
        self.mean += step * other.count / total
        self.count = total
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)

    @property
    def std(self) -> float:
        """Population standard deviation; 0 for no values."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0
