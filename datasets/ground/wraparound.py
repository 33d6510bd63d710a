"""Grids that wrap around a planet: columns that repeat, and pixels that narrow towards the poles.

The result does not depend on the column at which the file of such a grid begins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from datasets.ground.grid import SNAP, Grid, metres_per_unit
from datasets.ground.planet import planet_of

POLAR_LATITUDE = 80.0
"""Degrees. Tiles of grids that wrap around a planet are neither trained on nor scored if centred poleward of this.

Pixels there are less than 0.18 times as wide as high."""


def latitude_weights(grid: Grid) -> LatitudeWeights | None:
    """The areas of a reference grid's rows on a planet; None if its CRS is not in longitude and latitude."""
    planet = planet_of(grid.crs)
    if planet is None:
        return None
    y = grid.top - np.arange(grid.rows + 1) * grid.resolution_y
    sines = np.sin(np.radians(planet.latitude(y))) / 2
    if not wraps(grid):
        return LatitudeWeights(0, sines, 0.5)
    return LatitudeWeights(wrap_columns(grid), sines, math.sin(math.radians(POLAR_LATITUDE)) / 2)


def pixel_size_m(grid: Grid, row: float) -> tuple[float, float]:
    """Metres on the ground of a CRS unit of x and of y at a row of a grid; off a planet those of the CRS's unit."""
    planet = planet_of(grid.crs)
    if planet is None:
        return (metres_per_unit(grid.crs),) * 2
    return planet.ground_m(grid.top - row * grid.resolution_y)


def pixel_size_lines(grid: Grid, base: float, rows: tuple[int, int]) -> list[str]:
    """Sizes on the ground of pixels of a grid on a planet, and how tiles are drawn there, as lines to log; of other
    grids only if their unit is not the metre.

    Args:
        grid: the reference grid.
        base: edge of a base-scale pixel, CRS units.
        rows: centre rows of the northernmost and the southernmost training tile.
    """
    planet = planet_of(grid.crs)
    if planet is None:
        metres = metres_per_unit(grid.crs)
        lines = [
            f"lengths are in {grid.crs.linear_units} of {metres:.7g} m: a base pixel is {format_length(base * metres)}"
        ]
        return lines if metres != 1 else []
    places = []
    for row in sorted(set(rows)):
        across, along = (format_length(base * metres) for metres in pixel_size_m(grid, row))
        latitude = float(planet.latitude(grid.top - row * grid.resolution_y))
        places.append(f"{across} wide and {along} high at latitude {latitude:.4g}")
    lines = [f"a base pixel is {', '.join(places)}; tiles are drawn in proportion to their area on the ground"]
    if wraps(grid):
        lines.append(
            f"the grid wraps around the planet: tiles cross {float(planet.west):g}; those centred poleward of "
            f"{POLAR_LATITUDE:g} degrees are neither trained on nor scored"
        )
    return lines


def format_length(metres: float) -> str:
    """A length in metres or kilometres, for messages."""
    return f"{metres / 1000:.4g} km" if metres >= 1000 else f"{metres:.4g} m"


def wrap_columns(grid: Grid) -> int:
    """Columns after which a grid's ground repeats; 0 if it is not on a planet, or they are not a whole number."""
    planet = planet_of(grid.crs)
    if planet is None:
        return 0
    columns = planet.period / grid.resolution_x
    return round(columns) if abs(columns - round(columns)) < SNAP else 0


def wraps(grid: Grid) -> bool:
    """Whether a grid's columns cover a full circle of longitude, in a whole number of pixels."""
    columns = wrap_columns(grid)
    return 0 < columns <= grid.cols


def bounds_near(grid: Grid, middle_x: float) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of a grid, shifted by whole periods to bring its middle nearest to `middle_x`."""
    left, bottom, right, top = grid.bounds
    planet = planet_of(grid.crs)
    if planet is None:
        return left, bottom, right, top
    shift = round((middle_x - (left + right) / 2) / planet.period) * planet.period
    return left + shift, bottom, right + shift, top


def split_at_seam(col: int, cols: int, period: int) -> list[tuple[int, int]]:
    """Cut columns [col, col + cols) at multiples of `period`: (first column modulo `period`, number) of each part."""
    found, stop = [], col + cols
    while col < stop:
        count = min(stop, (col // period + 1) * period) - col
        found.append((col % period, count))
        col += count
    return found


def wrapped_reference(grid: Grid) -> Grid:
    """A grid that wraps around a planet, begun at the pixel that holds the westernmost meridian (-180 degrees).

    Grids that differ only in the column at which they begin give the same result.
    """
    planet, columns = planet_of(grid.crs), wrap_columns(grid)
    assert planet is not None and columns
    left = grid.left + math.floor((planet.west - grid.left) / grid.resolution_x + SNAP) * grid.resolution_x
    if abs(left - planet.west) < SNAP * grid.resolution_x:
        left = planet.west
    return replace(grid, left=left, cols=columns)


LEAST_AREA = 1e-12
"""Area of windows that lie wholly beyond a pole."""


@dataclass(frozen=True)
class LatitudeWeights:
    """The areas of a reference grid's rows on a planet.

    Attributes:
        wrap_columns: reference columns after which the ground repeats, 0 = never.
        edges: (rows + 1,) sines of the latitudes of the rows' edges, from north to south, half a unit apart in all.
        polar: largest |sine| / 2 of the latitude of a tile's centre; 0.5 = no limit.
    """

    wrap_columns: int
    edges: np.ndarray
    polar: float

    def areas(self, rows: np.ndarray, height: int) -> np.ndarray:
        """(n,) area of windows, above 0, in units of their width times the pole-to-pole area of a column."""
        bottom = np.minimum(rows + height, len(self.edges) - 1)
        return np.maximum(self.edges[rows] - self.edges[bottom], LEAST_AREA)

    def is_polar(self, rows: np.ndarray, height: int) -> np.ndarray:
        """(n,) bool, True where the centre of a window is too near a pole to train on or to score."""
        centre = np.minimum(rows + height / 2, len(self.edges) - 1)
        middle = np.interp(centre, np.arange(len(self.edges)), self.edges)
        return np.abs(middle) > self.polar
