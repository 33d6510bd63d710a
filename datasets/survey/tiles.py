"""Which windows are tiles: whole-pixel arithmetic on the reference grid, and nothing else.

Pure functions of numbers: no files, no clock, no global generator. Tile `i` of epoch `e` follows from
(seed, e, i) alone, so it is the same whatever the number of workers or ranks.

On a grid that goes round a body columns are taken modulo the turn: a tile's first column lies within the grid, and the
tile goes on beyond its last. On round bodies ground weighs by its area.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from datasets.ground.summed_area import summed_area_table, window_sums
from datasets.ground.wraparound import LatitudeWeights

SHIFT_TRIES = 8
"""Random shifts drawn for a training tile before its unshifted place is used."""


AUTO_VAL_BLOCKS = 12
"""Held-out blocks are as large as they can be with at least this many blocks in the survey."""

LEAST_SHARE = 1e-6
"""Valid shares this close are equal (they are sums of rounded numbers), and a tile with less has nothing to show."""


def is_enough(share: np.ndarray, min_valid: float) -> np.ndarray:
    """Whether windows with these valid shares can be tiles, (n,) bool; one without valid ground never is."""
    return share >= max(min_valid - LEAST_SHARE, LEAST_SHARE)


@dataclass(frozen=True)
class Coverage:
    """How much of the ground carries valid pixels, on square cells of reference pixels.

    Attributes:
        fraction: (cell rows, cell cols) float32, share of valid ground, averaged over layers.
        cell: edge of a cell, reference pixels.
        turn: reference columns after which the ground repeats, 0 = never.
    """

    fraction: np.ndarray
    cell: int
    turn: int = 0

    @cached_property
    def _table(self) -> np.ndarray:
        """Summed-area table of the fractions, twice if they go round: made once, as it takes longer than looking."""
        return summed_area_table(np.tile(self.fraction, (1, 2)) if self.turn else self.fraction)

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
        top, left = rows // self.cell, cols // self.cell
        stop = (cols + width) // self.cell
        if self.turn:
            beyond = cols + width - self.turn
            stop = np.where(beyond > 0, self.fraction.shape[1] + beyond // self.cell, stop)
        bottom = np.minimum(np.maximum((rows + height) // self.cell, top + 1), self._table.shape[0] - 1)
        right = np.minimum(np.maximum(stop, left + 1), self._table.shape[1] - 1)
        top, left = np.minimum(top, bottom - 1), np.minimum(left, right - 1)
        return window_sums(self._table, top, left, bottom, right) / ((bottom - top) * (right - left))


@dataclass(frozen=True)
class HoldoutBlocks:
    """Contiguous square-ish blocks kept out of training.

    Attributes:
        chosen: (block rows, block cols) bool, True where a block is held out.
        height: block height, reference pixels.
        width: block width, reference pixels.
        buffer: distance that training keeps from a held-out block, reference pixels.
        turn: reference columns after which the ground repeats, 0 = never.
    """

    chosen: np.ndarray
    height: int
    width: int
    buffer: int
    turn: int = 0

    def touched(self, rows: np.ndarray, cols: np.ndarray, *, height: int, width: int) -> np.ndarray:
        """Whether windows come closer than the buffer to a held-out block, (n,) bool."""
        table = summed_area_table(self.chosen)
        top, bottom = self._span(rows, height, self.height, self.chosen.shape[0])
        found = np.zeros(len(rows), dtype=bool)
        for shift in self._shifts():
            left, right = self._span(cols + shift, width, self.width, self.chosen.shape[1])
            found |= window_sums(table, top, left, bottom, right) > 0
        return found

    def training_ground(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """True for reference pixels (outer product of rows and cols) that lie outside blocks and buffers."""
        top, bottom = self._span(rows, 1, self.height, self.chosen.shape[0])
        table = summed_area_table(self.chosen).astype(np.int32)
        strips = table[bottom] - table[top]
        ground = np.ones((len(rows), len(cols)), dtype=bool)
        for shift in self._shifts():
            left, right = self._span(cols + shift, 1, self.width, self.chosen.shape[1])
            ground &= strips[:, right] == strips[:, left]
        return ground

    def _shifts(self) -> tuple[int, ...]:
        """By how much columns are moved to be seen from every side."""
        return (-self.turn, 0, self.turn) if self.turn else (0,)

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
        ground: how the grid lies on a round body, by whose area tiles are drawn; None = on a plane.
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
    def turn(self) -> int:
        """Reference columns after which the ground repeats, 0 = never."""
        return 0 if self.ground is None else self.ground.turn

    def epoch(self, *, seed: int, epoch: int, tiles: int | None = None) -> np.ndarray:
        """Training windows of an epoch, in the order in which they are visited.

        Args:
            seed: seed of the run.
            epoch: number of the epoch.
            tiles: how many; default one for each unshifted tile. More than those repeat with other shifts. On a
                round body a tile is drawn as often as its share of the area asks for, rounded up or down at random.

        Returns:
            (tiles, 2) int64 (row, col) origins. Each tile is shifted by up to half a stride; a shift that would
            leave the survey, come near a held-out block or fall below `min_valid` is drawn again, and after
            `SHIFT_TRIES` draws the tile stays where it is.
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
        round_cols = -(-self.turn // self.step) * self.step
        pending = np.arange(tiles)
        for attempt in shifts:
            moved = self.train[order[pending]] + attempt[pending]
            if self.turn:
                moved[:, 1] %= round_cols
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
        share = self.coverage.of_windows(rows, cols, height=self.height, width=self.width)
        touched = self.held_out.touched(rows, cols, height=self.height, width=self.width)
        good = is_enough(share, self.min_valid) & ~touched
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
    """Numbers drawn in proportion to weights, each within one of its share: systematic sampling in random order.

    Args:
        weights: (n,) float, above 0.
        count: how many to draw.
        rng: decides all.

    Returns:
        (count,) int64 numbers 0..n - 1 in random order. Equal weights and n draws give every number once.
    """
    order = rng.permutation(len(weights))
    ends = np.cumsum(weights[order])
    places = (np.arange(count) + rng.random()) * (ends[-1] / max(count, 1))
    drawn = order[np.minimum(np.searchsorted(ends, places, side="right"), len(order) - 1)]
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
        ground: how the grid lies on a round body, None = on a plane.

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
    turn = ground.turn if ground is not None else 0
    coverage = replace(coverage, turn=turn)
    cols = np.arange(0, turn, stride_x, dtype=np.int64) if turn else origins(shape[1], width, stride_x, step)
    anchors = _grid(origins(shape[0], height, stride_y, step), cols)
    if ground is not None:
        polar = ground.is_polar(anchors[:, 0], height)
        if polar.all():
            raise ValueError(
                f"all {len(anchors)} tiles are centred too near a pole for a grid in longitude and latitude that goes "
                "round; choose a smaller --input_size, or reproject the layers to a polar projection"
            )
        anchors = anchors[~polar]
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
        ground=ground,
    )
    train = anchors[~held_out.touched(anchors[:, 0], anchors[:, 1], height=height, width=width)]
    return TileIndex(
        height=height,
        width=width,
        step=step,
        stride_y=stride_y,
        stride_x=stride_x,
        train=train,
        val=_validation_tiles(
            coverage, held_out, height=height, width=width, step=step, min_valid=min_valid, ground=ground
        ),
        held_out=held_out,
        coverage=coverage,
        min_valid=min_valid,
        shape=shape,
        ground=ground,
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
    ground: LatitudeWeights | None,
) -> HoldoutBlocks:
    """Takes blocks in random order until the wanted share of valid ground is held out and training still has tiles."""
    chosen = np.zeros((max(shape[0] // block[0], 1), max(shape[1] // block[1], 1)), dtype=bool)

    def held(mask: np.ndarray) -> HoldoutBlocks:
        turn = 0 if ground is None else ground.turn
        return HoldoutBlocks(chosen=mask, height=block[0], width=block[1], buffer=buffer, turn=turn)

    if val_fraction == 0:
        return held(chosen)
    corners = _grid(np.arange(chosen.shape[0]) * block[0], np.arange(chosen.shape[1]) * block[1])
    share = coverage.of_windows(corners[:, 0], corners[:, 1], height=block[0], width=block[1])
    usable = is_enough(share, min_valid)
    rng = np.random.default_rng((seed, 2))
    if ground is None:
        wanted = val_fraction * float(coverage.fraction.sum()) * coverage.cell**2
        sizes, order = share * (block[0] * block[1]), rng.permutation(len(corners))
    else:  # blocks come by area as well: the order of exponential waiting times (Efraimidis & Spirakis 2006)
        areas = ground.areas(corners[:, 0], block[0])
        usable &= ~ground.is_polar(corners[:, 0], block[0])
        cell_areas = ground.areas(np.arange(len(coverage.fraction)) * coverage.cell, coverage.cell)
        wanted = val_fraction * float(cell_areas @ coverage.fraction.sum(axis=1)) * coverage.cell
        sizes, order = share * areas * block[1], np.argsort(rng.exponential(size=len(corners)) / areas)
    taken = 0.0
    for number in order:
        if not usable[number]:
            continue
        trial = chosen.copy()
        trial.flat[number] = True
        left = ~held(trial).touched(anchors[:, 0], anchors[:, 1], height=tile[0], width=tile[1])
        if not left.any():
            continue
        chosen = trial
        taken += float(sizes[number])
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
    share = coverage.of_windows(found[:, 0], found[:, 1], height=height, width=width)
    return found[is_enough(share, min_valid)]
