"""Grids that go round a body: columns that come back to themselves, ground that shrinks towards the poles.

A grid whose columns go once round has no first column: where its file happens to begin decides nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from datasets.ground.grid import Grid
from datasets.ground.planet import planet_of

SNAP = 0.01
"""A turn this close to a whole number of pixels is one: misfits of less than this share of a pixel are rounding."""

POLAR_LATITUDE = 80.0
"""Degrees. Of grids that go round a body, tiles centred poleward of this are neither trained on nor scored.

Pixels there are less than 0.18 as wide as high."""


def latitude_weights(grid: Grid) -> LatitudeWeights | None:
    """How a reference grid lies on a round body; None if it lies on none."""
    globe = planet_of(grid.crs)
    if globe is None:
        return None
    y = grid.top - np.arange(grid.rows + 1) * grid.resolution_y
    sines = np.sin(np.radians(globe.latitude(y))) / 2
    if not wraps(grid):
        return LatitudeWeights(0, sines, 0.5)
    return LatitudeWeights(wrap_columns(grid), sines, math.sin(math.radians(POLAR_LATITUDE)) / 2)


def pixel_size_m(grid: Grid, row: float) -> tuple[float, float]:
    """Metres on the ground of a CRS unit of x and of y at a row of a grid; ones if it lies on no round body."""
    globe = planet_of(grid.crs)
    return (1.0, 1.0) if globe is None else globe.ground_m(grid.top - row * grid.resolution_y)


def pixel_size_lines(grid: Grid, base: float, rows: tuple[int, int]) -> list[str]:
    """What pixels of a grid on a round body measure on the ground, and how tiles are drawn there, as lines to log.

    Args:
        grid: the reference grid.
        base: edge of a base-scale pixel, CRS units.
        rows: centre rows of the northernmost and the southernmost training tile.
    """
    globe = planet_of(grid.crs)
    if globe is None:
        return []
    places = []
    for row in sorted(set(rows)):
        across, along = (format_length(base * metres) for metres in pixel_size_m(grid, row))
        latitude = float(globe.latitude(grid.top - row * grid.resolution_y))
        places.append(f"{across} wide and {along} high at latitude {latitude:.4g}")
    lines = [f"a base pixel is {', '.join(places)}; tiles are drawn by their ground's area"]
    if wraps(grid):
        lines.append(
            f"the grid goes round: tiles cross {float(globe.west):g}; those centred poleward of {POLAR_LATITUDE:g} "
            "degrees are neither trained on nor scored"
        )
    return lines


def format_length(metres: float) -> str:
    """A length as a person writes it."""
    return f"{metres / 1000:.4g} km" if metres >= 1000 else f"{metres:.4g} m"


def wrap_columns(grid: Grid) -> int:
    """Columns after which a grid's ground repeats; 0 if it is on no round body, or they are not a whole number."""
    globe = planet_of(grid.crs)
    if globe is None:
        return 0
    columns = globe.turn / grid.resolution_x
    return round(columns) if abs(columns - round(columns)) < SNAP else 0


def wraps(grid: Grid) -> bool:
    """Whether a grid's columns cover a full circle of longitude, in a whole number of pixels."""
    columns = wrap_columns(grid)
    return 0 < columns <= grid.cols


def bounds_near(grid: Grid, middle_x: float) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of a grid, moved by whole turns to where its middle is nearest to `middle_x`."""
    left, bottom, right, top = grid.bounds
    globe = planet_of(grid.crs)
    if globe is None:
        return left, bottom, right, top
    shift = round((middle_x - (left + right) / 2) / globe.turn) * globe.turn
    return left + shift, bottom, right + shift, top


def split_at_seam(col: int, cols: int, turn: int) -> list[tuple[int, int]]:
    """Cuts columns [col, col + cols) at every multiple of `turn` into (first column modulo `turn`, number) each."""
    found, stop = [], col + cols
    while col < stop:
        count = min(stop, (col // turn + 1) * turn) - col
        found.append((col % turn, count))
        col += count
    return found


def wrapped_reference(grid: Grid) -> Grid:
    """A grid that goes round a body, begun at the pixel that holds its westernmost meridian (-180 degrees).

    Where the file begins is forgotten: grids that differ in that alone give the same.
    """
    globe, turn = planet_of(grid.crs), wrap_columns(grid)
    assert globe is not None and turn
    left = grid.left + math.floor((globe.west - grid.left) / grid.resolution_x + SNAP) * grid.resolution_x
    if abs(left - globe.west) < SNAP * grid.resolution_x:
        left = globe.west
    return replace(grid, left=left, cols=turn)


LEAST_AREA = 1e-12
"""Area of windows of which nothing lies between the poles."""


@dataclass(frozen=True)
class LatitudeWeights:
    """How a reference grid lies on a round body.

    Attributes:
        turn: reference columns after which the ground repeats, 0 = never.
        edges: (rows + 1,) sines of the latitudes of the rows' edges, from north to south, half a unit apart in all.
        polar: largest |sine| / 2 of the latitude of a tile's centre, 0.5 = none is too polar.
    """

    turn: int
    edges: np.ndarray
    polar: float

    def areas(self, rows: np.ndarray, height: int) -> np.ndarray:
        """(n,) area of windows, above 0, in units of their width times the pole-to-pole area of a column."""
        bottom = np.minimum(rows + height, len(self.edges) - 1)
        return np.maximum(self.edges[rows] - self.edges[bottom], LEAST_AREA)

    def is_polar(self, rows: np.ndarray, height: int) -> np.ndarray:
        """(n,) bool, whether the centre row of windows is too near a pole to train on or to score."""
        centre = np.minimum(rows + height / 2, len(self.edges) - 1)
        middle = np.interp(centre, np.arange(len(self.edges)), self.edges)
        return np.abs(middle) > self.polar
