"""What untrained random convolutions make of a layer's native pixels around a target pixel.

After Rolf et al. (2021), "A generalizable and accessible approach to machine learning with global satellite imagery"
(MOSAIKS): filters are random patches of the data, whitened; their rectified responses are averaged. Here each layer has
its own filters, drawn where training labels lie (the labels themselves play no part), and averages are taken over
squares around a pixel instead of whole images. Nothing is resampled, and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from datasets.finetuning.pixel_features import (
    LEAST_AREA,
    by_window,
    cumulative,
    shown_layers,
    squares_around,
    sums_inside,
)
from datasets.survey.inference_survey import InferenceSurvey

FILTERS = 16
"""Filters of each layer. A filter gives two features for each radius: positive and negative responses, apart."""
RADII = (1, 4)
"""Radii of the squares over which responses are averaged, base pixels."""

# Pixels along the edge of a filter, as in MOSAIKS, and beyond its middle.
_EDGE, _MARGIN = 3, 1
# Patches of a layer that filters are made of; these many numbers of a patch have a covariance that is well known.
_PATCHES = 4000
# Part of the mean variance that whitening adds to every variance: detail below it is taken for noise.
_RIDGE = 1e-3
# Filters whose responses are in memory at a time, 16 bytes for each and pixel of a window: 125 MB with their sums.
_AT_ONCE = 4


@dataclass(frozen=True)
class LayerFilters:
    """Random filters of one layer.

    Attributes:
        weights: (K, channels of the layer, edge, edge) float32; responses have a variance of about 1.
        bias: (K,) float32, makes the mean response 0.
    """

    weights: torch.Tensor
    bias: torch.Tensor


def draw_filters(
    survey: InferenceSurvey, pixels: np.ndarray, *, scale: int = 1, count: int = FILTERS, seed: int = 0
) -> dict[int, LayerFilters]:
    """Draws the filters of every layer that is shown and has a valid pixel there.

    Args:
        survey: the layers.
        pixels: (n, 2) target pixels as (row, col) of training ground.
        scale: target pixels along the edge of a base pixel.
        count: filters of a layer.
        seed: of the choice of patches.

    Returns:
        Filters by the number of the layer.

    Raises:
        OSError: a layer cannot be read; names layer, file and window.
    """
    filters = {}
    for channel in shown_layers(survey):
        rng = np.random.default_rng((seed, 14, channel))
        chosen = np.sort(rng.permutation(len(pixels))[:_PATCHES])
        places = (pixels[chosen] + rng.random((len(chosen), 2))) / scale  # anywhere in the pixel
        patches = np.concatenate(list(_patches(survey, channel, places)))
        if len(patches):
            filters[channel] = _whitened(patches, count, rng)
    return filters


def random_features(
    survey: InferenceSurvey,
    filters: Mapping[int, LayerFilters],
    pixels: np.ndarray,
    *,
    scale: int = 1,
    radii: Sequence[int] = RADII,
) -> np.ndarray:
    """Returns the features of target pixels, window by window, a few filters of a layer in memory at a time.

    Args:
        survey: the layers.
        filters: of each layer.
        pixels: (n, 2) target pixels as (row, col), in any order.
        scale: target pixels along the edge of a base pixel.
        radii: of the squares around a pixel's centre, base pixels; radius r covers 2 r + 1 base pixels.

    Returns:
        (n, F) float32: of each layer and radius the valid share of the square, then for each filter the mean of its
        response where that is positive, else 0, and of the negative response likewise. Means are over valid pixels by
        shared area; NaN = none is valid there.

    Raises:
        OSError: a layer cannot be read; names layer, file and window.
    """
    counts = [len(radii) * (1 + 2 * len(layer.bias)) for layer in filters.values()]
    features = np.full((len(pixels), sum(counts)), np.nan, dtype=np.float32)
    if not len(pixels):
        return features
    centres = (np.asarray(pixels, dtype=np.float64) + 0.5) / scale  # base pixels
    halves = [radius + 0.5 for radius in radii]
    for channel, last, columns in zip(filters, np.cumsum(counts), counts, strict=True):
        for members in by_window(survey, channel, centres, margin=max(halves)):
            found = _layer_features(survey, channel, filters[channel], centres[members], halves)
            features[members, last - columns : last] = found
    return features


def _encoded(
    survey: InferenceSurvey, channel: int, first: np.ndarray, shape: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Channels (1, k, rows, cols) of a window of a layer, 0 where invalid, and (rows, cols) bool, True = valid."""
    values = survey.stack.read(channel, int(first[0]), int(first[1]), int(shape[0]), int(shape[1]))
    channels, valid = survey.encodings[channel].encode(torch.from_numpy(np.ascontiguousarray(values))[None])
    return channels, valid[0]


def _patches(survey: InferenceSurvey, channel: int, places: np.ndarray) -> Iterator[np.ndarray]:
    """Yields (m, numbers of a patch) around the pixels that hold the places, base pixels, and are valid."""
    yield np.empty((0, survey.encodings[channel].channels * _EDGE**2), dtype=np.float32)
    for members in by_window(survey, channel, places, margin=1.0):
        if not len(members):
            continue
        here = np.floor(squares_around(survey, channel, places[members], [0.0])[0][0]).astype(int)
        first = here.min(axis=0) - _MARGIN
        channels, valid = _encoded(survey, channel, first, here.max(axis=0) + _MARGIN + 1 - first)
        windows = channels[0].unfold(1, _EDGE, 1).unfold(2, _EDGE, 1)  # (k, rows - 2, cols - 2, edge, edge)
        row, col = torch.from_numpy((here - _MARGIN - first).T)
        found = windows[:, row, col].transpose(0, 1)[valid[row + _MARGIN, col + _MARGIN]]
        yield found.flatten(1).numpy()


def _whitened(patches: np.ndarray, count: int, rng: np.random.Generator) -> LayerFilters:
    """Filters that respond to the direction of random patches among whitened ones."""
    exact = patches.astype(np.float64)
    middle = exact.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(exact - middle, rowvar=False, ddof=0))
    whiten = axes / np.sqrt(np.maximum(variances, 0.0) + _RIDGE * variances.mean() + 1e-12) @ axes.T
    drawn = (exact[rng.choice(len(exact), count, replace=len(exact) < count)] - middle) @ whiten
    drawn /= np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-12)
    weights = drawn @ whiten
    return LayerFilters(
        weights=torch.from_numpy(weights.reshape(count, -1, _EDGE, _EDGE)).float(),
        bias=torch.from_numpy(-weights @ middle).float(),
    )


def _layer_features(
    survey: InferenceSurvey, channel: int, filters: LayerFilters, centres: np.ndarray, halves: Sequence[float]
) -> np.ndarray:
    """(n, columns of the layer) features of points, given in base pixels, that lie near each other."""
    lows, highs = squares_around(survey, channel, centres, halves)  # (R, n, 2)
    first = np.floor(lows.min(axis=(0, 1))).astype(int)
    shape = np.ceil(highs.max(axis=(0, 1))).astype(int) - first
    channels, usable = _encoded(survey, channel, first - _MARGIN, shape + 2 * _MARGIN)
    valid = usable[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN].numpy()
    squares = list(zip(lows - first, highs - first, strict=True))
    areas = [sums_inside(cumulative([valid]), low, high) for low, high in squares]
    whole = [np.prod(high - low, axis=1, keepdims=True) for low, high in squares]
    parts = [[area / full] for area, full in zip(areas, whole, strict=True)]
    for k in range(0, len(filters.bias), _AT_ONCE):
        part = slice(k, k + _AT_ONCE)
        response = F.conv2d(channels, filters.weights[part], filters.bias[part])[0]
        rectified = torch.stack([response, -response], dim=1).flatten(0, 1).clamp_min_(0.0).numpy()
        sums = cumulative([np.where(valid, plane, 0.0) for plane in rectified])
        for radius, (low, high) in enumerate(squares):
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = np.where(areas[radius] > LEAST_AREA, sums_inside(sums, low, high) / areas[radius], np.nan)
            parts[radius].append(mean)
    return np.concatenate([column for columns in parts for column in columns], axis=1)
