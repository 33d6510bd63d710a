"""Embeddings of a pre-trained encoder as features of pixels: tokens, interpolated between patches, few components.

The encoder has never seen a label, so its embeddings of test ground are as good as out-of-fold ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from util.inference.embedding_components import fit_components, project
from util.inference.embeddings import EmbeddingProduct
from util.inference.engine import Engine, Meter
from util.inference.inputs import ground_of
from util.mosaics.mosaic import Block

COMPONENTS = 32
"""Principal components of the embeddings that trees are given."""

# Windows along the edge of the squares of ground whose embeddings are made at a time.
_WINDOWS = 4


class PixelEmbeddings:
    """Embeddings of all channel groups at target pixels, as `main_inference --pool group --positions keep` makes them.

    Args:
        network: the encoder with any head; only its tokens are used.
        survey: the layers, an `InferenceSurvey`.
        scale: target pixels along the edge of a base pixel.
        overlap: fraction of a tile that the next one repeats.
        batch_size: most tiles in a forward pass.
        device: where it runs.
        amp_dtype: of autocast, None for full precision.
    """

    def __init__(
        self,
        network: Any,
        survey: Any,
        *,
        scale: int,
        overlap: float,
        batch_size: int,
        device: torch.device,
        amp_dtype: torch.dtype | None,
    ) -> None:
        engine = Engine(
            model=network.to(device).eval(),
            device=device,
            autocast=partial(torch.autocast, device.type, dtype=amp_dtype, enabled=amp_dtype is not None),
            batch_size=batch_size,
            overlap=overlap,
            meter=Meter(device),
            wrap_columns=survey.wrap_columns,
        )
        self._patch = network.patch_size
        self._product = EmbeddingProduct(
            engine, ground_of(survey), pool="group", stride=self._patch, dtype="float32", tags={}
        )
        self._survey, self._scale = survey, scale
        self._edge = _WINDOWS * network.img_size

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(n, groups * width) float32 of (n, 2) target pixels (row, col); NaN where a group has no valid pixel."""
        centres = (np.asarray(pixels, dtype=np.float64) + 0.5) / self._scale
        bands = len(self._product.rasters["embeddings"].names)
        features = np.full((len(pixels), bands), np.nan, dtype=np.float32)
        squares, member = np.unique(np.floor(centres / self._edge), axis=0, return_inverse=True)
        for number in range(len(squares)):
            here = np.flatnonzero(member.ravel() == number)
            places = centres[here] / self._patch - 0.5  # tokens, whose middles are whole numbers
            first = np.maximum(np.floor(places.min(axis=0)).astype(int), 0)
            last = np.minimum(np.floor(places.max(axis=0)).astype(int) + 2, self._product.cells)
            features[here] = interpolated(self._tokens(first, last), places - first)
        return features

    def _tokens(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """(bands, rows, cols) of the tokens from `first` to before `last`."""
        block = Block(0, 0, *(int(edge) * self._patch for edge in (*first, *last)))
        window = self._survey.read(*block.grown(self._product.reach).edges)
        return self._product.make(block, window)["embeddings"][1]


def interpolated(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bilinear interpolation between known pixels; beyond the edges as at them.

    Args:
        image: (B, rows, cols), NaN where unknown.
        places: (n, 2) row and column, whole numbers in the middle of pixels.

    Returns:
        (n, B), NaN where all four neighbours are unknown.
    """
    low = np.floor(places).astype(int)
    part, last = places - low, np.array(image.shape[1:]) - 1
    total, weights = np.zeros((len(places), len(image))), np.zeros((len(places), len(image)))
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row, col = np.clip(low + [down, right], 0, last).T
        weight = np.abs(1 - down - part[:, 0]) * np.abs(1 - right - part[:, 1])
        values = image[:, row, col].T
        known = np.isfinite(values)
        total += np.where(known, values, 0.0) * weight[:, None]
        weights += known * weight[:, None]
    with np.errstate(invalid="ignore"):
        return np.where(weights > 1e-6, total / np.maximum(weights, 1e-12), np.nan)


def principal_features(
    embeddings: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, *, count: int = COMPONENTS
) -> Callable[[np.ndarray], np.ndarray]:
    """Principal components of the embeddings, fitted where the training labels lie.

    Args:
        embeddings: returns (n, B) of (n, 2) target pixels.
        pixels: training pixels.
        count: number of components, at most.

    Returns:
        A function of (m, 2) target pixels that returns (m, K) float32; NaN where nothing is known.

    Raises:
        ValueError: fewer than two training pixels have embeddings.
    """
    sample = embeddings(pixels)
    known = np.isfinite(sample)
    means = np.where(known, sample, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    components = fit_components(np.where(known, sample, means)[known.any(axis=1)], count)
    return lambda places: project(components, embeddings(places).T).T.astype(np.float32)
