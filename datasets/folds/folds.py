"""The folds themselves: which pixels and points of a window are tested, validated or trained on.

What is kept grows with the cells of the ground, never with its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datasets.folds.blocks import BlockGrid, centres

LEAK_WARNING = "random split: neighbours of training pixels are tested; scores are inflated"
CONTROL_WARNING = "leaking split: the tested labels are trained on; a control that must win, and no score"


@dataclass(frozen=True)
class Folds:
    """Test ground of each fold, and what is left to train on. Positions are base pixels, from the ground's corner.

    Attributes:
        shape: (rows, cols) of the ground, base pixels.
        split: `blocks`, `leaking` (the same, but trained on as well), `random` or `from_checkpoint`.
        count: number of folds.
        buffer: distance from edge to edge that training pixels keep from tested (and validated) blocks, base pixels.
        cell: edge of the cells in which labels were counted, base pixels.
        seed: what everything follows from.
        label_fraction: share of the training labels that is kept, 0..1.
        early_stopping: whether training also keeps away from the ground of the next fold, which `validating` gives.
        lattice: cuts the ground; its rectangles are blocks or parts of them.
        fold_grid: (m, n) int16 fold of each rectangle, -1 = never tested.
        block_grid: (m, n) int32 number of the block of each rectangle, -1 = never tested.
        places: (cell rows, cell cols) int32 place of each cell in the order in which labels are kept; None: all are.
        kept: for each fold, how many places are kept.
        facts: counts for log and JSON, see `numbers`.
        warnings: what a user should know.
        turn: columns after which the ground repeats, base pixels; 0 if it does not. The buffer goes on across it.
    """

    shape: tuple[int, int]
    split: str
    count: int
    buffer: int
    cell: int
    seed: int
    label_fraction: float
    early_stopping: bool
    lattice: BlockGrid
    fold_grid: np.ndarray
    block_grid: np.ndarray
    places: np.ndarray | None = None
    kept: tuple[int, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    turn: int = 0

    def testing(self, fold: int, row: int, col: int, rows: int, cols: int, *, scale: int = 1) -> np.ndarray:
        """True for pixels that are tested in a fold.

        Args:
            fold: its number.
            row: first row of the window, target pixels; it may stick out of the ground, where nothing is tested.
            col: first column.
            rows: height.
            cols: width.
            scale: target pixels along the edge of a base pixel.

        Returns:
            (rows, cols) bool.
        """
        return self.lattice.on(self.fold_grid, (row, col, rows, cols), scale=scale, outside=-1) == self._checked(fold)

    def validating(self, fold: int, row: int, col: int, rows: int, cols: int, *, scale: int = 1) -> np.ndarray:
        """True for pixels that early stopping looks at: the test ground of the next fold; arguments as `testing`.

        Raises:
            ValueError: the folds were made without early stopping, so training does not keep away from that ground.
        """
        return self.testing(self._next(fold), row, col, rows, cols, scale=scale)

    def training(
        self, fold: int, row: int, col: int, rows: int, cols: int, *, scale: int = 1, all_labels: bool = False
    ) -> np.ndarray:
        """True for pixels whose labels may be trained on.

        Args:
            fold: its number.
            row: first row of the window, target pixels; it may stick out of the ground, where there is no training.
            col: first column.
            rows: height.
            cols: width.
            scale: target pixels along the edge of a base pixel.
            all_labels: also those that `label_fraction` drops (for what is no label, such as sampled background).

        Returns:
            (rows, cols) bool: no nearer than the buffer, from edge to edge and exactly so at any scale, to ground that
            is tested (or validated) in this fold, and inside the kept share.
        """
        down, across = row + np.arange(rows), col + np.arange(cols)
        reach = self.buffer * scale
        kept = ~self.near(fold, (down - reach, down + 1 + reach), (across - reach, across + 1 + reach), scale=scale)
        kept[(down < 0) | (down >= self.shape[0] * scale)] = False
        kept[:, (across < 0) | (across >= self.shape[1] * scale)] = False
        if self.places is not None and not all_labels:
            i = np.clip(down // (self.cell * scale), 0, self.places.shape[0] - 1)
            j = np.clip(across // (self.cell * scale), 0, self.places.shape[1] - 1)
            kept &= self.places[np.ix_(i, j)] < self.kept[fold]
        return kept

    def fold_at(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Fold in which points are tested, (k,) int16, -1 = in none; positions (k,) in base pixels, any real number."""
        return self.lattice.at(self.fold_grid, row, col, outside=-1)

    def validating_at(self, fold: int, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Likewise `validating` for points, (k,) bool.

        Raises:
            ValueError: the folds were made without early stopping.
        """
        return self.fold_at(row, col) == self._next(fold)

    def training_at(self, fold: int, row: np.ndarray, col: np.ndarray, *, all_labels: bool = False) -> np.ndarray:
        """True for points that may be trained on, (k,) bool; positions and rules as `training`, but to the point."""
        row, col = np.asarray(row, dtype=np.float64), np.asarray(col, dtype=np.float64)
        kept = (row >= 0) & (row < self.shape[0]) & (col >= 0) & (col < self.shape[1])
        for turn in self._turns:
            kept &= ~self.lattice.near_points(self.away_from(fold), row, col + turn, reach=self.buffer)
        if self.places is not None and not all_labels:
            i = np.clip(row // self.cell, 0, self.places.shape[0] - 1).astype(np.int64)
            j = np.clip(col // self.cell, 0, self.places.shape[1] - 1).astype(np.int64)
            kept &= self.places[i, j] < self.kept[fold]
        return kept

    @property
    def fold_of(self) -> np.ndarray:
        """(cell rows, cell cols) int16 fold of the ground at each cell's centre, -1 = never tested."""
        return self._on_cells(self.fold_grid)

    @property
    def block_ids(self) -> np.ndarray:
        """(cell rows, cell cols) int32 number of the block at each cell's centre, -1 = never tested."""
        return self._on_cells(self.block_grid)

    def blocks_of(self, row: int, col: int, rows: int, cols: int, *, scale: int = 1) -> np.ndarray:
        """Number of the block of each pixel of a window, (rows, cols) int32, -1 = never tested; see `testing`."""
        return self.lattice.on(self.block_grid, (row, col, rows, cols), scale=scale, outside=-1)

    def block_at(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Number of the block of points, (k,) int32, -1 = never tested."""
        return self.lattice.at(self.block_grid, row, col, outside=-1)

    @property
    def leak(self) -> str:
        """What every output of a leaking split must say; empty for a clean one."""
        return {"random": LEAK_WARNING, "leaking": CONTROL_WARNING}.get(self.split, "")

    def numbers(self) -> dict[str, Any]:
        """Facts for the log and for JSON.

        Returns:
            The options; `blocks` and `tested` labels of each fold, `tested_classes` by class; `trained` labels of each
            fold after buffer and label fraction, `trained_classes`, and `left`, the share of all labels outside test
            ground and buffer, before the label fraction; `warning` for a leaking split, else None. Training labels
            are those of cells wholly outside the buffer.
        """
        options = {key: getattr(self, key) for key in ("split", "count", "buffer", "cell", "seed", "label_fraction")}
        return {**options, "early_stopping": self.early_stopping, **self.facts, "warning": self.leak or None}

    def describe(self) -> str:
        """One line for the log."""
        tested, trained, left = (self.facts[key] for key in ("tested", "trained", "left"))
        blocks = sum(self.facts["blocks"])
        parts = [
            f"{self.count} fold{'s' * (self.count > 1)} ({self.split}) of {blocks} blocks",
            f"buffer {self.buffer} base pixels",
            f"{min(tested)} to {max(tested)} labels tested",
            f"{min(trained)} to {max(trained)} trained on",
            f"{100 * min(left):.0f} to {100 * max(left):.0f} % of labels outside test ground and buffer",
        ]
        if self.label_fraction < 1:
            parts.append(f"of which {100 * self.label_fraction:g} % are kept")
        return "; ".join([*parts, *([f"WARNING {self.leak}"] if self.leak else [])])

    def _checked(self, fold: int) -> int:
        if not 0 <= fold < self.count:
            raise ValueError(f"fold {fold}: expected 0 to {self.count - 1}")
        return fold

    def _next(self, fold: int) -> int:
        if not self.early_stopping:
            raise ValueError("these folds were made without early stopping: no ground is set aside for validation")
        return (self._checked(fold) + 1) % self.count

    def away_from(self, fold: int) -> np.ndarray:
        """(m, n) bool, the rectangles of the lattice that training keeps away from in a fold."""
        chosen = self.fold_grid == self._checked(fold)
        if self.split == "leaking":
            return np.zeros_like(chosen)
        return chosen | (self.fold_grid == self._next(fold)) if self.early_stopping else chosen

    def near(
        self,
        fold: int,
        rows: tuple[np.ndarray, np.ndarray],
        cols: tuple[np.ndarray, np.ndarray],
        *,
        scale: int,
    ) -> np.ndarray:
        """Whether rectangles overlap ground excluded from training in a fold, also across the date line."""
        ground = self.away_from(fold)
        found = [
            self.lattice.near(ground, rows, (cols[0] + turn * scale, cols[1] + turn * scale), scale=scale)
            for turn in self._turns
        ]
        return np.logical_or.reduce(found)

    @property
    def _turns(self) -> tuple[int, ...]:
        """Columns by which the same ground may be away."""
        return (0, self.turn, -self.turn) if self.turn and self.buffer else (0,)

    def _on_cells(self, grid: np.ndarray) -> np.ndarray:
        rows, cols = (-(-size // self.cell) for size in self.shape)
        row = np.repeat(centres(rows, self.cell, self.shape[0]), cols)
        col = np.tile(centres(cols, self.cell, self.shape[1]), rows)
        return self.lattice.at(grid, row, col, outside=-1).reshape(rows, cols)
