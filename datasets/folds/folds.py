"""Folds: which pixels and points of a window are for testing, validation or training.

Memory grows with the number of cells of the ground, never with the number of its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datasets.folds.blocks import BlockGrid, Spans

LEAK_WARNING = "random split: neighbours of training pixels are tested; scores are inflated"
CONTROL_WARNING = "leaking split: the tested labels are trained on; a control that must win, and no score"


@dataclass(frozen=True)
class Folds:
    """The test ground of each fold, and the ground left for training. Positions are base pixels, from the corner.

    Attributes:
        shape: (rows, cols) of the ground, base pixels.
        split: `blocks`, `leaking` (the same, but trained on as well), `random`, `from_checkpoint` or `all`.
        count: number of folds.
        cell: edge of the cells in which labels were counted, base pixels.
        seed: seed of the assignment of blocks to folds.
        label_fraction: fraction of the training labels that is used, 0..1.
        early_stopping: whether some of the next fold's ground is for validation (`validating`), and kept out of
            training.
        block_grid: cuts the ground; its rectangles are blocks or parts of them. Its buffer is the distance from edge
            to edge between training pixels and tested (and validated) blocks.
        fold_numbers: (m, n) int16 fold of each rectangle, -1 = never tested.
        validation_numbers: (m, n) int16, those of them that are ground for validation while the fold before is tested,
            -1 = the others.
        block_numbers: (m, n) int32 number of the block of each rectangle, -1 = never tested.
        label_ranks: (cell rows, cell cols) int32 order in which cells keep their labels; None: all keep them.
        ranks_used: for each fold, the number of first ranks that are trained on.
        kept_blocks: (folds, m, n) bool, rectangles whose labels are trained on in each fold; None: all.
        kept_shares: for each fold, the fraction of its training labels that those hold.
        label_counts: blocks and labels of each fold, see `summary`.
        warnings: for the log.
    """

    shape: tuple[int, int]
    split: str
    count: int
    cell: int
    seed: int
    label_fraction: float
    early_stopping: bool
    block_grid: BlockGrid
    fold_numbers: np.ndarray
    block_numbers: np.ndarray
    validation_numbers: np.ndarray | None = None
    label_ranks: np.ndarray | None = None
    ranks_used: tuple[int, ...] = ()
    kept_blocks: np.ndarray | None = None
    kept_shares: tuple[float, ...] = ()
    label_counts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def buffer(self) -> int:
        """Distance from edge to edge between training pixels and tested (and validated) blocks, base pixels."""
        return self.block_grid.buffer

    def testing(self, fold: int, row: int, col: int, rows: int, cols: int, *, scale: int = 1) -> np.ndarray:
        """True for pixels that are tested in a fold.

        Args:
            fold: its number.
            row: first row of the window, target pixels; it may extend beyond the ground, where nothing is tested.
            col: first column.
            rows: height.
            cols: width.
            scale: target pixels along the edge of a base pixel.

        Returns:
            (rows, cols) bool.
        """
        window = row, col, rows, cols
        return self.block_grid.in_window(self.fold_numbers, window, outside=-1, scale=scale) == self._checked(fold)

    def validating(self, fold: int, row: int, col: int, rows: int, cols: int, *, scale: int = 1) -> np.ndarray:
        """True for pixels that early stopping scores: half the blocks that the next fold tests; arguments as `testing`.

        Raises:
            ValueError: the folds were made without early stopping, so that ground is trained on.
        """
        return self.block_grid.in_window(
            self._validation_rectangles(fold), (row, col, rows, cols), outside=False, scale=scale
        )

    def training(
        self, fold: int, row: int, col: int, rows: int, cols: int, *, scale: int = 1, all_labels: bool = False
    ) -> np.ndarray:
        """True for pixels whose labels may be trained on.

        Args:
            fold: its number.
            row: first row of the window, target pixels; it may extend beyond the ground, where there is no training.
            col: first column.
            rows: height.
            cols: width.
            scale: target pixels along the edge of a base pixel.
            all_labels: also those that `label_fraction` or `kept_blocks` leave out (for pixels without a label, such
                as sampled background).

        Returns:
            (rows, cols) bool: outside the buffer, from edge to edge and exactly so at any scale, of ground that is
            tested (or validated) in this fold, and within the label fraction and the blocks that keep their labels.
        """
        down, across = row + np.arange(rows), col + np.arange(cols)
        usable = ~self.near_excluded(fold, (down, down + 1), (across, across + 1), scale=scale)
        usable[(down < 0) | (down >= self.shape[0] * scale)] = False
        usable[:, (across < 0) | (across >= self.shape[1] * scale)] = False
        if self.label_ranks is not None and not all_labels:
            i = np.clip(down // (self.cell * scale), 0, self.label_ranks.shape[0] - 1)
            j = np.clip(across // (self.cell * scale), 0, self.label_ranks.shape[1] - 1)
            usable &= self.label_ranks[np.ix_(i, j)] < self.ranks_used[fold]
        if self.kept_blocks is not None and not all_labels:
            usable &= self.block_grid.in_window(
                self.kept_blocks[fold], (row, col, rows, cols), outside=False, scale=scale
            )
        return usable

    def fold_at(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Fold in which points are tested, (k,) int16, -1 = in none; positions (k,) in base pixels, any real number."""
        return self.block_grid.at_points(self.fold_numbers, row, col, outside=-1)

    def validating_at(self, fold: int, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Like `validating`, for points, (k,) bool.

        Raises:
            ValueError: the folds were made without early stopping.
        """
        return self.block_grid.at_points(self._validation_rectangles(fold), row, col, outside=False)

    def training_at(
        self, fold: int, row: np.ndarray, col: np.ndarray, *, extent: float = 0.0, all_labels: bool = False
    ) -> np.ndarray:
        """Like `training`, for points, (k,) bool; the buffer is measured to the point, or to a square around it.

        Args:
            fold: its number.
            row: (k,) positions, base pixels.
            col: likewise.
            extent: edge of the square that each label is of, base pixels; 0: of the point alone.
            all_labels: as in `training`.
        """
        row, col = np.asarray(row, dtype=np.float64), np.asarray(col, dtype=np.float64)
        usable = (row >= 0) & (row < self.shape[0]) & (col >= 0) & (col < self.shape[1])
        usable &= ~self.block_grid.points_near(self.excluded_rectangles(fold), row, col)
        if extent and self.split != "random":  # whose cells are smaller than any square
            rows, cols = ((place - extent / 2, place + extent / 2) for place in (row, col))
            usable &= ~self.block_grid.windows_near(self.excluded_rectangles(fold), rows, cols)
        if self.label_ranks is not None and not all_labels:
            i = np.clip(row // self.cell, 0, self.label_ranks.shape[0] - 1).astype(np.int64)
            j = np.clip(col // self.cell, 0, self.label_ranks.shape[1] - 1).astype(np.int64)
            usable &= self.label_ranks[i, j] < self.ranks_used[fold]
        if self.kept_blocks is not None and not all_labels:
            usable &= self.block_grid.at_points(self.kept_blocks[fold], row, col, outside=False)
        return usable

    def blocks_of(self, row: int, col: int, rows: int, cols: int, *, scale: int = 1) -> np.ndarray:
        """Number of the block of each pixel of a window, (rows, cols) int32, -1 = never tested; see `testing`."""
        return self.block_grid.in_window(self.block_numbers, (row, col, rows, cols), outside=-1, scale=scale)

    def block_at(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Number of the block of points, (k,) int32, -1 = never tested."""
        return self.block_grid.at_points(self.block_numbers, row, col, outside=-1)

    @property
    def leak_warning(self) -> str:
        """Warning that every output of a leaking split must carry; empty for other splits."""
        return {"random": LEAK_WARNING, "leaking": CONTROL_WARNING}.get(self.split, "")

    def summary(self) -> dict[str, Any]:
        """Options and counts for the log and for JSON.

        Returns:
            The options; `blocks` and `tested` labels of each fold, `tested_classes` by class; `trained` labels of each
            fold after buffer and label fraction, `trained_classes`, and `left`, the fraction of all labels outside
            test ground and buffer, before the label fraction; `warning` for a leaking split, else None. Training
            labels are those of cells wholly outside the buffer. If only some blocks keep their labels, also
            `label_blocks`, how many in each fold, their numbers `kept_blocks`, and `kept_shares`.
        """
        options = {key: getattr(self, key) for key in ("split", "count", "buffer", "cell", "seed", "label_fraction")}
        leak = self.leak_warning or None
        found = {**options, "early_stopping": self.early_stopping, **self.label_counts, "warning": leak}
        if self.kept_blocks is not None:
            found["label_blocks"] = int(self.kept_blocks[0].sum())
            found["kept_blocks"] = [self.block_numbers[kept].tolist() for kept in self.kept_blocks]
            found["kept_shares"] = list(self.kept_shares)
        return found

    def describe(self) -> str:
        """One line for the log."""
        tested, trained, left = (self.label_counts[key] for key in ("tested", "trained", "left"))
        blocks = sum(self.label_counts["blocks"])
        parts = [
            f"{self.count} fold{'s' * (self.count > 1)} ({self.split}) of {blocks} blocks",
            f"buffer {self.buffer} base pixels",
            f"{min(tested)} to {max(tested)} labels tested",
            f"{min(trained)} to {max(trained)} trained on",
            f"{100 * min(left):.0f} to {100 * max(left):.0f} % of labels outside test ground and buffer",
        ]
        if self.label_fraction < 1:
            parts.append(f"of which {100 * self.label_fraction:g} % are used")
        if self.kept_blocks is not None:
            low, high = (100 * bound(self.kept_shares) for bound in (min, max))
            parts.append(
                f"of which those in {int(self.kept_blocks[0].sum())} blocks are used, {low:.0f} to {high:.0f} %"
            )
        return "; ".join([*parts, *([f"WARNING {self.leak_warning}"] if self.leak_warning else [])])

    def excluded_rectangles(self, fold: int) -> np.ndarray:
        """(m, n) bool, the rectangles of the block grid that are excluded from training in a fold, without buffer."""
        chosen = self.fold_numbers == self._checked(fold)
        if self.split == "leaking":
            return np.zeros_like(chosen)
        return chosen | self._validation_rectangles(fold) if self.early_stopping else chosen

    def near_excluded(self, fold: int, rows: Spans, cols: Spans, *, scale: int = 1) -> np.ndarray:
        """Whether windows come nearer than the buffer to ground excluded from training; see `BlockGrid.is_near`."""
        return self.block_grid.is_near(self.excluded_rectangles(fold), rows, cols, scale=scale)

    def trainable_cells(self, fold: int) -> np.ndarray:
        """(cell rows, cell cols) bool, cells of which every pixel may be trained on, whatever the label fraction."""
        first = [np.arange(0, size, self.cell) for size in self.shape]
        stop = [np.minimum(start + self.cell, size) for start, size in zip(first, self.shape, strict=True)]
        return ~self.near_excluded(fold, (first[0], stop[0]), (first[1], stop[1]))

    def _checked(self, fold: int) -> int:
        if not 0 <= fold < self.count:
            raise ValueError(f"fold {fold}: expected 0 to {self.count - 1}")
        return fold

    def _validation_rectangles(self, fold: int) -> np.ndarray:
        """(m, n) bool, the rectangles of the block grid that are validated in a fold."""
        if self.validation_numbers is None:
            raise ValueError("these folds were made without early stopping: no ground is set aside for validation")
        return np.asarray(self.validation_numbers == (self._checked(fold) + 1) % self.count)
