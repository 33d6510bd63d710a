"""What the model knows of a layer: which channels are its, what they hold, and how it is compared with the truth.

Channels of a layer follow one another. Letters: N batch, C channels, Y layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEAST_SHARE = 1e-6
"""Added to predicted shares before the logarithm, so that a class predicted as impossible costs much and not all."""


@dataclass(frozen=True)
class LayerChannels:
    """A layer as the model sees it.

    Attributes:
        first: its first channel.
        count: number of its channels.
        kind: `continuous`; `circular`, cosine and sine; `categorical`, the shares of classes.
        loss: `mse`, `l1`, `huber` or `cross_entropy`; empty for the usual one of the kind.
        loss_scale: what its errors are multiplied by.
    """

    first: int
    count: int = 1
    kind: str = "continuous"
    loss: str = ""
    loss_scale: float = 1.0

    @property
    def channels(self) -> range:
        """Its channel numbers."""
        return range(self.first, self.first + self.count)

    def of(self, images: Tensor) -> Tensor:
        """The layer's part (N, count, ...) of (N, C, ...)."""
        return images.narrow(1, self.first, self.count)


def layer_channels(layers: Sequence[Mapping[str, Any]] | None, in_chans: int) -> tuple[LayerChannels, ...]:
    """The layers of a model; a continuous one for each channel where nothing is said.

    Args:
        layers: for each, `kind`, `channels` (their number), `loss` and `loss_scale`.
        in_chans: number of channels.

    Raises:
        ValueError: the channels do not add up, or a kind or loss is not known.
    """
    if layers is None:
        return tuple(LayerChannels(c) for c in range(in_chans))
    found: list[LayerChannels] = []
    first = 0
    for row in layers:
        layer = LayerChannels(first, int(row["channels"]), row["kind"], row["loss"], float(row["loss_scale"]))
        allowed = {"continuous": layer.count == 1, "circular": layer.count == 2, "categorical": layer.count > 1}
        losses = ("", "cross_entropy") if layer.kind == "categorical" else ("", "mse", "l1", "huber")
        if not allowed.get(layer.kind, False) or layer.loss not in losses:
            raise ValueError(
                f"layers: kind {layer.kind!r} with {layer.count} channels and loss {layer.loss!r}: expected continuous "
                "with 1, circular with 2 (mse, l1, huber) or categorical with more (cross_entropy)"
            )
        found.append(layer)
        first += layer.count
    if first != in_chans:
        raise ValueError(f"layers: {first} channels in all, expected in_chans {in_chans}")
    return tuple(found)


def check_whole(layers: Sequence[LayerChannels], channels: Sequence[int], what: str) -> tuple[int, ...]:
    """The layers that some channels belong to, in the order of the channels.

    Raises:
        ValueError: only some of the channels of a layer are among them.
    """
    owner = {c: number for number, layer in enumerate(layers) for c in layer.channels}
    numbers = tuple(dict.fromkeys(owner[c] for c in channels))
    split = [number for number in numbers if not set(layers[number].channels) <= set(channels)]
    if split:
        raise ValueError(
            f"{what}: channels {list(channels)} hold part of the layer of channels "
            f"{list(layers[split[0]].channels)}; expected whole layers"
        )
    return numbers


def to_shares(images: Tensor, layers: Sequence[LayerChannels]) -> Tensor:
    """Raw predictions (N, C, ...) with those of categorical layers turned into shares that add up to 1."""
    if all(layer.kind != "categorical" for layer in layers):
        return images
    return torch.cat(
        [layer.of(images).softmax(dim=1) if layer.kind == "categorical" else layer.of(images) for layer in layers],
        dim=1,
    )


def layer_errors(images: Tensor, target: Tensor, layers: Sequence[LayerChannels], *, usual: str) -> Tensor:
    """Error of each pixel of each layer, in the layer's own loss.

    Args:
        images: (N, C, ...) model units; shares of categorical layers.
        target: likewise; 0 where invalid.
        layers: the layers.
        usual: loss of layers that name none and are not categorical, `mse` or `l1`.

    Returns:
        (N, Y, ...), float32 or more. Two channels of a circular layer count by their mean. Huber's loss is twice the
        textbook's, with the bend at 1: the square of small errors.
    """
    if all(layer.count == 1 and not layer.loss for layer in layers):
        return _distance(images - target, usual)
    parts = []
    for layer in layers:
        image, truth = layer.of(images), layer.of(target)
        if layer.kind == "categorical":
            error = -(truth * (image + LEAST_SHARE).log()).sum(dim=1)
        else:
            error = _distance(image - truth, layer.loss or usual).mean(dim=1)
        parts.append(error * layer.loss_scale if layer.loss_scale != 1 else error)
    return torch.stack(parts, dim=1)


def _distance(difference: Tensor, loss: str) -> Tensor:
    if loss == "mse":
        return difference.square()
    size = difference.abs()
    return size if loss == "l1" else torch.where(size < 1, size.square(), 2 * size - 1)
