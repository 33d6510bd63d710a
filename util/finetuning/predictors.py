"""Predictors of class probabilities or values: a fine-tuned network, trees or a constant; and how baselines are fitted.

Each offers `of_ground(unit, tested)` -> (K, h, w) of a rectangle of ground, finite where `tested` is True, and
`of_windows(numbers)` -> (n, K) of numbered windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from util.finetuning.objectives import Objective
from util.finetuning.trees import MAX_SAMPLES, Trees
from util.hardware.device import peak_memory_bytes
from util.mosaics.dense_prediction import DensePrediction
from util.mosaics.mosaic import Block
from util.training.timer import TrainingTimer

Features = Callable[[np.ndarray], np.ndarray]
"""(n, 2) target pixels (row, col) -> (n, F) features."""


class Predictor(Protocol):
    """Predicts ground or windows."""

    def of_ground(self, unit: Block, tested: np.ndarray) -> np.ndarray:
        """(K, h, w) of a rectangle of base-scale pixels; `tested` is (h, w) bool of target pixels."""

    def of_windows(self, numbers: np.ndarray) -> np.ndarray:
        """(n, K) of numbered windows."""


@dataclass(frozen=True)
class NetworkPredictor:
    """Predicts with a network.

    Attributes:
        network: not wrapped for several processes.
        objective: turns the network's outputs into class probabilities or values.
        survey: the layers, with `shape`, `input_size` and `read`.
        windows: returns (n, C, H, W) values, validity and native pixels of numbered windows, on the device; None for
            ground.
        count: number of outputs K.
        scale: target pixels along the edge of a base-scale pixel.
        overlap: fraction of a tile that the next one repeats.
        batch_size: most tiles in a forward pass.
        device: where it runs.
        amp_dtype: of autocast, None for full precision.
    """

    network: Any
    objective: Objective
    survey: Any
    windows: Callable[[np.ndarray], tuple[Tensor, Tensor, Sequence[Tensor]]] | None
    count: int
    scale: int
    overlap: float
    batch_size: int
    device: torch.device
    amp_dtype: torch.dtype | None

    def _forward(self, imgs: Tensor, valid: Tensor, native: Sequence[Tensor]) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            return self.objective.predict(self.network, imgs, valid, native)

    @torch.inference_mode()
    def of_ground(self, unit: Block, tested: np.ndarray) -> np.ndarray:
        """Blends overlapping tiles; `tested` changes nothing."""
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
            wrap_columns=survey.wrap_columns,
        )
        window = survey.read(unit.top - size, unit.left - size, unit.bottom + size, unit.right + size)
        return prediction.of(unit, survey.shape, lambda origins: window.sample(origins, self.device))

    @torch.inference_mode()
    def of_windows(self, numbers: np.ndarray) -> np.ndarray:
        """Predicts windows batch by batch."""
        assert self.windows is not None
        evaluating(self.network)
        outputs = [np.zeros((0, self.count), dtype=np.float32)]
        for first in range(0, len(numbers), self.batch_size):
            outputs.append(self._forward(*self.windows(numbers[first : first + self.batch_size])).cpu().numpy())
        return np.concatenate(outputs)


def evaluating(network: nn.Module) -> None:
    """Switches drop path off; training switches it on again."""
    network.eval()


@dataclass(frozen=True)
class ConstantPredictor:
    """Predicts the same everywhere: `constant`, (K,) float32."""

    constant: np.ndarray

    def of_ground(self, unit: Block, tested: np.ndarray) -> np.ndarray:
        """The constant at every pixel."""
        return np.broadcast_to(self.constant[:, None, None], (len(self.constant), *tested.shape))

    def of_windows(self, numbers: np.ndarray) -> np.ndarray:
        """The constant for every window."""
        return np.broadcast_to(self.constant, (len(numbers), len(self.constant))).copy()


@dataclass(frozen=True)
class TreePredictor:
    """Predicts with fitted trees.

    Attributes:
        trees: fitted.
        features: returns (n, F) features of (n, 2) target pixels (row, col).
        scale: target pixels along the edge of a base-scale pixel.
        pixels: (n, 2) target pixels of the windows' centres; None for ground.
    """

    trees: Trees
    features: Callable[[np.ndarray], np.ndarray]
    scale: int
    pixels: np.ndarray | None

    def of_ground(self, unit: Block, tested: np.ndarray) -> np.ndarray:
        """Predicts tested pixels; NaN elsewhere."""
        found = np.argwhere(tested)
        values = self.trees.predict(self.features(found + [unit.top * self.scale, unit.left * self.scale]))
        values = values.reshape(len(found), -1)
        image = np.full((values.shape[1], *tested.shape), np.nan, dtype=np.float32)
        image[:, found[:, 0], found[:, 1]] = values.T
        return image

    def of_windows(self, numbers: np.ndarray) -> np.ndarray:
        """Predicts windows by the pixels at their centres."""
        assert self.pixels is not None
        return self.trees.predict(self.features(self.pixels[numbers]))


@dataclass(frozen=True)
class BaselineInputs:
    """Training labels of a fold, and features of pixels, for methods that are no network.

    Attributes:
        class_counts: training labels of each class; empty for values.
        mean: mean training value.
        samples: draws training pixels: (most, seed) -> (n, 2) target pixels and their (n,) classes or values.
        features: returns (n, F) features of (n, 2) target pixels.
        random_features: returns such a function of untrained convolutions, out of (n, 2) training pixels.
        embeddings: likewise of embeddings of the pre-trained encoder; None without one.
        pixels: (n, 2) target pixels of the windows' centres; None for ground.
        scale: target pixels along the edge of a base-scale pixel.
        seed: seed of the draw and of the trees.
        tree_samples: most pixels that trees learn from.
        balanced: weight classes by the inverse of their frequency.
        device: whose peak memory is reported.
    """

    class_counts: Sequence[int]
    mean: float
    samples: Callable[..., tuple[np.ndarray, np.ndarray]] | None
    features: Features
    random_features: Callable[[np.ndarray], Features]
    embeddings: Callable[[np.ndarray], Features] | None
    pixels: np.ndarray | None
    scale: int
    seed: int
    tree_samples: int
    balanced: bool
    device: torch.device


def constant_prediction(class_counts: Sequence[int], mean: float) -> np.ndarray:
    """(K,) float32 frequencies of the classes in the training labels; or the mean value, where no class is counted."""
    counts = np.asarray(class_counts, dtype=np.float64)
    return (counts / counts.sum() if len(counts) else np.array([mean])).astype(np.float32)


def fit_constant(inputs: BaselineInputs) -> tuple[Predictor, dict[str, Any]]:
    """A predictor of the class frequencies or mean value of the training labels, which costs nothing."""
    return ConstantPredictor(constant_prediction(inputs.class_counts, inputs.mean)), {}


def _own_features(inputs: BaselineInputs, pixels: np.ndarray) -> Features:
    """Values of the layers, and their local means and spreads."""
    return inputs.features


def _random_features(inputs: BaselineInputs, pixels: np.ndarray) -> Features:
    """Responses of untrained convolutions, and nothing else."""
    return inputs.random_features(pixels)


def _features_and_embeddings(inputs: BaselineInputs, pixels: np.ndarray) -> Features:
    """Values, local means and spreads of the layers, and embeddings."""
    assert inputs.embeddings is not None
    embeddings = inputs.embeddings(pixels)
    return lambda places: np.concatenate([inputs.features(places), embeddings(places)], axis=1)


def _fit_trees(
    inputs: BaselineInputs, *, kind: str, features_of: Callable[[BaselineInputs, np.ndarray], Features] = _own_features
) -> tuple[Predictor, dict[str, Any]]:
    """Trees fitted on features of training pixels, and what that cost."""
    assert inputs.samples is not None
    classes = len(inputs.class_counts) or None
    most = max(MAX_SAMPLES, inputs.tree_samples)
    trees = Trees(kind, classes=classes, seed=inputs.seed, balanced=inputs.balanced, max_samples=most)
    pixels, targets = inputs.samples(inputs.tree_samples, seed=inputs.seed)
    timer = TrainingTimer()
    features = features_of(inputs, pixels)
    trees.fit(features(pixels), targets)
    timer.read(1)
    costs = {
        "train_seconds": timer.trained_s,
        "train_cpu_seconds": timer.trained_cpu_s,
        "peak_memory_mb": peak_memory_bytes(inputs.device) / 2**20,
        "tree_samples": trees.samples,
    }
    return TreePredictor(trees, features, scale=inputs.scale, pixels=inputs.pixels), costs


fit_trees = partial(_fit_trees, kind="gradient_boosting")
"""Fits gradient-boosted trees."""
fit_forest = partial(_fit_trees, kind="random_forest")
"""Fits a random forest."""
fit_random_features = partial(fit_trees, features_of=_random_features)
"""Fits gradient-boosted trees on untrained convolutions."""
fit_trees_and_embeddings = partial(fit_trees, features_of=_features_and_embeddings)
"""Fits gradient-boosted trees on their own features and embeddings of the pre-trained encoder."""
