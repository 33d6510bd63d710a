"""Which fold each block is assigned to, and in which order cells keep their labels: counts in, numbers out."""

from __future__ import annotations

import numpy as np

from datasets.folds.blocks import block_edge, counts_in_blocks, even_block_grid

AUTO_BLOCKS_PER_FOLD = 4
"""Blocks are as large as they can be with at least this many labelled ones in each fold."""

LARGEST_AUTO_BLOCK = 4
"""Tiles along the edge of the largest block that is chosen automatically."""

ASSIGNMENTS = 64
"""Random assignments among which the best is chosen; fewer on large ground, where they hardly differ."""

_CELLS_TO_ASSIGN = 20_000_000
"""Cells times folds that all these assignments may look at together."""


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
        grid = even_block_grid(shape, block_edge(edge * tile, cell))
        if np.count_nonzero(counts_in_blocks(grid, labels[..., None], cell)) >= AUTO_BLOCKS_PER_FOLD * folds:
            return edge
    return 1


def assignments_to_try(cells: int, folds: int) -> int:
    """Number of assignments to compare: `ASSIGNMENTS`, fewer where each is expensive, at least one."""
    return int(np.clip(_CELLS_TO_ASSIGN // max(cells * folds, 1), 1, ASSIGNMENTS))


def assign_blocks(counts: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Assigns labelled blocks to folds at random, but balanced in the number of labels, in total and class by class.

    Large blocks tend to come first, and each goes to the fold that has least of the classes in the block.
    scikit-learn's StratifiedGroupKFold does this for samples; here there are too many samples to list, and only their
    counts are needed.

    Args:
        counts: (blocks, K) labels of each class in each block; every block has some.
        folds: number of folds, at most as many as blocks.
        rng: source of randomness.

    Returns:
        (blocks,) int16 fold of each block; no fold is without a block.
    """
    totals = np.maximum(counts.sum(axis=0), 1)
    fractions = np.column_stack([counts / totals, counts.sum(axis=1) / counts.sum()])
    order = np.argsort(-fractions.sum(axis=1) * rng.uniform(0.5, 1.0, len(fractions)), kind="stable")
    preference = rng.permuted(np.tile(np.arange(folds), (len(fractions), 1)), axis=1)
    loads = np.zeros((folds, fractions.shape[1]))
    fold_of = np.empty(len(fractions), dtype=np.int16)
    empty = folds
    for rank, block in enumerate(order):
        candidates = preference[rank]
        if len(order) - rank <= empty:
            candidates = candidates[loads[candidates, -1] == 0]
        fold = candidates[np.argmin(loads[candidates] @ fractions[block])]
        empty -= int(loads[fold, -1] == 0)
        loads[fold] += fractions[block]
        fold_of[block] = fold
    return fold_of


def assign_blocks_evenly(blocks: int, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Assigns blocks to folds at random, the same number to each as nearly as possible; (blocks,) int16."""
    fold_of = np.empty(blocks, dtype=np.int16)
    fold_of[rng.permutation(blocks)] = np.arange(blocks) % folds
    return fold_of


def label_ranking(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ranks cells by when they keep their labels as the label fraction grows.

    A cell is ranked with the class of which it contains the largest part. The ranking advances through all classes at
    the same pace, so that the cells up to any rank have about the same fraction of every class.

    Args:
        counts: (cell rows, cell cols, K) labels of each class in cells.
        rng: source of randomness.

    Returns:
        (cell rows, cell cols) int32 rank; the largest int32 where there is no label.
    """
    flat = counts.reshape(-1, counts.shape[-1])
    labelled = np.flatnonzero(flat.any(axis=1))
    kind = np.argmax(flat[labelled] / np.maximum(flat.sum(axis=0), 1), axis=1)
    progress = np.empty(len(labelled))
    for number in np.unique(kind):
        members = rng.permutation(np.flatnonzero(kind == number))
        progress[members] = (np.arange(len(members)) + rng.uniform()) / len(members)
    ranks = np.full(len(flat), np.iinfo(np.int32).max, dtype=np.int32)
    ranks[labelled[np.argsort(progress, kind="stable")]] = np.arange(len(labelled))
    return ranks.reshape(counts.shape[:2])
