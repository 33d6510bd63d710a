"""Encodings: how values of a layer become channels of the model, and how predicted channels become values again.

A continuous layer is one channel. A circular one is two, cosine and sine, so that 359 and 1 degree are neighbours and
means are means of directions. A categorical one has a channel for each class, one-hot in the layer's native pixels and
the class's fraction of the ground in coarser ones. Pooling to coarser pixels is the same mean for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from datasets.layers.kinds import KINDS
from datasets.layers.layer import DEFAULT_KIND
from datasets.layers.transforms import Transform

EXACT = 2**24
"""Class codes up to this are exact in float32, the type of pixels."""

_STORED_NAMES = {"centres": "locations", "scales": "spreads", "training_means": "centres"}
"""Fields that checkpoints hold under another name."""


@dataclass(frozen=True)
class Encoding:
    """How one layer's values become channels, and back; the rules are those of its kind.

    Attributes:
        kind: a key of `datasets.layers.kinds.KINDS`.
        transform: of continuous values, before normalising.
        centres: per channel, subtracted after the transform; empty for categorical layers.
        scales: per channel, divided by.
        codes: class codes, ascending, as stored in the file.
        names: of the classes.
        colours: of the classes, '#rrggbb'.
        frequencies: fraction of each class on training ground.
        training_means: per channel, the mean over training ground in model units; empty = 0.
    """

    kind: str = DEFAULT_KIND
    transform: Transform = field(default_factory=Transform)
    centres: tuple[float, ...] = (0.0,)
    scales: tuple[float, ...] = (1.0,)
    codes: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    frequencies: tuple[float, ...] = ()
    training_means: tuple[float, ...] = ()

    @property
    def channels(self) -> int:
        """Number of channels."""
        return KINDS[self.kind].channels(self)

    @property
    def form(self) -> str:
        """What the channels hold: `values`, `angle` or `fractions`."""
        return KINDS[self.kind].form

    @property
    def is_continuous(self) -> bool:
        """True if values are measurements."""
        return KINDS[self.kind].is_continuous

    @property
    def is_classes(self) -> bool:
        """True if values are codes of classes."""
        return KINDS[self.kind].is_classes

    @property
    def is_angle(self) -> bool:
        """True if values are angles in degrees."""
        return KINDS[self.kind].is_angle

    @property
    def ground_turns(self) -> int:
        """Of angles, turns of the vector in the channels when the ground is turned once; 0: values do not turn."""
        return KINDS[self.kind].ground_turns

    @property
    def period(self) -> float:
        """Of angles, degrees after which they repeat."""
        return KINDS[self.kind].period

    @property
    def is_linear(self) -> bool:
        """True if model units are physical units but for a shift and a factor."""
        return self.is_continuous and self.transform.is_identity

    @property
    def physical_per_model_unit(self) -> float | None:
        """Size of a model unit in physical units; None where the two are not proportional."""
        return self.scales[0] if self.is_linear else None

    @property
    def means(self) -> tuple[float, ...]:
        """Per channel, the best constant prediction in model units: the mean over training ground."""
        return KINDS[self.kind].means(self)

    @property
    def loss_scale(self) -> float:
        """Factor that gives the best constant prediction a loss of about 1 whatever the kind."""
        return KINDS[self.kind].loss_scale(self)

    @property
    def band_names(self) -> tuple[str, str, str]:
        """Names of the `reconstruction_bands`."""
        return KINDS[self.kind].band_names

    @property
    def error_text(self) -> str:
        """Meaning of the last of the `reconstruction_bands`."""
        return KINDS[self.kind].error_text

    @property
    def neighbourhood(self) -> tuple[str, ...]:
        """Statistics of a pixel's surroundings that trees are given, `mean` and possibly `std`."""
        return KINDS[self.kind].neighbourhood

    def feature_names(self) -> tuple[str, ...]:
        """What is appended to the layer's name for each of its `features`."""
        return KINDS[self.kind].feature_names(self)

    def features(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the planes (rows, cols) that trees are given of the layer's values, NaN where invalid."""
        return KINDS[self.kind].features(self, values)

    def unit(self, stated: str) -> str:
        """Unit of decoded values, given the unit that the layer table states."""
        return KINDS[self.kind].unit(stated)

    def encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Native pixels to channels.

        Args:
            values: (N, rows, cols) float32, physical units, NaN = invalid.

        Returns:
            (N, k, rows, cols) float32 in model units, 0 where invalid, and (N, rows, cols) bool, True = usable.
        """
        return KINDS[self.kind].encode(self, values)

    def decode(self, images: torch.Tensor) -> torch.Tensor:
        """Model units to values: physical units, degrees from 0 to below 360, or the code of the likeliest class.

        Args:
            images: (..., k, h, w), model units; class fractions of categorical layers.

        Returns:
            (..., h, w).
        """
        return KINDS[self.kind].decode(self, images)

    def physical(self, image: np.ndarray) -> np.ndarray:
        """One channel (h, w) of a continuous layer in physical units, from model units."""
        if self.is_linear:
            return image * self.scales[0] + self.centres[0]
        return self.decode(torch.from_numpy(image)[None]).numpy()

    def reconstruction_bands(self, mean: np.ndarray, spread: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """What is written of a layer that was predicted several times.

        Args:
            mean: (k, h, w) mean prediction of its channels, model units; NaN where there is none.
            spread: (k, h, w) standard deviation of the predictions.
            seen: (k, h, w) observed channels, NaN where invalid.

        Returns:
            (3, h, w) float32: prediction, its spread and the error, in physical units or degrees; of classes the
            code of the likeliest one, its probability, and the fraction of the ground that is of another class. NaN
            where nothing was observed.
        """
        found = KINDS[self.kind].reconstruction_bands(self, mean, spread, seen)
        return np.where(np.isfinite(seen[0]), np.stack(found), np.nan).astype(np.float32)

    def plain(self) -> dict[str, Any]:
        """Plain lists and numbers, for a checkpoint; `encoding_from_dict` is the inverse."""
        stored = {_STORED_NAMES.get(key, key): value for key, value in asdict(self).items() if key != "transform"}
        return _with_lists(stored) | {"transform": _with_lists(asdict(self.transform))}


def encoding_from_dict(plain: Mapping[str, Any]) -> Encoding:
    """The encoding that `Encoding.plain` wrote."""
    names = {written: name for name, written in _STORED_NAMES.items()}
    fields = {names.get(key, key): value for key, value in plain.items() if key != "transform"}
    return Encoding(**_with_tuples(fields), transform=Transform(**_with_tuples(plain["transform"])))


def _with_lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def linear_encodings(centres: Sequence[float], scales: Sequence[float]) -> tuple[Encoding, ...]:
    """Encodings of continuous layers without transforms: (x - centre) / scale."""
    return tuple(Encoding(centres=(m,), scales=(s,)) for m, s in zip(centres, scales, strict=True))


def per_channel(values: Sequence[Any], encodings: Sequence[Encoding]) -> list[Any]:
    """A value of each layer, repeated for each of its channels."""
    return [value for value, encoding in zip(values, encodings, strict=True) for _ in range(encoding.channels)]


def channel_ranges(encodings: Sequence[Encoding]) -> tuple[tuple[int, ...], ...]:
    """The channel numbers of each layer: consecutive, in the order of the layers."""
    ranges, first = [], 0
    for encoding in encodings:
        ranges.append(tuple(range(first, first + encoding.channels)))
        first += encoding.channels
    return tuple(ranges)
