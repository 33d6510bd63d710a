"""A batch of labelled windows, the protocol that reads them, and statistics of the training labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from datasets.loading.augment import rotated, rotated_native, rotated_tiles
from datasets.loading.batch_plan import MicroBatch, plan_epoch
from datasets.loading.prefetch import prefetch
from datasets.survey.inference_survey import InferenceSurvey
from datasets.survey.pyramid import Pyramid
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

    def to(
        self, device: torch.device, pyramid: Pyramid
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Values (N, C, H, W), their validity, the target and native pixels on a device, rotated alike."""
        sample = pyramid(*self.tiles.to(device).parts)
        target = self.target.to(device, non_blocking=True)
        imgs, valid = rotated_tiles(sample.imgs, sample.valid, self.turns, pyramid.encodings)
        native = rotated_native(sample.native, self.turns, pyramid.native_encodings)
        return imgs, valid, rotated(target, self.turns) if target.ndim > 1 else target, native

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


class Examples(Protocol):
    """The training windows of a fold."""

    def epoch(self, *, seed: int, epoch: int, tiles: int, augment: bool) -> np.ndarray:
        """The windows of an epoch in their order, one row each."""

    def read(self, windows: np.ndarray) -> Batch:
        """Reads some of these rows."""


def training_batches(
    examples: Examples,
    *,
    seed: int,
    epoch: int,
    windows: int,
    augment: bool,
    batch_size: int,
    accum_iter: int,
    rank: int,
    world_size: int,
    start_update: int,
    pin: bool,
    workers: int,
) -> Iterator[tuple[MicroBatch, Batch]]:
    """The micro-batches of a process in the rest of an epoch, read ahead by threads.

    Args:
        examples: the training windows.
        seed: of their order and rotations.
        epoch: number of the epoch.
        windows: windows in an epoch, over all processes.
        augment: rotate and mirror windows.
        batch_size: windows in a micro-batch.
        accum_iter: micro-batches in an update.
        rank: number of this process.
        world_size: number of processes.
        start_update: first update.
        pin: put batches into page-locked memory.
        workers: number of reading threads.
    """
    chosen = examples.epoch(seed=seed, epoch=epoch, tiles=windows, augment=augment)
    plan = plan_epoch(
        windows,
        batch_size=batch_size,
        accum_iter=accum_iter,
        rank=rank,
        world_size=world_size,
        start_update=start_update,
    )

    def read(micro: MicroBatch) -> Batch:
        batch = examples.read(chosen[micro.positions])
        return batch.pin() if pin else batch

    return prefetch(plan, read, workers=workers)
