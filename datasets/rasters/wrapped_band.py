"""Bands whose columns wrap around a planet, read across the date line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datasets.ground.grid import SNAP, Grid
from datasets.ground.planet import planet_of
from datasets.ground.wraparound import bounds_near, split_at_seam, wrap_columns, wraps
from datasets.rasters.band import RasterBand


@dataclass(frozen=True, eq=False)
class WrappedBand:
    """A layer on a planet whose columns repeat after a full circle of longitude.

    It has every attribute of the band, but its grid may begin at another column.

    Attributes:
        band: the layer as stored in its file.
        grid: its pixels on the ground, from the western edge of the reference grid.
        first_column: the file's column at which the grid begins.
        wrap_columns: columns after which the ground repeats.
    """

    band: RasterBand
    grid: Grid
    first_column: int
    wrap_columns: int

    def __getattr__(self, name: str) -> Any:
        """Every other attribute is that of the band."""
        if name.startswith("__") or name == "band":  # not set yet while a copy is being made
            raise AttributeError(name)
        return getattr(self.band, name)

    def read(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """(rows, cols) float32 of a window anywhere on the planet, NaN where invalid; it may cross the date line.

        Raises:
            OSError: see `RasterBand.read`.
        """
        parts = [
            self.band.read(row, first, rows, count)
            for first, count in split_at_seam(col + self.first_column, cols, self.wrap_columns)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def wrapped_band(band: RasterBand, reference: Grid) -> RasterBand | WrappedBand:
    """A layer on the columns of a reference grid.

    A layer that wraps around the planet begins at the western edge of the reference grid; any other is shifted by whole
    periods of longitude. A layer that does not wrap but lies across the edge of a reference grid that does gets the
    columns of a full circle, invalid where it has no pixels.

    Returns:
        The band itself if nothing has to change, or if a full circle is not a whole number of its pixels.
    """
    grid, period = band.grid, wrap_columns(band.grid)
    if not period:
        return band
    start = (reference.left - grid.left) / grid.resolution_x
    if not wraps(grid):
        if wraps(reference):
            behind = -start % period
            shifts = round((behind + start) / period)
            across = behind + grid.cols > period + SNAP and behind < period - SNAP
        else:
            middle = (reference.bounds[0] + reference.bounds[2]) / 2
            shifts, across = round((bounds_near(grid, middle)[0] - grid.left) / grid.resolution_x / period), False
        if not across:
            moved = replace(grid, left=grid.left + shifts * period * grid.resolution_x) if shifts else grid
            return WrappedBand(band, moved, 0, period) if shifts or wraps(reference) else band
    first = math.ceil(start - 0.5 - 1e-6)  # the first pixel whose centre lies on the reference grid
    rolled = replace(grid, left=grid.left + first * grid.resolution_x, cols=period)
    return WrappedBand(band, rolled, first % period, period)


def wraparound_remarks(bands: Sequence[RasterBand], reference: Grid) -> list[str]:
    """Warnings about layers in longitude and latitude that do not wrap around the planet as a user may expect."""
    planet = planet_of(reference.crs)
    if planet is None:
        return []
    notes = []
    if not wraps(reference) and reference.cols * reference.resolution_x > 0.9 * planet.period:
        pixels = planet.period / reference.resolution_x
        why = "it has a gap" if wrap_columns(reference) else f"a full circle is {pixels:.6g} pixels, not a whole number"
        notes.append(
            f"the reference grid nearly wraps around the planet, but {why}: tiles do not cross its ends; resample "
            "layers to pixels that divide a full circle of longitude, or fill the gap"
        )
    for band in bands:
        period = wrap_columns(band.grid)
        if not period and wraps(reference):
            notes.append(
                f"layer '{band.layer.name}': a full circle is {planet.period / band.grid.resolution_x:.6g} of its "
                "pixels, not a whole number: it is not read across its ends; resample it to pixels that divide a full "
                "circle"
            )
        elif period and band.grid.cols > period:
            notes.append(
                f"layer '{band.layer.name}': covers more than a full circle; its last {band.grid.cols - period} "
                "columns repeat ground and are not used"
            )
    return notes
