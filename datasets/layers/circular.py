"""Circular layers: angles in degrees, as cosine and sine, so that 359 and 1 degree are neighbours.

Azimuths are clockwise from north and turn with the ground, where tiles or grids are turned. Axes, such as strikes, have
no sense of direction: their period is 180 degrees, and doubled angles stand for them. Phases are no directions on the
ground.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from datasets.layers.kind import Kind, constant_values, no_valid_pixel, standardised, unstandardised
from datasets.layers.layer import Layer
from datasets.layers.layer_statistics import LayerStatistics, TrainingValues
from datasets.layers.moments import RunningMoments

if TYPE_CHECKING:
    from datasets.layers.encoding import Encoding


@dataclass(frozen=True)
class Circular(Kind):
    """Angles: two channels, cosine and sine of 360 / period times the angle, whose means are means of directions."""

    name: str = "circular"
    description: str = "azimuths, degrees clockwise from north"
    form: str = "angle"
    is_angle: bool = True
    ground_turns: int = 1

    @property
    def _factor(self) -> float:
        """Degrees of the vector for a degree of the values."""
        return 360 / self.period

    def unit(self, stated: str) -> str:
        """Degrees."""
        return "degrees"

    def check(self, layer: Layer) -> None:
        """Refuse transforms and radians."""
        super().check(layer)
        if layer.units.lower().startswith("rad"):
            raise ValueError(
                f"{layer.where}: units are '{layer.units}', expected degrees for a layer of kind circular; convert it"
            )

    def suspicions(self, minimum: float, maximum: float) -> Iterator[str]:
        """Yield a warning if values look like radians."""
        if -3.2 < minimum and maximum < 6.4:
            yield f"from {minimum:.3g} to {maximum:.3g}, which looks like radians: expected degrees"

    def fit(self, values: TrainingValues, encoding: Encoding) -> tuple[LayerStatistics, Encoding]:
        """Centre cosine and sine on their means and divide both by one scale.

        The mean squared error of predicting the mean vector is then 1.
        """
        cosine, sine = RunningMoments(), RunningMoments()
        for piece in values.pieces():
            angle = np.deg2rad(piece * self._factor)
            cosine.add(np.cos(angle))
            sine.add(np.sin(angle))
        if not cosine.count:
            raise no_valid_pixel(values.layer)
        scale = math.sqrt((cosine.std**2 + sine.std**2) / 2)
        mean = math.degrees(math.atan2(sine.mean, cosine.mean)) % 360 / self._factor
        if scale < 1e-6:
            raise constant_values(values.layer, f"{mean:g} degrees")
        length = math.hypot(cosine.mean, sine.mean)
        statistics = LayerStatistics(
            name=values.layer.name,
            mean=mean,
            std=math.degrees(math.sqrt(-2 * math.log(max(length, 1e-12)))) / self._factor,
            median=mean,
            count=cosine.count,
            sampled=values.sampled,
        )
        return statistics, replace(encoding, centres=(cosine.mean, sine.mean), scales=(scale, scale))

    def unfitted(self, encoding: Encoding) -> Encoding:
        """Cosine and sine as they are."""
        return replace(encoding, centres=(0.0, 0.0), scales=(1.0, 1.0))

    def channels(self, encoding: Encoding) -> int:
        """Two."""
        return 2

    def encode(self, encoding: Encoding, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, standardised."""
        usable = torch.isfinite(values)
        angle = (values * self._factor).deg2rad()
        channels = torch.stack([angle.cos(), angle.sin()], dim=1)
        return torch.where(usable.unsqueeze(1), standardised(encoding, channels), 0.0), usable

    def decode(self, encoding: Encoding, images: torch.Tensor) -> torch.Tensor:
        """Degrees from 0 to below the period."""
        cosine, sine = unstandardised(encoding, images).unbind(dim=-3)
        degrees = torch.atan2(sine, cosine).rad2deg() % 360
        degrees = torch.where(degrees == 360, 0.0, degrees)  # the remainder of a tiny negative angle is rounded up
        return degrees / self._factor

    def reconstruction_bands(
        self, encoding: Encoding, mean: np.ndarray, spread: np.ndarray, seen: np.ndarray
    ) -> list[np.ndarray]:
        """Direction, circular standard deviation by the length of the mean vector, and the angle to the truth."""
        value, truth = (encoding.decode(torch.from_numpy(x)).numpy() for x in (mean, seen))
        vector = [mean[k] * encoding.scales[k] + encoding.centres[k] for k in range(2)]
        length = np.hypot(*vector).clip(1e-6, 1.0)
        spread = np.rad2deg(np.sqrt(-2 * np.log(length))) / self._factor
        return [value, spread, (truth - value + self.period / 2) % self.period - self.period / 2]

    def feature_names(self, encoding: Encoding) -> tuple[str, ...]:
        """Cosine and sine."""
        return (" cosine", " sine")

    def features(self, encoding: Encoding, values: np.ndarray) -> Iterator[np.ndarray]:
        """Yield cosine and sine; standard deviations around a pixel follow from their means."""
        angle = np.radians(values * self._factor)
        yield from (np.cos(angle), np.sin(angle))
