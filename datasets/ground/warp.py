"""Bringing windows of a raster to another grid, block by block: what a pixel gets depends on no window."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject
from rasterio.warp import transform as transform_points

if TYPE_CHECKING:
    from datasets.ground.grid import Grid

# A warped band is computed in square blocks of this edge, so that a pixel does not depend on the window it is
# read in. GDAL takes the projection for straight across a block, which at this size is some hundredths of a
# pixel off.
WARP_BLOCK = 128
# Source pixels read around the footprint of a warped block: one for bilinear interpolation, and what its
# sampling may miss.
_WARP_MARGIN = 3


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
        frame: the file's own pixels.
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


def footprint(frame: Frame, grid: Grid, block: tuple[int, int, int, int]) -> tuple[int, int, int, int] | None:
    """Return the window of a file under a block of a grid, found by projecting 17 x 17 points.

    Args:
        frame: the file's own pixels.
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
    top = max(int(np.floor(source_rows.min())) - _WARP_MARGIN, 0)
    left = max(int(np.floor(source_cols.min())) - _WARP_MARGIN, 0)
    bottom = min(int(np.ceil(source_rows.max())) + _WARP_MARGIN, frame.rows)
    right = min(int(np.ceil(source_cols.max())) + _WARP_MARGIN, frame.cols)
    if bottom <= top or right <= left:
        return None
    return top, left, bottom - top, right - left


def _shifted(transform: Affine, *, row: int, col: int) -> Affine:
    """The transform of a window that starts at (row, col)."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return Affine(a, b, c + a * col + b * row, d, e, f + d * col + e * row)
