"""Block grids: ground cut into rectangles by straight lines, with a buffer around chosen ones and wrap-around.

Pure index arithmetic, without files. Positions are pixels, counted from the north-western corner of the ground. Because
the lines are straight, any question about a window costs one look-up per row and one per column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.ground.summed_area import summed_area_table, window_sums

Spans = tuple[np.ndarray, np.ndarray]
"""First pixels and, after the last one, stops of ranges along one axis."""


@dataclass(frozen=True)
class BlockGrid:
    """Ground cut into m x n rectangles.

    Attributes:
        row_lines: (m + 1,) int64 ascending pixel rows of the lines; the first is 0, no rectangle lies beyond the last.
        col_lines: (n + 1,) int64, likewise in columns.
        buffer: width of the buffer around chosen rectangles, from edge to edge, pixels.
        wrap_columns: columns after which the ground repeats, 0 = never. The buffer continues across that seam.
    """

    row_lines: np.ndarray
    col_lines: np.ndarray
    buffer: int = 0
    wrap_columns: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) rectangles."""
        return len(self.row_lines) - 1, len(self.col_lines) - 1

    def at_points(self, values: np.ndarray, row: np.ndarray, col: np.ndarray, *, outside: int) -> np.ndarray:
        """Values of the rectangles that contain points.

        Args:
            values: (m, n) one for each rectangle.
            row: (k,) positions in pixels, any real number.
            col: likewise.
            outside: value of points off the ground.

        Returns:
            (k,) of the type of `values`.
        """
        row, col = np.asarray(row, dtype=np.float64), np.asarray(col, dtype=np.float64)
        inside = (row >= 0) & (row < self.row_lines[-1]) & (col >= 0) & (col < self.col_lines[-1])
        i = np.searchsorted(self.row_lines, np.where(inside, row, 0), side="right") - 1
        j = np.searchsorted(self.col_lines, np.where(inside, col, 0), side="right") - 1
        return np.where(inside, values[i, j], np.array(outside, dtype=values.dtype))

    def in_window(
        self, values: np.ndarray, window: tuple[int, int, int, int], *, outside: int, scale: int = 1
    ) -> np.ndarray:
        """Values of the rectangles that contain the pixels of a window.

        Args:
            values: (m, n) one for each rectangle.
            window: (row, col, rows, cols) in target pixels; may extend beyond the ground.
            outside: value of pixels off the ground.
            scale: target pixels along the edge of a pixel.

        Returns:
            (rows, cols) of the type of `values`.
        """
        row, col, rows, cols = window
        i, inside_i = _interval_of(self.row_lines * scale, row + np.arange(rows))
        j, inside_j = _interval_of(self.col_lines * scale, col + np.arange(cols))
        found = values[np.ix_(i, j)]
        found[~inside_i] = outside
        found[:, ~inside_j] = outside
        return found

    def is_near(self, chosen: np.ndarray, rows: Spans, cols: Spans, *, scale: int = 1) -> np.ndarray:
        """Whether windows come nearer to chosen rectangles than the buffer: each row range with each column range.

        Args:
            chosen: (m, n) bool.
            rows: (k,) first rows and (k,) rows after the last, target pixels.
            cols: (l,) first columns and (l,) columns after the last.
            scale: target pixels along the edge of a pixel.

        Returns:
            (k, l) bool.
        """
        reach = self.buffer * scale
        top, bottom = _overlapped(self.row_lines * scale, rows[0] - reach, rows[1] + reach)
        near = np.zeros((len(top), len(cols[0])), dtype=bool)
        for shift in self._shifts:
            first, stop = cols[0] + shift * scale - reach, cols[1] + shift * scale + reach
            near |= _any_chosen(chosen, (top, bottom), _overlapped(self.col_lines * scale, first, stop))
        return near

    def windows_near(self, chosen: np.ndarray, rows: Spans, cols: Spans) -> np.ndarray:
        """Whether each of a list of windows comes nearer to chosen rectangles than the buffer.

        Args:
            chosen: (m, n) bool.
            rows: (k,) first rows and (k,) rows after the last, pixels.
            cols: (k,) first columns and (k,) columns after the last.

        Returns:
            (k,) bool.
        """
        table = summed_area_table(chosen)
        top, bottom = _overlapped(self.row_lines, rows[0] - self.buffer, rows[1] + self.buffer)
        near = np.zeros(len(top), dtype=bool)
        for shift in self._shifts:
            left, right = _overlapped(self.col_lines, cols[0] + shift - self.buffer, cols[1] + shift + self.buffer)
            near |= window_sums(table, top, left, bottom, right) > 0
        return near

    def points_near(self, chosen: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Whether points lie in chosen rectangles, or nearer to them than the buffer by the larger of rows and columns.

        Args:
            chosen: (m, n) bool.
            row: (k,) float64 positions, pixels.
            col: likewise.

        Returns:
            (k,) bool.
        """
        if not self.buffer:
            return self.at_points(chosen, row, col, outside=False)
        return self.windows_near(chosen, (row, row), (col, col))

    def rectangles(self, chosen: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Chosen rectangles, of (m, n) bool, as (row, col, height, width) in pixels."""
        lines = self.row_lines, self.col_lines
        corners = [(lines[0][i], lines[1][j], lines[0][i + 1], lines[1][j + 1]) for i, j in np.argwhere(chosen)]
        return [(int(top), int(left), int(bottom - top), int(right - left)) for top, left, bottom, right in corners]

    @property
    def _shifts(self) -> tuple[int, ...]:
        """Columns by which the same ground may lie elsewhere."""
        return (0, self.wrap_columns, -self.wrap_columns) if self.wrap_columns else (0,)


def _interval_of(lines: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the interval between lines that contains each pixel, and whether there is one."""
    inside = (pixels >= 0) & (pixels < lines[-1])
    return np.searchsorted(lines, np.where(inside, pixels, 0), side="right") - 1, inside


def _overlapped(lines: np.ndarray, first: np.ndarray, stop: np.ndarray) -> Spans:
    """Half-open ranges of the intervals between lines that [first, stop) overlaps."""
    start = np.clip(np.searchsorted(lines, first, side="right") - 1, 0, len(lines) - 1)
    end = np.clip(np.searchsorted(lines, stop, side="left"), 0, len(lines) - 1)
    return start, np.maximum(start, end)


def _any_chosen(chosen: np.ndarray, rows: Spans, cols: Spans) -> np.ndarray:
    """Whether any rectangle is chosen in k row ranges and l column ranges of a grid of them, (k, l) bool."""
    (top, bottom), (left, right) = rows, cols
    if not top.size or not left.size:
        return np.zeros((top.size, left.size), dtype=bool)
    first_row, first_col = int(top.min()), int(left.min())
    part = chosen[first_row : int(bottom.max()), first_col : int(right.max())]
    table = summed_area_table(part).astype(np.int64)
    strips = table[bottom - first_row] - table[top - first_row]
    return strips[:, right - first_col] > strips[:, left - first_col]


def even_block_grid(shape: tuple[int, int], edge: int, *, buffer: int = 0, wrap_columns: int = 0) -> BlockGrid:
    """Cuts ground into squares of `edge` pixels.

    The remainder at the end of an axis is a block of its own if it is at least half an edge long, else part of its
    neighbour.

    Args:
        shape: (rows, cols) of the ground, pixels.
        edge: edge of a square, pixels.
        buffer: as in `BlockGrid`.
        wrap_columns: likewise.
    """

    def lines(length: int) -> np.ndarray:
        inner = np.arange(edge, length, edge, dtype=np.int64)
        if len(inner) and 2 * (length - inner[-1]) < edge:
            inner = inner[:-1]
        return np.concatenate([[0], inner, [length]]).astype(np.int64)

    return BlockGrid(lines(shape[0]), lines(shape[1]), buffer, wrap_columns)


def whole_block_grid(
    shape: tuple[int, int], *, height: int, width: int, buffer: int = 0, wrap_columns: int = 0
) -> BlockGrid:
    """Cuts as many whole blocks as fit out of ground, at least one; the remainder belongs to no block.

    Args:
        shape: (rows, cols) of the ground, pixels.
        height: of a block, pixels.
        width: likewise.
        buffer: as in `BlockGrid`.
        wrap_columns: likewise.
    """
    rows, cols = max(shape[0] // height, 1), max(shape[1] // width, 1)
    return BlockGrid(
        np.arange(rows + 1, dtype=np.int64) * height, np.arange(cols + 1, dtype=np.int64) * width, buffer, wrap_columns
    )


def block_grid_from_rectangles(
    rectangles: np.ndarray, shape: tuple[int, int], *, buffer: int = 0, wrap_columns: int = 0
) -> tuple[BlockGrid, np.ndarray]:
    """Cuts ground along the edges of given rectangles.

    Args:
        rectangles: (n, 4) int64 (top, left, bottom, right) pixels within the ground.
        shape: (rows, cols) of the ground.
        buffer: as in `BlockGrid`.
        wrap_columns: likewise.

    Returns:
        The grid, and for each of its rectangles the number of the given one that contains it (the last of several),
        (rows, cols) int32, -1 = none.
    """
    grid = BlockGrid(
        np.unique(np.concatenate([[0, shape[0]], rectangles[:, [0, 2]].ravel()])).astype(np.int64),
        np.unique(np.concatenate([[0, shape[1]], rectangles[:, [1, 3]].ravel()])).astype(np.int64),
        buffer,
        wrap_columns,
    )
    numbers = np.full(grid.shape, -1, dtype=np.int32)
    for number, (top, left, bottom, right) in enumerate(rectangles):
        i = slice(*np.searchsorted(grid.row_lines, (top, bottom)))
        j = slice(*np.searchsorted(grid.col_lines, (left, right)))
        numbers[i, j] = number
    return grid, numbers


def block_edge(pixels: int, cell: int) -> int:
    """A length in pixels, rounded up to whole cells."""
    return -(-pixels // cell) * cell


def count_points(
    row: np.ndarray, col: np.ndarray, classes: np.ndarray, *, shape: tuple[int, int], cell: int, kinds: int
) -> np.ndarray:
    """Counts points of each class in square cells; a point off the ground counts in the nearest cell.

    Args:
        row: (k,) positions, pixels, any real number.
        col: likewise.
        classes: (k,) class of each, 0..kinds - 1.
        shape: (rows, cols) of the ground, pixels.
        cell: edge of a cell, pixels.
        kinds: number of classes.

    Returns:
        (cell rows, cell cols, kinds) int64.
    """
    counts = np.zeros((-(-shape[0] // cell), -(-shape[1] // cell), kinds), dtype=np.int64)
    rows = np.clip(row // cell, 0, counts.shape[0] - 1).astype(np.int64)
    cols = np.clip(col // cell, 0, counts.shape[1] - 1).astype(np.int64)
    np.add.at(counts, (rows, cols, classes), 1)
    return counts


def counts_in_blocks(grid: BlockGrid, counts: np.ndarray, cell: int) -> np.ndarray:
    """Sums counts in cells over the rectangles of a grid; a cell belongs to the rectangle that contains its centre.

    Args:
        grid: of m x n rectangles.
        counts: (cell rows, cell cols, K) labels of each class in cells.
        cell: edge of a cell, pixels.

    Returns:
        (m, n, K) float64.
    """
    i = np.searchsorted(grid.row_lines, _cell_centres(counts.shape[0], cell, grid.row_lines[-1]), side="right") - 1
    j = np.searchsorted(grid.col_lines, _cell_centres(counts.shape[1], cell, grid.col_lines[-1]), side="right") - 1
    by_rows = np.zeros((grid.shape[0], *counts.shape[1:]))
    np.add.at(by_rows, i, counts)
    sums = np.zeros((grid.shape[1], grid.shape[0], counts.shape[2]))
    np.add.at(sums, j, by_rows.transpose(1, 0, 2))
    return sums.transpose(1, 0, 2)


def _cell_centres(cells: int, cell: int, length: int) -> np.ndarray:
    """Centres of cells along one axis of the ground, pixels; the last cell may be cut short."""
    first = np.arange(cells, dtype=np.float64) * cell
    return (first + np.minimum(first + cell, length)) / 2
