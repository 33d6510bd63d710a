"""Embeddings as something to look at: three principal components as colours, and classes by k-means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from scipy.cluster.vq import kmeans2, vq

CLUSTER_COMPONENTS = 16
"""Principal components in which places are clustered: the others are mostly noise, and slow."""


@dataclass(frozen=True)
class Components:
    """Principal components of embeddings.

    Attributes:
        mean: (B,) float64.
        axes: (B, K) float64, orthonormal columns, largest variance first.
        share: (K,) share of the variance that each explains.
    """

    mean: np.ndarray
    axes: np.ndarray
    share: np.ndarray

    def project(self, values: np.ndarray) -> np.ndarray:
        """(B, ...) -> (K, ...): absent bands (NaN) count as the mean, places without any band stay NaN."""
        known = np.isfinite(values)
        centred = np.where(known, values - self.mean.reshape(-1, *[1] * (values.ndim - 1)), 0.0)
        projected = np.tensordot(self.axes.T, centred, axes=1)
        return np.where(known.any(axis=0), projected, np.nan)


def fit_components(sample: np.ndarray, count: int) -> Components:
    """Principal components of (n, B) complete vectors; the sign of each makes its largest entry positive.

    Raises:
        ValueError: fewer than two vectors.
    """
    if len(sample) < 2:
        raise ValueError(f"principal components of {len(sample)} complete places: expected at least 2")
    mean = sample.mean(axis=0, dtype=np.float64)
    centred = sample - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(sample))
    order = np.argsort(values)[::-1][:count]
    axes = vectors[:, order]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return Components(mean, axes, np.clip(values[order], 0, None) / max(float(values.clip(0).sum()), 1e-30))


def to_bytes(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(K, r, c) -> uint8: low..high of each band becomes 1..255, 0 where NaN."""
    span = np.maximum(high - low, 1e-30)[:, None, None]
    scaled = 1 + 254 * np.clip((values - low[:, None, None]) / span, 0, 1)
    return np.where(np.isfinite(values), np.nan_to_num(scaled).round(), 0).astype(np.uint8)


def fit_clusters(sample: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Centres (K, k) of k-means over (n, k) vectors, largest class first.

    Raises:
        ValueError: fewer places than classes.
    """
    if len(sample) < count:
        raise ValueError(f"--clusters {count}: only {len(sample)} places have an embedding; ask for fewer classes")
    centres, labels = kmeans2(sample, count, iter=50, minit="++", seed=seed)
    sizes = np.bincount(labels, minlength=count)
    return centres[np.argsort(-sizes, kind="stable")]


def classify(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(k, r, c) -> (1, r, c) uint8: number of the nearest centre from 1, 0 where NaN."""
    flat = values.reshape(len(values), -1).T
    known = np.isfinite(flat).all(axis=1)
    classes = np.zeros(len(flat), dtype=np.uint8)
    if known.any():
        classes[known] = vq(flat[known], centres)[0] + 1
    return classes.reshape(1, *values.shape[1:])


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours of `count` classes, told apart as well as can be."""
    if count <= 20:
        table = [colormaps["tab20"](k) for k in [*range(0, 20, 2), *range(1, 20, 2)][:count]]
    else:
        table = [colormaps["hsv"](k / count) for k in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b, _ in table]
