"""Layers inside the model: their channels, and the loss that compares each layer with its target.

To add a loss, write a function and add one line to `LOSSES`.

The channels of a layer are consecutive. Letters: N batch, C channels, Y layers, k channels of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOG_FLOOR = 1e-6
"""Added to predicted class fractions before the logarithm, so that a class predicted as impossible costs a finite
amount."""


def squared_error(image: Tensor, target: Tensor) -> Tensor:
    """Squared difference."""
    return (image - target).square()


def absolute_error(image: Tensor, target: Tensor) -> Tensor:
    """Absolute difference."""
    return (image - target).abs()


def huber_error(image: Tensor, target: Tensor) -> Tensor:
    """Squared difference below 1, linear beyond: twice the textbook's Huber loss with delta = 1."""
    size = (image - target).abs()
    return torch.where(size < 1, size.square(), 2 * size - 1)


def cross_entropy(image: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of class fractions, (N, k, ...) -> (N, 1, ...); targets may be fractions too."""
    return -(target * (image + LOG_FLOOR).log()).sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Loss:
    """One choice of the `loss` column of a layer table.

    Attributes:
        error: prediction and target of a layer, (N, k, ...) each, model units or class fractions -> (N, k, ...) or
            (N, 1, ...); its mean over dimension 1 is the error of each pixel.
        description: a few words for documentation.
        on_fractions: True if it compares class fractions, False if it compares values.
    """

    error: Callable[[Tensor, Tensor], Tensor]
    description: str
    on_fractions: bool = False


LOSSES = {
    "mse": Loss(squared_error, "squared error"),
    "l1": Loss(absolute_error, "absolute error"),
    "huber": Loss(huber_error, "squared error of small, absolute error of large differences"),
    "cross_entropy": Loss(cross_entropy, "cross-entropy of class fractions", on_fractions=True),
}
"""Choices of the column `loss` of a layer table."""

BASE_LOSS, FINER_LOSS = "mse", "l1"
"""Losses, at the base scale and at finer scales, of layers of values that name none (SatMAE++)."""
FRACTIONS_LOSS = "cross_entropy"
"""Loss, at all scales, of layers of class fractions that name none."""


@dataclass(frozen=True)
class Form:
    """What the channels of a layer hold.

    Attributes:
        description: a few words for error messages.
        least: smallest number of channels.
        most: largest number, None for any.
    """

    description: str
    least: int
    most: int | None

    def allows(self, channels: int) -> bool:
        """True if a layer of this form may have that many channels."""
        return channels >= self.least and (self.most is None or channels <= self.most)


FORMS = {
    "values": Form("values with 1", 1, 1),
    "angle": Form("angle (cosine and sine) with 2", 2, 2),
    "fractions": Form("fractions (one for each class) with 2 or more", 2, None),
}
"""Choices of `form` that a kind of layer declares; the model does not know the kind itself."""

_FORM_OF_KIND = {"continuous": "values", "circular": "angle", "categorical": "fractions"}
"""Forms of the kinds in older checkpoints, whose rows lack `form`."""


@dataclass(frozen=True)
class LayerChannels:
    """A layer as the model sees it.

    Attributes:
        first: number of its first channel.
        count: number of its channels.
        form: a name in `FORMS`.
        loss: a name in `LOSSES`, empty for the default of the form and scale.
        loss_scale: factor that its errors are multiplied by.
    """

    first: int
    count: int = 1
    form: str = "values"
    loss: str = ""
    loss_scale: float = 1.0

    @property
    def channels(self) -> range:
        """Its channel numbers."""
        return range(self.first, self.first + self.count)

    @property
    def has_fractions(self) -> bool:
        """True if its channels are the fractions of classes, which add up to 1."""
        return self.form == "fractions"

    @property
    def is_angle(self) -> bool:
        """True if its channels are the cosine and sine of an angle."""
        return self.form == "angle"

    @property
    def has_values(self) -> bool:
        """True if its channel is a measured value."""
        return self.form == "values"

    def of(self, images: Tensor) -> Tensor:
        """The layer's part (N, count, ...) of (N, C, ...)."""
        return images.narrow(1, self.first, self.count)


def layer_channels(layers: Sequence[Mapping[str, Any]] | None, in_chans: int) -> tuple[LayerChannels, ...]:
    """The layers of a model.

    Args:
        layers: for each layer `form` (a name in `FORMS`), `channels` (their number), `loss` and `loss_scale`; and for
            error messages its `kind` and optionally `where`, name and file. None: each channel is a layer of values.
        in_chans: number of channels.

    Raises:
        ValueError: the channels do not add up, a form or loss is unknown, or a loss does not suit the form.
    """
    if layers is None:
        return tuple(LayerChannels(c) for c in range(in_chans))
    found: list[LayerChannels] = []
    first = 0
    for number, row in enumerate(layers):
        kind = row["kind"]
        form = row.get("form") or _FORM_OF_KIND.get(kind, "")
        layer = LayerChannels(first, int(row["channels"]), form, row["loss"], float(row["loss_scale"]))
        where = row.get("where", f"layer {number}")
        if form not in FORMS or not FORMS[form].allows(layer.count):
            expected = ", ".join(known.description for known in FORMS.values())
            raise ValueError(
                f"{where}: kind is '{kind}', form '{form}' with {layer.count} channels, expected one of: {expected}; "
                "correct it"
            )
        suitable = [name for name, loss in LOSSES.items() if loss.on_fractions == layer.has_fractions]
        if layer.loss and layer.loss not in suitable:
            raise ValueError(
                f"{where}: loss is '{layer.loss}', expected one of {', '.join(suitable)} for a layer of kind "
                f"{kind}; correct it, or leave it empty"
            )
        found.append(layer)
        first += layer.count
    if first != in_chans:
        raise ValueError(f"layers: {first} channels in all, expected in_chans {in_chans}")
    return tuple(found)


def layers_of_channels(layers: Sequence[LayerChannels], channels: Sequence[int], what: str) -> tuple[int, ...]:
    """The numbers of the layers that some channels belong to, in the order of the channels.

    Raises:
        ValueError: only some of the channels of a layer are among them; `what` names the argument.
    """
    owner = {c: number for number, layer in enumerate(layers) for c in layer.channels}
    numbers = tuple(dict.fromkeys(owner[c] for c in channels))
    split = [number for number in numbers if not set(layers[number].channels) <= set(channels)]
    if split:
        raise ValueError(
            f"{what}: channels {list(channels)} hold only part of the layer with channels "
            f"{list(layers[split[0]].channels)}; expected whole layers"
        )
    return numbers


def to_fractions(images: Tensor, layers: Sequence[LayerChannels]) -> Tensor:
    """Apply the softmax to layers of class fractions, and leave other channels as they are.

    Args:
        images: (N, C, ...) raw predictions.
        layers: the layers of these channels.

    Returns:
        (N, C, ...); the fractions of a layer add up to 1.
    """
    if not any(layer.has_fractions for layer in layers):
        return images
    return torch.cat(
        [layer.of(images).softmax(dim=1) if layer.has_fractions else layer.of(images) for layer in layers], dim=1
    )


def layer_errors(images: Tensor, target: Tensor, layers: Sequence[LayerChannels], *, default: str) -> Tensor:
    """Error of each pixel of each layer, in the layer's own loss.

    Args:
        images: (N, C, ...) model units, or class fractions.
        target: the same; 0 where invalid.
        layers: the layers.
        default: loss of layers without class fractions that name none, `BASE_LOSS` or `FINER_LOSS`.

    Returns:
        (N, Y, ...), at least float32. The error of an angle is the mean over its two channels.
    """
    if all(layer.count == 1 and not layer.loss for layer in layers):
        return LOSSES[default].error(images, target)
    errors = []
    for layer in layers:
        loss = LOSSES[layer.loss or (FRACTIONS_LOSS if layer.has_fractions else default)]
        error = loss.error(layer.of(images), layer.of(target)).mean(dim=1)  # (N, ...)
        errors.append(error * layer.loss_scale if layer.loss_scale != 1 else error)
    return torch.stack(errors, dim=1)
