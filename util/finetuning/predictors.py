"""What is scored: class shares or values, of ground or of windows, by a network, by trees, or without looking.

Each offers `of_ground(unit, tested)` -> (K, h, w) of a rectangle of ground, finite where `tested` is True, and
`of_windows(numbers)` -> (n, K) of numbered windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from util.finetuning.objectives import Objective
from util.finetuning.trees import Trees
from util.mosaics.dense_prediction import DensePrediction
from util.mosaics.mosaic import Block


class Predictor(Protocol):
    """What `score` in a main takes."""

    def of_ground(self, unit: Block, tested: np.ndarray) -> np.ndarray:
        """(K, h, w) of a rectangle of base-scale pixels; `tested` is (h, w) bool of target pixels."""

    def of_windows(self, numbers: np.ndarray) -> np.ndarray:
        """(n, K) of numbered windows."""


@dataclass(frozen=True)
class NetworkPredictor:
    """A network's.

    Attributes:
        network: not wrapped.
        objective: turns its outputs into shares or values.
        survey: ground, with `shape`, `input_size` and `read`.
        windows: gives (n, C, H, W) values and validity of numbered windows, on the device; None for ground.
        count: number of outputs K.
        scale: target pixels along the edge of a base-scale pixel.
        overlap: share of a tile that the next one repeats.
        batch_size: most tiles in a forward pass.
        device: where it runs.
        amp_dtype: of autocast, None for full precision.
    """

    network: Any
    objective: Objective
    survey: Any
    windows: Callable[[np.ndarray], tuple[Tensor, Tensor]] | None
    count: int
    scale: int
    overlap: float
    batch_size: int
    device: torch.device
    amp_dtype: torch.dtype | None

    def _forward(self, imgs: Tensor, valid: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            return self.objective.predict(self.network, imgs, valid)

    @torch.inference_mode()
    def of_ground(self, unit: Block, tested: np.ndarray) -> np.ndarray:
        """Overlapping tiles, blended; the same whatever is tested."""
        evaluating(self.network)
        size, survey = self.survey.input_size, self.survey
        prediction = DensePrediction(
            [self._forward],
            bands=self.count,
            size=size,
            patch=self.network.patch_size,
            overlap=self.overlap,
            scale=self.scale,
            batch_size=self.batch_size,
            device=self.device,
        )
        window = survey.read(unit.top - size, unit.left - size, unit.bottom + size, unit.right + size)
        return prediction.of(unit, survey.shape, lambda origins: window.sample(origins, self.device))

    @torch.inference_mode()
    def of_windows(self, numbers: np.ndarray) -> np.ndarray:
        """One output a window, batch by batch."""
        assert self.windows is not None
        evaluating(self.network)
        outputs = [np.zeros((0, self.count), dtype=np.float32)]
        for first in range(0, len(numbers), self.batch_size):
            imgs, valid = self.windows(numbers[first : first + self.batch_size])
            outputs.append(self._forward(imgs, valid).cpu().numpy())
        return np.concatenate(outputs)


def evaluating(network: nn.Module) -> None:
    """Switches drop path off; training switches it on again."""
    network.eval()


@dataclass(frozen=True)
class ConstantPredictor:
    """The same everywhere: `constant`, (K,) float32."""

    constant: np.ndarray

    def of_ground(self, unit: Block, tested: np.ndarray) -> np.ndarray:
        """The constant at every pixel."""
        return np.broadcast_to(self.constant[:, None, None], (len(self.constant), *tested.shape))

    def of_windows(self, numbers: np.ndarray) -> np.ndarray:
        """The constant for every window."""
        return np.broadcast_to(self.constant, (len(numbers), len(self.constant))).copy()


@dataclass(frozen=True)
class TreePredictor:
    """Those of fitted trees.

    Attributes:
        trees: fitted.
        features: gives (n, F) features of target pixels (row, col), (n, 2).
        scale: target pixels along the edge of a base-scale pixel.
        pixels: (n, 2) target pixels of the windows' centres; None for ground.
    """

    trees: Trees
    features: Callable[[np.ndarray], np.ndarray]
    scale: int
    pixels: np.ndarray | None

    def of_ground(self, unit: Block, tested: np.ndarray) -> np.ndarray:
        """Only where it is tested, NaN elsewhere."""
        found = np.argwhere(tested)
        values = self.trees.predict(self.features(found + [unit.top * self.scale, unit.left * self.scale]))
        values = values.reshape(len(found), -1)
        image = np.full((values.shape[1], *tested.shape), np.nan, dtype=np.float32)
        image[:, found[:, 0], found[:, 1]] = values.T
        return image

    def of_windows(self, numbers: np.ndarray) -> np.ndarray:
        """What the pixels at the windows' centres give."""
        assert self.pixels is not None
        return self.trees.predict(self.features(self.pixels[numbers]))
