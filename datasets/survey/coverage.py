"""Streaming passes over a stack: where the ground is valid, and how far each layer's values resemble each other.

Nothing here holds more than a few rows of native pixels of a layer. Above `SAMPLED_PIXELS` a layer is sampled:
one row of native pixels per row of coverage cells, which is stated in the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import fft, sparse

from datasets.ground.wraparound import wraps
from datasets.survey.stack import Stack
from datasets.survey.tiles import Coverage

SAMPLED_PIXELS = 2**27
"""Native pixels above which a layer's coverage and statistics are sampled."""

MAX_CELLS = 2**24
"""Most cells of the coverage map; beyond, cells grow by whole multiples."""

CHUNK_PIXELS = 2**21


@dataclass(frozen=True)
class CellMap:
    """One layer on coverage cells: `fraction` and `mean`, (cell rows, cell cols) float32, NaN mean where empty."""

    fraction: np.ndarray
    mean: np.ndarray


def overlap_matrix(edges: np.ndarray, count: int) -> sparse.csr_matrix:
    """Lengths shared by intervals and unit pixels, along one axis.

    Args:
        edges: (n + 1,) increasing interval edges, in pixels of the axis.
        count: number of pixels, pixel j covering [j, j + 1).

    Returns:
        (n, count) sparse float64: entry (i, j) is the length of [edges[i], edges[i + 1]) inside pixel j.
    """
    starts, stops = edges[:-1], edges[1:]
    first = np.floor(starts + 1e-9).astype(np.int64)
    reach = int(np.max(np.ceil(stops - 1e-9).astype(np.int64) - first)) if len(starts) else 0
    columns = first[:, None] + np.arange(max(reach, 1))
    length = np.minimum(stops[:, None], columns + 1) - np.maximum(starts[:, None], columns)
    inside = (columns >= 0) & (columns < count) & (length > 1e-9)
    rows = np.broadcast_to(np.arange(len(starts))[:, None], columns.shape)
    return sparse.csr_matrix(
        (length[inside], (rows[inside], columns[inside])), shape=(len(starts), count), dtype=np.float64
    )


def _cell_edge(shape: tuple[int, int], step: int) -> int:
    grow = 1
    while math.ceil(shape[0] / (step * grow)) * math.ceil(shape[1] / (step * grow)) > MAX_CELLS:
        grow += 1
    return step * grow


def row_chunks(
    stack: Stack, channel: int, rows_of_cells: np.ndarray, *, columns: tuple[int, int] | None = None
) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Yields (first native row, values, sampled) down a layer: all rows, or one per row of cells when sampled.

    The values are those of the layer's columns, or of `columns`, (first, number), which may go on round a body.
    """
    grid = stack.bands[channel].grid
    first, cols = columns or (0, grid.cols)
    if grid.rows * grid.cols > SAMPLED_PIXELS:
        centres = np.unique(np.floor((rows_of_cells[:-1] + rows_of_cells[1:]) / 2).astype(np.int64))
        for row in centres[(centres >= 0) & (centres < grid.rows)]:
            yield int(row), stack.read(channel, int(row), first, 1, cols), True
        return
    height = max(1, CHUNK_PIXELS // grid.cols)
    for row in range(0, grid.rows, height):
        count = min(height, grid.rows - row)
        yield row, stack.read(channel, row, first, count, cols), False


def map_cells(stack: Stack, channel: int, *, step: int) -> tuple[CellMap, int]:
    """Averages one layer over square cells of the reference grid.

    Args:
        stack: the stack.
        channel: number of the layer.
        step: smallest cell edge, reference pixels.

    Returns:
        The map and the cell edge used (a multiple of `step`, larger on very large surveys). `fraction` is the valid
        share of a cell's ground; `mean` the area-weighted mean of its valid pixels.
    """
    reference, placement = stack.reference, stack.placements[channel]
    grid = stack.bands[channel].grid
    cell = _cell_edge((reference.rows, reference.cols), step)
    edges_y = np.append(np.arange(0, reference.rows, cell), reference.rows).astype(np.float64)
    edges_x = np.append(np.arange(0, reference.cols, cell), reference.cols).astype(np.float64)
    native_y = placement.offset_y + placement.ratio_y * edges_y
    native_x = placement.offset_x + placement.ratio_x * edges_x
    first_col, cols = 0, grid.cols
    if wraps(grid):  # a pixel may lie across the reference grid's edge
        first_col = math.floor(native_x[0] + 1e-9)
        cols = math.ceil(native_x[-1] - 1e-9) - first_col
    weights_y, weights_x = overlap_matrix(native_y, grid.rows), overlap_matrix(native_x - first_col, cols)
    weight = np.zeros((len(edges_y) - 1, len(edges_x) - 1))
    total = np.zeros_like(weight)
    by_row = weights_y.tocsc()
    for first, values, sampled in row_chunks(stack, channel, native_y, columns=(first_col, cols)):
        valid = np.isfinite(values)
        part = by_row[:, first : first + len(values)]
        if sampled:  # the row stands for the whole height of its cell
            inside = (native_y[:-1] <= first + 0.5) & (first + 0.5 < native_y[1:])
            part = sparse.csr_matrix((np.diff(native_y) * inside)[:, None])
        reached = part.nonzero()[0]
        if not len(reached):
            continue
        # Only the cells that these rows reach are touched: a chunk costs by its pixels, not by the whole map.
        cells = slice(reached.min(), reached.max() + 1)
        part = part.tocsr()[cells]
        weight[cells] += part @ (valid @ weights_x.T)
        total[cells] += part @ (np.where(valid, values, 0.0) @ weights_x.T)
    return _cell_map(weight, total, np.diff(native_y), np.diff(native_x)), cell


def _cell_map(weight: np.ndarray, total: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> CellMap:
    """Valid shares and means from valid areas and sums over them, some rows at a time: maps are large."""
    fraction, mean = (np.empty(weight.shape, dtype=np.float32) for _ in range(2))
    for row in range(0, len(weight), 256):
        part = slice(row, row + 256)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean[part] = np.where(weight[part] > 0, total[part] / weight[part], np.nan)
            fraction[part] = np.clip(weight[part] / np.outer(heights[part], widths), 0.0, 1.0)
    return CellMap(fraction=fraction, mean=mean)


def mean_coverage(maps: list[CellMap], cell: int) -> Coverage:
    """Valid share of the ground, averaged over layers."""
    return Coverage(fraction=np.stack([m.fraction for m in maps]).mean(axis=0), cell=cell)


def correlation_length(mean: np.ndarray) -> float:
    """Distance at which a gridded field's autocorrelation falls to 1/e.

    Args:
        mean: (rows, cols) float, NaN where invalid; at most a few million cells.

    Returns:
        Length in cells, averaged over both axes (linear interpolation between lags); infinite when the
        autocorrelation stays above 1/e over a third of the grid, or the field is constant.
    """
    valid = np.isfinite(mean)
    values = np.where(valid, mean - np.nanmean(mean), 0.0)
    if not values.any():
        return math.inf
    return float(np.mean([_decay_length(values, valid), _decay_length(values.T, valid.T)]))


def _decay_length(values: np.ndarray, valid: np.ndarray) -> float:
    """Lag in rows at which the autocorrelation of values about 0 falls to 1/e; products are summed by FFT."""
    lags = max(2, len(values) // 3)
    size = fft.next_fast_len(len(values) + lags, real=True)

    def products(of: np.ndarray) -> np.ndarray:
        spectrum = fft.rfft(of.astype(np.float64), size, axis=0)
        return fft.irfft((np.abs(spectrum) ** 2).sum(axis=1), size)[:lags]

    pairs = np.rint(products(valid))
    covariance = np.divide(products(values), pairs, out=np.zeros(lags), where=pairs > 0)
    correlation = covariance / covariance[0]
    low = np.flatnonzero((correlation < 1 / math.e) & (pairs > 0))
    reached = np.flatnonzero(pairs == 0)
    if not len(low) or (len(reached) and reached[0] < low[0]):
        return math.inf
    lag = low[0]
    return float(lag - 1 + (correlation[lag - 1] - 1 / math.e) / (correlation[lag - 1] - correlation[lag]))
