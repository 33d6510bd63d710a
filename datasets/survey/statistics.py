"""Fits each layer's statistics to training ground, and with them the encoding of its values.

Passes are streaming; above `SAMPLED_PIXELS` a layer is sampled, one row of native pixels in many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from datasets.layers.encoding import Encoding
from datasets.layers.kinds import kind_of
from datasets.layers.layer_statistics import LayerStatistics, TrainingValues
from datasets.survey.coverage import SAMPLED_PIXELS, row_chunks
from datasets.survey.stack import Stack

QUANTILE_SAMPLE = 2**20
"""About how many values of a layer quantiles are computed from."""


class TrainingGround(Protocol):
    """Says which ground is trained on: `HoldoutBlocks` in pre-training, the ground of a fold in fine-tuning."""

    def training_ground(self, rows: np.ndarray, columns: np.ndarray, /) -> np.ndarray:
        """(rows, columns) bool, True for the reference pixels that may be read."""


def _training_values(stack: Stack, channel: int, held_out: TrainingGround) -> Iterator[np.ndarray]:
    """Yields the valid values of one layer on training ground of the reference grid, (n,) float64, piece by piece."""
    band, placement, reference = stack.bands[channel], stack.placements[channel], stack.reference
    columns = np.floor((np.arange(band.grid.cols) + 0.5 - placement.offset_x) / placement.ratio_x).astype(np.int64)
    columns_inside = (columns >= 0) & (columns < reference.cols)
    cells_y = np.arange(0, reference.rows + 1, max(1, reference.rows // 4096))
    native_y = placement.offset_y + placement.ratio_y * cells_y
    for first, values, _ in row_chunks(stack, channel, native_y):
        centres = np.arange(first, first + len(values)) + 0.5
        rows = np.floor((centres - placement.offset_y) / placement.ratio_y).astype(np.int64)
        inside = np.outer((rows >= 0) & (rows < reference.rows), columns_inside)
        training = held_out.training_ground(rows, columns) & inside
        yield values[training & np.isfinite(values)].astype(np.float64)


def fit_statistics(
    stack: Stack, channel: int, held_out: TrainingGround, classes: Encoding | None = None
) -> tuple[LayerStatistics, Encoding]:
    """Statistics of a layer on training ground, and how its values become channels.

    Args:
        stack: the stack.
        channel: number of the layer; one that is hidden is not read.
        held_out: says which ground is trained on; pixels elsewhere are not read.
        classes: of a categorical layer.

    Returns:
        The statistics, and the encoding by the layer's kind, `transform` and `normalize`.

    Raises:
        ValueError: training ground holds no valid pixel of the layer, or all are equal.
    """
    band = stack.bands[channel]
    layer, pixels = band.layer, band.grid.rows * band.grid.cols
    encoding = Encoding(layer.kind) if classes is None else classes
    if channel in stack.hidden:
        return LayerStatistics(layer.name), kind_of(layer).unfitted(encoding)
    values = TrainingValues(
        layer,
        pieces=lambda: _training_values(stack, channel, held_out),
        step=max(1, pixels // QUANTILE_SAMPLE),
        sampled=pixels > SAMPLED_PIXELS,
    )
    return kind_of(layer).fit(values, encoding)
