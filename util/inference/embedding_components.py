"""Principal components and k-means classes of embeddings, by scikit-learn, as images."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from scipy.ndimage import uniform_filter
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_argmin

CLUSTER_COMPONENTS = 16
"""Principal components that are clustered: the others are mostly noise, and slow."""

CLUSTER_WINDOW = 3
"""Edge of the square of places whose mean is clustered."""


def fit_components(sample: np.ndarray, count: int) -> PCA:
    """Principal components of (n, B) complete vectors; the sign of each makes its largest entry positive.

    There are fewer than `count` where there are fewer vectors or bands.

    Raises:
        ValueError: fewer than two vectors.
    """
    if len(sample) < 2:
        raise ValueError(f"principal components of {len(sample)} complete places: expected at least 2")
    vectors = sample.astype(np.float64)
    return PCA(min(count, *vectors.shape), random_state=0).fit(vectors)


def project(components: PCA, values: np.ndarray) -> np.ndarray:
    """(B, ...) -> (K, ...): absent bands (NaN) count as the mean, places without any band stay NaN."""
    flat = values.reshape(len(values), -1).T
    known = np.isfinite(flat)
    projected = components.transform(np.where(known, flat, components.mean_))
    projected[~known.any(axis=1)] = np.nan
    return projected.T.reshape(-1, *values.shape[1:])


def smooth(values: np.ndarray) -> np.ndarray:
    """(K, r, c) -> the mean of the known places in the square of `CLUSTER_WINDOW` places around each, NaN where NaN.

    Embeddings vary from place to place, as each is computed from its own tokens; classes of single places are salt and
    pepper, and no units that one could follow in the field.
    """
    known = np.isfinite(values).all(axis=0)
    size = (0, CLUSTER_WINDOW, CLUSTER_WINDOW)
    sums = uniform_filter(np.where(known, values, 0.0), size=size, mode="constant")
    shares = uniform_filter(known.astype(np.float64), size=CLUSTER_WINDOW, mode="constant")
    return np.where(known, sums / np.where(known, shares, 1.0), np.nan)


def to_bytes(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(K, r, c) -> uint8: low..high of each band becomes 1..255, 0 where NaN."""
    span = np.maximum(high - low, 1e-30)[:, None, None]
    scaled = 1 + 254 * np.clip((values - low[:, None, None]) / span, 0, 1)
    return np.where(np.isfinite(values), np.nan_to_num(scaled).round(), 0).astype(np.uint8)


def fit_clusters(sample: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Centres (K, k) of mini-batch k-means of (n, k) vectors, largest class first; at most as many as vectors."""
    count = min(count, len(sample))
    clusters = MiniBatchKMeans(count, random_state=seed, n_init=3, batch_size=4096).fit(sample)
    sizes = np.bincount(clusters.labels_, minlength=count)
    return clusters.cluster_centers_[np.argsort(-sizes, kind="stable")]


def classify(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(k, r, c) -> (1, r, c) uint8: number of the nearest centre from 1, 0 where NaN."""
    flat = values.reshape(len(values), -1).T
    known = np.isfinite(flat).all(axis=1)
    classes = np.zeros(len(flat), dtype=np.uint8)
    if known.any():
        classes[known] = pairwise_distances_argmin(flat[known], centres) + 1
    return classes.reshape(1, *values.shape[1:])


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours of `count` classes, as distinct as possible."""
    if count <= 20:
        table = [colormaps["tab20"](k) for k in [*range(0, 20, 2), *range(1, 20, 2)][:count]]
    else:
        table = [colormaps["hsv"](k / count) for k in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b, _ in table]
