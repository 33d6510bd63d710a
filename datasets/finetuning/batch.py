"""A batch of labelled windows, the protocol that reads them, and statistics of the training labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from datasets.survey.inference_survey import InferenceSurvey
from datasets.survey.tile_reader import TileReader, Tiles


@dataclass(frozen=True)
class Batch:
    """Labelled windows.

    Attributes:
        tiles: native pixels of the windows.
        target: (N, sH, sW) or (N,) int64 class numbers, -1 = unlabelled; or (N, sH, sW) float32 values, NaN =
            unlabelled.
        turns: (N,) int64, the rotation of each (`augment.rotated`); neither tiles nor target are rotated yet.
    """

    tiles: Tiles
    target: torch.Tensor
    turns: torch.Tensor

    def pin(self) -> Batch:
        """The same in page-locked memory."""
        return Batch(self.tiles.pin(), self.target.pin_memory(), self.turns.pin_memory())


class WindowReader:
    """Cuts windows at base-scale origins out of a survey; they may stick out of it on any side.

    Args:
        survey: the survey.
    """

    def __init__(self, survey: InferenceSurvey) -> None:
        grid = survey.stack.reference
        self._reader = TileReader(survey.stack, survey.bundles)
        self._step = np.array([survey.base_resolution / grid.resolution_y, survey.base_resolution / grid.resolution_x])

    def read(self, origins: np.ndarray) -> Tiles:
        """Native pixels of the windows at (N, 2) base-scale (row, col) origins."""
        return self._reader.read(origins * self._step)


@dataclass(frozen=True)
class TargetStatistics:
    """Statistics of a fold's training labels.

    Attributes:
        labels: labelled pixels, or windows.
        class_counts: of each class; empty for values.
        mean: of the values; 0 for classes.
        std: of the values; 1 for classes.
        per_window: labelled pixels in a window, on average; 1 for windows with one class.
    """

    labels: int
    class_counts: tuple[int, ...]
    mean: float
    std: float
    per_window: float


def repeat_permutations(available: int, *, seed: int, epoch: int, count: int) -> np.ndarray:
    """(count,) numbers below `available`: random permutations one after another, cut to the count."""
    rng = np.random.default_rng((seed, epoch, 10))
    return np.concatenate([rng.permutation(available) for _ in range(-(-count // available))])[:count]
