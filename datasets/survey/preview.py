"""Layers of a survey as small images, to be shown beside results."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from datasets.survey.inference_survey import InferenceSurvey

PREVIEW_PIXELS = 300
MOST_LAYERS = 7
"""Layers that a picture has room for."""


class Preview(NamedTuple):
    """A layer on the whole ground.

    Attributes:
        name: of the layer.
        unit: of its values.
        image: (rows, cols) float32 in physical units, NaN = invalid.
        classes: class code -> (name, '#rrggbb') of a layer of classes; None of others.
    """

    name: str
    unit: str
    image: np.ndarray
    classes: dict[int, tuple[str, str]] | None


def layer_previews(survey: InferenceSurvey, *, most: int = PREVIEW_PIXELS) -> list[Preview]:
    """The first layers that are shown to the model, every n-th native pixel of them; a row of each is read at a time.

    Args:
        survey: the layers.
        most: pixels along the longer edge of an image.

    Raises:
        OSError: a layer cannot be read; names layer, file and window.
    """
    shown = [channel for channel in range(len(survey.layers)) if channel not in survey.hidden][:MOST_LAYERS]
    return [_preview(survey, channel, most) for channel in shown]


def _preview(survey: InferenceSurvey, channel: int, most: int) -> Preview:
    layer, encoding = survey.layers[channel], survey.encodings[channel]
    named = zip(encoding.codes, encoding.names, encoding.colours, strict=True)
    classes = {int(code): (name, colour) for code, name, colour in named} if encoding.is_classes else None
    return Preview(layer.name, encoding.unit(layer.units), _thinned(survey, channel, most), classes)


def _thinned(survey: InferenceSurvey, channel: int, most: int) -> np.ndarray:
    """(rows, cols) of the native pixels nearest to evenly spaced places on the ground."""
    grid, placement = survey.stack.reference, survey.stack.placements[channel]
    base_rows, base_cols = survey.shape
    height, width = (
        base * survey.base_resolution / edge
        for base, edge in ((base_rows, grid.resolution_y), (base_cols, grid.resolution_x))
    )  # of the ground, reference pixels
    step = max(height, width) / most
    rows, cols = (max(round(length / step), 1) for length in (height, width))
    native_rows = [int(placement.native_row((row + 0.5) * height / rows)) for row in range(rows)]
    native_cols = np.array([int(placement.native_col((col + 0.5) * width / cols)) for col in range(cols)])
    first, count = int(native_cols[0]), int(native_cols[-1] - native_cols[0]) + 1
    image = np.empty((rows, cols), dtype=np.float32)
    for number, row in enumerate(native_rows):
        image[number] = survey.stack.read(channel, row, first, 1, count)[0, native_cols - first]
    return image
