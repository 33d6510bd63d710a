"""Kinds of layers: how values become channels of the model, and what comes out of the model becomes values again.

A continuous layer is one channel. A circular one is two, cosine and sine, so that 359 and 1 degree are neighbours and
means are means of directions. A categorical one has a channel for each class, one-hot in the layer's own pixels and
the class's share of the ground in coarser ones. Pooling to coarser pixels is the same mean for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from datasets.layers.layer import Layer
from datasets.layers.transforms import Transform

EXACT = 2**24
"""Class codes up to this are exact in float32, in which pixels travel."""

LOSSES = {
    "continuous": ("", "mse", "l1", "huber"),
    "circular": ("", "mse", "l1", "huber"),
    "categorical": ("", "cross_entropy"),
}


@dataclass(frozen=True)
class Encoding:
    """How one layer's values become channels, and back.

    Attributes:
        kind: `continuous`, `circular` or `categorical`.
        transform: of continuous values, before normalising.
        locations: per channel, subtracted after the transform; not of categorical layers.
        spreads: per channel, divided by.
        codes: class codes, ascending, as they lie in the file.
        names: of the classes.
        colours: of the classes, '#rrggbb'.
        frequencies: share of each class on training ground.
        centres: per channel, the mean over training ground in model units, if it is not 0.
    """

    kind: str = "continuous"
    transform: Transform = field(default_factory=Transform)
    locations: tuple[float, ...] = (0.0,)
    spreads: tuple[float, ...] = (1.0,)
    codes: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    frequencies: tuple[float, ...] = ()
    centres: tuple[float, ...] = ()

    @property
    def channels(self) -> int:
        """Number of channels."""
        return {"continuous": 1, "circular": 2, "categorical": len(self.codes)}[self.kind]

    @property
    def is_linear(self) -> bool:
        """True if model units are physical units but for a shift and a factor."""
        return self.kind == "continuous" and self.transform.kind == "none"

    @property
    def means(self) -> tuple[float, ...]:
        """Per channel, the best constant in model units: the mean over training ground."""
        return self.frequencies if self.kind == "categorical" else self.centres or (0.0,) * self.channels

    @property
    def loss_scale(self) -> float:
        """What errors are multiplied by, so that the best constant has an error of about 1 whatever the kind.

        That is so for the squared error of standardised values. The cross-entropy of the class frequencies is their
        entropy, so it is divided by that.
        """
        if self.kind != "categorical":
            return 1.0
        return -1.0 / sum(share * math.log(share) for share in self.frequencies)

    def encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Native pixels to channels.

        Args:
            values: (N, rows, cols) float32, physical units, NaN = invalid.

        Returns:
            (N, k, rows, cols) float32 in model units, 0 where invalid, and (N, rows, cols) bool, True = usable.
        """
        usable = torch.isfinite(values)
        if self.kind == "categorical":
            codes = torch.tensor(self.codes, dtype=values.dtype, device=values.device)[:, None, None]
            channels = (values.unsqueeze(1) == codes).to(values.dtype)
            return channels, usable & channels.any(dim=1)
        if self.kind == "circular":
            angle = values.deg2rad()
            channels = torch.stack([angle.cos(), angle.sin()], dim=1)
        else:
            channels = self.transform.forward(values).unsqueeze(1)
        location, spread = self._linear(channels)
        return torch.where(usable.unsqueeze(1), (channels - location) / spread, 0.0), usable

    def decode(self, images: torch.Tensor) -> torch.Tensor:
        """Model units to values: physical units, degrees from 0 to below 360, or the code of the likeliest class.

        Args:
            images: (..., k, h, w), model units; class shares of categorical layers.

        Returns:
            (..., h, w).
        """
        if self.kind == "categorical":
            codes = torch.tensor(self.codes, dtype=torch.float32, device=images.device)
            likeliest = codes[images.nan_to_num().argmax(dim=-3)]
            return torch.where(torch.isnan(images).any(dim=-3), torch.nan, likeliest)
        location, spread = self._linear(images)
        channels = images * spread + location
        if self.kind == "circular":
            cosine, sine = channels.unbind(dim=-3)
            degrees = torch.atan2(sine, cosine).rad2deg() % 360
            return torch.where(degrees == 360, 0.0, degrees)  # the remainder of a tiny negative angle is rounded up
        return self.transform.inverse(channels.squeeze(-3))

    def plain(self) -> dict[str, Any]:
        """As plain lists and numbers, for a checkpoint; `encoding_from_dict` makes it an encoding again."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k != "transform"} | {
            "transform": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.transform).items()}
        }

    def _linear(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Location and spread, (k, 1, 1) each."""
        location = torch.tensor(self.locations, dtype=images.dtype, device=images.device)[:, None, None]
        spread = torch.tensor(self.spreads, dtype=images.dtype, device=images.device)[:, None, None]
        return location, spread


def encoding_from_dict(plain: Mapping[str, Any]) -> Encoding:
    """The encoding that `Encoding.plain` wrote."""

    def tuples(part: Mapping[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in part.items()}

    return Encoding(**{**tuples(plain), "transform": Transform(**tuples(plain["transform"]))})


def linear_encodings(location: Sequence[float], spread: Sequence[float]) -> tuple[Encoding, ...]:
    """Encodings of continuous layers without transforms: (x - location) / spread."""
    return tuple(Encoding(locations=(m,), spreads=(s,)) for m, s in zip(location, spread, strict=True))


def channel_ranges(encodings: Sequence[Encoding]) -> tuple[tuple[int, ...], ...]:
    """The channel numbers of each layer: consecutive, in the order of the layers."""
    ranges, first = [], 0
    for encoding in encodings:
        ranges.append(tuple(range(first, first + encoding.channels)))
        first += encoding.channels
    return tuple(ranges)


def check_layer_kind(layer: Layer) -> None:
    """Refuses what does not fit the kind of a layer.

    Raises:
        ValueError: a loss, transform or unit that its kind has no use for.
    """
    if layer.kind not in LOSSES:
        raise ValueError(f"{layer.where}: kind is '{layer.kind}', expected one of {', '.join(LOSSES)}; correct it")
    if layer.loss not in LOSSES[layer.kind]:
        raise ValueError(
            f"{layer.where}: loss is '{layer.loss}', expected one of {', '.join(LOSSES[layer.kind][1:])} for a layer "
            f"of kind {layer.kind}; correct it, or leave it empty"
        )
    if layer.transform != "none" and layer.kind != "continuous":
        raise ValueError(
            f"{layer.where}: transform is '{layer.transform}', expected none for a layer of kind {layer.kind}; only "
            "continuous layers are transformed"
        )
    if layer.kind == "circular" and layer.units.lower().startswith("rad"):
        raise ValueError(
            f"{layer.where}: units are '{layer.units}', expected degrees for a layer of kind circular; convert it"
        )


def values_text(layer: Layer, encoding: Encoding, minimum: float, maximum: float) -> str:
    """What a layer's values are, in a few words."""
    if layer.kind == "categorical":
        commonest = max(range(len(encoding.codes)), key=lambda k: encoding.frequencies[k])
        return (
            f"{len(encoding.codes)} classes, the commonest {encoding.codes[commonest]:g} ({encoding.names[commonest]}) "
            f"with {100 * encoding.frequencies[commonest]:.0f} %"
        )
    units = layer.units or ("degrees" if layer.kind == "circular" else "")
    text = f"{minimum:.6g} to {maximum:.6g}{' ' * bool(units)}{units}"
    return text if layer.transform == "none" else f"{text}, transform {layer.transform}"
