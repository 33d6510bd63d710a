"""Baselines to compare a model with: a constant, and interpolation between visible pixels.

The constant is the layer's mean, or its class frequencies, over training ground. Interpolation is linear between the
pixels visible to the model; class fractions are those of the nearest visible pixel. At finer scales the filled
base-scale grid is interpolated to the finer pixels, or repeated for class fractions.
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
    """Fills a tile from its known pixels: linear between them (Delaunay), nearest outside their convex hull.

    Args:
        values: (H, W) float.
        known: (H, W) bool, True where the value may be used.
        fallback: value of all pixels if none is known.

    Returns:
        (H, W) float32; values of known pixels are unchanged.
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
    except QhullError:  # all known pixels lie on one line, which forms no triangle
        linear = np.full(len(missing), np.nan)
    filled[~known] = np.where(np.isfinite(linear), linear, nearest)
    return filled


def nearest_visible(fractions: np.ndarray, known: np.ndarray, *, fallback: Sequence[float]) -> np.ndarray:
    """Fills a tile with the class fractions of the nearest known pixel.

    Args:
        fractions: (K, H, W) float.
        known: (H, W) bool, True where the fractions may be used.
        fallback: (K,) fractions of all pixels if none is known.

    Returns:
        (K, H, W) float32; fractions of known pixels are unchanged.
    """
    filled = fractions.astype(np.float32).copy()
    if not known.any():
        filled[:] = np.asarray(fallback, dtype=np.float32)[:, None, None]
    elif not known.all():
        filled[:, ~known] = NearestNDInterpolator(np.argwhere(known), fractions[:, known].T)(np.argwhere(~known)).T
    return filled


def refine(base: torch.Tensor, scale: int) -> torch.Tensor:
    """Bicubic interpolation of a base-scale grid (N, C, H, W) to (N, C, sH, sW); pixel edges are aligned."""
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
    """Predictions of the two baselines for a batch.

    Args:
        imgs: (N, C, H, W) base-scale values, model units.
        valid: (N, C, H, W) bool, True = usable.
        hidden: (N, C, H, W) bool, True inside hidden tokens.
        means: for each channel, the layer's mean in model units, or the frequency of the class.
        scales: scales, 1 first.
        layers: the layers; None: each channel is a layer of values.

    Returns:
        For each scale the constant image, and for each scale the interpolated image, (N, C, sH, sW) on the CPU.
    """
    values = imgs.float().cpu().numpy()
    known = (valid & ~hidden).cpu().numpy()
    filled = np.empty_like(values)
    layers = [LayerChannels(c) for c in range(values.shape[1])] if layers is None else layers
    for layer in layers:
        part, visible = slice(layer.first, layer.first + layer.count), known[:, layer.first]
        for n in range(len(values)):
            if layer.has_fractions:
                filled[n, part] = nearest_visible(values[n, part], visible[n], fallback=means[part])
                continue
            for c in layer.channels:
                filled[n, c] = interpolate_visible(values[n, c], visible[n], fallback=means[c])
    constant = torch.tensor(means, dtype=torch.float32)[:, None, None].expand(values.shape)
    images = torch.from_numpy(filled)
    is_fraction = torch.tensor([layer.has_fractions for layer in layers for _ in layer.channels])
    finer = []
    for s in scales:
        repeated = images.repeat_interleave(s, -1).repeat_interleave(s, -2)
        finer.append(torch.where(is_fraction[:, None, None], repeated, refine(images, s)))
    return [refine(constant, s) for s in scales], finer
