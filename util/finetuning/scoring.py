"""Scores of one fit on its test ground, and a coarse map of its predictions there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from util.finetuning.predictors import Predictor
from util.finetuning.tasks import Task
from util.mosaics.mosaic import Block, blocks_of
from util.processes import distributed as dist

MAP_PIXELS = 1200
"""Most pixels along the longer edge of the maps that are stored for figures."""
SCORED_TILES = 4
"""Windows along the edge of the squares of ground that are predicted at a time; at the default overlap of a half
such a square takes (2 x 4 + 1) x (2 x 4 + 1) forward passes of a window."""
FORWARD_SPEED = 3
"""Windows that are predicted in the time in which one is trained on, forward and backward."""
LEAST_UNITS = 4
"""Squares that validation predicts, however few windows an epoch has."""


@dataclass(frozen=True)
class FoldScores:
    """Scores of a fit.

    Attributes:
        scores: plain numbers, nested.
        arrays: data of figures and of later statistics.
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
        """Copies those pixels of a window that the map shows; NaN = leave as it is.

        Args:
            row: first row of the window.
            col: first column.
            values: (rows, cols).
        """
        rows, to_rows = self._picked(row, values.shape[0], self.values.shape[0])
        cols, to_cols = self._picked(col, values.shape[1], self.values.shape[1])
        part = values[np.ix_(rows, cols)]
        before = self.values[to_rows, to_cols]
        self.values[to_rows, to_cols] = np.where(np.isnan(part), before, part)

    def _picked(self, first: int, count: int, limit: int) -> tuple[np.ndarray, slice]:
        start = max(0, math.ceil((first - self._first) / self.step))
        stop = max(start, min(limit, math.ceil((first + count - self._first) / self.step)))
        return np.arange(start, stop) * self.step + self._first - first, slice(start, stop)


def score_fold(
    predictor: Predictor,
    task: Task,
    data: Any,
    survey: Any,
    fold: int,
    *,
    validated: int | None,
    ranks: dist.Ranks,
    device: torch.device,
) -> FoldScores:
    """Scores a fold's test ground, or its validation ground, over all processes.

    Args:
        predictor: predicts.
        task: what is predicted.
        data: targets as `windows` or as `ground`, with the `names` of classes, `scale` and number of `outputs`.
        survey: the layers, with `shape` and `input_size`; not used for windows.
        fold: number of the fold.
        validated: its validation ground instead of its test ground, or, where that is large, as many windows of it
            as take no longer than training on so many windows; None: test ground.
        ranks: which process this is.
        device: where scores are collected.
    """
    scores, is_validation = task.new_scores(data.names, device), validated is not None
    if data.windows is not None:
        numbers = data.windows.numbers(fold, validation=is_validation)
        if validated is not None:
            numbers = some_numbers(numbers, most=FORWARD_SPEED * validated, seed=fold)
        return score_windows(
            predictor,
            scores,
            numbers=numbers[ranks.rank :: ranks.world_size],
            classes=data.windows.examples.classes,
            task=task,
            blocks=data.window_blocks(),
        )
    folds, units = data.ground.folds, ground_blocks(survey.shape, survey.input_size)
    truth_of = partial(data.ground.truth, fold=fold, validation=is_validation)
    if validated is not None:
        most = max(LEAST_UNITS, FORWARD_SPEED * validated // (2 * SCORED_TILES + 1) ** 2)
        units = some_units(units, lambda unit: truth_of(target_window(unit, data.scale))[1].any(), most=most, seed=fold)
    return score_ground(
        predictor,
        scores,
        units=units[ranks.rank :: ranks.world_size],
        scale=data.scale,
        truth_of=truth_of,
        shape=data.ground.labels.values.shape,
        blocks_of=folds.blocks_of,
        sums=BlockSums(int(folds.block_numbers.max()) + 1, data.outputs),
    )


def some_numbers(numbers: np.ndarray, *, most: int, seed: int) -> np.ndarray:
    """At most so many of the numbers, the same whenever they are drawn, in their order."""
    return np.sort(np.random.default_rng((seed, 15)).permutation(numbers)[:most])


def some_units(units: Sequence[Block], is_scored: Callable[[Block], bool], *, most: int, seed: int) -> list[Block]:
    """At most so many of the squares that hold something to score, the same whenever they are drawn, in their order."""
    chosen: list[int] = []
    for number in np.random.default_rng((seed, 15)).permutation(len(units)):
        if is_scored(units[number]):
            chosen.append(int(number))
        if len(chosen) == most:
            break
    return [units[number] for number in sorted(chosen)]


def score_ground(
    predictor: Predictor,
    scores: Any,
    *,
    units: Sequence[Block],
    scale: int,
    truth_of: Callable[[tuple[int, int, int, int]], tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, int],
    blocks_of: Callable[..., np.ndarray],
    sums: BlockSums,
) -> FoldScores:
    """Predicts test ground unit by unit, each process its own units, and scores it where it is labelled.

    Args:
        predictor: predicts.
        scores: updated with predictions and labels.
        units: rectangles of ground that this process predicts.
        scale: target pixels along the edge of a base-scale pixel.
        truth_of: returns labels (h, w) of a window (row, col, rows, cols) of target pixels, and which are tested.
        shape: (rows, cols) of all target pixels.
        blocks_of: returns the block number (h, w) of each pixel of a window.
        sums: updated likewise, block by block.

    Returns:
        Scores over all processes; arrays `map`, a `SampledMap` of the most probable class or the value, and `blocks`.

    Raises:
        ValueError: a tested pixel got no prediction.
    """
    picture = SampledMap(shape)
    for unit in units:
        window = target_window(unit, scale)
        truth, tested = truth_of(window)
        if not tested.any():
            continue
        found = predictor.of_ground(unit, tested)[:, tested]
        missing = int((~np.isfinite(found).all(axis=0)).sum())
        if missing:
            raise ValueError(
                f"no finite prediction at {missing} tested pixels of base rows {unit.top} to {unit.bottom}, columns "
                f"{unit.left} to {unit.right}; lower --lr, and look at the layers there"
            )
        predictions = found.argmax(axis=0) if len(found) > 1 else found[0]
        scores.update(torch.from_numpy(predictions.copy()), torch.from_numpy(truth[tested]))
        sums.add(np.maximum(blocks_of(*window, scale=scale)[tested], 0), predictions, truth[tested])
        shown = np.full(tested.shape, np.nan, dtype=np.float32)
        shown[tested] = predictions
        picture.paint(window[0], window[1], shown)
    blocks = np.sum(dist.gather_objects(sums.values), axis=0)
    return FoldScores(scores.compute(), {"map": merged(dist.gather_objects(picture.values)), "blocks": blocks})


def score_windows(
    predictor: Predictor,
    scores: Any,
    *,
    numbers: np.ndarray,
    classes: np.ndarray,
    task: Task,
    blocks: np.ndarray | None = None,
) -> FoldScores:
    """Scores windows with one class each, each process its own windows.

    Args:
        predictor: predicts.
        scores: updated with predictions and labels.
        numbers: tested windows that this process predicts.
        classes: class of every window.
        task: decides which probabilities are scored.
        blocks: number of the block of every window; None where windows lie on no common ground.

    Returns:
        Scores over all processes; arrays `numbers` of the windows, their true `classes`, class probabilities (`shares`)
        and `blocks`.
    """
    probabilities = predictor.of_windows(numbers)
    scores.update(torch.from_numpy(task.scored_windows(probabilities)), torch.from_numpy(classes[numbers]))
    parts = dist.gather_objects((numbers, probabilities))
    arrays = {name: np.concatenate([part[k] for part in parts]) for k, name in enumerate(("numbers", "shares"))}
    arrays["classes"] = classes[arrays["numbers"]]
    if blocks is not None:
        arrays["blocks"] = blocks[arrays["numbers"]]
    return FoldScores(scores.compute(), arrays)


def ground_blocks(shape: tuple[int, int], size: int) -> list[Block]:
    """Squares of ground to predict at a time, of some windows' width.

    Args:
        shape: (rows, cols) of the ground, base-scale pixels.
        size: edge of a window, base-scale pixels.
    """
    return blocks_of(*shape, edge=SCORED_TILES * size)


def target_window(unit: Block, scale: int) -> tuple[int, int, int, int]:
    """(row, col, rows, cols) of a unit in target pixels."""
    rows, cols = unit.bottom - unit.top, unit.right - unit.left
    return unit.top * scale, unit.left * scale, rows * scale, cols * scale


class BlockSums:
    """Sums for scores of every block of test ground, for statistics over blocks instead of pixels.

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
            cell = (blocks.astype(np.int64) * self._outputs + truth) * self._outputs + predictions
            self.values += np.bincount(cell, minlength=self.values.size).reshape(self.values.shape)
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


def score_line(task: Task, scores: Mapping[str, Any], units: str = "") -> str:
    """The scores of a fold or checkpoint in one line."""
    shown = [name for name in task.columns if name in scores]
    parts = [f"{name} {'-' if scores[name] is None else format(scores[name], '.4g')}" for name in shown]
    return ", ".join(parts) + (f" ({units})" if units and not task.has_classes else "") + f", {scores['count']} scored"


def stopping_score(task: Task, scores: Mapping[str, Any]) -> float:
    """The number that early stopping watches, more is better; minus infinity where it is not defined."""
    value = scores[task.headline]
    return float("-inf") if value is None else float(value)
