"""Bringing windows of a raster to another grid, block by block: what a pixel gets depends on no window."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject
from rasterio.warp import transform as transform_points

from datasets.ground.planet import planet_of

if TYPE_CHECKING:
    from datasets.ground.grid import Grid

# A warped band is computed in square blocks of this edge, so that a pixel does not depend on the window it is
# read in. GDAL takes the projection for straight across a block, which at this size is some hundredths of a
# pixel off.
WARP_BLOCK = 128
# Source pixels read around the footprint of a warped block: one for bilinear interpolation, and what its
# sampling may miss.
_WARP_MARGIN = 3
# Pixels of the grid between two places where its north is compared with the file's, which changes slowly.
_NORTH_CELL = 8


class Frame(Protocol):
    """Pixels of a file as they are stored, in any orientation."""

    @property
    def crs(self) -> CRS:
        """CRS of the file."""

    @property
    def transform(self) -> Affine:
        """Affine transform from (column, row) of the file to (x, y)."""

    @property
    def rows(self) -> int:
        """Rows stored."""

    @property
    def cols(self) -> int:
        """Columns stored."""


def warp_window(
    read: Callable[[int, int, int, int], np.ndarray],
    frame: Frame,
    grid: Grid,
    window: tuple[int, int, int, int],
    *,
    resampling: Resampling = Resampling.bilinear,
    edge: int = WARP_BLOCK,
    dtype: type[np.generic] = np.float32,
    invalid: float = np.nan,
) -> np.ndarray:
    """Return a window of a grid, made of the pixels of a file.

    Args:
        read: gives a window (row, col, rows, cols) of the file, of that type.
        frame: the file's native pixels.
        grid: the grid that is wanted.
        window: (row, col, rows, cols) inside the grid.
        resampling: how pixels of the grid follow from those of the file; invalid ones take no part.
        edge: edge of the blocks that are computed at a time, pixels of the grid.
        dtype: NumPy type of pixels.
        invalid: what invalid pixels hold.

    Returns:
        (rows, cols) of that type. With `bilinear` a pixel is valid if the file's pixel it lies in is.
    """
    row, col, rows, cols = window
    values = np.empty((rows, cols), dtype=dtype)
    for block_row in range(row - row % edge, row + rows, edge):
        for block_col in range(col - col % edge, col + cols, edge):
            shape = min(edge, grid.rows - block_row), min(edge, grid.cols - block_col)
            block = np.full(shape, invalid, dtype=dtype)
            _warp_block(read, frame, grid, (block_row, block_col), block, resampling, invalid)
            top, left = max(row, block_row), max(col, block_col)
            bottom, right = min(row + rows, block_row + edge), min(col + cols, block_col + edge)
            values[top - row : bottom - row, left - col : right - col] = block[
                top - block_row : bottom - block_row, left - block_col : right - block_col
            ]
    return values


def _warp_block(
    read: Callable[[int, int, int, int], np.ndarray],
    frame: Frame,
    grid: Grid,
    start: tuple[int, int],
    block: np.ndarray,
    resampling: Resampling,
    invalid: float,
) -> None:
    """Fill the block that starts at (row, col) from the source pixels under it, whose invalid ones are marked."""
    row, col = start
    under = footprint(frame, grid, (row, col, block.shape[0], block.shape[1]))
    if under is None:
        return
    reproject(
        read(*under),
        block,
        src_transform=_shifted(frame.transform, row=under[0], col=under[1]),
        src_crs=frame.crs,
        src_nodata=invalid,
        dst_transform=grid.window_transform(row, col),
        dst_crs=grid.crs,
        dst_nodata=invalid,
        resampling=resampling,
        XSCALE=1,  # plain interpolation: left to itself, GDAL widens the kernel by a factor that depends
        YSCALE=1,  # on the block, and blurs a turned grid
    )


def north_in(grid: Grid, frame: Frame, window: tuple[int, int, int, int]) -> np.ndarray:
    """Return the azimuth on a grid of the grid north of a file's CRS.

    Found by a step of one pixel of the file to the north, at every `_NORTH_CELL`-th pixel of the grid and at its last;
    linear between them.

    Args:
        grid: the grid.
        frame: the file's native pixels.
        window: (row, col, rows, cols) inside the grid.

    Returns:
        (rows, cols) degrees clockwise from the grid's north, -180 to 180; NaN where there is no transformation.
    """
    row, col, rows, cols = window
    node_rows, above, down = _nodes(row, rows, grid.rows)
    node_cols, left, right = _nodes(col, cols, grid.cols)
    x, y = np.meshgrid(
        grid.left + (node_cols + 0.5) * grid.resolution_x, grid.top - (node_rows + 0.5) * grid.resolution_y
    )
    there_x, there_y = transform_points(grid.crs, frame.crs, x.ravel().tolist(), y.ravel().tolist())
    step = np.hypot(frame.transform.b, frame.transform.e)
    ahead_x, ahead_y = transform_points(frame.crs, grid.crs, there_x, (np.array(there_y) + step).tolist())
    with np.errstate(invalid="ignore", over="ignore"):
        east, north = np.reshape(ahead_x, x.shape) - x, np.reshape(ahead_y, x.shape) - y
        planet = planet_of(grid.crs)
        if planet is not None:
            east = (east + planet.period / 2) % planet.period - planet.period / 2
            metres = np.array([planet.ground_m(float(value)) for value in y[:, 0]])
            east, north = east * metres[:, :1], north * metres[:, 1:]
        vector = (north + 1j * east) / np.hypot(east, north)
        down, right = down[:, None], right[None]
        upper = vector[np.ix_(above, left)] * (1 - right) + vector[np.ix_(above, left + 1)] * right
        lower = vector[np.ix_(above + 1, left)] * (1 - right) + vector[np.ix_(above + 1, left + 1)] * right
        return np.degrees(np.angle(upper * (1 - down) + lower * down))


def _nodes(first: int, count: int, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels along an axis at which something is computed, and where the pixels of a window lie between two of them.

    Returns:
        The nodes; for each of `count` pixels from `first` on the number of the node before it, and its share of the way
        to the next one. A pixel lies between the same nodes whatever the window.
    """
    pixels = np.arange(first, first + count)
    cells = np.arange(first // _NORTH_CELL, (first + count - 1) // _NORTH_CELL + 2)
    nodes = np.minimum(cells * _NORTH_CELL, total - 1)
    before = pixels // _NORTH_CELL - first // _NORTH_CELL
    return nodes, before, (pixels - nodes[before]) / np.maximum(nodes[before + 1] - nodes[before], 1)


def footprint(frame: Frame, grid: Grid, block: tuple[int, int, int, int]) -> tuple[int, int, int, int] | None:
    """Return the window of a file under a block of a grid, found by projecting 17 x 17 points.

    Args:
        frame: the file's native pixels.
        grid: the grid.
        block: (row, col, rows, cols) on the grid.

    Returns:
        (row, col, rows, cols) inside the file, with a few pixels more than needed; None if they share no ground.
    """
    row, col, rows, cols = block
    share = np.linspace(0.0, 1.0, 17)
    points_x, points_y = np.meshgrid(
        grid.left + (col + share * cols) * grid.resolution_x,
        grid.top - (row + share * rows) * grid.resolution_y,
    )
    x, y = transform_points(grid.crs, frame.crs, points_x.ravel().tolist(), points_y.ravel().tolist())
    place = np.array([x, y])
    place = place[:, np.isfinite(place).all(axis=0)]
    if not place.size:
        return None
    inverse = ~frame.transform
    source_cols = inverse.a * place[0] + inverse.b * place[1] + inverse.c
    source_rows = inverse.d * place[0] + inverse.e * place[1] + inverse.f
    margin, margin_cols = _WARP_MARGIN, _WARP_MARGIN
    if step := _step_over_the_seam(np.reshape(x, points_x.shape), np.reshape(y, points_x.shape), frame.crs):
        margin += math.ceil(step * abs(inverse.e))  # what lies between samples, a pole perhaps
        margin_cols += frame.cols
    top = max(int(np.floor(source_rows.min())) - margin, 0)
    left = max(int(np.floor(source_cols.min())) - margin_cols, 0)
    bottom = min(int(np.ceil(source_rows.max())) + margin, frame.rows)
    right = min(int(np.ceil(source_cols.max())) + margin_cols, frame.cols)
    if bottom <= top or right <= left:
        return None
    return top, left, bottom - top, right - left


def _step_over_the_seam(x: np.ndarray, y: np.ndarray, crs: CRS) -> float:
    """Largest step in y between neighbouring samples, if some lie to either side of where longitudes begin anew.

    Args:
        x: (n, n) of the samples, in a CRS; not finite where there is none.
        y: likewise.
        crs: the CRS.

    Returns:
        0 if they do not, or x is no longitude.
    """
    planet = planet_of(crs)
    if planet is None:
        return 0.0
    with np.errstate(invalid="ignore"):
        steps = [(np.abs(np.diff(x, axis=axis)), np.abs(np.diff(y, axis=axis))) for axis in (0, 1)]
    if not any((along > planet.period / 2).any() for along, _ in steps):
        return 0.0
    return max(float(np.nanmax(np.where(np.isfinite(up), up, 0.0))) for _, up in steps)


def _shifted(transform: Affine, *, row: int, col: int) -> Affine:
    """The transform of a window that starts at (row, col)."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return Affine(a, b, c + a * col + b * row, d, e, f + d * col + e * row)
