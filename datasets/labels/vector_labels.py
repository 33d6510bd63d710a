"""Vector labels: features rasterised on target pixels as they are read."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import groupby

import geopandas
import numpy as np
import shapely
from affine import Affine
from rasterio.features import rasterize

from datasets.ground.grid import Grid
from datasets.labels.columns import with_codes, with_values
from datasets.layers.class_table import Code

logger = logging.getLogger(__name__)

# Polygons with more vertices are cut to the window before they are burned.
_MANY_VERTICES = 256


@dataclass(frozen=True, eq=False)
class LabelVectors:
    """Features on target pixels, later ones over earlier ones, at most one point in each. Picklable.

    Attributes:
        shapes: polygons, lines and points in pixels of the grid, (column, row), as they are burned in order.
        values: (n,) float32, what each burns: class number or value, NaN = nothing.
        codes: the class code of each shape; None: measurements.
        tree: spatial index of the shapes.
    """

    shapes: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)
    codes: tuple[Code, ...] | None = field(repr=False)
    tree: shapely.STRtree = field(repr=False)

    def read(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """Burn a window as float32, NaN = unlabelled.

        A polygon burns the pixels whose centre is inside it, a line those it passes through, a point its own.
        """
        window = np.full((rows, cols), np.nan, dtype=np.float32)
        near = np.sort(self.tree.query(shapely.box(col, row, col + cols, row + rows)))
        near = near[~np.isnan(self.values[near])]
        dimensions = shapely.get_dimensions(self.shapes[near])
        burnt = [
            (dimension, _cut(self.shapes[k], row, col, rows, cols), float(self.values[k]))
            for dimension, k in zip(dimensions, near, strict=True)
        ]
        for dimension, group in groupby(burnt, key=lambda each: int(each[0])):
            pairs = [(shape, value) for _, shape, value in group if not shape.is_empty]
            if pairs:
                rasterize(pairs, out=window, transform=Affine.translation(col, row), all_touched=dimension == 1)
        return window

    def numbered(self, codes: tuple[Code, ...]) -> LabelVectors:
        """The same labels with classes numbered as in `codes`; features of other codes burn nothing."""
        number = {code: k for k, code in enumerate(codes)}
        assert self.codes is not None
        values = np.array([number.get(code, np.nan) for code in self.codes], dtype=np.float32)
        return replace(self, values=values)


def _cut(shape: shapely.Geometry, row: int, col: int, rows: int, cols: int) -> shapely.Geometry:
    """A large polygon clipped to a window and a pixel around it."""
    if shapely.get_dimensions(shape) < 2 or shapely.get_num_coordinates(shape) <= _MANY_VERTICES:
        return shape
    return shapely.clip_by_rect(shape, col - 1, row - 1, col + cols + 1, row + rows + 1)


def open_label_vectors(
    frame: geopandas.GeoDataFrame, *, kind: str, grid: Grid, column: str, where: str, nodata: float | None = None
) -> LabelVectors:
    """Turns features into labels; points that share a target pixel become one: their mean, or the commonest class.

    Args:
        frame: features in the grid's CRS, as `read_features` gives them.
        kind: `classes` or `values`.
        grid: target pixels.
        column: attribute to burn.
        where: names the labels in messages.
        nodata: number in the column that means unlabelled, besides those that are recognised.

    Raises:
        ValueError: values that are not numbers, or more than `MAX_CLASSES` classes.
    """
    codes: tuple[Code, ...] | None = None
    if kind == "classes":
        frame, codes = with_codes(frame, column, where, nodata)
        numbers = np.full(len(frame), np.nan, dtype=np.float32)
    else:
        frame, numbers = with_values(frame, column, where, nodata)
    shapes, owner = _parts(np.asarray(frame.geometry.values, dtype=object))
    shapes = shapely.transform(
        shapes,
        lambda xy: np.column_stack(
            [(xy[:, 0] - grid.left) / grid.resolution_x, (grid.top - xy[:, 1]) / grid.resolution_y]
        ),
    )
    values = numbers[owner]
    parts = None if codes is None else tuple(codes[k] for k in owner)
    keep = _merge_points(shapes, values, parts, where)
    return LabelVectors(
        shapes=shapes[keep],
        values=values[keep],
        codes=None if parts is None else tuple(parts[k] for k in keep),
        tree=shapely.STRtree(shapes[keep]),
    )


def _merge_points(shapes: np.ndarray, values: np.ndarray, codes: tuple[Code, ...] | None, where: str) -> np.ndarray:
    """Which shapes to keep, ascending: all but points that share a target pixel, of which one stands for all.

    Of values it is the last, which gets their mean, in `values`; of classes the last of the commonest class.
    """
    points = np.flatnonzero((shapely.get_dimensions(shapes) == 0) & (np.isfinite(values) | (codes is not None)))
    if not len(points):
        return np.arange(len(shapes))
    _, pixel = np.unique(np.floor(shapely.get_coordinates(shapes[points])), axis=0, return_inverse=True)
    order = np.argsort(pixel, kind="stable")
    groups = np.split(points[order], np.flatnonzero(np.diff(pixel[order])) + 1)
    keep, shared, mixed = np.ones(len(shapes), dtype=bool), 0, 0
    for group in (group for group in groups if len(group) > 1):
        shared += 1
        chosen = group[-1]
        if codes is None:
            values[chosen] = np.mean(values[group], dtype=np.float64)
        else:
            counts = Counter(codes[k] for k in group)
            mixed += len(counts) > 1
            chosen = max(group, key=lambda k: (counts[codes[k]], k))
        keep[group] = False
        keep[chosen] = True
    if mixed:
        logger.warning(
            "%s: %d of %d target pixels with points hold points of several classes: labelled with the commonest of "
            "them; finer target pixels (--label_scale) may tell them apart",
            where,
            mixed,
            len(groups),
        )
    elif shared and codes is None:
        logger.info(
            "%s: %d of %d target pixels with points hold several: labelled with their mean", where, shared, len(groups)
        )
    return np.flatnonzero(keep)


def _parts(geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Valid single polygons, lines and points in order, and which of the geometries each came from."""
    parts, owner = shapely.get_parts(geometries, return_index=True)
    parts, again = shapely.get_parts(parts, return_index=True)  # collections may hold collections
    owner = owner[again]
    broken = ~shapely.is_valid(parts) & (shapely.get_dimensions(parts) == 2)
    if broken.any():
        parts[broken] = shapely.make_valid(parts[broken])
        whole = shapely.get_dimensions(parts)
        parts, again = shapely.get_parts(parts, return_index=True)
        parts, third = shapely.get_parts(parts, return_index=True)
        again = again[third]
        keep = shapely.get_dimensions(parts) == whole[again]  # repairing a polygon may leave loose lines
        parts, owner = parts[keep], owner[again[keep]]
    keep = ~shapely.is_empty(parts)
    return parts[keep], owner[keep]
