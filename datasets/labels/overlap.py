"""Advice on labels that lie elsewhere than the survey."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from datasets.ground.grid import GDAL_ERRORS, Grid, crs_agree


def overlap_advice(extent: Sequence[float], crs: CRS, grid: Grid, *, remedy: str) -> str:
    """What to do about labels that do not overlap the survey, from the size of their coordinates.

    Args:
        extent: (left, bottom, right, top) of the labels.
        crs: their CRS.
        grid: the survey's grid.
        remedy: how the CRS is corrected; `{crs}` in it stands for the right one.
    """
    low_x, low_y, high_x, high_y = (float(value) for value in extent)

    def reach(low_x: float, low_y: float, high_x: float, high_y: float, ground: Sequence[float] = grid.bounds) -> bool:
        left, bottom, right, top = ground
        return low_x <= right and high_x >= left and low_y <= top and high_y >= bottom

    degrees = low_x >= -360 and high_x <= 360 and low_y >= -90 and high_y <= 90
    wanted, why = "EPSG:...", "check its CRS and coordinates"
    if not crs_agree(grid, crs) and reach(low_x, low_y, high_x, high_y):
        wanted, why = grid.crs.to_string()[:60], "its coordinates fit the survey's own CRS"
    elif not crs.is_geographic and degrees:
        wanted, why = "EPSG:4326", "its coordinates look like degrees"
    else:
        ground = _ground_in(crs, grid)
        if ground and reach(low_y, low_x, high_y, high_x, ground):
            return "x and y seem to be swapped: correct them (for a table by --x_column and --y_column)"
        if ground and crs.is_geographic and reach(low_x, -high_y, high_x, -low_y, ground):
            return "its latitudes seem to have the wrong sign: southern ones are negative; correct them"
        if ground and crs.is_projected and reach(1e3 * low_x, 1e3 * low_y, 1e3 * high_x, 1e3 * high_y, ground):
            return "its coordinates seem to be in km: write them in metres"
    return f"{why}; {remedy.format(crs=wanted)}"


def _ground_in(crs: CRS, grid: Grid) -> Sequence[float] | None:
    """(left, bottom, right, top) of the survey in the CRS of the labels; None if it has no place there."""
    if crs_agree(grid, crs):
        return grid.bounds
    try:
        ground = transform_bounds(grid.crs, crs, *grid.bounds)
    except GDAL_ERRORS:
        return None
    return ground if all(map(math.isfinite, ground)) else None
