"""Predictions that cost nothing, to compare a model with: a constant, and what lies nearest or in between.

The constant is the layer's mean, or the class frequencies, over training ground. The other is linear interpolation
between the pixels that the model was shown; of class shares, those of the nearest such pixel. At finer scales the
filled base-scale grid is interpolated once more, to the finer pixels, or repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import QhullError

from util.model.layer_losses import LayerChannels


def interpolate_visible(values: np.ndarray, known: np.ndarray, *, fallback: float) -> np.ndarray:
    """Fills a tile from its known pixels: linear between them (Delaunay), nearest outside their hull.

    Args:
        values: (H, W) float.
        known: (H, W) bool, True where the value may be used.
        fallback: value where nothing is known.

    Returns:
        (H, W) float32; known pixels keep their value.
    """
    if not known.any():
        return np.full(values.shape, fallback, dtype=np.float32)
    points = np.argwhere(known)
    missing = np.argwhere(~known)
    filled = values.astype(np.float32).copy()
    if not len(missing):
        return filled
    nearest = NearestNDInterpolator(points, values[known])(missing)
    try:
        linear = LinearNDInterpolator(points, values[known])(missing)
    except QhullError:  # all known pixels on one line: there is no triangle to interpolate in
        linear = np.full(len(missing), np.nan)
    filled[~known] = np.where(np.isfinite(linear), linear, nearest)
    return filled


def nearest_visible(shares: np.ndarray, known: np.ndarray, *, fallback: Sequence[float]) -> np.ndarray:
    """Gives every pixel the class shares of the nearest known one.

    Args:
        shares: (K, H, W) float.
        known: (H, W) bool, True where the shares may be used.
        fallback: (K,) shares where nothing is known.

    Returns:
        (K, H, W) float32; known pixels keep their shares.
    """
    filled = shares.astype(np.float32).copy()
    if not known.any():
        filled[:] = np.asarray(fallback, dtype=np.float32)[:, None, None]
    elif not known.all():
        filled[:, ~known] = NearestNDInterpolator(np.argwhere(known), shares[:, known].T)(np.argwhere(~known)).T
    return filled


def refine(base: torch.Tensor, scale: int) -> torch.Tensor:
    """Bicubic interpolation of a base-scale grid (N, C, H, W) to (N, C, sH, sW), pixel centres kept in place."""
    if scale == 1:
        return base
    return F.interpolate(base, scale_factor=scale, mode="bicubic", align_corners=False)


def baseline_images(
    imgs: torch.Tensor,
    valid: torch.Tensor,
    hidden: torch.Tensor,
    *,
    means: Sequence[float],
    scales: Sequence[int],
    layers: Sequence[LayerChannels] | None = None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the two free predictions say about a batch.

    Args:
        imgs: (N, C, H, W) base-scale values, model units.
        valid: likewise bool.
        hidden: likewise bool, True inside hidden tokens.
        means: per channel, the layer's mean in model units, or the frequency of the class.
        scales: scales, 1 first.
        layers: the layers that channels belong to; if None each is a continuous layer.

    Returns:
        Per scale the constant image and the filled image, (N, C, sH, sW) on the CPU.
    """
    values = imgs.float().cpu().numpy()
    known = (valid & ~hidden).cpu().numpy()
    filled = np.empty_like(values)
    layers = [LayerChannels(c) for c in range(values.shape[1])] if layers is None else layers
    for layer in layers:
        part, seen = slice(layer.first, layer.first + layer.count), known[:, layer.first]
        for n in range(len(values)):
            if layer.has_fractions:
                filled[n, part] = nearest_visible(values[n, part], seen[n], fallback=means[part])
                continue
            for c in layer.channels:
                filled[n, c] = interpolate_visible(values[n, c], seen[n], fallback=means[c])
    flat = torch.tensor(means, dtype=torch.float32)[:, None, None].expand(values.shape)
    images = torch.from_numpy(filled)
    is_share = torch.tensor([layer.has_fractions for layer in layers for _ in layer.channels])
    finer = []
    for s in scales:
        repeated = images.repeat_interleave(s, -1).repeat_interleave(s, -2)
        finer.append(torch.where(is_share[:, None, None], repeated, refine(images, s)))
    return [refine(flat, s) for s in scales], finer
