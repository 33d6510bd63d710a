"""What a tree may know about a pixel: the value of every layer there, and local means and spreads.

A layer is taken in its native pixels. Sums over any rectangle of ground are differences of cumulative sums, which
between pixel corners are bilinear: read off by interpolation they are exact, weighted by shared area, and nothing
is resampled. Invalid pixels have no weight. Codes of classes and degrees are no numbers to take means of: what is
looked at are the shares of each class, and cosine and sine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.survey.inference_survey import InferenceSurvey

RADII = (1, 3, 8, 20)
"""Radii of local means and spreads, base pixels: the neighbours, a patch, and the surroundings of one and of three."""

# Native pixels along the edge of a window that is read at a time: 60 MB with its sums.
_WINDOW_EDGE = 1400
LEAST_AREA = 1e-6
"""Shared area, native pixels, below which nothing is known."""


def feature_names(survey: InferenceSurvey, *, radii: Sequence[int] = RADII) -> tuple[str, ...]:
    """Return the names of the features in the order of their columns: for each layer its value, means, spreads.

    Of classes it is the share of each and its means, of directions cosine and sine and their means. Layers that are
    hidden or absent have none.
    """
    return tuple(
        f"{survey.layers[channel].name}{plane}{suffix}"
        for channel in shown_layers(survey)
        for plane in survey.encodings[channel].feature_names()
        for suffix in (
            "",
            *(f" {kind} {radius}" for radius in radii for kind in survey.encodings[channel].neighbourhood),
        )
    )


def pixel_features(
    survey: InferenceSurvey, pixels: np.ndarray, *, scale: int = 1, radii: Sequence[int] = RADII
) -> np.ndarray:
    """Return the features of target pixels, window by window, one layer in memory at a time.

    Args:
        survey: the layers.
        pixels: (n, 2) target pixels as (row, col), in any order.
        scale: target pixels along the edge of a base pixel.
        radii: of the squares around a pixel's centre, base pixels; radius r covers 2 r + 1 base pixels.

    Returns:
        (n, F) float32 in physical units or shares, in the order of `feature_names`. The value is the mean over the
        target pixel, spreads are population standard deviations, all over valid pixels by shared area; NaN = none
        is valid there.

    Raises:
        OSError: a layer cannot be read; names layer, file and window.
    """
    shown, first = shown_layers(survey), 0
    features = np.full((len(pixels), len(feature_names(survey, radii=radii))), np.nan, dtype=np.float32)
    if not len(pixels):
        return features
    centres = (np.asarray(pixels, dtype=np.float64) + 0.5) / scale  # base pixels
    halves = (0.5 / scale, *(radius + 0.5 for radius in radii))
    for channel in shown:
        encoding = survey.encodings[channel]
        count = len(encoding.feature_names()) * (1 + len(encoding.neighbourhood) * len(radii))
        for members in by_window(survey, channel, centres, margin=max(halves)):
            features[members, first : first + count] = _layer_features(survey, channel, centres[members], halves)
        first += count
    return features


def shown_layers(survey: InferenceSurvey) -> list[int]:
    """Numbers of the layers that are neither hidden nor absent."""
    return [channel for channel in range(len(survey.stack)) if channel not in survey.stack.hidden]


def by_window(survey: InferenceSurvey, channel: int, centres: np.ndarray, *, margin: float) -> list[np.ndarray]:
    """Divides points into groups that lie near each other, so that what a group needs of a layer fits into memory.

    Args:
        survey: the layers.
        channel: number of the layer.
        centres: (n, 2) points as (row, col), base pixels.
        margin: what is looked at around a point, base pixels.

    Returns:
        Numbers of the points of each group.
    """
    edge = max(16.0, _WINDOW_EDGE / _pixels_per_base(survey, channel).max() - 2 * margin)
    tiles = np.floor(centres / edge).astype(np.int64)
    order = np.lexsort(tiles.T)
    ends = np.flatnonzero(np.any(np.diff(tiles[order], axis=0) != 0, axis=1)) + 1
    return np.split(order, ends)


def _pixels_per_base(survey: InferenceSurvey, channel: int) -> np.ndarray:
    """(2,) rows and columns of a layer's native pixels in a base pixel."""
    grid, placement = survey.stack.reference, survey.stack.placements[channel]
    ratios = [placement.ratio_y / grid.resolution_y, placement.ratio_x / grid.resolution_x]
    return survey.base_resolution * np.array(ratios)


def squares_around(
    survey: InferenceSurvey, channel: int, centres: np.ndarray, halves: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Squares around points, in a layer's native pixels.

    Args:
        survey: the layers.
        channel: number of the layer.
        centres: (n, 2) points as (row, col), base pixels.
        halves: half the edge of each of R squares, base pixels.

    Returns:
        (R, n, 2) upper left corners, and lower right ones.
    """
    placement, per_base = survey.stack.placements[channel], _pixels_per_base(survey, channel)
    offset = np.array([placement.offset_y, placement.offset_x])
    lows = np.stack([np.round((centres - half) * per_base + offset, 6) for half in halves])
    highs = np.stack([np.round((centres + half) * per_base + offset, 6) for half in halves])
    return lows, highs


def _layer_features(survey: InferenceSurvey, channel: int, centres: np.ndarray, halves: Sequence[float]) -> np.ndarray:
    """(n, columns of the layer) features of points, given in base pixels, that lie near each other."""
    lows, highs = squares_around(survey, channel, centres, halves)  # (1 + R, n, 2)
    first = np.floor(lows.min(axis=(0, 1))).astype(int)
    shape = np.ceil(highs.max(axis=(0, 1))).astype(int) - first
    values = survey.stack.read(channel, int(first[0]), int(first[1]), int(shape[0]), int(shape[1]))
    encoding = survey.encodings[channel]
    with_std = "std" in encoding.neighbourhood
    found = [_plane_features(plane, lows - first, highs - first, with_std) for plane in encoding.features(values)]
    return np.concatenate(found, axis=1)


def _plane_features(plane: np.ndarray, lows: np.ndarray, highs: np.ndarray, spreads: bool) -> np.ndarray:
    """(n, 1 + R or 1 + 2 R): value, means and, if wanted, spreads of rectangles between (1 + R, n, 2) corners."""
    valid = ~np.isnan(plane)
    if not valid.any():
        return np.full((lows.shape[1], 1 + (len(lows) - 1) * (1 + spreads)), np.nan)
    middle = plane[valid].mean(dtype=np.float64)  # squares of what remains lose no digits
    centred = np.where(valid, plane - middle, 0.0)
    sums = cumulative([valid, centred, np.square(centred)])
    columns = []
    for number, (low, high) in enumerate(zip(lows, highs, strict=True)):
        area, total, squares = sums_inside(sums, low, high).T
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(area > LEAST_AREA, total / area, np.nan)
            spread = np.sqrt(np.maximum(squares / area - mean**2, 0.0))
        columns += [mean + middle, spread] if number and spreads else [mean + middle]
    return np.stack(columns, axis=1)


def cumulative(planes: Sequence[np.ndarray]) -> np.ndarray:
    """(rows + 1, cols + 1, P) float64 sums of P planes over all that is above and left of a pixel corner."""
    rows, cols = planes[0].shape
    sums = np.zeros((rows + 1, cols + 1, len(planes)))
    for k, plane in enumerate(planes):
        np.cumsum(plane, axis=0, dtype=np.float64, out=sums[1:, 1:, k])
        np.cumsum(sums[1:, 1:, k], axis=1, out=sums[1:, 1:, k])
    return sums


def sums_inside(sums: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(n, P) sums over rectangles between (n, 2) corners in pixels, of sums as `cumulative` gives them."""
    total = np.zeros((len(low), sums.shape[2]))
    for row, row_sign in ((high[:, 0], 1), (low[:, 0], -1)):
        for col, col_sign in ((high[:, 1], 1), (low[:, 1], -1)):
            total += row_sign * col_sign * _at(sums, row, col)
    return total


def _at(sums: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """(n, P) sums above and left of points in pixels, by bilinear interpolation between pixel corners."""
    i = np.minimum(row.astype(np.int64), sums.shape[0] - 2)
    j = np.minimum(col.astype(np.int64), sums.shape[1] - 2)
    down, right = (row - i)[:, None], (col - j)[:, None]
    upper = sums[i, j] * (1 - right) + sums[i, j + 1] * right
    lower = sums[i + 1, j] * (1 - right) + sums[i + 1, j + 1] * right
    return upper * (1 - down) + lower * down
