"""Grids that go round a body: columns that come back to themselves, ground that shrinks towards the poles.

A grid whose columns go once round has no first column: where its file happens to begin decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datasets.band import Grid, RasterBand
from datasets.globe import globe_of
from datasets.tiles import RoundGround

SNAP = 0.01
"""A turn this close to a whole number of pixels is one: misfits of less than this share of a pixel are rounding."""

POLAR_LATITUDE = 80.0
"""Degrees. Of grids that go round a body, tiles centred poleward of this are neither trained on nor scored.

Pixels there are less than 0.18 as wide as high."""


def round_ground(grid: Grid) -> RoundGround | None:
    """How a reference grid lies on a round body; None if it lies on none."""
    globe = globe_of(grid.crs)
    if globe is None:
        return None
    y = grid.top - np.arange(grid.rows + 1) * grid.resolution_y
    sines = np.sin(np.radians(globe.latitude(y))) / 2
    if not goes_round(grid):
        return RoundGround(0, sines, 0.5)
    return RoundGround(columns_of_turn(grid), sines, math.sin(math.radians(POLAR_LATITUDE)) / 2)


def ground_m(grid: Grid, row: float) -> tuple[float, float]:
    """Metres on the ground of a CRS unit of x and of y at a row of a grid; ones if it lies on no round body."""
    globe = globe_of(grid.crs)
    return (1.0, 1.0) if globe is None else globe.ground_m(grid.top - row * grid.resolution_y)


def ground_lines(grid: Grid, base: float, rows: tuple[int, int]) -> list[str]:
    """What pixels of a grid on a round body measure on the ground, and how tiles are drawn there, as lines to log.

    Args:
        grid: the reference grid.
        base: edge of a base-scale pixel, CRS units.
        rows: centre rows of the northernmost and the southernmost training tile.
    """
    globe = globe_of(grid.crs)
    if globe is None:
        return []
    places = []
    for row in sorted(set(rows)):
        across, along = (length_text(base * metres) for metres in ground_m(grid, row))
        latitude = float(globe.latitude(grid.top - row * grid.resolution_y))
        places.append(f"{across} wide and {along} high at latitude {latitude:.4g}")
    lines = [f"a base pixel is {', '.join(places)}; tiles are drawn by their ground's area"]
    if goes_round(grid):
        lines.append(
            f"the grid goes round: tiles cross {float(globe.west):g}; those centred poleward of {POLAR_LATITUDE:g} "
            "degrees are neither trained on nor scored"
        )
    return lines


def length_text(metres: float) -> str:
    """A length as a person writes it."""
    return f"{metres / 1000:.4g} km" if metres >= 1000 else f"{metres:.4g} m"


def columns_of_turn(grid: Grid) -> int:
    """Columns after which a grid's ground repeats; 0 if it is on no round body, or they are not a whole number."""
    globe = globe_of(grid.crs)
    if globe is None:
        return 0
    columns = globe.turn / grid.resolution_x
    return round(columns) if abs(columns - round(columns)) < SNAP else 0


def goes_round(grid: Grid) -> bool:
    """Whether a grid's columns cover a full circle of longitude, in a whole number of pixels."""
    columns = columns_of_turn(grid)
    return 0 < columns <= grid.cols


def bounds_near(grid: Grid, middle_x: float) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of a grid, moved by whole turns to where its middle is nearest to `middle_x`."""
    left, bottom, right, top = grid.bounds
    globe = globe_of(grid.crs)
    if globe is None:
        return left, bottom, right, top
    shift = round((middle_x - (left + right) / 2) / globe.turn) * globe.turn
    return left + shift, bottom, right + shift, top


def pieces(col: int, cols: int, turn: int) -> list[tuple[int, int]]:
    """Cuts columns [col, col + cols) at every multiple of `turn` into (first column modulo `turn`, number) each."""
    found, stop = [], col + cols
    while col < stop:
        count = min(stop, (col // turn + 1) * turn) - col
        found.append((col % turn, count))
        col += count
    return found


@dataclass(frozen=True, eq=False)
class RoundBand:
    """A layer on a round body, whose columns repeat after a turn.

    Offers what the band does; its grid may begin at another column.

    Attributes:
        band: the layer as its file has it.
        grid: its pixels on the ground, from wherever the reference grid begins.
        first: the file's column at which the grid begins.
        turn: columns after which the ground repeats.
    """

    band: RasterBand
    grid: Grid
    first: int
    turn: int

    def __getattr__(self, name: str) -> Any:
        """Anything else is the band's own."""
        if name.startswith("__") or name == "band":  # not there while a copy is being made
            raise AttributeError(name)
        return getattr(self.band, name)

    def read(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """(rows, cols) float32 of a window that may lie anywhere, NaN where invalid; read round the body.

        Raises:
            OSError: as the band's own `read`.
        """
        parts = [self.band.read(row, first, rows, count) for first, count in pieces(col + self.first, cols, self.turn)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def round_band(band: RasterBand, reference: Grid) -> RasterBand | RoundBand:
    """A layer as it is seen from a reference grid: begun at its left edge if it goes round, else moved by whole turns.

    A layer that does not go round but lies across the edge of a reference grid that does gets the columns of a whole
    turn, with nothing in those that it does not cover.

    Returns:
        The band itself if there is nothing to do, or no way to do it: a turn is not a whole number of its pixels.
    """
    grid, turn = band.grid, columns_of_turn(band.grid)
    if not turn:
        return band
    start = (reference.left - grid.left) / grid.resolution_x
    if not goes_round(grid):
        if goes_round(reference):
            behind = -start % turn
            turns = round((behind + start) / turn)
            across = behind + grid.cols > turn + SNAP and behind < turn - SNAP
        else:
            middle = (reference.bounds[0] + reference.bounds[2]) / 2
            turns, across = round((bounds_near(grid, middle)[0] - grid.left) / grid.resolution_x / turn), False
        if not across:
            moved = replace(grid, left=grid.left + turns * turn * grid.resolution_x) if turns else grid
            return RoundBand(band, moved, 0, turn) if turns or goes_round(reference) else band
    first = math.ceil(start - 0.5 - 1e-6)  # the first pixel whose centre lies on the reference grid
    rolled = replace(grid, left=grid.left + first * grid.resolution_x, cols=turn)
    return RoundBand(band, rolled, first % turn, turn)


def round_reference(grid: Grid) -> Grid:
    """A grid that goes round a body, begun at the pixel that holds its westernmost meridian (-180 degrees).

    Where the file begins is forgotten: grids that differ in that alone give the same.
    """
    globe, turn = globe_of(grid.crs), columns_of_turn(grid)
    assert globe is not None and turn
    left = grid.left + math.floor((globe.west - grid.left) / grid.resolution_x + SNAP) * grid.resolution_x
    if abs(left - globe.west) < SNAP * grid.resolution_x:
        left = globe.west
    return replace(grid, left=left, cols=turn)


def round_notes(bands: Sequence[RasterBand], reference: Grid) -> list[str]:
    """What a user should know of layers in longitude and latitude."""
    globe = globe_of(reference.crs)
    if globe is None:
        return []
    notes = []
    if not goes_round(reference) and reference.cols * reference.resolution_x > 0.9 * globe.turn:
        pixels = globe.turn / reference.resolution_x
        why = f"a turn is {pixels:.6g} pixels, not a whole number" if not columns_of_turn(reference) else "it has a gap"
        notes.append(f"the reference grid nearly goes round, but {why}: tiles do not cross its ends")
    for band in bands:
        turn = columns_of_turn(band.grid)
        if not turn and goes_round(reference):
            notes.append(
                f"layer '{band.layer.name}': a turn is {globe.turn / band.grid.resolution_x:.6g} of its pixels, not a "
                "whole number: it is not read across its ends; resample it to pixels that divide a turn"
            )
        elif turn and band.grid.cols > turn:
            notes.append(
                f"layer '{band.layer.name}': covers more than a turn; its last {band.grid.cols - turn} columns repeat "
                "ground and are not used"
            )
    return notes
