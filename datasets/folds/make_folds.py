"""Which labels train and which test: spatial blocks with a buffer between them, and a random split that shows the leak.

Pure functions of numbers and a seed: the same folds whatever the machine, process or worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from datasets.folds.blocks import (
    assign_blocks,
    assign_blocks_evenly,
    assignments_to_try,
    auto_block,
    block_edge,
    block_grid_of,
    counts_on,
    even_block_grid,
    label_ranking,
)
from datasets.folds.folds import LEAK_WARNING, Folds

__all__ = [
    "LABEL_CELL",
    "LEAK_WARNING",
    "SPLITS",
    "Folds",
    "count_points",
    "folds_from_rectangles",
    "make_folds",
    "one_fold",
]

SPLITS = ("blocks", "random", "leaking", "from_checkpoint")

LABEL_CELL = 4
"""Edge in target pixels, of points and tiles in base pixels, of the cells in which labels are counted, and kept or
dropped by `label_fraction`: 1 % of them are 156 on ground of 500 x 500 pixels."""

LITTLE_LEFT = 0.25
"""A smaller share of the labels outside tested ground and buffer is worth a warning."""

_DEAL_STREAM, _LABEL_STREAM = 11, 12
_ALMOST = 1e-6


def count_points(
    row: np.ndarray, col: np.ndarray, classes: np.ndarray | None, *, shape: tuple[int, int], cell: int, kinds: int = 1
) -> np.ndarray:
    """Counts points in cells, for `make_folds`.

    Args:
        row: (k,) positions, base pixels, any real number; points off the ground are not counted.
        col: likewise.
        classes: (k,) class of each, 0..kinds - 1; None: all of one kind.
        shape: (rows, cols) of the ground, base pixels.
        cell: edge of a cell, base pixels.
        kinds: number of classes.

    Returns:
        (cell rows, cell cols, kinds) int64.
    """
    row, col = np.asarray(row, dtype=np.float64), np.asarray(col, dtype=np.float64)
    inside = (row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])
    kind = np.zeros(len(row), dtype=np.int64) if classes is None else np.asarray(classes, dtype=np.int64)
    counts = np.zeros((-(-shape[0] // cell), -(-shape[1] // cell), kinds), dtype=np.int64)
    np.add.at(counts, ((row[inside] // cell).astype(int), (col[inside] // cell).astype(int), kind[inside]), 1)
    return counts


def make_folds(
    counts: np.ndarray,
    *,
    shape: tuple[int, int],
    cell: int,
    tile: int,
    folds: int,
    buffer: int,
    seed: int,
    split: str = "blocks",
    block: int = 0,
    label_fraction: float = 1.0,
    early_stopping: bool = False,
    label_seed: int | None = None,
    names: Sequence[str] | None = None,
    turn: int = 0,
) -> Folds:
    """Cuts the ground in blocks and deals those with labels to folds, at random but much alike in labels and classes.

    Of several random deals the one is taken in which every fold has labels to train on and fewest classes are missing
    from a fold's tested or training labels, and of those the one whose worst fold keeps most labels to train on.

    Args:
        counts: (cell rows, cell cols, K) labels of each class in cells of the ground (K = 1 for values).
        shape: (rows, cols) of the ground, base pixels.
        cell: edge of those cells, base pixels.
        tile: edge of a tile, base pixels.
        folds: number of folds, at least 2 (3 with early stopping).
        buffer: distance that training keeps from tested blocks, base pixels; the random split has none.
        seed: decides the deal.
        split: `blocks`; or `random`: cells of a quarter of a tile, dealt without a buffer; or `leaking`: the very
            folds of `blocks`, but every label is trained on, a control.
        block: edge of a block in tiles; 0 chooses it (`auto_block`).
        label_fraction: share of each fold's training labels to keep, 0 < share <= 1. A smaller share is always part
            of a larger one.
        early_stopping: sets the test ground of the next fold aside for validation.
        label_seed: decides which labels are kept; None: `seed`.
        names: of the classes, for messages.
        turn: columns after which the ground repeats, base pixels; 0 if it does not.

    Returns:
        The folds.

    Raises:
        ValueError: fewer labelled blocks than folds, no label left to train on, or numbers out of range.
    """
    counts = _checked_counts(counts, shape=shape, cell=cell)
    least = 3 if early_stopping else 2
    if folds < least:
        why = " with early stopping, which takes the next fold's ground for validation" if early_stopping else ""
        raise ValueError(f"--folds {folds}: expected at least {least}{why}")
    if split not in SPLITS[:3]:
        raise ValueError(f"--split {split}: expected one of {', '.join(SPLITS[:3])} here")
    is_random = split == "random"
    if is_random:
        edge, what = block_edge(max(tile // 4, 1), cell), "quarter-tile cells"
    else:
        tiles = block or auto_block(counts.sum(axis=2), cell=cell, shape=shape, tile=tile, folds=folds)
        edge, what = block_edge(tiles * tile, cell), f"blocks of {tiles} x {tiles} tiles"
    lattice = even_block_grid(shape, edge)
    on_blocks = counts_on(lattice, counts, cell)
    block_grid = _number_blocks(on_blocks.sum(axis=2) > 0, folds=folds, what=f"{what} ({edge} x {edge} base pixels)")
    labelled = block_grid >= 0

    def dealt(number: int) -> np.ndarray:
        rng = np.random.default_rng((seed, _DEAL_STREAM, number))
        grid = np.full(lattice.shape, -1, dtype=np.int16)
        grid[labelled] = (
            assign_blocks_evenly(int(labelled.sum()), folds, rng)
            if is_random
            else assign_blocks(on_blocks[labelled], folds, rng)
        )
        return grid

    draft = Folds(
        shape=shape,
        split="random" if is_random else "blocks",
        count=folds,
        buffer=0 if is_random else buffer,
        cell=cell,
        seed=seed,
        label_fraction=label_fraction,
        early_stopping=early_stopping,
        lattice=lattice,
        fold_grid=dealt(0),
        block_grid=block_grid,
        turn=turn,
    )
    tries = 1 if is_random else assignments_to_try(counts.shape[0] * counts.shape[1], folds)
    best = _best_deal(draft, dealt, tries, counts)
    if split == "leaking":
        best = replace(best, split=split, buffer=0)
    return _finish(best, counts, names, seed if label_seed is None else label_seed)


def folds_from_rectangles(
    rectangles: Sequence[tuple[float, float, float, float]],
    counts: np.ndarray,
    *,
    left: float,
    top: float,
    resolution: float,
    shape: tuple[int, int],
    cell: int,
    buffer: int,
    seed: int,
    label_fraction: float = 1.0,
    names: Sequence[str] | None = None,
    turn: int = 0,
) -> Folds:
    """One fold, whose test ground are the blocks that pre-training held out.

    Args:
        rectangles: (left, bottom, right, top) of each, CRS units. Base pixels wholly inside one are tested.
        counts: (cell rows, cell cols, K) labels of each class in cells of the ground (K = 1 for values).
        left: western edge of the ground, CRS units.
        top: northern edge.
        resolution: edge of a base pixel, CRS units.
        shape: (rows, cols) of the ground, base pixels.
        cell: edge of the cells, base pixels.
        buffer: distance that training keeps from the rectangles, base pixels.
        seed: decides which labels are kept.
        label_fraction: as in `make_folds`.
        names: of the classes, for messages.
        turn: columns after which the ground repeats, base pixels; 0 if it does not.

    Returns:
        The fold. It sets no ground aside for validation.

    Raises:
        ValueError: no rectangle, none on this ground or none with a label; no label left to train on.
    """
    counts = _checked_counts(counts, shape=shape, cell=cell)
    flag, remedy = "--split from_checkpoint", "use --split blocks"
    if not len(rectangles):
        raise ValueError(f"{flag}: pre-training held out no block (--val_fraction 0); {remedy}")
    edges = np.asarray(rectangles, dtype=np.float64)
    spans = np.stack([top - edges[:, 3], edges[:, 0] - left, top - edges[:, 1], edges[:, 2] - left], axis=1)
    across = np.array([0.0, 1.0, 0.0, 1.0]) * turn * resolution
    spans = np.concatenate([spans, spans + across, spans - across]) if turn else spans
    first = np.maximum(np.ceil(spans[:, :2] / resolution - _ALMOST), 0).astype(np.int64)
    stop = np.minimum(np.floor(spans[:, 2:] / resolution + _ALMOST), shape).astype(np.int64)
    on_ground = (stop > first).all(axis=1)
    if not on_ground.any():
        raise ValueError(
            f"{flag}: none of the {len(edges)} blocks that pre-training held out lies on this ground; give the rasters "
            f"of pre-training as --data_dir, or {remedy}"
        )
    lattice, block_grid = block_grid_of(np.concatenate([first, stop], axis=1)[on_ground], shape)
    if not counts_on(lattice, counts, cell)[block_grid >= 0].any():
        raise ValueError(
            f"{flag}: no label lies in the {np.count_nonzero(on_ground)} blocks that pre-training held out; {remedy}"
        )
    draft = Folds(
        shape=shape,
        split="from_checkpoint",
        count=1,
        buffer=buffer,
        cell=cell,
        seed=seed,
        label_fraction=label_fraction,
        early_stopping=False,
        lattice=lattice,
        fold_grid=np.where(block_grid >= 0, 0, -1).astype(np.int16),
        block_grid=block_grid,
        turn=turn,
    )
    return _finish(draft, counts, names, seed)


def one_fold(counts: np.ndarray, *, shape: tuple[int, int], cell: int, tile: int) -> Folds:
    """One fold in which every label is tested and none trained on: for a model that was trained elsewhere.

    Args:
        counts: (cell rows, cell cols, K) labels of each class in cells of the ground (K = 1 for values).
        shape: (rows, cols) of the ground, base pixels.
        cell: edge of the cells, base pixels.
        tile: edge of a tile, base pixels: that of the blocks, too.
    """
    counts = _checked_counts(counts, shape=shape, cell=cell)
    lattice = even_block_grid(shape, block_edge(tile, cell))
    blocks = np.arange(lattice.shape[0] * lattice.shape[1], dtype=np.int32).reshape(lattice.shape)
    tested = counts.sum(axis=(0, 1))
    return Folds(
        shape=shape,
        split="all",
        count=1,
        buffer=0,
        cell=cell,
        seed=0,
        label_fraction=1.0,
        early_stopping=False,
        lattice=lattice,
        fold_grid=np.zeros(lattice.shape, dtype=np.int16),
        block_grid=blocks,
        facts={
            "blocks": [blocks.size],
            "tested": [int(tested.sum())],
            "tested_classes": [tested.tolist()],
            "trained": [0],
            "trained_classes": [[0] * len(tested)],
            "left": [0.0],
        },
    )


def _checked_counts(counts: np.ndarray, *, shape: tuple[int, int], cell: int) -> np.ndarray:
    expected = (-(-shape[0] // cell), -(-shape[1] // cell))
    if counts.ndim != 3 or counts.shape[:2] != expected:
        raise ValueError(
            f"label counts of shape {counts.shape}: expected ({expected[0]}, {expected[1]}, classes), a cell "
            f"being {cell} x {cell} of the {shape[0]} x {shape[1]} base pixels of ground"
        )
    return counts


def _number_blocks(labelled: np.ndarray, *, folds: int, what: str) -> np.ndarray:
    """(m, n) int32, labelled blocks numbered by rows; -1 elsewhere."""
    found = int(np.count_nonzero(labelled))
    if found < folds:
        raise ValueError(
            f"--folds {folds}: only {found} {what} hold a label, expected at least one for each fold; choose fewer "
            "--folds, a smaller --fold_block or --input_size, or a finer --base_resolution"
        )
    numbers = np.full(labelled.shape, -1, dtype=np.int32)
    numbers[labelled] = np.arange(found)
    return numbers


def _best_deal(draft: Folds, dealt: Callable[[int], np.ndarray], tries: int, counts: np.ndarray) -> Folds:
    """The draft with the best of several deals; the first of equals."""
    flat = counts.reshape(-1, counts.shape[2])
    on_blocks = counts_on(draft.lattice, counts, draft.cell)
    occurring = flat.any(axis=0)
    best, best_rank = draft, (-1.0, 0.0, 0.0)
    for number in range(tries):
        folds = replace(draft, fold_grid=dealt(number))
        tested = np.array([on_blocks[folds.fold_grid == fold].sum(axis=0) for fold in range(folds.count)])
        trained = np.array([flat[trainable_cells(folds, fold).ravel()].sum(axis=0) for fold in range(folds.count)])
        missing = np.count_nonzero(tested[:, occurring] == 0) + np.count_nonzero(trained[:, occurring] == 0)
        least = float(trained.sum(axis=1).min())
        rank = (float(least > 0), float(-missing), least)
        if rank > best_rank:
            best, best_rank = folds, rank
    return best


def trainable_cells(folds: Folds, fold: int) -> np.ndarray:
    """(cell rows, cell cols) bool, cells of which every pixel may be trained on, whatever the label fraction."""
    spans = []
    for size in folds.shape:
        first = np.arange(0, size, folds.cell)
        spans.append((first - folds.buffer, np.minimum(first + folds.cell, size) + folds.buffer))
    return ~folds.near(fold, spans[0], spans[1], scale=1)


def _finish(folds: Folds, counts: np.ndarray, names: Sequence[str] | None, label_seed: int) -> Folds:
    """Chooses which labels are kept, counts what each fold tests and trains on, and refuses what cannot be trained."""
    if not 0 < folds.label_fraction <= 1:
        raise ValueError(f"--label_fraction {folds.label_fraction:g}: expected a share above 0 and at most 1")
    if folds.buffer < 0:
        raise ValueError(f"--val_buffer of {folds.buffer} base pixels: expected 0 or more")
    flat = counts.reshape(-1, counts.shape[2])
    labels = flat.sum(axis=1)
    on_blocks = counts_on(folds.lattice, counts, folds.cell)
    is_whole = folds.label_fraction == 1
    places = None if is_whole else label_ranking(counts, np.random.default_rng((label_seed, _LABEL_STREAM)))
    kept: list[int] = []
    trained, left = [], []
    for fold in range(folds.count):
        usable = trainable_cells(folds, fold).ravel()
        available = int(labels[usable].sum())
        if not available:
            raise ValueError(
                f"fold {fold} of {folds.count}: no label is left to train on: all lie in tested blocks or nearer to "
                f"them than the buffer of {folds.buffer} base pixels; choose a smaller --val_buffer or --input_size, "
                "another --fold_block, or more --folds"
            )
        if places is not None:
            kept.append(_places_kept(places.ravel(), np.where(usable, labels, 0), folds.label_fraction))
            usable &= places.ravel() < kept[-1]
            if not labels[usable].any():
                raise ValueError(
                    f"--label_fraction {folds.label_fraction:g} keeps none of the {available} training labels of fold "
                    f"{fold}; choose a larger share"
                )
        left.append(available / float(labels.sum()))
        trained.append(flat[usable].sum(axis=0))
    tested = [on_blocks[folds.fold_grid == fold].sum(axis=0).astype(np.int64) for fold in range(folds.count)]
    blocks = [len(np.unique(folds.block_grid[folds.fold_grid == fold])) for fold in range(folds.count)]
    facts = {
        "blocks": blocks,
        "tested": [int(numbers.sum()) for numbers in tested],
        "tested_classes": [numbers.tolist() for numbers in tested],
        "trained": [int(numbers.sum()) for numbers in trained],
        "trained_classes": [numbers.tolist() for numbers in trained],
        "left": left,
    }
    warnings = (*_few_left(left), *_classes_left(np.array(tested), np.array(trained), names))
    return replace(folds, places=places, kept=tuple(kept), facts=facts, warnings=warnings)


def _places_kept(places: np.ndarray, labels: np.ndarray, fraction: float) -> int:
    """How many first places hold, as nearly as whole cells can, that share of the labels."""
    in_order = np.zeros(int(np.count_nonzero(places < np.iinfo(np.int32).max)), dtype=np.float64)
    listed = places < len(in_order)
    in_order[places[listed]] = labels[listed]
    middles = np.cumsum(in_order) - in_order / 2
    return int(np.searchsorted(middles, fraction * in_order.sum(), side="right"))


def _few_left(left: Sequence[float]) -> list[str]:
    """What to say when tested blocks and their buffers take most of the labels."""
    least = int(np.argmin(left))
    if left[least] >= LITTLE_LEFT:
        return []
    return [
        f"fold {least}: only {100 * left[least]:.0f} % of the labels lie outside tested ground and its buffer; a "
        "smaller --val_buffer or --input_size, or a larger --fold_block, leaves more to train on"
    ]


def _classes_left(tested: np.ndarray, trained: np.ndarray, names: Sequence[str] | None) -> list[str]:
    """What to say about classes, of (folds, K) tested and training labels."""
    kinds = tested.shape[1]
    if kinds == 1:
        return []
    called = [f"'{names[k]}'" if names is not None else f"{k}" for k in range(kinds)]
    notes = []
    for fold in range(len(tested)):
        if np.count_nonzero(trained[fold]) == 1:
            notes.append(f"fold {fold}: only class {called[int(np.argmax(trained[fold]))]} is left in training")
            continue
        unseen = [called[k] for k in range(kinds) if tested[fold, k] and not trained[fold, k]]
        if unseen:
            notes.append(f"fold {fold}: tested but without a training label: class {', '.join(unseen)}")
    return notes
