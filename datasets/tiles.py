"""Which windows are tiles: whole-pixel arithmetic on the reference grid, and nothing else.

Pure functions of numbers: no files, no clock, no global generator. Tile `i` of epoch `e` follows from
(seed, e, i) alone, so it is the same whatever the number of workers or ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SHIFT_TRIES = 8
"""Random shifts drawn for a training tile before its unshifted place is used."""

AUTO_VAL_BLOCKS = 12
"""Held-out blocks are as large as they can be with at least this many blocks in the survey."""

LEAST_SHARE = 1e-6
"""Valid shares this close are equal (they are sums of rounded numbers), and a tile with less has nothing to show."""


def integral(values: np.ndarray) -> np.ndarray:
    """Summed-area table with a leading row and column of zeros, (rows + 1, cols + 1) float64."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1), dtype=np.float64)
    np.cumsum(np.cumsum(values, axis=0, dtype=np.float64), axis=1, out=table[1:, 1:])
    return table


def window_sums(
    table: np.ndarray, top: np.ndarray, left: np.ndarray, bottom: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Sums over half-open windows [top, bottom) x [left, right) from a summed-area table."""
    return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]


def is_enough(share: np.ndarray, min_valid: float) -> np.ndarray:
    """Whether windows with these valid shares can be tiles, (n,) bool; one without valid ground never is."""
    return share >= max(min_valid - LEAST_SHARE, LEAST_SHARE)


@dataclass(frozen=True)
class Coverage:
    """How much of the ground carries valid pixels, on square cells of reference pixels.

    Attributes:
        fraction: (cell rows, cell cols) float32, share of valid ground, averaged over layers.
        cell: edge of a cell, reference pixels.
    """

    fraction: np.ndarray
    cell: int

    @cached_property
    def _table(self) -> np.ndarray:
        """Summed-area table of the fractions: made once, as it takes longer than looking windows up in it."""
        return integral(self.fraction)

    def of_windows(self, rows: np.ndarray, cols: np.ndarray, *, height: int, width: int) -> np.ndarray:
        """Valid share of windows.

        Args:
            rows: (n,) first reference rows.
            cols: (n,) first reference columns.
            height: window height, reference pixels.
            width: window width, reference pixels.

        Returns:
            (n,) float64 in 0..1. Exact when origins and size are multiples of the cell; else of whole cells near it.
        """
        table = self._table
        top, left = rows // self.cell, cols // self.cell
        bottom = np.minimum(np.maximum((rows + height) // self.cell, top + 1), self.fraction.shape[0])
        right = np.minimum(np.maximum((cols + width) // self.cell, left + 1), self.fraction.shape[1])
        top, left = np.minimum(top, bottom - 1), np.minimum(left, right - 1)
        return window_sums(table, top, left, bottom, right) / ((bottom - top) * (right - left))


@dataclass(frozen=True)
class HeldOut:
    """Contiguous square-ish blocks kept out of training.

    Attributes:
        chosen: (block rows, block cols) bool, True where a block is held out.
        height: block height, reference pixels.
        width: block width, reference pixels.
        buffer: distance that training keeps from a held-out block, reference pixels.
    """

    chosen: np.ndarray
    height: int
    width: int
    buffer: int

    def touched(self, rows: np.ndarray, cols: np.ndarray, *, height: int, width: int) -> np.ndarray:
        """Whether windows come closer than the buffer to a held-out block, (n,) bool."""
        top, bottom = self._span(rows, height, self.height, self.chosen.shape[0])
        left, right = self._span(cols, width, self.width, self.chosen.shape[1])
        return window_sums(integral(self.chosen), top, left, bottom, right) > 0

    def training_ground(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """True for reference pixels (outer product of rows and cols) that lie outside blocks and buffers."""
        top, bottom = self._span(rows, 1, self.height, self.chosen.shape[0])
        left, right = self._span(cols, 1, self.width, self.chosen.shape[1])
        table = integral(self.chosen).astype(np.int32)
        strips = table[bottom] - table[top]
        return strips[:, right] == strips[:, left]

    def _span(self, first: np.ndarray, size: int, block: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Half-open range of blocks, along one axis, that windows with their buffer reach into."""
        start = np.clip((first - self.buffer) // block, 0, limit)
        stop = np.clip((first + size - 1 + self.buffer) // block + 1, 0, limit)
        return start, np.maximum(start, stop)

    def rectangles(self) -> list[tuple[int, int, int, int]]:
        """Held-out blocks as (row, col, height, width), reference pixels."""
        return [
            (int(r) * self.height, int(c) * self.width, self.height, self.width) for r, c in np.argwhere(self.chosen)
        ]


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
        coverage: valid share of the ground.
        min_valid: least valid share of a tile.
        shape: (rows, cols) of the reference grid.
    """

    height: int
    width: int
    step: int
    stride_y: int
    stride_x: int
    train: np.ndarray
    val: np.ndarray
    held_out: HeldOut
    coverage: Coverage
    min_valid: float
    shape: tuple[int, int]

    def epoch(self, *, seed: int, epoch: int, tiles: int | None = None) -> np.ndarray:
        """Training windows of an epoch, in the order in which they are visited.

        Args:
            seed: seed of the run.
            epoch: number of the epoch.
            tiles: how many; default one for each unshifted tile. More than those repeat with other shifts.

        Returns:
            (tiles, 2) int64 (row, col) origins. Each tile is shifted by up to half a stride; a shift that would
            leave the survey, come near a held-out block or fall below `min_valid` is drawn again, and after
            `SHIFT_TRIES` draws the tile stays where it is.
        """
        count = len(self.train)
        tiles = count if tiles is None else tiles
        order_rng = np.random.default_rng((seed, epoch, 0))
        rounds = -(-tiles // count)
        order = np.concatenate([order_rng.permutation(count) for _ in range(rounds)])[:tiles]
        origins = self.train[order].copy()
        shift_rng = np.random.default_rng((seed, epoch, 1))
        half = np.array([self.stride_y // 2 // self.step, self.stride_x // 2 // self.step])
        shifts = shift_rng.integers(-half, half + 1, size=(SHIFT_TRIES, tiles, 2)) * self.step
        last = np.array([self.shape[0] - self.height, self.shape[1] - self.width]) // self.step * self.step
        pending = np.arange(tiles)
        for attempt in shifts:
            moved = np.clip(self.train[order[pending]] + attempt[pending], 0, last)
            good = self._is_training_tile(moved)
            origins[pending[good]] = moved[good]
            pending = pending[~good]
            if not len(pending):
                break
        return origins

    def _is_training_tile(self, origins: np.ndarray) -> np.ndarray:
        rows, cols = origins[:, 0], origins[:, 1]
        share = self.coverage.of_windows(rows, cols, height=self.height, width=self.width)
        touched = self.held_out.touched(rows, cols, height=self.height, width=self.width)
        return is_enough(share, self.min_valid) & ~touched


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
) -> TileIndex:
    """Lays training tiles on a stride and holds out contiguous blocks for validation.

    Args:
        coverage: valid share of the ground.
        shape: (rows, cols) of the reference grid.
        height: tile height, reference pixels.
        width: tile width, reference pixels.
        step: tile origins are multiples of this, reference pixels.
        overlap: share of a tile that the next one repeats, 0 <= overlap < 1.
        min_valid: least valid share of a tile, 0..1.
        val_fraction: share of the valid ground to hold out, 0 <= val_fraction < 1; 0 holds out nothing.
        val_block: edge of a held-out block in tiles, at most as many as the survey is high or wide; 0 chooses it
            (`auto_val_block`).
        buffer: distance that training keeps from held-out blocks, reference pixels.
        seed: decides which blocks are held out.

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
    stride_y = max(step, round(height * (1 - overlap) / step) * step)
    stride_x = max(step, round(width * (1 - overlap) / step) * step)
    anchors = _grid(origins(shape[0], height, stride_y, step), origins(shape[1], width, stride_x, step))
    share = coverage.of_windows(anchors[:, 0], anchors[:, 1], height=height, width=width)
    anchors = anchors[is_enough(share, min_valid)]
    if not len(anchors):
        raise ValueError(
            f"no tile reaches --min_valid {min_valid:g}: the best of {len(share)} has {share.max():.2f} valid ground; "
            "lower --min_valid or choose a smaller --input_size"
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
    )
    train = anchors[~held_out.touched(anchors[:, 0], anchors[:, 1], height=height, width=width)]
    return TileIndex(
        height=height,
        width=width,
        step=step,
        stride_y=stride_y,
        stride_x=stride_x,
        train=train,
        val=_validation_tiles(coverage, held_out, height=height, width=width, step=step, min_valid=min_valid),
        held_out=held_out,
        coverage=coverage,
        min_valid=min_valid,
        shape=shape,
    )


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
) -> HeldOut:
    """Takes blocks in random order until the wanted share of valid ground is held out and training still has tiles."""
    chosen = np.zeros((max(shape[0] // block[0], 1), max(shape[1] // block[1], 1)), dtype=bool)

    def held(mask: np.ndarray) -> HeldOut:
        return HeldOut(chosen=mask, height=block[0], width=block[1], buffer=buffer)

    if val_fraction == 0:
        return held(chosen)
    corners = _grid(np.arange(chosen.shape[0]) * block[0], np.arange(chosen.shape[1]) * block[1])
    share = coverage.of_windows(corners[:, 0], corners[:, 1], height=block[0], width=block[1])
    wanted = val_fraction * float(coverage.fraction.sum()) * coverage.cell**2
    taken = 0.0
    usable = is_enough(share, min_valid)
    for number in np.random.default_rng((seed, 2)).permutation(len(corners)):
        if not usable[number]:
            continue
        trial = chosen.copy()
        trial.flat[number] = True
        left = ~held(trial).touched(anchors[:, 0], anchors[:, 1], height=tile[0], width=tile[1])
        if not left.any():
            continue
        chosen = trial
        taken += float(share[number]) * block[0] * block[1]
        if taken >= wanted:
            break
    if not chosen.any():
        raise ValueError(
            f"no block of {block[1]} x {block[0]} reference pixels can be held out for validation while training keeps "
            f"a tile: the survey is {shape[1]} x {shape[0]}; choose a smaller --input_size, --val_buffer or "
            "--min_valid, a finer --base_resolution, or --val_fraction 0 to train without held-out ground"
        )
    return held(chosen)


def _validation_tiles(
    coverage: Coverage, held_out: HeldOut, *, height: int, width: int, step: int, min_valid: float
) -> np.ndarray:
    """Windows wholly inside held-out blocks, half a tile apart, that reach `min_valid`."""
    tiles: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    for row, col, block_height, block_width in held_out.rectangles():
        rows = row + origins(block_height, height, max(step, height // 2 // step * step), step)
        cols = col + origins(block_width, width, max(step, width // 2 // step * step), step)
        tiles.append(_grid(rows, cols))
    found = np.concatenate(tiles)
    share = coverage.of_windows(found[:, 0], found[:, 1], height=height, width=width)
    return found[is_enough(share, min_valid)]
