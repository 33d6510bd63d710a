"""Bands whose columns wrap around a planet, read across the date line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datasets.ground.grid import Grid
from datasets.ground.planet import planet_of
from datasets.ground.wraparound import SNAP, bounds_near, split_at_seam, wrap_columns, wraps
from datasets.rasters.band import RasterBand


@dataclass(frozen=True, eq=False)
class WrappedBand:
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
        parts = [
            self.band.read(row, first, rows, count) for first, count in split_at_seam(col + self.first, cols, self.turn)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def wrapped_band(band: RasterBand, reference: Grid) -> RasterBand | WrappedBand:
    """A layer as it is seen from a reference grid: begun at its left edge if it goes round, else moved by whole turns.

    A layer that does not go round but lies across the edge of a reference grid that does gets the columns of a whole
    turn, with nothing in those that it does not cover.

    Returns:
        The band itself if there is nothing to do, or no way to do it: a turn is not a whole number of its pixels.
    """
    grid, turn = band.grid, wrap_columns(band.grid)
    if not turn:
        return band
    start = (reference.left - grid.left) / grid.resolution_x
    if not wraps(grid):
        if wraps(reference):
            behind = -start % turn
            turns = round((behind + start) / turn)
            across = behind + grid.cols > turn + SNAP and behind < turn - SNAP
        else:
            middle = (reference.bounds[0] + reference.bounds[2]) / 2
            turns, across = round((bounds_near(grid, middle)[0] - grid.left) / grid.resolution_x / turn), False
        if not across:
            moved = replace(grid, left=grid.left + turns * turn * grid.resolution_x) if turns else grid
            return WrappedBand(band, moved, 0, turn) if turns or wraps(reference) else band
    first = math.ceil(start - 0.5 - 1e-6)  # the first pixel whose centre lies on the reference grid
    rolled = replace(grid, left=grid.left + first * grid.resolution_x, cols=turn)
    return WrappedBand(band, rolled, first % turn, turn)


def wraparound_remarks(bands: Sequence[RasterBand], reference: Grid) -> list[str]:
    """What a user should know of layers in longitude and latitude."""
    globe = planet_of(reference.crs)
    if globe is None:
        return []
    notes = []
    if not wraps(reference) and reference.cols * reference.resolution_x > 0.9 * globe.turn:
        pixels = globe.turn / reference.resolution_x
        why = f"a turn is {pixels:.6g} pixels, not a whole number" if not wrap_columns(reference) else "it has a gap"
        notes.append(f"the reference grid nearly goes round, but {why}: tiles do not cross its ends")
    for band in bands:
        turn = wrap_columns(band.grid)
        if not turn and wraps(reference):
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
