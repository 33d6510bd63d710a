"""Summed-area tables: the sum over any window in four look-ups."""

from __future__ import annotations

import numpy as np


def summed_area_table(values: np.ndarray) -> np.ndarray:
    """Summed-area table with a leading row and column of zeros, (rows + 1, cols + 1) float64."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1), dtype=np.float64)
    np.cumsum(np.cumsum(values, axis=0, dtype=np.float64), axis=1, out=table[1:, 1:])
    return table


def window_sums(
    table: np.ndarray, top: np.ndarray, left: np.ndarray, bottom: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Sums over half-open windows [top, bottom) x [left, right) from a summed-area table."""
    return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
