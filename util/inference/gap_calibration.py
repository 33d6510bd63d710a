"""Calibration of gap filling on artificial gaps: how much model detail to add, and the uncertainty of filled pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from util.inference.gap_spline import RING

DISTANCES = 8
"""Number of distances for which errors are estimated."""

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Powers of the roughness that errors may follow; 0 = errors do not depend on it."""

FOLDS = 6
"""Parts of the artificial gaps that are predicted from the others to choose among `POWERS`; with fewer gaps, 0."""


@dataclass(frozen=True)
class TrialGap:
    """An artificial gap and its prediction; all (r, c), physical units.

    Attributes:
        spline: from `gap_details`.
        detail: likewise.
        truth: the values that were cut out.
        gap: bool, True where they were.
        rough: from `roughness`.
    """

    spline: np.ndarray
    detail: np.ndarray
    truth: np.ndarray
    gap: np.ndarray
    rough: np.ndarray


@dataclass(frozen=True)
class GapModel:
    """How a layer's gaps are filled.

    Attributes:
        detail_fraction: fraction of the model's detail that is added to the spline, 0..1.
        distances: increasing distances to the nearest valid pixel, pixels.
        errors: root mean square errors at these distances where the ground is as rough as `typical`, never decreasing,
            units of the layer.
        power: errors grow with this power of the roughness around a gap, 0..1.
        typical: middle roughness of the artificial gaps, units of the layer.
        least: least roughness of them; smoother ground counts as that.
        gaps: number of artificial gaps that this was found on.
    """

    detail_fraction: float
    distances: tuple[float, ...]
    errors: tuple[float, ...]
    power: float = 0.0
    typical: float = 0.0
    least: float = 0.0
    gaps: int = 0

    def uncertainty(self, valid: np.ndarray, rough: np.ndarray) -> np.ndarray:
        """(rows, cols) float32: the error expected at each invalid pixel, 0 at valid ones; `rough` from `roughness`."""
        expected = self.expected(ndimage.distance_transform_edt(~valid), rough)
        return np.where(valid, 0.0, expected).astype(np.float32)

    def expected(self, distance: np.ndarray, rough: np.ndarray) -> np.ndarray:
        """The error expected at some distances from valid pixels, amid some roughness (NaN = as usual)."""
        return np.interp(distance, self.distances, self.errors) * self.factor(rough)

    def factor(self, rough: np.ndarray) -> np.ndarray:
        """How much larger errors are than where the ground is as rough as usual."""
        if not self.power or not self.typical:
            return np.ones_like(rough, dtype=np.float64)
        known = np.where(np.isfinite(rough), np.maximum(rough, self.least), self.typical)
        return (np.maximum(known, 1e-3 * self.typical) / self.typical) ** self.power


def roughness(values: np.ndarray, *, reach_y: float, reach_x: float) -> np.ndarray:
    """How rough a layer is around its gaps: how far valid pixels stand out from the mean of their four neighbours.

    Args:
        values: (rows, cols) float32, NaN where invalid.
        reach_y: distance up to which valid pixels around an invalid one count, rows; nearer ones count more.
        reach_x: likewise columns.

    Returns:
        (rows, cols) float64, at invalid pixels the root mean square over the valid ones that are near and at most
        `RING` from an invalid one; NaN elsewhere and where there are none.
    """
    padded = np.pad(values.astype(np.float64), 1, constant_values=np.nan)
    around = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
    bend = values - around
    invalid = ~np.isfinite(values)
    ring = ndimage.binary_dilation(invalid, structure=np.ones((3, 3)), iterations=RING) & np.isfinite(bend)
    size = tuple(2 * math.ceil(reach / 2) + 1 for reach in (reach_y, reach_x))
    sums = []
    for part in (np.where(ring, np.square(bend), 0.0), ring.astype(np.float64)):
        for _ in range(2):  # twice a square: weights that fall off to the sides
            part = ndimage.uniform_filter(part, size, mode="constant")
        sums.append(part)
    some = invalid & (sums[1] > 1e-9)  # running sums leave rounding where there is nothing
    return np.where(some, np.sqrt(np.maximum(sums[0], 0.0) / np.maximum(sums[1], 1e-9)), np.nan)


def fit_gap_model(tried: Sequence[TrialGap]) -> GapModel:
    """Fits how much of a model's detail to add, and how large errors are, on gaps whose values are known.

    Returns:
        The model. Its detail fraction is the least-squares one over gaps of equal weight, clipped to 0..1; the power
        of the roughness is the one with which errors of some gaps are most likely (normal) given the others.

    Raises:
        ValueError: nothing to learn from.
    """
    tables = [_table(gap) for gap in tried]
    tables = [table for table in tables if table.size]
    if not tables:
        raise ValueError("no artificial gap could be made: there is too little valid ground")
    power = 0.0
    if len(tables) >= FOLDS:
        power = min(POWERS, key=lambda power: _unlikeliness(tables, power))
    return _fit(tables, power)


def _table(gap: TrialGap) -> np.ndarray:
    """(5, n): spline, detail, truth, distance and roughness of the pixels of a gap where all are known."""
    distance = ndimage.distance_transform_edt(np.pad(gap.gap, 1))[1:-1, 1:-1]
    known = gap.gap & np.isfinite(gap.spline) & np.isfinite(gap.detail) & np.isfinite(gap.truth)
    arrays = (gap.spline, gap.detail, gap.truth, distance, gap.rough)
    return np.stack([array[known] for array in arrays]).astype(np.float64)


def _fit(tables: Sequence[np.ndarray], power: float) -> GapModel:
    spline, detail, truth, distance, rough = np.concatenate(tables, axis=1)
    known = rough[np.isfinite(rough)]
    typical, least = (float(np.median(known)), float(known.min())) if known.size else (0.0, 0.0)
    missed = truth - spline
    fraction = _detail_fraction(tables)
    usual = GapModel(fraction, (0.0,), (1.0,), power, typical, least)
    squares = np.square((missed - fraction * detail) / usual.factor(rough))
    edges = np.unique(np.quantile(distance, np.linspace(0, 1, DISTANCES + 1)))
    number = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, max(len(edges) - 2, 0))
    bins = [number == k for k in range(number.max() + 1) if (number == k).any()]
    errors = np.maximum.accumulate([math.sqrt(squares[inside].mean()) for inside in bins])
    distances = tuple(float(distance[inside].mean()) for inside in bins)
    return GapModel(fraction, distances, tuple(errors.tolist()), power, typical, least, len(tables))


def _detail_fraction(tables: Sequence[np.ndarray]) -> float:
    """The least-squares fraction of the detail; gaps have equal weight, or the roughest ones would decide alone."""
    above = below = 0.0
    for spline, detail, truth, _, _ in tables:
        missed = truth - spline
        weight = 1 / max(float(np.square(missed).mean()), 1e-30)
        above += weight * float((missed * detail).sum())
        below += weight * float(np.square(detail).sum())
    return float(np.clip(above / max(below, 1e-30), 0.0, 1.0))


def _unlikeliness(tables: Sequence[np.ndarray], power: float) -> float:
    """Mean over gaps of the negative log likelihood of their errors, expected from other gaps."""
    found = []
    for fold in range(FOLDS):
        gap_model = _fit([table for k, table in enumerate(tables) if k % FOLDS != fold], power)
        for spline, detail, truth, distance, rough in tables[fold::FOLDS]:
            errors = truth - spline - gap_model.detail_fraction * detail
            sigma = np.maximum(gap_model.expected(distance, rough), 1e-9 * max(gap_model.errors[-1], 1e-20))
            found.append(np.mean(np.log(sigma) + np.square(errors / sigma) / 2))
    return float(np.mean(found))
