"""Training windows with a class or a value at every pixel, and which of them a fold trains on.

Origins are base-scale pixels. Everything random is a function of (seed, epoch, position), so that neither threads nor
processes nor interruptions change the training.
"""

from __future__ import annotations

import numpy as np
import torch

from datasets.finetuning.batch import Batch, TargetStatistics, WindowReader, repeat_permutations
from datasets.folds.folds import Folds
from datasets.ground.summed_area import WindowTotals
from datasets.labels.label_map import LabelMap, strips
from datasets.labels.open_labels import UNLABELLED
from datasets.loading.augment import ROTATIONS
from datasets.survey.inference_survey import InferenceSurvey

LEAST_SAMPLES = 20
"""Pixels of each class, on average, that models of single pixels are given at least, where there are as many."""


class DenseTargets:
    """Windows with a class or a value at every target pixel.

    Args:
        survey: the layers that windows are cut out of.
        labels: labels on target pixels.
        folds: which labels are trained on and which are tested.
        overlap: fraction of a training window that the next one repeats.
    """

    def __init__(self, survey: InferenceSurvey, labels: LabelMap, folds: Folds, *, overlap: float) -> None:
        self.survey, self.labels, self.folds = survey, labels, folds
        self.stride = max(1, round(survey.input_size * (1 - overlap)))
        self.reader = WindowReader(survey)

    def truth(
        self, window: tuple[int, int, int, int], *, fold: int, validation: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels of a window, and which of them are tested.

        Args:
            window: (row, col, rows, cols) of target pixels.
            fold: number of the fold.
            validation: the fold's validation ground instead of its test ground.

        Returns:
            (rows, cols) labels, and bool.
        """
        chosen = self.folds.validating if validation else self.folds.testing
        tested = self.labels.labelled(*window) & chosen(fold, *window, scale=self.labels.scale)
        return self.labels.read(*window), tested

    def fold(self, fold: int | None) -> DenseFold:
        """The training windows of a fold; of all labels for None.

        Raises:
            ValueError: nothing is left to train on, or values that are all the same.
        """
        return DenseFold(self, fold)


class DenseFold:
    """The training windows of one fold.

    Args:
        targets: the windows of all folds.
        fold: number of the fold, or None to train on every label.

    Attributes:
        origins: (n, 2) int64 base-scale origins of windows with training labels, before they are shifted.
        statistics: of the training labels.
    """

    def __init__(self, targets: DenseTargets, fold: int | None) -> None:
        self._targets, self._fold = targets, fold
        self._limit = np.maximum(np.array(targets.survey.shape) - targets.survey.input_size, 0)
        size, stride = targets.survey.input_size, targets.stride
        tops, lefts = (np.unique(np.append(np.arange(0, last + 1, stride), last)) for last in self._limit)
        rows, cols = targets.survey.shape
        totals = WindowTotals(tops, lefts, np.minimum(tops + size, rows), np.minimum(lefts + size, cols))
        self._moments, self._counts = self._count_labels(totals)
        grid = np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)
        labels = totals.sums.ravel()
        if not labels.any():
            raise ValueError(
                f"fold {fold}: no training label is left outside the test blocks and their buffer; lower --val_buffer, "
                "--fold_block or --folds, or raise --label_fraction"
            )
        self.origins = grid[labels > 0].astype(np.int64)
        self.statistics = self._statistics(float(labels[labels > 0].mean()))

    def _count_labels(self, totals: WindowTotals) -> tuple[np.ndarray, np.ndarray]:
        """Adds the training labels of all base-scale pixels to the totals, strip by strip.

        Returns:
            (count, sum, sum of squares) of values; count of each class.
        """
        labels, scale = self._targets.labels, self._targets.labels.scale
        rows, cols = self._targets.survey.shape
        moments = np.zeros(3)
        kinds = 0 if labels.classes is None else len(labels.classes.codes)
        counts = np.zeros(kinds, dtype=np.int64)
        for top, bottom in strips(rows, cols * scale * scale):
            window = (top * scale, 0, (bottom - top) * scale, cols * scale)
            values, training = labels.read(*window), self.training(*window)
            totals.add(top, training.reshape(bottom - top, scale, cols, scale).sum(axis=(1, 3), dtype=np.int32))
            trained = values[training]
            if kinds:
                counts += np.bincount(trained, minlength=kinds)
            else:
                exact = trained.astype(np.float64)
                moments += len(exact), exact.sum(), np.square(exact).sum()
        return moments, counts

    def training(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """(rows, cols) bool of a window of target pixels, True where a label may be trained on."""
        labels = self._targets.labels
        labelled = labels.labelled(row, col, rows, cols)
        if self._fold is None:
            return labelled
        return labelled & self._targets.folds.training(self._fold, row, col, rows, cols, scale=labels.scale)

    def _statistics(self, per_window: float) -> TargetStatistics:
        """Statistics of the training labels."""
        if self._targets.labels.classes is not None:
            total = int(self._counts.sum())
            return TargetStatistics(total, tuple(self._counts.tolist()), 0.0, 1.0, per_window)
        count, total, squares = self._moments
        mean = total / count
        std = float(np.sqrt(max(squares / count - mean**2, 0.0)))
        if not std > 1e-12 * max(abs(mean), 1e-30):
            raise ValueError(
                f"labels {self._targets.labels.source}: the {count:.0f} training values are all {mean:g}; expected "
                "values that differ"
            )
        return TargetStatistics(int(count), (), float(mean), std, per_window)

    def epoch(self, *, seed: int, epoch: int, tiles: int, augment: bool) -> np.ndarray:
        """Training windows of an epoch in order.

        Returns:
            (tiles, 3) int64: base-scale row and column of the origin, shifted at random by up to half the stride within
            the ground, and the turn.
        """
        order = repeat_permutations(len(self.origins), seed=seed, epoch=epoch, count=tiles)
        rng = np.random.default_rng((seed, epoch, 11))
        half = self._targets.stride // 2
        shifts = rng.integers(-half, half + 1, size=(tiles, 2))
        turns = rng.integers(0, ROTATIONS, size=(tiles, 1)) if augment else np.zeros((tiles, 1), dtype=np.int64)
        return np.hstack([np.clip(self.origins[order] + shifts, 0, self._limit), turns])

    def read(self, jobs: np.ndarray) -> Batch:
        """Reads windows listed as by `epoch`; only training labels are in their targets."""
        size, scale = self._targets.survey.input_size, self._targets.labels.scale
        is_classes = self._targets.labels.classes is not None
        targets = []
        for row, col in jobs[:, :2] * scale:
            window = (int(row), int(col), size * scale, size * scale)
            fill = UNLABELLED if is_classes else np.nan
            targets.append(np.where(self.training(*window), self._targets.labels.read(*window), fill))
        kind = np.int64 if is_classes else np.float32
        return Batch(
            tiles=self._targets.reader.read(jobs[:, :2]),
            target=torch.from_numpy(np.stack(targets).astype(kind)),
            turns=torch.from_numpy(jobs[:, 2].astype(np.int64)),
        )

    def sampled_pixels(self, most: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Training pixels drawn at random for models that learn from pixels; of rare classes more than their share.

        Args:
            most: largest number of pixels, approximately.
            seed: seed of the draw.

        Returns:
            (n, 2) int64 target (row, col), and their (n,) classes or values.
        """
        labels, chance = self._targets.labels, np.array([most / max(self.statistics.labels, 1)])
        if labels.classes is not None:
            chance = np.maximum(chance[0], LEAST_SAMPLES / np.maximum(self._counts, 1))
        rows, cols = labels.values.shape
        rng = np.random.default_rng((seed, 12))
        pixels, values = [], []
        for top, bottom in strips(rows, cols):
            places = np.argwhere(self.training(top, 0, bottom - top, cols)) + np.array([top, 0])
            found = labels.values[places[:, 0], places[:, 1]]
            kept = rng.random(len(places)) < (chance[0] if labels.classes is None else chance[found])
            pixels.append(places[kept])
            values.append(found[kept])
        return np.concatenate(pixels), np.concatenate(values)
