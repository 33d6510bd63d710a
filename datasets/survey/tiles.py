"""Which windows are tiles: whole-pixel arithmetic on the reference grid.

Pure functions of numbers: no files, no clock, no global generator. Tile `i` of epoch `e` is a function of
(seed, e, i) alone, so it is the same whatever the number of workers or ranks.

On a grid that wraps around a planet, columns are taken modulo its width: a tile's first column lies within the grid,
and the tile may continue across the seam. On a planet ground is weighted by its area.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from datasets.folds.blocks import BlockGrid, whole_block_grid
from datasets.ground.summed_area import summed_area_table, window_sums
from datasets.ground.wraparound import LatitudeWeights

SHIFT_TRIES = 8
"""Random shifts drawn for a training tile before its unshifted origin is used."""

AUTO_VAL_BLOCKS = 12
"""Held-out blocks are as large as they can be with at least this many blocks in the survey."""

LEAST_FRACTION = 1e-6
"""Valid fractions this close are equal (they are sums of rounded numbers), and a tile with less counts as empty."""


def is_enough(fraction: np.ndarray, min_valid: float) -> np.ndarray:
    """Whether windows with these valid fractions can be tiles, (n,) bool; one without valid ground never is."""
    return fraction >= max(min_valid - LEAST_FRACTION, LEAST_FRACTION)


@dataclass(frozen=True)
class Coverage:
    """Fraction of the ground that has valid pixels, on square cells of reference pixels.

    Attributes:
        fraction: (cell rows, cell cols) float32, fraction of valid ground, averaged over layers.
        cell: edge of a cell, reference pixels.
        wrap_columns: reference columns after which the ground repeats, 0 = never.
    """

    fraction: np.ndarray
    cell: int
    wrap_columns: int = 0

    @cached_property
    def _table(self) -> np.ndarray:
        """Summed-area table of the fractions, side by side with a copy if they wrap; computed once."""
        return summed_area_table(np.tile(self.fraction, (1, 2)) if self.wrap_columns else self.fraction)

    def of_windows(self, rows: np.ndarray, cols: np.ndarray, *, height: int, width: int) -> np.ndarray:
        """Valid fraction of windows.

        Args:
            rows: (n,) first reference rows.
            cols: (n,) first reference columns.
            height: window height, reference pixels.
            width: window width, reference pixels.

        Returns:
            (n,) float64 in 0..1. Exact if origins and size are multiples of the cell, else that of whole cells near it.
        """
        top, left = rows // self.cell, cols // self.cell
        stop = (cols + width) // self.cell
        if self.wrap_columns:
            beyond = cols + width - self.wrap_columns
            stop = np.where(beyond > 0, self.fraction.shape[1] + beyond // self.cell, stop)
        bottom = np.minimum(np.maximum((rows + height) // self.cell, top + 1), self._table.shape[0] - 1)
        right = np.minimum(np.maximum(stop, left + 1), self._table.shape[1] - 1)
        top, left = np.minimum(top, bottom - 1), np.minimum(left, right - 1)
        return window_sums(self._table, top, left, bottom, right) / ((bottom - top) * (right - left))


@dataclass(frozen=True)
class HoldoutBlocks:
    """Contiguous blocks kept out of training.

    Attributes:
        grid: cuts the survey into blocks, in reference pixels, with the buffer between them and training.
        chosen: (block rows, block cols) bool, True where a block is held out.
    """

    grid: BlockGrid
    chosen: np.ndarray

    def touched(self, rows: np.ndarray, cols: np.ndarray, *, height: int, width: int) -> np.ndarray:
        """Whether windows come nearer to a held-out block than the buffer, (n,) bool."""
        return self.grid.windows_near(self.chosen, (rows, rows + height), (cols, cols + width))

    def training_ground(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """True for reference pixels (outer product of rows and cols) that lie outside blocks and buffers."""
        return ~self.grid.is_near(self.chosen, (rows, rows + 1), (cols, cols + 1))

    def rectangles(self) -> list[tuple[int, int, int, int]]:
        """Held-out blocks as (row, col, height, width), reference pixels."""
        return self.grid.rectangles(self.chosen)


@dataclass(frozen=True)
class TileIndex:
    """Training and validation windows of one survey.

    Attributes:
        height: tile height, reference pixels.
        width: tile width, reference pixels.
        step: tile origins are multiples of this, reference pixels.
        stride_y: distance between unshifted training tiles in rows, reference pixels.
        stride_x: likewise in columns.
        train: (n, 2) int64 unshifted (row, col) origins of training tiles.
        val: (m, 2) int64 origins of validation tiles, inside held-out blocks.
        held_out: the held-out blocks.
        coverage: valid fraction of the ground.
        min_valid: least valid fraction of a tile.
        shape: (rows, cols) of the reference grid.
        ground: how the grid lies on a planet, so that tiles are drawn by area; None = on a plane.
    """

    height: int
    width: int
    step: int
    stride_y: int
    stride_x: int
    train: np.ndarray
    val: np.ndarray
    held_out: HoldoutBlocks
    coverage: Coverage
    min_valid: float
    shape: tuple[int, int]
    ground: LatitudeWeights | None = None

    @property
    def wrap_columns(self) -> int:
        """Reference columns after which the ground repeats, 0 = never."""
        return 0 if self.ground is None else self.ground.wrap_columns

    def epoch(self, *, seed: int, epoch: int, tiles: int | None = None) -> np.ndarray:
        """Training windows of an epoch, in the order in which they are visited.

        Args:
            seed: seed of the run.
            epoch: number of the epoch.
            tiles: number of windows; default one for each unshifted tile. More than those repeat with other shifts.
                On a planet a tile is drawn in proportion to its area, rounded up or down at random.

        Returns:
            (tiles, 2) int64 (row, col) origins. Each tile is shifted by up to half a stride; a shift that would
            leave the survey ends at its edge, and one that would come near a held-out block or fall below `min_valid`
            is drawn again; after `SHIFT_TRIES` draws the tile stays where it is.
        """
        count = len(self.train)
        tiles = count if tiles is None else tiles
        order_rng = np.random.default_rng((seed, epoch, 0))
        if self.ground is None:
            rounds = -(-tiles // count)
            order = np.concatenate([order_rng.permutation(count) for _ in range(rounds)])[:tiles]
        else:
            order = draw_by_weight(self.ground.areas(self.train[:, 0], self.height), tiles, order_rng)
        origins = self.train[order].copy()
        shift_rng = np.random.default_rng((seed, epoch, 1))
        half = np.array([self.stride_y // 2 // self.step, self.stride_x // 2 // self.step])
        shifts = shift_rng.integers(-half, half + 1, size=(SHIFT_TRIES, tiles, 2)) * self.step
        last = np.array([self.shape[0] - self.height, self.shape[1] - self.width]) // self.step * self.step
        wrap_cols = -(-self.wrap_columns // self.step) * self.step
        pending = np.arange(tiles)
        for attempt in shifts:
            moved = self.train[order[pending]] + attempt[pending]
            if self.wrap_columns:
                moved[:, 1] %= wrap_cols
                moved[:, 0] = np.clip(moved[:, 0], 0, last[0])
            else:
                moved = np.clip(moved, 0, last)
            good = self._is_training_tile(moved)
            origins[pending[good]] = moved[good]
            pending = pending[~good]
            if not len(pending):
                break
        return origins

    def _is_training_tile(self, origins: np.ndarray) -> np.ndarray:
        rows, cols = origins[:, 0], origins[:, 1]
        fraction = self.coverage.of_windows(rows, cols, height=self.height, width=self.width)
        touched = self.held_out.touched(rows, cols, height=self.height, width=self.width)
        good = is_enough(fraction, self.min_valid) & ~touched
        return good if self.ground is None else good & ~self.ground.is_polar(rows, self.height)


def origins(length: int, tile: int, stride: int, step: int) -> np.ndarray:
    """Window origins along one axis: every `stride`, and one flush with the end (to `step`).

    Raises:
        ValueError: if the tile is larger than the axis.
    """
    if tile > length:
        raise ValueError(f"tile of {tile} reference pixels is larger than the survey's {length}")
    last = (length - tile) // step * step
    regular = np.arange(0, last + 1, stride, dtype=np.int64)
    return regular if regular[-1] == last else np.append(regular, last)


def draw_by_weight(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws numbers in proportion to weights, each to within one of its expected count: systematic sampling, shuffled.

    Args:
        weights: (n,) float, above 0.
        count: number of draws.
        rng: source of randomness.

    Returns:
        (count,) int64 numbers 0..n - 1 in random order. Equal weights and n draws give every number once.
    """
    order = rng.permutation(len(weights))
    ends = np.cumsum(weights[order])
    positions = (np.arange(count) + rng.random()) * (ends[-1] / max(count, 1))
    drawn = order[np.minimum(np.searchsorted(ends, positions, side="right"), len(order) - 1)]
    return rng.permutation(drawn).astype(np.int64)


def auto_val_block(shape: tuple[int, int], *, height: int, width: int) -> int:
    """Edge of a held-out block in tiles: the largest of 4..1 that leaves at least `AUTO_VAL_BLOCKS` blocks, else 1."""
    for edge in (4, 3, 2):
        if (shape[0] // (edge * height)) * (shape[1] // (edge * width)) >= AUTO_VAL_BLOCKS:
            return edge
    return 1


def index_tiles(
    coverage: Coverage,
    shape: tuple[int, int],
    *,
    height: int,
    width: int,
    step: int,
    overlap: float,
    min_valid: float,
    val_fraction: float,
    val_block: int,
    buffer: int,
    seed: int,
    ground: LatitudeWeights | None = None,
) -> TileIndex:
    """Places training tiles on a stride and holds out contiguous blocks for validation.

    Args:
        coverage: valid fraction of the ground.
        shape: (rows, cols) of the reference grid.
        height: tile height, reference pixels.
        width: tile width, reference pixels.
        step: tile origins are multiples of this, reference pixels.
        overlap: fraction of a tile that the next one repeats, 0 <= overlap < 1.
        min_valid: least valid fraction of a tile, 0..1.
        val_fraction: fraction of the valid ground to hold out, 0 <= val_fraction < 1; 0 holds out nothing.
        val_block: edge of a held-out block in tiles, at most the survey's height or width; 0 chooses it
            (`auto_val_block`).
        buffer: distance between training windows and held-out blocks, reference pixels.
        seed: decides which blocks are held out.
        ground: how the grid lies on a planet, None = on a plane.

    Returns:
        The index. No training window comes within `buffer` of a held-out block; validation windows lie wholly inside.

    Raises:
        ValueError: if the tile is larger than the survey, no tile reaches `min_valid`, or nothing is left to train on.
    """
    if height > shape[0] or width > shape[1]:
        raise ValueError(
            f"a tile covers {width} x {height} reference pixels but the survey has only {shape[1]} x {shape[0]}; "
            "choose a smaller --input_size, fewer --scales or a finer --base_resolution"
        )
    stride_y, stride_x = (max(step, round(edge * (1 - overlap) / step) * step) for edge in (height, width))
    coverage = replace(coverage, wrap_columns=0 if ground is None else ground.wrap_columns)
    anchors = _anchors(
        coverage,
        shape,
        tile=(height, width),
        stride=(stride_y, stride_x),
        step=step,
        min_valid=min_valid,
        ground=ground,
    )
    edge = val_block or auto_val_block(shape, height=height, width=width)
    held_out = _choose_blocks(
        coverage,
        anchors,
        shape,
        tile=(height, width),
        block=(min(edge, shape[0] // height) * height, min(edge, shape[1] // width) * width),
        min_valid=min_valid,
        val_fraction=val_fraction,
        buffer=buffer,
        seed=seed,
        ground=ground,
    )
    return TileIndex(
        height=height,
        width=width,
        step=step,
        stride_y=stride_y,
        stride_x=stride_x,
        train=anchors[~held_out.touched(anchors[:, 0], anchors[:, 1], height=height, width=width)],
        val=_validation_tiles(
            coverage, held_out, height=height, width=width, step=step, min_valid=min_valid, ground=ground
        ),
        held_out=held_out,
        coverage=coverage,
        min_valid=min_valid,
        shape=shape,
        ground=ground,
    )


def _anchors(
    coverage: Coverage,
    shape: tuple[int, int],
    *,
    tile: tuple[int, int],
    stride: tuple[int, int],
    step: int,
    min_valid: float,
    ground: LatitudeWeights | None,
) -> np.ndarray:
    """(n, 2) origins of the tiles on the stride that have enough valid ground, in the whole survey.

    Args:
        tile: (height, width); the other arguments are those of `index_tiles`.
        stride: (rows, cols) between tiles.

    Raises:
        ValueError: there is none.
    """
    wrap_columns = coverage.wrap_columns
    cols = (
        np.arange(0, wrap_columns, stride[1], dtype=np.int64)
        if wrap_columns
        else origins(shape[1], tile[1], stride[1], step)
    )
    anchors = _grid(origins(shape[0], tile[0], stride[0], step), cols)
    if ground is not None:
        polar = ground.is_polar(anchors[:, 0], tile[0])
        if polar.all():
            raise ValueError(
                f"all {len(anchors)} tiles are centred too near a pole for a grid in longitude and latitude that goes "
                "round; choose a smaller --input_size, or reproject the layers to a polar projection"
            )
        anchors = anchors[~polar]
    fraction = coverage.of_windows(anchors[:, 0], anchors[:, 1], height=tile[0], width=tile[1])
    anchors = anchors[is_enough(fraction, min_valid)]
    if not len(anchors):
        best = np.floor(1e4 * fraction.max()) / 1e4  # never rounded up to what is asked for
        raise ValueError(
            f"no tile reaches --min_valid {min_valid:g}: the best of {len(fraction)} has {best:.4g} valid "
            "ground; lower --min_valid or choose a smaller --input_size"
        )
    return anchors


def _grid(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int64)


def _choose_blocks(
    coverage: Coverage,
    anchors: np.ndarray,
    shape: tuple[int, int],
    *,
    tile: tuple[int, int],
    block: tuple[int, int],
    min_valid: float,
    val_fraction: float,
    buffer: int,
    seed: int,
    ground: LatitudeWeights | None,
) -> HoldoutBlocks:
    """Holds out blocks in random order until they cover the wanted fraction of valid ground.

    A block without which training would have no tile is skipped.
    """
    grid = whole_block_grid(shape, height=block[0], width=block[1], buffer=buffer, wrap_columns=coverage.wrap_columns)
    chosen = np.zeros(grid.shape, dtype=bool)
    if val_fraction == 0:
        return HoldoutBlocks(grid, chosen)
    corners = _grid(np.arange(chosen.shape[0]) * block[0], np.arange(chosen.shape[1]) * block[1])
    fraction = coverage.of_windows(corners[:, 0], corners[:, 1], height=block[0], width=block[1])
    usable = is_enough(fraction, min_valid)
    rng = np.random.default_rng((seed, 2))
    if ground is None:
        wanted = val_fraction * float(coverage.fraction.sum()) * coverage.cell**2
        sizes, order = fraction * (block[0] * block[1]), rng.permutation(len(corners))
    else:  # blocks are drawn by area as well, by exponential waiting times (Efraimidis & Spirakis 2006)
        areas = ground.areas(corners[:, 0], block[0])
        usable &= ~ground.is_polar(corners[:, 0], block[0])
        cell_areas = ground.areas(np.arange(len(coverage.fraction)) * coverage.cell, coverage.cell)
        wanted = val_fraction * float(cell_areas @ coverage.fraction.sum(axis=1)) * coverage.cell
        sizes, order = fraction * areas * block[1], np.argsort(rng.exponential(size=len(corners)) / areas)
    held = 0.0
    for number in order:
        if not usable[number]:
            continue
        trial = chosen.copy()
        trial.flat[number] = True
        touched = HoldoutBlocks(grid, trial).touched(anchors[:, 0], anchors[:, 1], height=tile[0], width=tile[1])
        if touched.all():
            continue
        chosen = trial
        held += float(sizes[number])
        if held >= wanted:
            break
    if not chosen.any():
        raise ValueError(
            f"no block of {block[1]} x {block[0]} reference pixels can be held out for validation while training keeps "
            f"a tile: the survey is {shape[1]} x {shape[0]}; choose a smaller --input_size, --val_buffer or "
            "--min_valid, a finer --base_resolution, or --val_fraction 0 to train without held-out ground"
        )
    return HoldoutBlocks(grid, chosen)


def _validation_tiles(
    coverage: Coverage,
    held_out: HoldoutBlocks,
    *,
    height: int,
    width: int,
    step: int,
    min_valid: float,
    ground: LatitudeWeights | None,
) -> np.ndarray:
    """Windows wholly inside held-out blocks, half a tile apart, that reach `min_valid`."""
    tiles: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    for row, col, block_height, block_width in held_out.rectangles():
        rows = row + origins(block_height, height, max(step, height // 2 // step * step), step)
        cols = col + origins(block_width, width, max(step, width // 2 // step * step), step)
        tiles.append(_grid(rows, cols))
    found = np.concatenate(tiles)
    if ground is not None:
        found = found[~ground.is_polar(found[:, 0], height)]
    fraction = coverage.of_windows(found[:, 0], found[:, 1], height=height, width=width)
    return found[is_enough(fraction, min_valid)]
