"""Statistics of each band over training images, computed with only a few images in memory."""

from __future__ import annotations

import numpy as np

from datasets.layers.layer_statistics import LayerStatistics
from datasets.layers.moments import RunningMoments
from datasets.loading.prefetch import prefetch
from datasets.scenes.image_set import SceneSet

SAMPLED_IMAGES = 512
"""Training images that statistics are computed from: more than enough for a mean."""

SAMPLED_PIXELS = 2**16
"""Most pixels of a band that one image adds to statistics, regularly spaced, so that no large image dominates."""

READERS = 4
"""Threads that read images for statistics."""


def scene_statistics(images: SceneSet, numbers: np.ndarray, *, seed: int) -> tuple[LayerStatistics, ...]:
    """Mean, spread and median of each channel over training images, or `SAMPLED_IMAGES` of them chosen by the seed.

    Args:
        images: the set.
        numbers: of its images that are trained on.
        seed: seed of the run.

    Returns:
        Per channel its statistics; `count` is the number of pixels they are of.

    Raises:
        ValueError: a band has no valid pixel in those images, or all are equal.
        OSError: naming row and file of an image that cannot be used.
    """
    sample = np.sort(np.random.default_rng((seed, 5)).permutation(numbers)[:SAMPLED_IMAGES])
    shown = [c for c in range(len(images.bands)) if c not in images.hidden]
    moments = [RunningMoments() for _ in shown]
    kept: list[list[np.ndarray]] = [[] for _ in shown]

    def thinned(number: int) -> tuple[int, np.ndarray]:
        values = images.pixels(number, shown).reshape(len(shown), -1)
        step = max(1, -(-values.shape[1] // SAMPLED_PIXELS))
        return step, values[:, ::step].astype(np.float64)

    sampled = len(sample) < len(numbers)
    for _, (step, values) in prefetch(sample.tolist(), thinned, workers=READERS):
        sampled |= step > 1
        for k, row in enumerate(values):
            valid = row[np.isfinite(row)]
            moments[k].add(valid)
            kept[k].append(valid[:: max(1, len(valid) * len(sample) // 2**20)])
    found = {c: (m, np.concatenate(values)) for c, m, values in zip(shown, moments, kept, strict=True)}
    return tuple(
        _statistics_of(name, *found[c], images=len(sample), sampled=sampled) if c in found else LayerStatistics(name)
        for c, name in enumerate(images.band_names)
    )


def _statistics_of(
    name: str, moments: RunningMoments, kept: np.ndarray, *, images: int, sampled: bool
) -> LayerStatistics:
    if not moments.count or moments.minimum == moments.maximum:
        what = f"only the value {moments.mean:g}" if moments.count else "no valid pixel"
        raise ValueError(
            f"band {name}: {what} in {images} training images, expected values that vary; leave the band out "
            "(--dropped_bands), or put the images right"
        )
    return LayerStatistics(
        name=name,
        normalize="standard",
        centre=moments.mean,
        scale=moments.std,
        mean=moments.mean,
        std=moments.std,
        median=float(np.median(kept)),
        count=moments.count,
        sampled=sampled,
    )
