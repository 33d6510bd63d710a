"""Layers that hold the labels under another name: what sees them learns to copy, and its score means nothing."""

from __future__ import annotations

import numpy as np

from datasets.finetuning.pixel_features import pixel_features, shown_layers
from datasets.labels.label_map import LabelMap
from datasets.survey.inference_survey import InferenceSurvey

SAMPLE_PIXELS = 4000
"""Labelled pixels that are compared."""

LEAST_PIXELS = 20
"""With fewer known pixels chance can make any layer look like the labels: two points always lie on a line."""

COPY_SHARE = 0.99
"""Share of sampled pixels whose label a layer's value gives away from which on it counts as a copy."""


def label_copies(survey: InferenceSurvey, labels: LabelMap, *, seed: int = 0) -> list[str]:
    """Warnings about layers that equal the labels on a sample of labelled pixels, also with other codes or units.

    Args:
        survey: the layers.
        labels: all labels on target pixels.
        seed: of the sample.

    Raises:
        OSError: a layer cannot be read.
    """
    labelled = np.flatnonzero(labels.labelled(0, 0, *labels.values.shape))
    if len(labelled) > SAMPLE_PIXELS:
        labelled = np.random.default_rng(seed).choice(labelled, SAMPLE_PIXELS, replace=False)
    pixels = np.stack(np.unravel_index(np.sort(labelled), labels.values.shape), axis=1)
    truth = labels.values[tuple(pixels.T)]
    features, first, found = pixel_features(survey, pixels, scale=labels.scale, radii=()), 0, []
    for channel in shown_layers(survey):
        planes = len(survey.encodings[channel].feature_names())
        values, first = features[:, first : first + planes], first + planes
        known = np.isfinite(values).all(axis=1)
        share = _agreement(values[known], truth[known], is_classes=labels.classes is not None)
        if share >= COPY_SHARE:
            found.append(
                f"layer '{survey.layers[channel].name}' gives the labels away: its value decides them on "
                f"{100 * share:.0f} % of {known.sum()} sampled pixels; with a copy of the labels scores are "
                "worthless: leave it out (--dropped_bands) or hide it (--masked_bands), unless it is no copy"
            )
    return found


def _agreement(values: np.ndarray, truth: np.ndarray, *, is_classes: bool) -> float:
    """Share of pixels whose label follows from the value of a layer: 0 where there is nothing to compare.

    Classes follow if there are few values and all pixels of one value have one class; values if they are alike but for
    a factor and a constant.

    Args:
        values: (n, planes) of a layer; class fractions, or one value.
        truth: (n,) class numbers or values.
        is_classes: labels are classes.
    """
    if len(truth) < LEAST_PIXELS or len(np.unique(truth)) < 2:
        return 0.0
    if is_classes:
        _, number = np.unique(values, axis=0, return_inverse=True)
        classes = truth.astype(np.int64)
        kinds = int(number.max()) + 1
        if kinds > len(truth) // 10:  # nearly every pixel has a value of its own, which proves nothing
            return 0.0
        counts = np.bincount(number.ravel() * (classes.max() + 1) + classes, minlength=kinds * (classes.max() + 1))
        return float(counts.reshape(kinds, -1).max(axis=1).sum() / len(truth))
    if values.shape[1] > 1 or not np.ptp(values):
        return 0.0
    return float(np.corrcoef(values[:, 0].astype(np.float64), truth.astype(np.float64))[0, 1] ** 2)
