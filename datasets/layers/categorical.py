"""Categorical layers: codes of classes, a channel for the fraction of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from datasets.layers.kind import CannotFit, Kind
from datasets.layers.layer import Layer
from datasets.layers.layer_statistics import LayerStatistics, TrainingValues
from datasets.layers.on_device import constant

if TYPE_CHECKING:
    from datasets.layers.encoding import Encoding


@dataclass(frozen=True)
class Categorical(Kind):
    """Class codes: a channel per class, one-hot in its native pixels, fractions of the ground in coarser ones."""

    name: str = "categorical"
    description: str = "class codes, whole numbers"
    form: str = "fractions"
    is_classes: bool = True
    band_names: tuple[str, str, str] = ("class", "probability", "error")
    error_text: str = "share of the ground that is of another class"

    def unit(self, stated: str) -> str:
        """Codes have none."""
        return ""

    def fit(self, values: TrainingValues, encoding: Encoding) -> tuple[LayerStatistics, Encoding]:
        """Count how often each class of the encoding occurs."""
        layer = values.layer
        codes = np.array(encoding.codes, dtype=np.float64)
        counts = np.zeros(len(codes), dtype=np.int64)
        for piece in values.pieces():
            counts += np.bincount(np.searchsorted(codes, piece), minlength=len(codes))
        if np.count_nonzero(counts) < 2:
            found = ", ".join(f"{code:g}" for code in codes[counts > 0]) or "no valid pixel"
            raise CannotFit(
                f"layer '{layer.name}' ({layer.files}): {found} alone on training ground, expected at least two "
                "classes",
                "change --seed or --val_fraction, or leave it out (--dropped_bands)",
            )
        # Classes that training ground lacks count as half a pixel: none is impossible.
        fractions = np.maximum(counts, 0.5) / np.maximum(counts, 0.5).sum()
        statistics = LayerStatistics(
            name=layer.name,
            median=float(codes[counts.argmax()]),
            count=int(counts.sum()),
            sampled=values.sampled,
        )
        return statistics, replace(encoding, frequencies=tuple(fractions.tolist()))

    def unfitted(self, encoding: Encoding) -> Encoding:
        """All classes equally frequent."""
        return replace(encoding, frequencies=(1 / len(encoding.codes),) * len(encoding.codes))

    def channels(self, encoding: Encoding) -> int:
        """One per class."""
        return len(encoding.codes)

    def encode(self, encoding: Encoding, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One-hot; codes that are no class of the encoding are not usable."""
        codes = constant(encoding.codes, dtype=values.dtype, device=values.device)[:, None, None]
        channels = (values.unsqueeze(1) == codes).to(values.dtype)
        return channels, torch.isfinite(values) & channels.any(dim=1)

    def decode(self, encoding: Encoding, images: torch.Tensor) -> torch.Tensor:
        """The code of the likeliest class."""
        codes = constant(encoding.codes, dtype=torch.float32, device=images.device)
        likeliest = codes[images.nan_to_num().argmax(dim=-3)]
        return torch.where(torch.isnan(images).any(dim=-3), torch.nan, likeliest)

    def means(self, encoding: Encoding) -> tuple[float, ...]:
        """The frequencies of the classes."""
        return encoding.frequencies

    def loss_scale(self, encoding: Encoding) -> float:
        """One over the entropy of the frequencies, which is the cross-entropy of predicting them everywhere."""
        return -1.0 / sum(share * math.log(share) for share in encoding.frequencies)

    def reconstruction_bands(
        self, encoding: Encoding, mean: np.ndarray, spread: np.ndarray, seen: np.ndarray
    ) -> list[np.ndarray]:
        """Code of the likeliest class, its probability, and the fraction of the ground that is of another class."""
        chosen = np.nan_to_num(mean).argmax(axis=0)[None]
        share, right = (np.take_along_axis(x, chosen, axis=0)[0] for x in (mean, seen))
        return [encoding.decode(torch.from_numpy(mean)).numpy(), share / mean.sum(axis=0), 1 - right]

    def feature_names(self, encoding: Encoding) -> tuple[str, ...]:
        """The classes."""
        return tuple(f" {name}" for name in encoding.names)

    def features(self, encoding: Encoding, values: np.ndarray) -> Iterator[np.ndarray]:
        """Yield a plane of ones and zeros per class; standard deviations around a pixel follow from their means."""
        for code in encoding.codes:
            yield np.where(np.isnan(values), np.nan, values == np.float32(code))

    def describe(self, layer: Layer, encoding: Encoding, minimum: float, maximum: float) -> str:
        """Number of classes and the commonest of them."""
        commonest = max(range(len(encoding.codes)), key=lambda k: encoding.frequencies[k])
        return (
            f"{len(encoding.codes)} classes, the commonest {encoding.codes[commonest]:g} ({encoding.names[commonest]}) "
            f"with {100 * encoding.frequencies[commonest]:.0f} %"
        )
