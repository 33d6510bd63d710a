"""Statistics of one layer on training ground, and the stream of values that they are computed from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.layers.layer import Layer

_STORED_NAMES = {"centre": "location", "scale": "spread"}
"""Fields that checkpoints and statistics.json hold under another name."""


@dataclass(frozen=True)
class LayerStatistics:
    """Values of one layer on training ground.

    Attributes:
        name: name of the layer.
        normalize: `standard` (mean, standard deviation), `robust` (median, half the 16-84 % range) or `none` (0, 1).
        centre: subtracted to reach model units, after the layer's transform; 0 unless the layer is continuous.
        scale: divided by to reach model units; 1 unless the layer is continuous.
        mean: mean of valid training pixels, physical units; the mean direction of a circular layer.
        std: their standard deviation, in the same units.
        median: their median (of a regular sample); the commonest class of a categorical layer.
        count: number of pixels read.
        sampled: True when not every pixel was read.
        detail: standard deviation of the layer's native pixels around their mean over a base pixel, model units, on
            training ground; 0 if it was not measured, or has no meaning (classes and angles).
    """

    name: str
    normalize: str = "none"
    centre: float = 0.0
    scale: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    median: float = 0.0
    count: int = 0
    sampled: bool = False
    detail: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Names and plain numbers, for a checkpoint or JSON; `statistics_from_dict` is the inverse."""
        return {_STORED_NAMES.get(key, key): value for key, value in asdict(self).items()}


def statistics_from_dict(stored: Mapping[str, Any]) -> LayerStatistics:
    """The statistics that `LayerStatistics.as_dict` wrote."""
    names = {written: name for name, written in _STORED_NAMES.items()}
    return LayerStatistics(**{names.get(key, key): value for key, value in stored.items()})


def save_statistics(path: str | Path, statistics: Sequence[LayerStatistics]) -> None:
    """Write statistics as JSON, one object per layer."""
    Path(path).write_text(json.dumps([item.as_dict() for item in statistics], indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class TrainingValues:
    """The valid values of a layer on training ground, streamed.

    Attributes:
        layer: the layer.
        pieces: starts a pass over the values: (n,) float64 arrays.
        step: every how many values one is enough for quantiles.
        sampled: True when the passes leave out some pixels.
    """

    layer: Layer
    pieces: Callable[[], Iterator[np.ndarray]]
    step: int
    sampled: bool
