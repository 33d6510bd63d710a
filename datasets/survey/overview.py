"""What was opened, as plain values for a page: a row with a histogram for each layer, and a map of the ground.

Histograms are of a sample: windows of native pixels at random places of a layer, so that their cost does not grow with
the raster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from datasets.ground.grid import Grid, crs_name, length_text, length_unit
from datasets.layers.encoding import Encoding
from datasets.layers.layer import Layer
from datasets.rasters.scan import BandSummary
from datasets.survey.stack import Stack

WINDOWS, WINDOW = 24, 64
"""Number and edge, native pixels, of the windows of which a histogram is made."""
BINS = 32
TAILS = 0.5
"""Percent of the values at either end that a histogram leaves out, so that outliers do not flatten it."""
MOST_CLASSES = 12
"""Classes that a histogram shows, the commonest."""
MAP_CELLS = 96
"""Cells along the longer edge of a map of coverage, at most."""
MOST_TILES = 1500
"""Tiles that a map shows; of more it shows none."""


def layer_rows(
    stack: Stack,
    summaries: Sequence[BandSummary | None],
    encodings: Sequence[Encoding],
    groups: Sequence[Sequence[int]] = (),
) -> list[dict[str, Any]]:
    """What a page says of each layer of rasters.

    Args:
        stack: the layers.
        summaries: per layer, what scanning it found; None if it is absent.
        encodings: per layer, how its values become channels.
        groups: groups of layers that share tokens.

    Raises:
        OSError: a layer cannot be read.
    """
    group_of = {channel: number for number, group in enumerate(groups) for channel in group}
    rows = []
    for channel, (band, summary, encoding) in enumerate(zip(stack.bands, summaries, encodings, strict=True)):
        row = layer_facts(band.layer, encoding) | {"group": group_of.get(channel)}
        if summary is None:
            rows.append(row | {"state": "absent"})
            continue
        row |= {
            "pixels": f"{band.grid.cols} x {band.grid.rows}",
            "pixel": length_text(band.grid.resolution_x, band.grid.crs),
            "valid": summary.valid_fraction,
            "range": None if encoding.is_classes else [summary.minimum, summary.maximum],
        }
        if channel in stack.hidden:
            rows.append(row | {"state": "hidden"})
        else:
            rows.append(row | {"histogram": histogram(_sample(stack, channel), encoding)})
    return rows


def layer_facts(layer: Layer, encoding: Encoding) -> dict[str, Any]:
    """What a page says of any layer: name, file, kind, unit, transform."""
    return {
        "name": layer.name,
        "file": layer.files,
        "kind": layer.kind,
        "unit": encoding.unit(layer.units),
        "transform": layer.transform if layer.is_transformed else "",
    }


def _sample(stack: Stack, channel: int) -> np.ndarray:
    """(n,) valid values of windows at random places of a layer, all of it if it is small; the same in every run."""
    grid = stack.bands[channel].grid
    if grid.rows * grid.cols <= WINDOWS * WINDOW**2:
        values = stack.read(channel, 0, 0, grid.rows, grid.cols)
        return values[np.isfinite(values)]
    rng = np.random.default_rng((channel, 0))
    rows, cols = min(WINDOW, grid.rows), min(WINDOW, grid.cols)
    places = rng.integers((0, 0), (grid.rows - rows + 1, grid.cols - cols + 1), size=(WINDOWS, 2))
    windows = [stack.read(channel, int(row), int(col), rows, cols) for row, col in places]
    return np.concatenate([window[np.isfinite(window)] for window in windows])


def histogram(values: np.ndarray, encoding: Encoding) -> dict[str, Any] | None:
    """Counts of values in equal intervals, or of classes; None without any value.

    Args:
        values: (n,) valid values.
        encoding: of their layer.
    """
    if not len(values):
        return None
    if encoding.is_classes:
        counts = [int((values == np.float32(code)).sum()) for code in encoding.codes]
        order = sorted(range(len(counts)), key=lambda k: -counts[k])[:MOST_CLASSES]
        names = [encoding.names[k] or f"{encoding.codes[k]:g}" for k in order]
        return {"names": names, "counts": [counts[k] for k in order], "values": len(values)}
    low, high = (float(x) for x in np.percentile(values, (TAILS, 100 - TAILS)))
    if low == high:
        low, high = float(values.min()), float(values.max())
    counts_of, _ = np.histogram(values, bins=BINS, range=(low, high))
    return {"low": low, "high": high, "counts": counts_of.tolist(), "values": len(values)}


def ground_map(grid: Grid, *, fraction: np.ndarray | None = None, cell: float = 1.0) -> dict[str, Any]:
    """The frame of a map of the ground, with the fraction of each cell that is valid, or labelled, in percent.

    Args:
        grid: the reference grid.
        fraction: (cell rows, cell cols) fractions from the north-western corner; the last cells may reach beyond the
            grid. None: not known.
        cell: edge of a cell, pixels of `grid`.
    """
    left, bottom, right, top = grid.bounds
    frame = {"bounds": [left, bottom, right, top], "unit": length_unit(grid.crs), "crs": crs_name(grid.crs)}
    if fraction is None:
        return frame
    rows, cols = (number * cell for number in fraction.shape)
    reach = [left, top - rows * grid.resolution_y, left + cols * grid.resolution_x, top]
    percent = np.rint(100 * _coarser(fraction, MAP_CELLS)).astype(int)
    return frame | {"cells": {"bounds": reach, "percent": percent.tolist()}}


def _coarser(image: np.ndarray, most: int) -> np.ndarray:
    """Means of an image over square cells, so that no edge has more than a number of them."""
    edge = math.ceil(max(image.shape) / most)
    rows, cols = (np.arange(0, length, edge) for length in image.shape)
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows, axis=0), cols, axis=1)
    heights, widths = (np.diff([*starts, length]) for starts, length in zip((rows, cols), image.shape, strict=True))
    return sums / np.outer(heights, widths)


def tile_centres(grid: Grid, origins: np.ndarray, *, height: int, width: int) -> list[list[float]]:
    """[x, y] of the centres of tiles, CRS units; none if there are too many to be drawn.

    Args:
        grid: the reference grid.
        origins: (n, 2) their (row, col).
        height: of a tile, reference pixels.
        width: likewise.
    """
    if len(origins) > MOST_TILES:
        return []
    rows, cols = (origins + np.array([height / 2, width / 2])).T
    x, y = grid.left + cols * grid.resolution_x, grid.top - rows * grid.resolution_y
    return np.stack([x, y], axis=1).tolist()


def plain_rows(rows: Iterable[Sequence[Any]]) -> list[list[str]]:
    """Pairs of a name and a value, as text."""
    return [[str(name), f"{value:,}" if isinstance(value, int) else str(value)] for name, value in rows]
