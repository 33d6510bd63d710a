"""Continuous layers: measurements, one channel of normalised values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from datasets.layers.kind import Kind, constant_values, no_valid_pixel, standardised, unstandardised
from datasets.layers.layer_statistics import LayerStatistics, TrainingValues
from datasets.layers.moments import RunningMoments
from datasets.layers.transforms import Transform, fit_transform

if TYPE_CHECKING:
    from datasets.layers.encoding import Encoding


def _standard(sample: np.ndarray, mean: float, std: float) -> tuple[float, float]:
    return mean, std


def _robust(sample: np.ndarray, mean: float, std: float) -> tuple[float, float]:
    low, middle, high = np.quantile(sample, [0.16, 0.5, 0.84])
    return float(middle), float(high - low) / 2 or std


def _as_is(sample: np.ndarray, mean: float, std: float) -> tuple[float, float]:
    return 0.0, 1.0


NORMALIZE = {"standard": _standard, "robust": _robust, "none": _as_is}
"""Choices of the column `normalize`: (sample, mean, standard deviation) of values -> (centre, scale)."""


@dataclass(frozen=True)
class Continuous(Kind):
    """Measurements: one channel, transformed and then normalised."""

    name: str = "continuous"
    description: str = "measurements"
    is_continuous: bool = True
    neighbourhood: tuple[str, ...] = ("mean", "std")

    def fit(self, values: TrainingValues, encoding: Encoding) -> tuple[LayerStatistics, Encoding]:
        """Fit the transform to a sample of the values, and the normalisation to transformed values."""
        layer = values.layer
        moments = RunningMoments()
        kept: list[np.ndarray] = []
        for piece in values.pieces():
            moments.add(piece)
            kept.append(piece[:: values.step].copy())  # a view would keep every pixel
        if not moments.count:
            raise no_valid_pixel(layer)
        if moments.minimum == moments.maximum:
            raise constant_values(layer, f"{moments.mean:g}")
        sample = np.concatenate(kept)
        median = float(np.median(sample))
        transform = fit_transform(layer.transform, sample)
        mean, std = moments.mean, moments.std
        if layer.is_transformed:
            sample = _transformed(transform, sample)
            changed = RunningMoments()
            for piece in values.pieces():
                changed.add(_transformed(transform, piece))
            mean, std = changed.mean, changed.std
        centre, scale = map(float, NORMALIZE[layer.normalize](sample, mean, std))
        statistics = LayerStatistics(
            name=layer.name,
            normalize=layer.normalize,
            centre=centre,
            scale=scale,
            mean=float(moments.mean),
            std=float(moments.std),
            median=median,
            count=moments.count,
            sampled=values.sampled,
        )
        training_mean = float((mean - centre) / scale)
        return statistics, replace(
            encoding, transform=transform, centres=(centre,), scales=(scale,), training_means=(training_mean,)
        )

    def unfitted(self, encoding: Encoding) -> Encoding:
        """Values as they are."""
        return replace(encoding, centres=(0.0,), scales=(1.0,))

    def channels(self, encoding: Encoding) -> int:
        """One."""
        return 1

    def encode(self, encoding: Encoding, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform and normalise; values that the transform cannot take are not usable."""
        channels = encoding.transform.forward(values).unsqueeze(1)
        usable = torch.isfinite(channels)
        return torch.where(usable, standardised(encoding, channels), 0.0), usable.squeeze(1)

    def decode(self, encoding: Encoding, images: torch.Tensor) -> torch.Tensor:
        """Physical units."""
        return encoding.transform.inverse(unstandardised(encoding, images).squeeze(-3))

    def reconstruction_bands(
        self, encoding: Encoding, mean: np.ndarray, spread: np.ndarray, seen: np.ndarray
    ) -> list[np.ndarray]:
        """Prediction, standard deviation over views, and observed minus predicted values, physical units.

        Of transformed layers the second band is half the distance between mean - spread and mean + spread.
        """
        if encoding.is_linear:
            scale = encoding.scales[0]
            return [encoding.physical(mean[0]), spread[0] * scale, (seen[0] - mean[0]) * scale]
        value, low, high = (encoding.physical(x) for x in (mean[0], mean[0] - spread[0], mean[0] + spread[0]))
        return [value, (high - low) / 2, encoding.physical(seen[0]) - value]


def _transformed(transform: Transform, values: np.ndarray) -> np.ndarray:
    return transform.forward(torch.from_numpy(values)).numpy()
