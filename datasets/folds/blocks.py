"""Cutting labelled ground into blocks and dealing the blocks to folds: numbers in, numbers out, no files.

Positions are base pixels, counted from the north-western corner of the ground. The ground is cut by straight lines
into a lattice, so that whatever is asked of a window costs one look-up a row and one a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.ground.summed_area import summed_area_table, window_sums

AUTO_BLOCKS_PER_FOLD = 4
"""Blocks are as large as they can be with at least this many labelled ones in each fold."""

LARGEST_AUTO_BLOCK = 4
"""Tiles along the edge of the largest block that is chosen automatically."""

DEALS = 64
"""Random deals among which the best is taken; fewer on large ground, where they hardly differ."""

_DEALT_CELLS = 20_000_000


@dataclass(frozen=True)
class BlockGrid:
    """Ground cut by straight lines into rectangles.

    Attributes:
        row_lines: (m + 1,) int64 ascending base pixel rows of the lines, from 0 to the ground's rows.
        col_lines: (n + 1,) int64, likewise in columns.
    """

    row_lines: np.ndarray
    col_lines: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) rectangles."""
        return len(self.row_lines) - 1, len(self.col_lines) - 1

    def at(self, grid: np.ndarray, row: np.ndarray, col: np.ndarray, *, outside: int) -> np.ndarray:
        """Numbers of the rectangles that hold points.

        Args:
            grid: (m, n) a number for each rectangle.
            row: (k,) positions in base pixels, any real number.
            col: likewise.
            outside: for points off the ground.

        Returns:
            (k,) of the grid's type.
        """
        row, col = np.asarray(row, dtype=np.float64), np.asarray(col, dtype=np.float64)
        inside = (row >= 0) & (row < self.row_lines[-1]) & (col >= 0) & (col < self.col_lines[-1])
        i = np.searchsorted(self.row_lines, np.where(inside, row, 0), side="right") - 1
        j = np.searchsorted(self.col_lines, np.where(inside, col, 0), side="right") - 1
        return np.where(inside, grid[i, j], np.array(outside, dtype=grid.dtype))

    def on(self, grid: np.ndarray, window: tuple[int, int, int, int], *, scale: int, outside: int) -> np.ndarray:
        """Numbers of the rectangles that hold the pixels of a window.

        Args:
            grid: (m, n) a number for each rectangle.
            window: (row, col, rows, cols) in target pixels, `scale` to a base pixel; may stick out.
            scale: target pixels along the edge of a base pixel.
            outside: for pixels off the ground.

        Returns:
            (rows, cols) of the grid's type.
        """
        row, col, rows, cols = window
        i, inside_i = _holder(self.row_lines * scale, row + np.arange(rows))
        j, inside_j = _holder(self.col_lines * scale, col + np.arange(cols))
        held = grid[np.ix_(i, j)]
        held[~inside_i] = outside
        held[:, ~inside_j] = outside
        return held

    def near(
        self,
        ground: np.ndarray,
        rows: tuple[np.ndarray, np.ndarray],
        cols: tuple[np.ndarray, np.ndarray],
        *,
        scale: int,
    ) -> np.ndarray:
        """Whether rectangles overlap chosen ground.

        Args:
            ground: (m, n) bool, the chosen rectangles of the lattice.
            rows: (k,) first rows and (k,) rows after the last, target pixels; of pixels, grown by the buffer.
            cols: (l,) likewise.
            scale: target pixels along the edge of a base pixel.

        Returns:
            (k, l) bool, for every pair of a row span and a column span.
        """
        top, bottom = _span(self.row_lines * scale, *rows)
        left, right = _span(self.col_lines * scale, *cols)
        if not top.size or not left.size:
            return np.zeros((top.size, left.size), dtype=bool)
        first_row, first_col = int(top.min()), int(left.min())
        part = ground[first_row : int(bottom.max()), first_col : int(right.max())]
        table = summed_area_table(part).astype(np.int64)
        strips = table[bottom - first_row] - table[top - first_row]
        return strips[:, right - first_col] > strips[:, left - first_col]

    def near_points(self, ground: np.ndarray, row: np.ndarray, col: np.ndarray, *, reach: float) -> np.ndarray:
        """Whether points lie in chosen ground, or nearer to it than `reach` by the larger of rows and columns.

        Args:
            ground: (m, n) bool, the chosen rectangles of the lattice.
            row: (k,) float64 positions, base pixels.
            col: likewise.
            reach: base pixels.

        Returns:
            (k,) bool.
        """
        top, bottom = _span(self.row_lines, row - reach, row + reach)
        left, right = _span(self.col_lines, col - reach, col + reach)
        if reach == 0:  # the point itself, which is in the rectangle that begins there
            bottom, right = np.minimum(top + 1, ground.shape[0]), np.minimum(left + 1, ground.shape[1])
        return window_sums(summed_area_table(ground), top, left, bottom, right) > 0


def _holder(lines: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which interval between lines holds each pixel, and whether one does."""
    inside = (pixels >= 0) & (pixels < lines[-1])
    return np.searchsorted(lines, np.where(inside, pixels, 0), side="right") - 1, inside


def _span(lines: np.ndarray, first: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half-open range of the intervals between lines that [first, stop) overlaps."""
    start = np.clip(np.searchsorted(lines, first, side="right") - 1, 0, len(lines) - 1)
    end = np.clip(np.searchsorted(lines, stop, side="left"), 0, len(lines) - 1)
    return start, np.maximum(start, end)


def even_block_grid(shape: tuple[int, int], edge: int) -> BlockGrid:
    """Cuts ground into squares of `edge` base pixels; what is left at the end is a piece of its own from half an edge
    on, and else part of its neighbour.
    """

    def lines(length: int) -> np.ndarray:
        inner = np.arange(edge, length, edge, dtype=np.int64)
        if len(inner) and 2 * (length - inner[-1]) < edge:
            inner = inner[:-1]
        return np.concatenate([[0], inner, [length]]).astype(np.int64)

    return BlockGrid(lines(shape[0]), lines(shape[1]))


def block_grid_of(rectangles: np.ndarray, shape: tuple[int, int]) -> tuple[BlockGrid, np.ndarray]:
    """Cuts ground along the edges of rectangles.

    Args:
        rectangles: (n, 4) int64 (top, left, bottom, right) base pixels within the ground.
        shape: (rows, cols) of the ground.

    Returns:
        The lattice, and for each of its rectangles the number of the given one that holds it (the last of several),
        (rows, cols) int32, -1 = none.
    """
    lattice = BlockGrid(
        np.unique(np.concatenate([[0, shape[0]], rectangles[:, [0, 2]].ravel()])).astype(np.int64),
        np.unique(np.concatenate([[0, shape[1]], rectangles[:, [1, 3]].ravel()])).astype(np.int64),
    )
    numbers = np.full(lattice.shape, -1, dtype=np.int32)
    for number, (top, left, bottom, right) in enumerate(rectangles):
        i = slice(*np.searchsorted(lattice.row_lines, (top, bottom)))
        j = slice(*np.searchsorted(lattice.col_lines, (left, right)))
        numbers[i, j] = number
    return lattice, numbers


def counts_on(lattice: BlockGrid, counts: np.ndarray, cell: int) -> np.ndarray:
    """Sums cells over the rectangles of a lattice; a cell belongs to the one that holds its centre.

    Args:
        lattice: of m x n rectangles.
        counts: (cell rows, cell cols, K) labels of each class in cells.
        cell: edge of a cell, base pixels.

    Returns:
        (m, n, K) float64.
    """
    i = np.searchsorted(lattice.row_lines, centres(counts.shape[0], cell, int(lattice.row_lines[-1])), side="right") - 1
    j = np.searchsorted(lattice.col_lines, centres(counts.shape[1], cell, int(lattice.col_lines[-1])), side="right") - 1
    by_rows = np.zeros((lattice.shape[0], *counts.shape[1:]))
    np.add.at(by_rows, i, counts)
    sums = np.zeros((lattice.shape[1], lattice.shape[0], counts.shape[2]))
    np.add.at(sums, j, by_rows.transpose(1, 0, 2))
    return sums.transpose(1, 0, 2)


def centres(cells: int, cell: int, length: int) -> np.ndarray:
    """Middles of cells along one axis of the ground, base pixels; the last cell may be cut short."""
    first = np.arange(cells, dtype=np.float64) * cell
    return (first + np.minimum(first + cell, length)) / 2


def auto_block(labels: np.ndarray, *, cell: int, shape: tuple[int, int], tile: int, folds: int) -> int:
    """Edge of a block in tiles: the largest of `LARGEST_AUTO_BLOCK`..1 with `AUTO_BLOCKS_PER_FOLD` labelled blocks for
    each fold, else 1.

    Args:
        labels: (cell rows, cell cols) labels in cells.
        cell: edge of a cell, base pixels.
        shape: (rows, cols) of the ground, base pixels.
        tile: edge of a tile, base pixels.
        folds: number of folds.
    """
    for edge in range(LARGEST_AUTO_BLOCK, 1, -1):
        lattice = even_block_grid(shape, block_edge(edge * tile, cell))
        if np.count_nonzero(counts_on(lattice, labels[..., None], cell)) >= AUTO_BLOCKS_PER_FOLD * folds:
            return edge
    return 1


def block_edge(pixels: int, cell: int) -> int:
    """The length in base pixels, rounded up to whole cells."""
    return -(-pixels // cell) * cell


def assignments_to_try(cells: int, folds: int) -> int:
    """How many deals are compared: `DEALS`, fewer where each costs much, at least one."""
    return int(np.clip(_DEALT_CELLS // max(cells * folds, 1), 1, DEALS))


def assign_blocks(counts: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Deals labelled blocks to folds: at random, and yet much alike in labels, whole and class by class.

    Large blocks tend to come first, and each goes to the fold that has least of what the block holds. scikit-learn's
    StratifiedGroupKFold does this for samples; here there are too many to list, and only their counts are needed.

    Args:
        counts: (blocks, K) labels of each class in each block, every block with some.
        folds: number of folds, at most as many as blocks.
        rng: decides.

    Returns:
        (blocks,) int16 fold of each block; no fold is without a block.
    """
    totals = np.maximum(counts.sum(axis=0), 1)
    shares = np.column_stack([counts / totals, counts.sum(axis=1) / counts.sum()])
    order = np.argsort(-shares.sum(axis=1) * rng.uniform(0.5, 1.0, len(shares)), kind="stable")
    preference = rng.permuted(np.tile(np.arange(folds), (len(shares), 1)), axis=1)
    loads = np.zeros((folds, shares.shape[1]))
    fold_of = np.empty(len(shares), dtype=np.int16)
    empty = folds
    for place, block in enumerate(order):
        candidates = preference[place]
        if len(order) - place <= empty:
            candidates = candidates[loads[candidates, -1] == 0]
        fold = candidates[np.argmin(loads[candidates] @ shares[block])]
        empty -= int(loads[fold, -1] == 0)
        loads[fold] += shares[block]
        fold_of[block] = fold
    return fold_of


def assign_blocks_evenly(blocks: int, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Deals blocks to folds at random, as many to each as can be; (blocks,) int16."""
    fold_of = np.empty(blocks, dtype=np.int16)
    fold_of[rng.permutation(blocks)] = np.arange(blocks) % folds
    return fold_of


def label_ranking(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Order in which cells keep their labels when only a share is kept.

    A cell goes with the class of which it holds the largest part, and the classes are drawn from in step, so that any
    first part of the order holds about the same share of every class.

    Args:
        counts: (cell rows, cell cols, K) labels of each class in cells.
        rng: decides.

    Returns:
        (cell rows, cell cols) int32 place in the order; the largest int32 where there is no label.
    """
    flat = counts.reshape(-1, counts.shape[-1])
    labelled = np.flatnonzero(flat.any(axis=1))
    kind = np.argmax(flat[labelled] / np.maximum(flat.sum(axis=0), 1), axis=1)
    due = np.empty(len(labelled))
    for number in np.unique(kind):
        members = rng.permutation(np.flatnonzero(kind == number))
        due[members] = (np.arange(len(members)) + rng.uniform()) / len(members)
    places = np.full(len(flat), np.iinfo(np.int32).max, dtype=np.int32)
    places[labelled[np.argsort(due, kind="stable")]] = np.arange(len(labelled))
    return places.reshape(counts.shape[:2])
