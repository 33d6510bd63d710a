"""Summed-area tables: the sum over any window in four look-ups."""

from __future__ import annotations

import numpy as np

_ROWS = 64
"""Rows that `WindowTotals` adds at a time."""


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


class WindowTotals:
    """Sums over windows of a raster that comes in strips of rows: no table as large as the raster is held.

    Args:
        tops: (n,) first row of windows.
        lefts: (m,) first column of windows.
        bottoms: (n,) row after their last.
        rights: (m,) column after their last.

    Attributes:
        sums: (n, m) float64 over the rows that have come; the same as from a summed-area table, to the bit for whole
            numbers.
    """

    def __init__(self, tops: np.ndarray, lefts: np.ndarray, bottoms: np.ndarray, rights: np.ndarray) -> None:
        self._tops, self._lefts, self._bottoms, self._rights = tops, lefts, bottoms, rights
        self.sums = np.zeros((len(tops), len(lefts)), dtype=np.float64)

    def add(self, first: int, values: np.ndarray) -> None:
        """Adds the rows (rows, cols) from row `first` on."""
        for row in range(0, len(values), _ROWS):
            self._add(first + row, values[row : row + _ROWS])

    def _add(self, first: int, values: np.ndarray) -> None:
        along = np.zeros((len(values), values.shape[1] + 1), dtype=np.float64)
        np.cumsum(values, axis=1, dtype=np.float64, out=along[:, 1:])
        down = np.zeros((len(values) + 1, len(self._lefts)), dtype=np.float64)
        np.cumsum(along[:, self._rights] - along[:, self._lefts], axis=0, out=down[1:])
        met = np.flatnonzero((self._tops < first + len(values)) & (self._bottoms > first))
        begin = np.maximum(self._tops[met] - first, 0)
        end = np.minimum(self._bottoms[met] - first, len(values))
        self.sums[met] += down[end] - down[begin]
