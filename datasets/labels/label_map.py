"""Label map: all labels of a survey on target pixels, where some layer is valid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from datasets.labels.open_labels import UNLABELLED, Labels
from datasets.layers.class_table import ClassTable
from datasets.survey.inference_survey import InferenceSurvey

STRIP_PIXELS = 2**24
"""Target pixels that are read at a time in a pass over all labels."""
GROUND_TILES = 8
"""Tiles along the edge of the squares in which `seen_ground` reads the ground."""


def seen_ground(survey: InferenceSurvey) -> np.ndarray:
    """(rows, cols) bool, True where some layer has a valid base-scale pixel; a pass over all layers.

    For target pixels finer than those of the base, give the survey zoomed to them.

    Raises:
        OSError: naming layer, file and window that could not be read.
    """
    rows, cols = survey.shape
    size = survey.input_size
    seen = np.zeros((rows, cols), dtype=bool)
    edge = GROUND_TILES * size
    for top in range(0, rows, edge):
        for left in range(0, cols, edge):
            window = survey.read(top, left, top + edge, left + edge)
            origins = np.array(
                [
                    (y, x)
                    for y in range(top, min(top + edge, rows), size)
                    for x in range(left, min(left + edge, cols), size)
                ]
            )
            valid = window.sample(origins, torch.device("cpu")).valid.any(dim=1).numpy()
            for (y, x), part in zip(origins, valid, strict=True):
                target = seen[y : y + size, x : x + size]
                target |= part[: target.shape[0], : target.shape[1]]
    return seen


def strips(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) rows of strips that together hold `rows` rows of `cols` pixels."""
    height = max(1, STRIP_PIXELS // max(cols, 1))
    for top in range(0, rows, height):
        yield top, min(top + height, rows)


class LabelMap:
    """All labels on target pixels, held in memory: two bytes a pixel for classes, four for values.

    Where no layer has a valid pixel there is nothing to predict from: labels there are dropped.

    Args:
        labels: the labels, on target pixels.
        seen: (at most rows, cols) bool of target pixels, see `seen_ground`; beyond it nothing is seen.
        scale: target pixels along the edge of a base-scale pixel.

    Attributes:
        values: (rows * scale, cols * scale) int16 class numbers, -1 = unlabelled; or float32, NaN = unlabelled.
        dropped: number of labelled pixels where no layer is valid.

    Raises:
        ValueError: no label lies on ground that some layer covers.
        OSError: the labels cannot be read.
    """

    def __init__(self, labels: Labels, seen: np.ndarray, *, scale: int) -> None:
        self.classes: ClassTable | None = labels.classes
        self.units, self.source, self.grid, self.scale = labels.units, labels.source, labels.grid, scale
        rows, cols = labels.grid.rows, labels.grid.cols
        is_classes = self.classes is not None
        self.values = np.empty((rows, cols), dtype=np.int16 if is_classes else np.float32)
        self.dropped = 0
        for top, bottom in strips(rows, cols):
            part = labels.read(top, 0, bottom - top, cols)
            covered = np.zeros(part.shape, dtype=bool)
            here = seen[top:bottom, :cols]
            covered[: here.shape[0], : here.shape[1]] = here
            labelled = part != UNLABELLED if is_classes else np.isfinite(part)
            self.dropped += int((labelled & ~covered).sum())
            self.values[top:bottom] = np.where(labelled & covered, part, UNLABELLED if is_classes else np.nan)
        if not self.labelled(0, 0, rows, cols).any():
            raise ValueError(
                f"labels {self.source}: none of them lies where a layer has a valid pixel ({self.dropped} lie "
                "elsewhere); expected labels on the survey's ground; check their coordinates and the layers' nodata"
            )

    def read(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """(rows, cols) of a window, which may stick out anywhere: there nothing is labelled."""
        fill = UNLABELLED if self.classes is not None else np.nan
        window = np.full((rows, cols), fill, dtype=self.values.dtype)
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + rows, self.values.shape[0]), min(col + cols, self.values.shape[1])
        if bottom > top and right > left:
            window[top - row : bottom - row, left - col : right - col] = self.values[top:bottom, left:right]
        return window

    def labelled(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """(rows, cols) bool of a window, True where there is a label."""
        part = self.read(row, col, rows, cols)
        return part != UNLABELLED if self.classes is not None else np.isfinite(part)

    def count(self, cell: int) -> np.ndarray:
        """Labelled target pixels of each class (of all, for values) in square cells of base-scale pixels.

        Args:
            cell: edge of a cell, base-scale pixels.

        Returns:
            (cell rows, cell cols, K) int64.
        """
        edge = cell * self.scale
        rows, cols = self.values.shape
        kinds = 1 if self.classes is None else len(self.classes.codes)
        shape = (-(-rows // edge), -(-cols // edge), kinds)
        counts = np.zeros(shape, dtype=np.int64)
        across = np.arange(cols) // edge
        for number in range(shape[0]):
            part = self.values[number * edge : (number + 1) * edge]
            where = part != UNLABELLED if self.classes is not None else np.isfinite(part)
            kind = part[where].astype(np.int64) if self.classes is not None else 0
            place = np.broadcast_to(across, part.shape)[where] * kinds + kind
            counts[number] = np.bincount(place, minlength=shape[1] * kinds).reshape(shape[1], kinds)
        return counts
