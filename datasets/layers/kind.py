"""What depends on the kind of a layer: the interface that every kind implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from datasets.layers.layer import Layer
from datasets.layers.layer_statistics import LayerStatistics, TrainingValues
from datasets.layers.on_device import constant

if TYPE_CHECKING:
    from datasets.layers.encoding import Encoding


@dataclass(frozen=True)
class Kind(ABC):
    """How layers of one kind are checked, fitted, encoded for the model, decoded and described.

    Other code asks for a property or calls a method; it never compares names.

    Attributes:
        name: as in the column `kind` of a layer table.
        description: the kind in a few words.
        form: what the model's channels of a layer hold, a name in `util.model.layer_losses.FORMS`: `values` (one
            channel), `angle` (cosine and sine) or `fractions` (one for each class).
        is_continuous: values are measurements: they may be interpolated, transformed and normalised.
        is_classes: values are codes of classes: nothing lies between two of them.
        is_angle: values are angles in degrees.
        ground_turns: of angles, turns of the vector in the channels when the ground is turned once: 1 for azimuths, 2
            for axes; 0 for values that do not turn with the ground.
        period: of angles, degrees after which they repeat.
        band_names: names of the bands of a reconstruction, see `reconstruction_bands`.
        error_text: meaning of the last of these bands.
        neighbourhood: statistics of a pixel's surroundings that trees are given, `mean` and possibly `std`.
    """

    name: str
    description: str
    form: str = "values"
    is_continuous: bool = False
    is_classes: bool = False
    is_angle: bool = False
    ground_turns: int = 0
    period: float = 360.0
    band_names: tuple[str, str, str] = ("reconstruction", "spread", "error")
    error_text: str = "observed minus reconstruction"
    neighbourhood: tuple[str, ...] = ("mean",)

    def unit(self, stated: str) -> str:
        """Unit of decoded values of a layer whose table states a unit, or none ("")."""
        return stated

    def check(self, layer: Layer) -> None:
        """Refuse settings of a layer that have no meaning for its kind.

        Raises:
            ValueError: the layer has a transform, but is not continuous; or a unit of another kind.
        """
        if layer.is_transformed and not self.is_continuous:
            raise ValueError(
                f"{layer.where}: transform is '{layer.transform}', expected none for a layer of kind {self.name}; only "
                "continuous layers are transformed"
            )

    def suspicions(self, minimum: float, maximum: float) -> Iterator[str]:
        """Yield what looks wrong about values of this kind that lie in a range."""
        yield from ()

    @abstractmethod
    def fit(self, values: TrainingValues, encoding: Encoding) -> tuple[LayerStatistics, Encoding]:
        """Statistics of a layer on training ground, and its encoding.

        Args:
            values: the layer's values.
            encoding: the encoding before fitting; for classes it holds their codes and names.

        Raises:
            ValueError: there is no valid value, or all are equal.
        """

    @abstractmethod
    def unfitted(self, encoding: Encoding) -> Encoding:
        """The encoding of a layer that is hidden, whose values are never read."""

    @abstractmethod
    def channels(self, encoding: Encoding) -> int:
        """Number of channels."""

    @abstractmethod
    def encode(self, encoding: Encoding, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Native pixels to channels; see `Encoding.encode`."""

    @abstractmethod
    def decode(self, encoding: Encoding, images: torch.Tensor) -> torch.Tensor:
        """Model units to values; see `Encoding.decode`."""

    def means(self, encoding: Encoding) -> tuple[float, ...]:
        """Per channel, the best constant prediction in model units: the mean over training ground."""
        return encoding.training_means or (0.0,) * self.channels(encoding)

    def loss_scale(self, encoding: Encoding) -> float:
        """Factor that gives the best constant prediction a loss of about 1.

        It is 1 for the squared error of standardised values.
        """
        return 1.0

    @abstractmethod
    def reconstruction_bands(
        self, encoding: Encoding, mean: np.ndarray, spread: np.ndarray, seen: np.ndarray
    ) -> list[np.ndarray]:
        """Bands to write of a layer that was predicted several times; see `Encoding.reconstruction_bands`."""

    def feature_names(self, encoding: Encoding) -> tuple[str, ...]:
        """What is appended to a layer's name for each of its planes of features, see `features`."""
        return ("",)

    def features(self, encoding: Encoding, values: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the planes (rows, cols) that trees are given of a layer's values, NaN where invalid."""
        yield values

    def describe(self, layer: Layer, encoding: Encoding, minimum: float, maximum: float) -> str:
        """The values of a layer in a few words."""
        unit = layer.units or self.unit("")
        text = f"{minimum:.6g} to {maximum:.6g}{' ' * bool(unit)}{unit}"
        return f"{text}, transform {layer.transform}" if layer.is_transformed else text


class CannotFit(ValueError):
    """A layer has no values on training ground that statistics can be computed from.

    Args:
        fact: names the layer, and says what is wrong.
        remedy: what to do about it in pre-training.
    """

    def __init__(self, fact: str, remedy: str) -> None:
        super().__init__(fact, remedy)
        self.fact = fact

    def __str__(self) -> str:
        return "; ".join(self.args)


def no_valid_pixel(layer: Layer) -> CannotFit:
    """The error of a layer that has no valid value on training ground."""
    fact = f"layer '{layer.name}' ({layer.files}): no valid pixel on training ground"
    return CannotFit(fact, "change --seed or --val_fraction")


def constant_values(layer: Layer, value: str) -> CannotFit:
    """The error of a layer that has only one value on training ground."""
    fact = f"layer '{layer.name}' ({layer.files}): constant ({value}) on training ground, expected values that vary"
    return CannotFit(fact, "leave it out (--dropped_bands)")


def standardised(encoding: Encoding, channels: torch.Tensor) -> torch.Tensor:
    """Channels (..., k, h, w) minus the centres of an encoding, divided by its scales."""
    centre, scale = _columns(encoding, channels)
    return (channels - centre) / scale


def unstandardised(encoding: Encoding, images: torch.Tensor) -> torch.Tensor:
    """The inverse of `standardised`."""
    centre, scale = _columns(encoding, images)
    return images * scale + centre


def _columns(encoding: Encoding, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres and scales, (k, 1, 1) each."""
    centre, scale = (
        constant(of, dtype=images.dtype, device=images.device)[:, None, None]
        for of in (encoding.centres, encoding.scales)
    )
    return centre, scale
