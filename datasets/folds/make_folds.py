"""Which labels are for training and which for testing: spatial blocks with a buffer between them.

A random split is there to show how much it leaks. Pure functions of counts and a seed: the same folds whatever the
machine, process or worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.folds.assignment import (
    assign_blocks,
    assign_blocks_evenly,
    assignments_to_try,
    auto_block,
    label_ranking,
)
from datasets.folds.blocks import (
    BlockGrid,
    block_edge,
    block_grid_from_rectangles,
    counts_in_blocks,
    even_block_grid,
)
from datasets.folds.folds import Folds

SPLITS = ("blocks", "random", "leaking", "from_checkpoint")

LEAST_FOLDS = 2
"""Fewest folds of a comparison: one is trained on while the other is tested."""

LABEL_CELL = 4
"""Edge of the cells in which labels are counted, and used or left out by `label_fraction`: in target pixels, of points
and tiles in base pixels. 1 % of the cells of 500 x 500 pixels are 156."""

LITTLE_LEFT = 0.25
"""A smaller fraction of the labels outside tested ground and buffer is worth a warning."""

_ASSIGNMENT_STREAM, _LABEL_STREAM, _BLOCK_STREAM, _VALIDATION_STREAM = 11, 12, 13, 14

LEAST_OF_BLOCK = 0.5
"""Share of a block's labels that must lie outside tested ground and its buffer for it to be one of `label_blocks`."""
_ALMOST = 1e-6


class TooFewLabels(ValueError):
    """No label of a fold is left to train on."""


@dataclass(frozen=True)
class LabelCells:
    """Labels counted in square cells of the ground.

    Attributes:
        counts: (cell rows, cell cols, K) labels of each class (K = 1 for values).
        shape: (rows, cols) of the ground, base pixels.
        cell: edge of a cell, base pixels.
        wrap_columns: columns after which the ground repeats, base pixels; 0 = never.
        names: of the classes, for messages.

    Raises:
        ValueError: the counts do not match the shape of the ground.
    """

    counts: np.ndarray
    shape: tuple[int, int]
    cell: int
    wrap_columns: int = 0
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        expected = (-(-self.shape[0] // self.cell), -(-self.shape[1] // self.cell))
        if self.counts.ndim != 3 or self.counts.shape[:2] != expected:
            raise ValueError(
                f"label counts of shape {self.counts.shape}: expected ({expected[0]}, {expected[1]}, classes), with "
                f"cells of {self.cell} x {self.cell} of the {self.shape[0]} x {self.shape[1]} base pixels of ground"
            )

    @property
    def by_cell(self) -> np.ndarray:
        """(cells, K) counts."""
        return self.counts.reshape(-1, self.counts.shape[2])

    def in_blocks(self, grid: BlockGrid) -> np.ndarray:
        """(m, n, K) counts in the rectangles of a block grid."""
        return counts_in_blocks(grid, self.counts, self.cell)


def make_folds(
    labels: LabelCells,
    *,
    tile: int,
    folds: int,
    buffer: int,
    seed: int,
    split: str = "blocks",
    block: int = 0,
    label_fraction: float = 1.0,
    label_blocks: int | None = None,
    early_stopping: bool = False,
    label_seed: int | None = None,
) -> Folds:
    """Cuts the ground into blocks and assigns those with labels to folds at random, balanced in labels and classes.

    Args:
        labels: the labels.
        tile: edge of a tile, base pixels.
        folds: number of folds, at least 2 (3 with early stopping).
        buffer: distance between training pixels and tested blocks, base pixels; the random split has none.
        seed: seed of the assignment.
        split: `blocks`; or `random`: cells of a quarter of a tile, without a buffer; or `leaking`: the folds of
            `blocks`, but every label is trained on, a control.
        block: edge of a block in tiles; 0 chooses it (`auto_block`).
        label_fraction: fraction of each fold's training labels to use, above 0 and at most 1. The labels of a smaller
            fraction are always among those of a larger one.
        label_blocks: number of blocks that keep their training labels in each fold; None: all. At least half of a
            block's labels lie outside tested ground and its buffer. The blocks of a smaller number are always among
            those of a larger one.
        early_stopping: sets half the blocks that the next fold tests aside for validation.
        label_seed: decides which labels are used; None: `seed`.

    Raises:
        TooFewLabels: no label is left to train on.
        ValueError: fewer labelled blocks than folds, fewer blocks left than asked for, or numbers out of range.
    """
    _check_request(split, folds=folds, early_stopping=early_stopping)
    is_random = split == "random"
    if is_random:
        edge, blocks = block_edge(max(tile // 4, 1), labels.cell), "quarter-tile cells"
    else:
        totals = labels.counts.sum(axis=2)
        tiles = block or auto_block(totals, cell=labels.cell, shape=labels.shape, tile=tile, folds=folds)
        edge, blocks = block_edge(tiles * tile, labels.cell), f"blocks of {tiles} x {tiles} tiles"
    grid = even_block_grid(labels.shape, edge, buffer=0 if is_random else buffer, wrap_columns=labels.wrap_columns)
    labelled = labels.in_blocks(grid).sum(axis=2) > 0
    draft = Folds(
        shape=labels.shape,
        split="random" if is_random else "blocks",
        count=folds,
        cell=labels.cell,
        seed=seed,
        label_fraction=label_fraction,
        early_stopping=early_stopping,
        block_grid=grid,
        fold_numbers=np.full(grid.shape, -1, dtype=np.int16),
        block_numbers=_number_blocks(labelled, folds=folds, blocks=f"{blocks} ({edge} x {edge} base pixels)"),
    )
    best = _best_assignment(draft, labels)
    if split == "leaking":
        best = replace(best, split=split, block_grid=replace(grid, buffer=0))
    return _finish(best, labels, label_seed=seed if label_seed is None else label_seed, label_blocks=label_blocks)


def folds_from_rectangles(
    rectangles: Sequence[tuple[float, float, float, float]],
    labels: LabelCells,
    *,
    left: float,
    top: float,
    resolution: float,
    buffer: int,
    seed: int,
    label_fraction: float = 1.0,
) -> Folds:
    """One fold that tests the blocks that pre-training held out, and sets no ground aside for validation.

    Args:
        rectangles: (left, bottom, right, top) of each block, CRS units. Base pixels wholly inside one are tested.
        labels: the labels.
        left: western edge of the ground, CRS units.
        top: northern edge.
        resolution: edge of a base pixel, CRS units.
        buffer: distance between training pixels and the rectangles, base pixels.
        seed: decides which labels are used.
        label_fraction: as in `make_folds`.

    Raises:
        ValueError: no rectangle, none on this ground or none with a label; no label left to train on.
    """
    flag, remedy = "--split from_checkpoint", "use --split blocks"
    if not len(rectangles):
        raise ValueError(f"{flag}: pre-training held out no block (--val_fraction 0); {remedy}")
    edges = np.asarray(rectangles, dtype=np.float64)
    spans = np.stack([top - edges[:, 3], edges[:, 0] - left, top - edges[:, 1], edges[:, 2] - left], axis=1)
    pixels = _whole_pixels(spans, resolution=resolution, shape=labels.shape, wrap_columns=labels.wrap_columns)
    if not len(pixels):
        raise ValueError(
            f"{flag}: none of the {len(edges)} blocks that pre-training held out lies on this ground; give the rasters "
            f"of pre-training as --data_dir, or {remedy}"
        )
    grid, block_numbers = block_grid_from_rectangles(
        pixels, labels.shape, buffer=buffer, wrap_columns=labels.wrap_columns
    )
    if not labels.in_blocks(grid)[block_numbers >= 0].any():
        raise ValueError(f"{flag}: no label lies in the {len(pixels)} blocks that pre-training held out; {remedy}")
    draft = Folds(
        shape=labels.shape,
        split="from_checkpoint",
        count=1,
        cell=labels.cell,
        seed=seed,
        label_fraction=label_fraction,
        early_stopping=False,
        block_grid=grid,
        fold_numbers=np.where(block_numbers >= 0, 0, -1).astype(np.int16),
        block_numbers=block_numbers,
    )
    return _finish(draft, labels, label_seed=seed)


def one_fold(labels: LabelCells, *, tile: int) -> Folds:
    """One fold that tests every label and trains on none: for a model that was trained elsewhere.

    Args:
        labels: the labels.
        tile: edge of a tile, and of the blocks, base pixels.
    """
    grid = even_block_grid(labels.shape, block_edge(tile, labels.cell))
    blocks = np.arange(grid.shape[0] * grid.shape[1], dtype=np.int32).reshape(grid.shape)
    tested = labels.counts.sum(axis=(0, 1))
    return Folds(
        shape=labels.shape,
        split="all",
        count=1,
        cell=labels.cell,
        seed=0,
        label_fraction=1.0,
        early_stopping=False,
        block_grid=grid,
        fold_numbers=np.zeros(grid.shape, dtype=np.int16),
        block_numbers=blocks,
        label_counts={
            "blocks": [blocks.size],
            "tested": [int(tested.sum())],
            "tested_classes": [tested.tolist()],
            "trained": [0],
            "trained_classes": [[0] * len(tested)],
            "left": [0.0],
        },
    )


def _check_request(split: str, *, folds: int, early_stopping: bool) -> None:
    least = LEAST_FOLDS + early_stopping
    if folds < least:
        why = " with early stopping, which validates on the next fold's ground" if early_stopping else ""
        raise ValueError(f"--folds {folds}: expected at least {least}{why}; choose more")
    cut_here = SPLITS[:3]
    if split not in cut_here:
        raise ValueError(f"--split {split}: expected one of {', '.join(cut_here)} here")


def _number_blocks(labelled: np.ndarray, *, folds: int, blocks: str) -> np.ndarray:
    """(m, n) int32, labelled blocks numbered by rows; -1 elsewhere."""
    found = int(np.count_nonzero(labelled))
    if found < folds:
        fewer = "fewer --folds, " if found >= LEAST_FOLDS else ""
        raise ValueError(
            f"--folds {folds}: only {found} {blocks} hold a label, expected at least one for each fold; choose "
            f"{fewer}a smaller --fold_block or --input_size, or a finer --base_resolution"
        )
    numbers = np.full(labelled.shape, -1, dtype=np.int32)
    numbers[labelled] = np.arange(found)
    return numbers


def _whole_pixels(spans: np.ndarray, *, resolution: float, shape: tuple[int, int], wrap_columns: int) -> np.ndarray:
    """(k, 4) int64 (top, left, bottom, right) of the whole base pixels in rectangles that contain any on the ground.

    Args:
        spans: (n, 4) distances of the rectangles' edges from the ground's corner, CRS units, in the same order.
        resolution: edge of a base pixel, CRS units.
        shape: (rows, cols) of the ground, base pixels.
        wrap_columns: columns after which the ground repeats, 0 = never.
    """
    period = np.array([0.0, 1.0, 0.0, 1.0]) * wrap_columns * resolution
    spans = np.concatenate([spans, spans + period, spans - period]) if wrap_columns else spans
    first = np.maximum(np.ceil(spans[:, :2] / resolution - _ALMOST), 0).astype(np.int64)
    stop = np.minimum(np.floor(spans[:, 2:] / resolution + _ALMOST), shape).astype(np.int64)
    return np.concatenate([first, stop], axis=1)[(stop > first).all(axis=1)]


def _best_assignment(draft: Folds, labels: LabelCells) -> Folds:
    """The draft with the best of several random assignments of its blocks to folds.

    The best is the first of those in which every fold has labels to train on, then in which fewest classes are missing
    from a fold's tested or training labels, then in which the fold with fewest training labels has most of them.
    """
    on_blocks = labels.in_blocks(draft.block_grid)
    labelled = draft.block_numbers >= 0
    occurring = labels.by_cell.any(axis=0)
    is_random = draft.split == "random"
    tries = 1 if is_random else assignments_to_try(len(labels.by_cell), draft.count)
    best, best_score = draft, (-1.0, 0.0, 0.0)
    for number in range(tries):
        rng = np.random.default_rng((draft.seed, _ASSIGNMENT_STREAM, number))
        fold_numbers = draft.fold_numbers.copy()
        fold_numbers[labelled] = (
            assign_blocks_evenly(int(labelled.sum()), draft.count, rng)
            if is_random
            else assign_blocks(on_blocks[labelled], draft.count, rng)
        )
        folds = replace(draft, fold_numbers=fold_numbers)
        if draft.early_stopping:
            folds = _with_validation(folds, np.random.default_rng((draft.seed, _VALIDATION_STREAM, number)))
        tested = np.array([on_blocks[folds.fold_numbers == fold].sum(axis=0) for fold in range(folds.count)])
        cells = [folds.trainable_cells(fold).ravel() for fold in range(folds.count)]
        trained = np.array([labels.by_cell[usable].sum(axis=0) for usable in cells])
        missing = np.count_nonzero(tested[:, occurring] == 0) + np.count_nonzero(trained[:, occurring] == 0)
        least = float(trained.sum(axis=1).min())
        score = (float(least > 0), float(-missing), least)
        if score > best_score:
            best, best_score = folds, score
    return best


def _with_validation(folds: Folds, rng: np.random.Generator) -> Folds:
    """The folds with half the blocks of each, rounded up, chosen for validation: more would cost too much training."""
    numbers = np.full_like(folds.fold_numbers, -1)
    for fold in range(folds.count):
        members = np.flatnonzero(folds.fold_numbers == fold)
        numbers.flat[rng.permutation(members)[: (len(members) + 1) // 2]] = fold
    return replace(folds, validation_numbers=numbers)


def _finish(folds: Folds, labels: LabelCells, *, label_seed: int, label_blocks: int | None = None) -> Folds:
    """Chooses which labels are used, counts what each fold tests and trains on, and refuses folds without training."""
    if not 0 < folds.label_fraction <= 1:
        raise ValueError(f"--label_fraction {folds.label_fraction:g}: expected a fraction above 0 and at most 1")
    if folds.buffer < 0:
        raise ValueError(f"--val_buffer of {folds.buffer} base pixels: expected 0 or more")
    ranks = None
    if folds.label_fraction < 1:
        ranks = label_ranking(labels.counts, np.random.default_rng((label_seed, _LABEL_STREAM)))
    per_cell = labels.by_cell.sum(axis=1)
    ranks_used: list[int] = []
    trained, left = [], []
    trainable = [folds.trainable_cells(fold).ravel() for fold in range(folds.count)]
    if label_blocks is not None:
        folds = _keep_blocks(folds, labels, trainable, label_blocks, np.random.default_rng((label_seed, _BLOCK_STREAM)))
    for fold, usable in enumerate(trainable):
        available = int(per_cell[usable].sum())
        if not available:
            raise TooFewLabels(
                f"fold {fold} of {folds.count}: no label is left to train on: all lie in tested blocks or nearer to "
                f"them than the buffer of {folds.buffer} base pixels; choose a smaller --val_buffer or --input_size, "
                "another --fold_block, or more --folds"
            )
        if ranks is not None:
            ranks_used.append(_ranks_to_use(ranks.ravel(), np.where(usable, per_cell, 0), folds.label_fraction))
            usable &= ranks.ravel() < ranks_used[-1]
            if not per_cell[usable].any():
                raise ValueError(
                    f"--label_fraction {folds.label_fraction:g} keeps none of the {available} training labels of fold "
                    f"{fold}; choose a larger fraction"
                )
        if folds.kept_blocks is not None:
            usable &= _cells_in(folds.block_grid, folds.kept_blocks[fold], labels)
        left.append(available / float(per_cell.sum()))
        trained.append(labels.by_cell[usable].sum(axis=0))
    on_blocks = labels.in_blocks(folds.block_grid)
    tested = [on_blocks[folds.fold_numbers == fold].sum(axis=0).astype(np.int64) for fold in range(folds.count)]
    return replace(
        folds,
        label_ranks=ranks,
        ranks_used=tuple(ranks_used),
        kept_shares=()
        if label_blocks is None
        else tuple(float(kept.sum() / (part * per_cell.sum())) for kept, part in zip(trained, left, strict=True)),
        label_counts={
            "blocks": [len(np.unique(folds.block_numbers[folds.fold_numbers == k])) for k in range(folds.count)],
            "tested": [int(numbers.sum()) for numbers in tested],
            "tested_classes": [numbers.tolist() for numbers in tested],
            "trained": [int(numbers.sum()) for numbers in trained],
            "trained_classes": [numbers.tolist() for numbers in trained],
            "left": left,
        },
        warnings=(*_warn_few_left(left), *_warn_missing_classes(np.array(tested), np.array(trained), labels.names)),
    )


def _keep_blocks(
    folds: Folds, labels: LabelCells, trainable: Sequence[np.ndarray], count: int, rng: np.random.Generator
) -> Folds:
    """Chooses the blocks that keep their labels: in each fold the first of one random order that have labels left.

    Args:
        folds: without such a choice.
        labels: the labels.
        trainable: for each fold (cells,) bool, cells whose labels may be trained on.
        count: blocks to keep.
        rng: source of randomness.

    Raises:
        ValueError: a fold has fewer blocks of whose labels at least `LEAST_OF_BLOCK` may be trained on.
    """
    grid, shape = folds.block_grid, labels.counts.shape[:2]
    totals = labels.counts.sum(axis=2, keepdims=True)
    on_blocks = counts_in_blocks(grid, totals, labels.cell)[..., 0]
    order = rng.permutation(on_blocks.size)
    kept = np.zeros((folds.count, *grid.shape), dtype=bool)
    for fold, usable in enumerate(trainable):
        usable_counts = counts_in_blocks(grid, totals * usable.reshape(*shape, 1), labels.cell)[..., 0]
        has_left = ((on_blocks > 0) & (usable_counts >= LEAST_OF_BLOCK * on_blocks)).ravel()
        chosen = order[has_left[order]][:count]
        if len(chosen) < count:
            raise ValueError(
                f"--label_blocks {count}: fold {fold} has {len(chosen)} labelled blocks at least half outside its "
                f"test{' and validation' * folds.early_stopping} ground and the buffer of {folds.buffer} base pixels, "
                f"expected at least {count}; ask for fewer, or choose a smaller --val_buffer, another --fold_block or "
                "more --folds"
            )
        kept[fold].flat[chosen] = True
    return replace(folds, kept_blocks=kept)


def _cells_in(grid: BlockGrid, chosen: np.ndarray, labels: LabelCells) -> np.ndarray:
    """(cells,) bool, cells whose centre lies in a chosen rectangle, (m, n) bool, of a block grid."""
    first = [np.arange(0, size, labels.cell) for size in labels.shape]
    centres = [
        (start + np.minimum(start + labels.cell, size)) / 2 for start, size in zip(first, labels.shape, strict=True)
    ]
    row, col = np.meshgrid(*centres, indexing="ij")
    return grid.at_points(chosen, row.ravel(), col.ravel(), outside=False)


def _ranks_to_use(ranks: np.ndarray, labels: np.ndarray, fraction: float) -> int:
    """Number of first ranks that hold, as nearly as whole cells can, that fraction of the labels."""
    in_order = np.zeros(int(np.count_nonzero(ranks < np.iinfo(np.int32).max)), dtype=np.float64)
    ranked = ranks < len(in_order)
    in_order[ranks[ranked]] = labels[ranked]
    middles = np.cumsum(in_order) - in_order / 2
    return int(np.searchsorted(middles, fraction * in_order.sum(), side="right"))


def _warn_few_left(left: Sequence[float]) -> list[str]:
    """A warning if tested blocks and their buffers cover most of the labels."""
    least = int(np.argmin(left))
    if left[least] >= LITTLE_LEFT:
        return []
    return [
        f"fold {least}: only {100 * left[least]:.0f} % of the labels lie outside tested ground and its buffer; a "
        "smaller --val_buffer or --input_size, or a larger --fold_block, leaves more to train on"
    ]


def _warn_missing_classes(tested: np.ndarray, trained: np.ndarray, names: Sequence[str] | None) -> list[str]:
    """Warnings about classes missing from training, from (folds, K) tested and training labels."""
    kinds = tested.shape[1]
    if kinds == 1:
        return []
    class_names = [f"'{names[k]}'" if names is not None else f"{k}" for k in range(kinds)]
    warnings = []
    for fold in range(len(tested)):
        if np.count_nonzero(trained[fold]) == 1:
            only = class_names[int(np.argmax(trained[fold]))]
            warnings.append(f"fold {fold}: only class {only} is left in training")
            continue
        unseen = [class_names[k] for k in range(kinds) if tested[fold, k] and not trained[fold, k]]
        if unseen:
            warnings.append(f"fold {fold}: tested but without a training label: class {', '.join(unseen)}")
    return warnings
