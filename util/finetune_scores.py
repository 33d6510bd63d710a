"""Scores of one fit on its test ground, and a coarse map of what it predicted there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from util.mosaic import Unit
from util.scores import HEADLINES, ClassificationScores, ProspectivityScores, RegressionScores, SegmentationScores

MAP_PIXELS = 1200
"""Most pixels along the longer edge of the maps that are kept for pictures."""


@dataclass(frozen=True)
class Outcome:
    """What a fit was scored.

    Attributes:
        scores: plain numbers, nested.
        arrays: for pictures and for later statistics.
    """

    scores: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class SampledMap:
    """Every n-th pixel of a raster too large for a picture.

    Args:
        shape: (rows, cols) of the raster.
        most: most pixels along an edge.

    Attributes:
        step: n.
        values: (rows / n, cols / n) float32, NaN = not painted.
    """

    def __init__(self, shape: tuple[int, int], *, most: int = MAP_PIXELS) -> None:
        self.step = max(1, math.ceil(max(shape) / most))
        self._first = self.step // 2
        self.values = np.full([len(range(self._first, size, self.step)) for size in shape], np.nan, dtype=np.float32)

    def paint(self, row: int, col: int, values: np.ndarray) -> None:
        """Takes what it shows of a window, NaN = leave as it is.

        Args:
            row: first row of the window.
            col: first column.
            values: (rows, cols).
        """
        rows, to_rows = self._picked(row, values.shape[0], self.values.shape[0])
        cols, to_cols = self._picked(col, values.shape[1], self.values.shape[1])
        part = values[np.ix_(rows, cols)]
        place = self.values[to_rows, to_cols]
        self.values[to_rows, to_cols] = np.where(np.isnan(part), place, part)

    def _picked(self, first: int, count: int, limit: int) -> tuple[np.ndarray, slice]:
        start = max(0, math.ceil((first - self._first) / self.step))
        stop = max(start, min(limit, math.ceil((first + count - self._first) / self.step)))
        return np.arange(start, stop) * self.step + self._first - first, slice(start, stop)


def score_dense(
    units: Iterable[Unit],
    *,
    scale: int,
    truth_of: Callable[[tuple[int, int, int, int]], tuple[np.ndarray, np.ndarray]],
    predict: Callable[[Unit, np.ndarray], np.ndarray],
    scores: Any,
    picture: SampledMap,
    blocks_of: Callable[..., np.ndarray],
    sums: BlockSums,
) -> None:
    """Predicts test ground unit by unit, and scores it where it is labelled.

    Args:
        units: this process's share of the ground.
        scale: target pixels along the edge of a base-scale pixel.
        truth_of: gives labels (h, w) of a window (row, col, rows, cols) of target pixels, and which are tested.
        predict: gives (K, h, w) class shares or values where the second argument is True.
        scores: collects.
        picture: takes the class of the largest share, or the value.
        blocks_of: gives the number of the block (h, w) of each pixel of a window.
        sums: collects by block.

    Raises:
        ValueError: a tested pixel got no prediction.
    """
    for unit in units:
        window = (
            unit.top * scale,
            unit.left * scale,
            (unit.bottom - unit.top) * scale,
            (unit.right - unit.left) * scale,
        )
        truth, tested = truth_of(window)
        if not tested.any():
            continue
        outputs = predict(unit, tested)
        found = outputs[:, tested]
        missing = int((~np.isfinite(found).all(axis=0)).sum())
        if missing:
            raise ValueError(
                f"no finite prediction at {missing} tested pixels of base rows {unit.top} to {unit.bottom}, columns "
                f"{unit.left} to {unit.right}; lower --lr, and look at the layers there"
            )
        is_classes = len(outputs) > 1
        predictions = found.argmax(axis=0) if is_classes else found[0]
        scores.update(torch.from_numpy(predictions.copy()), torch.from_numpy(truth[tested]))
        blocks = blocks_of(*window, scale=scale)[tested]
        sums.add(np.maximum(blocks, 0), predictions, truth[tested])
        shown = np.full(tested.shape, np.nan, dtype=np.float32)
        shown[tested] = predictions
        picture.paint(window[0], window[1], shown)


def only_at(pixels: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(K, h, w) of values (n, K) at pixels (n, 2), NaN elsewhere."""
    image = np.full((values.shape[1], *shape), np.nan, dtype=np.float32)
    image[:, pixels[:, 0], pixels[:, 1]] = values.T
    return image


class BlockSums:
    """What every block of test ground adds to the scores, for statistics over blocks instead of pixels.

    Args:
        blocks: number of blocks.
        outputs: number of classes; 1 for values.

    Attributes:
        values: (blocks, K, K) int64 counts, truth in rows; or (blocks, 5) float64: number, sums of squared and of
            absolute errors, of the truth and of its squares.
    """

    def __init__(self, blocks: int, outputs: int) -> None:
        self._outputs = outputs
        shape = (blocks, outputs, outputs) if outputs > 1 else (blocks, 5)
        self.values = np.zeros(shape, dtype=np.int64 if outputs > 1 else np.float64)

    def add(self, blocks: np.ndarray, predictions: np.ndarray, truth: np.ndarray) -> None:
        """Adds pixels: (n,) numbers of their blocks, predicted classes or values, and true ones."""
        if self._outputs > 1:
            place = (blocks.astype(np.int64) * self._outputs + truth) * self._outputs + predictions
            self.values += np.bincount(place, minlength=self.values.size).reshape(self.values.shape)
            return
        error, exact = predictions.astype(np.float64) - truth, truth.astype(np.float64)
        for column, terms in enumerate((np.ones_like(exact), error**2, np.abs(error), exact, exact**2)):
            self.values[:, column] += np.bincount(blocks, weights=terms, minlength=len(self.values))


def merged(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One map out of the parts that several processes painted, NaN = not painted."""
    whole = parts[0].copy()
    for part in parts[1:]:
        whole = np.where(np.isnan(part), whole, part)
    return whole


def new_scores(kind: str, names: Sequence[str], device: torch.device) -> Any:
    """What collects scores of a kind: `segmentation`, `regression`, `classification` or `prospectivity`."""
    if kind == "segmentation":
        return SegmentationScores(names, device=device)
    if kind == "classification":
        return ClassificationScores(names, device=device)
    return RegressionScores(device=device) if kind == "regression" else ProspectivityScores(device=device)


def headline(kind: str, scores: Mapping[str, Any], units: str = "") -> str:
    """The scores of a fold or checkpoint in one line."""
    shown = {
        "segmentation": ("mean_iou", "mean_f1", "balanced_accuracy", "accuracy"),
        "regression": ("rmse", "mae", "r2"),
        "classification": ("top1", "balanced_accuracy", "mean_f1"),
        "prospectivity": ("roc_auc", "average_precision", "brier", "success_area"),
    }[kind]
    parts = [f"{name} {'-' if scores[name] is None else format(scores[name], '.4g')}" for name in shown]
    return ", ".join(parts) + (f" ({units})" if units and kind == "regression" else "") + f", {scores['count']} scored"


def stopping_score(kind: str, scores: Mapping[str, Any]) -> float:
    """The number that early stopping watches, more is better; minus infinity where it is not defined."""
    value = scores[HEADLINES[kind]]
    return float("-inf") if value is None else float(value)
