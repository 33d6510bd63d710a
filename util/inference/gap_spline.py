"""Gaps in a grid: which are narrow enough to be filled, and how a prediction is joined to what lies around them."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage, sparse
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator, RBFInterpolator
from scipy.spatial import QhullError

RING = 4
"""Width of the ring of valid pixels around a gap that it is filled from, pixels: enough to show slope and bend."""

SPLINE_POINTS = 1500
"""Most points of a spline: its cost grows with their cube."""


def fillable(valid: np.ndarray, *, width_y: float, width_x: float) -> np.ndarray:
    """Which invalid pixels lie in gaps narrower than a width: the closing of the valid ones by an ellipse.

    A gap is filled wherever no disc of that diameter fits into it. A wider gap, and the ground beyond an outline, is
    left alone but for corners and bays narrower than that.

    Args:
        valid: (rows, cols) bool, with a margin of at least the width on every side that is not the raster's edge.
        width_y: diameter in rows.
        width_x: diameter in columns.

    Returns:
        (rows, cols) bool, True where an invalid pixel is to be filled.
    """
    if valid.all() or not valid.any() or min(width_y, width_x) <= 0:
        return np.zeros(valid.shape, dtype=bool)
    margin_y, margin_x = math.ceil(width_y) + 1, math.ceil(width_x) + 1
    # Beyond the window nothing is valid: the closing never reaches out of it.
    padded = np.pad(valid, ((margin_y, margin_y), (margin_x, margin_x)))
    sampling = (2.0 / width_y, 2.0 / width_x)  # distances in radii
    grown = ndimage.distance_transform_edt(~padded, sampling=sampling) <= 1.0
    closed = ndimage.distance_transform_edt(grown, sampling=sampling) > 1.0
    return closed[margin_y:-margin_y, margin_x:-margin_x] & ~valid


def gap_details(values: np.ndarray, predicted: np.ndarray, fill: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the values around each gap say about it, and what a prediction adds.

    The first is a thin-plate spline (minimum curvature) through a ring of valid pixels around the gap. The second is
    the prediction less the same spline through the prediction on that ring: the shape that the surroundings do not
    show. Their sum meets the values around the gap.

    Args:
        values: (rows, cols) float32, NaN where invalid.
        predicted: (rows, cols) float32, NaN where nothing was predicted.
        fill: (rows, cols) bool, where to fill.

    Returns:
        Spline and detail, (rows, cols) float32, NaN outside of `fill` and where nothing was predicted.
    """
    spline, detail = (np.full(values.shape, np.nan, dtype=np.float32) for _ in range(2))
    labels, _ = ndimage.label(fill, structure=np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        window = tuple(slice(max(0, side.start - RING), side.stop + RING) for side in box)
        gap = labels[window] == number
        known = np.isfinite(values[window]) & np.isfinite(predicted[window])
        ring = ndimage.binary_dilation(gap, structure=np.ones((3, 3)), iterations=RING) & known
        wanted = gap & np.isfinite(predicted[window])
        if not ring.any() or not wanted.any():
            continue
        pair = np.stack([values[window][ring], predicted[window][ring]], axis=1).astype(np.float64)
        across = _spline(np.argwhere(ring), pair, np.argwhere(wanted))
        spline[window][wanted] = across[:, 0]
        detail[window][wanted] = predicted[window][wanted] - across[:, 1]
    return spline, detail


def _spline(points: np.ndarray, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Thin-plate spline of (n, k) values at (n, 2) points; of very many points some, and linear for what they miss."""
    if len(points) <= 3:
        return np.broadcast_to(values.mean(axis=0), (len(targets), values.shape[1]))
    some = np.linspace(0, len(points) - 1, min(SPLINE_POINTS, len(points))).round().astype(int)
    try:
        surface = RBFInterpolator(points[some], values[some], kernel="thin_plate_spline")
    except (np.linalg.LinAlgError, ValueError):  # all on one line
        return _interpolate(points, values, targets)
    result = surface(targets)
    if len(some) < len(points):
        result = result + _interpolate(points, values - surface(points), targets)
    return result


def _interpolate(points: np.ndarray, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    nearest = NearestNDInterpolator(points, values)(targets)
    try:
        linear = LinearNDInterpolator(points, values)(targets)
    except QhullError:  # too few points, or all on one line
        return nearest
    return np.where(np.isfinite(linear), linear, nearest)


def resample_linear(image: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Bilinear values of an image at pixel coordinates (centres of pixels at whole numbers).

    Args:
        image: (h, w) float32, NaN where unknown.
        rows: (r,) row coordinates.
        cols: (c,) column coordinates.

    Returns:
        (r, c) float32: averages of the known ones among the four neighbours, NaN where the nearest is unknown.
    """
    known = np.isfinite(image)
    weights_y, weights_x = _linear_weights(rows, image.shape[0]), _linear_weights(cols, image.shape[1])
    total = weights_y @ np.where(known, image, 0.0) @ weights_x.T
    weight = weights_y @ known.astype(np.float64) @ weights_x.T
    nearest = known[np.ix_(_nearest(rows, image.shape[0]), _nearest(cols, image.shape[1]))]
    return np.where(nearest & (weight > 0), total / np.maximum(weight, 1e-12), np.nan).astype(np.float32)


def _nearest(places: np.ndarray, count: int) -> np.ndarray:
    return np.clip(np.floor(places + 0.5).astype(np.int64), 0, count - 1)


def _linear_weights(places: np.ndarray, count: int) -> sparse.csr_matrix:
    places = np.clip(places, 0, count - 1)
    first = np.minimum(np.floor(places).astype(np.int64), max(count - 2, 0))
    fraction = places - first
    second = np.minimum(first + 1, count - 1)
    index = np.arange(len(places))
    return sparse.csr_matrix(
        (np.concatenate([1 - fraction, fraction]), (np.tile(index, 2), np.concatenate([first, second]))),
        shape=(len(places), count),
    )
