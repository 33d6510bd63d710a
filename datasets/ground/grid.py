"""The pixel grid of a raster: CRS, affine transform and shape, and when two CRSs agree."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform as transform_points

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError)
"""Errors that rasterio raises when GDAL fails: some of GDAL's own errors pass through it unchanged."""


SNAP = 0.01
"""Fraction of a pixel: misfits below it, over the whole grid, are rounding of coordinates, not geometry."""

ALIKE = 1.01
"""Resolutions within this factor count as equal: warping makes 99.97 m of 100 m."""


SAME_UNIT = 1e-3
"""Relative difference of two units of length, such as those of the feet in use, that counts as none."""


@dataclass(frozen=True)
class Grid:
    """Pixels on the ground, north up: row 0 is the northern edge.

    Attributes:
        crs: coordinate reference system.
        left: western edge, CRS units.
        top: northern edge, CRS units.
        resolution_x: width of a pixel, CRS units, > 0.
        resolution_y: height of a pixel, CRS units, > 0.
        rows: number of rows.
        cols: number of columns.
    """

    crs: CRS
    left: float
    top: float
    resolution_x: float
    resolution_y: float
    rows: int
    cols: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top), CRS units."""
        right = self.left + self.cols * self.resolution_x
        return self.left, self.top - self.rows * self.resolution_y, right, self.top

    @property
    def transform(self) -> Affine:
        """Affine transform from (column, row) to (x, y)."""
        return self.window_transform(0, 0)

    def window_transform(self, row: int, col: int) -> Affine:
        """Affine transform of a window that starts at (row, col)."""
        x, y = self.left + col * self.resolution_x, self.top - row * self.resolution_y
        return Affine(self.resolution_x, 0.0, x, 0.0, -self.resolution_y, y)


def metres_per_unit(crs: CRS) -> float:
    """Metres in a unit of a projected CRS (0.3048 of feet); 1 for any other CRS, and where the unit is unknown."""
    try:
        return float(crs.linear_units_factor[1]) if crs.is_projected else 1.0
    except (CRSError, ValueError):
        return 1.0


def length_unit(crs: CRS) -> str:
    """Name of the unit of lengths in a CRS, for messages and pages: `m`, `degrees`, `foot`; empty if unknown."""
    if crs.is_geographic:
        return "degrees"
    try:
        unit = str(crs.linear_units)
    except CRSError:
        return ""
    return "m" if unit.lower() in ("metre", "meter") else unit if unit != "unknown" else ""


def check_unit(there: CRS, trained: CRS, *, base: float, where: str, remedy: str = "") -> None:
    """Refuses ground in another unit of length than that of training, in which base pixels would have another size.

    Args:
        there: CRS of the ground.
        trained: CRS of training.
        base: edge of a base-scale pixel, units of `trained`.
        where: the ground, for the message.
        remedy: what may be done besides warping the layers, with a comma before it.

    Raises:
        ValueError: the units differ.
    """
    same = math.isclose(metres_per_unit(there), metres_per_unit(trained), rel_tol=SAME_UNIT)
    if same and there.is_geographic == trained.is_geographic:
        return
    unit, expected = (length_unit(crs) or "a unit without a name" for crs in (there, trained))
    raise ValueError(
        f"{where}: its CRS {crs_name(there)} is in {unit}, expected {expected} as in training ({crs_name(trained)}): a "
        f"base pixel of {base:g} would have another size on the ground; warp its layers to a CRS in {expected}{remedy}"
    )


def length_text(length: float, crs: CRS) -> str:
    """A length in CRS units with its unit, in kilometres from 1000 m on."""
    unit = length_unit(crs)
    if unit == "m" and length >= 1000:
        return f"{length / 1000:.6g} km"
    return f"{length:.6g} {unit}".rstrip()


def crs_name(crs: CRS) -> str:
    """A CRS in a few words: its authority and code, else its name, else that it has none and its equatorial radius."""
    text = str(crs.to_string())
    named = re.match(r'\s*\w+\["([^"]*)"', text)
    if named is None:
        return text
    if named[1] not in ("", "unknown", "unnamed"):
        return named[1]
    radius = re.search(r'SPHEROID\["[^"]*",([0-9.]+)', text)
    return "CRS without a name" + (f", equatorial radius {float(radius[1]):,.0f} m" if radius else "")


def crs_agree(grid: Grid, crs: CRS) -> bool:
    """Return whether a grid lies at the same place when its coordinates are taken to be in ``crs``.

    The same CRS is often spelled differently by different formats; what counts is that no point of the grid's
    outline moves by more than a hundredth of a pixel.
    """
    if grid.crs == crs:
        return True
    if grid.crs.is_geographic != crs.is_geographic:
        return False
    left, bottom, right, top = grid.bounds
    xs = [left, (left + right) / 2, right] * 3
    ys = [bottom] * 3 + [(bottom + top) / 2] * 3 + [top] * 3
    try:
        there_x, there_y = transform_points(grid.crs, crs, xs, ys)
    except GDAL_ERRORS:
        return False
    moved_x = np.abs(np.subtract(there_x, xs)) / grid.resolution_x
    moved_y = np.abs(np.subtract(there_y, ys)) / grid.resolution_y
    return bool(np.all(np.maximum(moved_x, moved_y) < SNAP))
