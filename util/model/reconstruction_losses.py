"""Reconstruction losses over valid pixels. Pure functions; the first axis is always the batch.

Each loss is a mean over pixels within a sample, and then a plain mean over samples, in which a sample without pixels to
score counts as 0. It therefore does not depend on how samples are divided among ranks and accumulation steps. If all
pixels are valid and all weights are 1, these are the losses of SatMAE++ (Noman et al. 2024).

Shape letters: N batch, C channels, Y layers, G groups, L patches per group, H W pixels, p patch edge.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def patch_moments(patches: Tensor, valid: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch over its valid pixels.

    Args:
        patches: (N, C, L, p*p), model units, finite.
        valid: (N, C, L, p*p) bool, True = usable.
        eps: added to the variance, model units squared, so that constant patches can be divided by their standard
            deviation.

    Returns:
        Mean and standard deviation, (N, C, L, 1) each; 0 and sqrt(eps) where no pixel is valid.
    """
    count = valid.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = torch.where(valid, patches, 0.0).sum(dim=-1, keepdim=True) / count
    variance = torch.where(valid, patches - mean, 0.0).square().sum(dim=-1, keepdim=True) / count
    return mean, (variance + eps).sqrt()


def sum_groups(values: Tensor, *, group_order: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Sum over the channels of each group.

    Args:
        values: (N, C, ...), float.
        group_order: (C,) int64, the channels in the order of the concatenated groups.
        group_sizes: number of channels of each group.

    Returns:
        (N, G, ...).
    """
    parts = values.index_select(1, group_order).split(list(group_sizes), dim=1)
    return torch.stack([part.sum(dim=1) for part in parts], dim=1)


def _mean_over_samples(error: Tensor, weight: Tensor) -> Tensor:
    """Mean over N of error / weight, (N,) each; a sample without weight counts as 0."""
    return (error / torch.where(weight > 0, weight, 1.0)).mean()


def masked_patch_mean(
    error: Tensor,
    *,
    mask: Tensor,
    valid: Tensor,
    weights: Tensor,
    group_order: Tensor,
    group_sizes: Sequence[int],
) -> Tensor:
    """Mean error over the valid pixels of removed tokens.

    The error of a token, which is a (group, patch) pair, is the weighted mean over the valid pixels of its scored
    layers. The loss of a sample is the mean over its removed tokens that have such a pixel, weighted by the mean weight
    of their pixels.

    Args:
        error: (N, Y, L, p*p), error of each layer; invalid pixels are ignored.
        mask: (N, G, L), 1 = removed.
        valid: (N, Y, L, p*p) bool, True = usable.
        weights: (Y,) weight of each layer; 0 = not scored.
        group_order: (Y,) int64, the layers in the order of the concatenated groups.
        group_sizes: number of layers of each group.

    Returns:
        A scalar, 0 if there is no pixel to score.
    """
    error = torch.where(valid, error, 0.0).sum(dim=-1)  # (N, Y, L)
    pixels = valid.sum(dim=-1).to(error.dtype)
    weight = weights.to(error.dtype).view(1, -1, 1)
    groups = {"group_order": group_order, "group_sizes": group_sizes}
    group_pixels = sum_groups(pixels * (weight > 0), **groups).clamp(min=1)  # (N, G, L)
    token_error = sum_groups(error * weight, **groups) / group_pixels
    token_weight = sum_groups(pixels * weight, **groups) / group_pixels
    return _mean_over_samples((token_error * mask).sum(dim=(1, 2)), (token_weight * mask).sum(dim=(1, 2)))


def pixel_mean(error: Tensor, *, valid: Tensor, weights: Tensor) -> Tensor:
    """Mean error over the valid pixels of scored layers.

    Args:
        error: (N, Y, H, W), error of each layer; invalid pixels are ignored.
        valid: (N, Y, H, W) bool, True = usable.
        weights: (Y,) weight of each layer; 0 = not scored.

    Returns:
        A scalar, 0 if there is no pixel to score.
    """
    error = torch.where(valid, error, 0.0).sum(dim=(2, 3))  # (N, Y)
    pixels = valid.sum(dim=(2, 3)).to(error.dtype)
    weight = weights.to(error.dtype)
    return _mean_over_samples((error * weight).sum(dim=1), (pixels * weight).sum(dim=1))


def error_totals(error: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of errors and number of values of each layer.

    Args:
        error: (N, Y, ...), float, finite.
        counted: (N, Y, ...) bool, True = included in the sum.

    Returns:
        Sums and counts, (Y,) float32 each.
    """
    axes = [0, *range(2, error.ndim)]
    return torch.where(counted, error, 0.0).sum(dim=axes), counted.sum(dim=axes).to(error.dtype)
