"""What training ground says of each layer: its statistics, and how its values become channels of the model.

Passes are streaming; above `SAMPLED_PIXELS` a layer is sampled, one row of native pixels in many.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from datasets.layers.encoding import Encoding
from datasets.layers.transforms import Transform, fit_transform
from datasets.rasters.moments import RunningMoments
from datasets.survey.coverage import SAMPLED_PIXELS, row_chunks
from datasets.survey.stack import Stack
from datasets.survey.tiles import HoldoutBlocks

QUANTILE_SAMPLE = 2**20


@dataclass(frozen=True)
class LayerStatistics:
    """Values of one layer on training ground.

    Attributes:
        name: name of the layer.
        normalize: `standard` (mean, standard deviation), `robust` (median, half the 16-84 % range) or `none` (0, 1).
        location: what is subtracted to reach model units, after the layer's transform; 0 unless it is continuous.
        spread: what is divided by; 1 unless it is continuous.
        mean: mean of valid training pixels, physical units; the mean direction of a circular layer.
        std: their standard deviation, likewise.
        median: their median (of a regular sample); the commonest class of a categorical layer.
        count: how many pixels were read.
        sampled: True when not every pixel was read.
    """

    name: str
    normalize: str
    location: float
    spread: float
    mean: float
    std: float
    median: float
    count: int
    sampled: bool


def _training_values(stack: Stack, channel: int, held_out: HoldoutBlocks) -> Iterator[np.ndarray]:
    """Yields the valid values of one layer on training ground of the reference grid, (n,) float64, piece by piece."""
    band, placement, reference = stack.bands[channel], stack.placements[channel], stack.reference
    columns = np.floor((np.arange(band.grid.cols) + 0.5 - placement.offset_x) / placement.ratio_x).astype(np.int64)
    columns_inside = (columns >= 0) & (columns < reference.cols)
    cells_y = np.arange(0, reference.rows + 1, max(1, reference.rows // 4096))
    native_y = placement.offset_y + placement.ratio_y * cells_y
    for first, values, _ in row_chunks(stack, channel, native_y):
        centres = np.arange(first, first + len(values)) + 0.5
        rows = np.floor((centres - placement.offset_y) / placement.ratio_y).astype(np.int64)
        inside = np.outer((rows >= 0) & (rows < reference.rows), columns_inside)
        training = held_out.training_ground(rows, columns) & inside
        yield values[training & np.isfinite(values)].astype(np.float64)


def layer_statistics(stack: Stack, channel: int, held_out: HoldoutBlocks) -> LayerStatistics:
    """Mean, spread and median of one layer over the training ground of the reference grid only.

    Args:
        stack: the stack.
        channel: number of the layer.
        held_out: blocks (and their buffer) whose pixels are not read.

    Returns:
        The statistics, with location and spread by the layer's `normalize`, in the units of its `transform`.

    Raises:
        ValueError: if training ground holds no valid pixel of the layer, or all are equal.
    """
    return fit_continuous(stack, channel, held_out)[0]


def fit_continuous(stack: Stack, channel: int, held_out: HoldoutBlocks) -> tuple[LayerStatistics, Encoding]:
    """Statistics of a layer as `layer_statistics` gives them, and how it becomes a channel."""
    band = stack.bands[channel]
    layer, thin = band.layer, max(1, band.grid.rows * band.grid.cols // QUANTILE_SAMPLE)
    moments = RunningMoments()
    kept: list[np.ndarray] = []
    for chosen in _training_values(stack, channel, held_out):
        moments.add(chosen)
        kept.append(chosen[::thin].copy())  # a view would keep every pixel
    if not moments.count:
        raise ValueError(
            f"layer '{layer.name}' ({layer.path}): no valid pixel on training ground; change --seed or --val_fraction"
        )
    if moments.minimum == moments.maximum:
        raise ValueError(
            f"layer '{layer.name}' ({layer.path}): constant ({moments.mean:g}) on training ground, expected values "
            "that vary; leave it out (--dropped_bands)"
        )
    sample = np.concatenate(kept)
    median = float(np.median(sample))
    transform = fit_transform(layer.transform, sample)
    mean, std = moments.mean, moments.std
    if transform.kind != "none":
        sample = _transformed(transform, sample)
        changed = RunningMoments()
        for chosen in _training_values(stack, channel, held_out):
            changed.add(_transformed(transform, chosen))
        mean, std = changed.mean, changed.std
    low, middle, high = np.quantile(sample, [0.16, 0.5, 0.84])
    location, spread = {
        "standard": (mean, std),
        "robust": (float(middle), float(high - low) / 2 or std),
        "none": (0.0, 1.0),
    }[layer.normalize]
    statistics = LayerStatistics(
        name=layer.name,
        normalize=layer.normalize,
        location=float(location),
        spread=float(spread),
        mean=float(moments.mean),
        std=float(moments.std),
        median=median,
        count=moments.count,
        sampled=band.grid.rows * band.grid.cols > SAMPLED_PIXELS,
    )
    centre = (mean - statistics.location) / statistics.spread
    return statistics, Encoding(
        transform=transform, locations=(statistics.location,), spreads=(statistics.spread,), centres=(float(centre),)
    )


def _transformed(transform: Transform, values: np.ndarray) -> np.ndarray:
    return transform.forward(torch.from_numpy(values)).numpy()


def fit_circular(stack: Stack, channel: int, held_out: HoldoutBlocks) -> tuple[LayerStatistics, Encoding]:
    """Mean direction of a circular layer over training ground, and how it becomes channels.

    Cosine and sine are shifted by their means and divided by one spread, so that their mean squared error is 1 where
    the mean vector is predicted.

    Raises:
        ValueError: if training ground holds no valid pixel of the layer, or a single direction.
    """
    layer, grid = stack.bands[channel].layer, stack.bands[channel].grid
    cosine, sine = RunningMoments(), RunningMoments()
    for chosen in _training_values(stack, channel, held_out):
        cosine.add(np.cos(np.deg2rad(chosen)))
        sine.add(np.sin(np.deg2rad(chosen)))
    if not cosine.count:
        raise ValueError(
            f"layer '{layer.name}' ({layer.path}): no valid pixel on training ground; change --seed or --val_fraction"
        )
    spread = math.sqrt((cosine.std**2 + sine.std**2) / 2)
    mean = math.degrees(math.atan2(sine.mean, cosine.mean)) % 360
    if spread < 1e-6:
        raise ValueError(
            f"layer '{layer.name}' ({layer.path}): constant ({mean:g} degrees) on training ground, expected values "
            "that vary; leave it out (--dropped_bands)"
        )
    length = math.hypot(cosine.mean, sine.mean)
    statistics = LayerStatistics(
        name=layer.name,
        normalize="none",
        location=0.0,
        spread=1.0,
        mean=mean,
        std=math.degrees(math.sqrt(-2 * math.log(max(length, 1e-12)))),
        median=mean,
        count=cosine.count,
        sampled=grid.rows * grid.cols > SAMPLED_PIXELS,
    )
    return statistics, Encoding("circular", locations=(cosine.mean, sine.mean), spreads=(spread, spread))


def fit_classes(
    stack: Stack, channel: int, held_out: HoldoutBlocks, table: Encoding
) -> tuple[LayerStatistics, Encoding]:
    """How often each class of a categorical layer occurs on training ground.

    Args:
        stack: the stack.
        channel: number of the layer.
        held_out: blocks (and their buffer) whose pixels are not read.
        table: its classes.

    Raises:
        ValueError: if training ground holds no valid pixel of the layer, or a single class.
    """
    layer, grid = stack.bands[channel].layer, stack.bands[channel].grid
    codes = np.array(table.codes, dtype=np.float64)
    counts = np.zeros(len(codes), dtype=np.int64)
    for chosen in _training_values(stack, channel, held_out):
        counts += np.bincount(np.searchsorted(codes, chosen), minlength=len(codes))
    if np.count_nonzero(counts) < 2:
        found = ", ".join(f"{code:g}" for code in codes[counts > 0]) or "no valid pixel"
        raise ValueError(
            f"layer '{layer.name}' ({layer.path}): {found} alone on training ground, expected at least two classes; "
            "change --seed or --val_fraction, or leave it out (--dropped_bands)"
        )
    # Classes that training ground lacks count as half a pixel: none is impossible.
    shares = np.maximum(counts, 0.5) / np.maximum(counts, 0.5).sum()
    statistics = LayerStatistics(
        name=layer.name,
        normalize="none",
        location=0.0,
        spread=1.0,
        mean=0.0,
        std=1.0,
        median=float(codes[counts.argmax()]),
        count=int(counts.sum()),
        sampled=grid.rows * grid.cols > SAMPLED_PIXELS,
    )
    return statistics, replace(table, frequencies=tuple(shares.tolist()))


def fit_statistics(
    stack: Stack, channel: int, held_out: HoldoutBlocks, classes: Encoding | None = None
) -> tuple[LayerStatistics, Encoding]:
    """Statistics of a layer on training ground, and how it becomes channels.

    Args:
        stack: the stack.
        channel: number of the layer; one that is hidden is not read.
        held_out: blocks (and their buffer) whose pixels are not read.
        classes: of a categorical layer.

    Raises:
        ValueError: training ground holds no valid pixel of the layer, or all are equal.
    """
    layer = stack.bands[channel].layer
    if layer.kind == "categorical":
        assert classes is not None
        if channel not in stack.hidden:
            return fit_classes(stack, channel, held_out, classes)
        even = (1 / len(classes.codes),) * len(classes.codes)
        return _nothing(layer.name), replace(classes, frequencies=even)
    if channel in stack.hidden:
        hidden = Encoding("circular", locations=(0.0,) * 2, spreads=(1.0,) * 2)
        return _nothing(layer.name), hidden if layer.kind == "circular" else Encoding()
    if layer.kind == "circular":
        return fit_circular(stack, channel, held_out)
    return fit_continuous(stack, channel, held_out)


def _nothing(name: str) -> LayerStatistics:
    """Statistics of a layer that is not read."""
    return LayerStatistics(
        name=name,
        normalize="none",
        location=0.0,
        spread=1.0,
        mean=0.0,
        std=1.0,
        median=0.0,
        count=0,
        sampled=False,
    )


def save_statistics(path: str | Path, statistics: list[LayerStatistics]) -> None:
    """Writes statistics as JSON, one object a layer."""
    Path(path).write_text(json.dumps([asdict(item) for item in statistics], indent=2) + "\n", encoding="utf-8")
