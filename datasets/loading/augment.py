"""Flips and rotations by 90 degrees, the same for values, validity and per-pixel targets."""

from __future__ import annotations

import torch
from torch import Tensor

ROTATIONS = 8
"""Number of symmetries of a square: four rotations by multiples of 90 degrees, each plain or mirrored."""


def rotated(images: Tensor, rotations: Tensor) -> Tensor:
    """Rotates (and mirrors) each image of a batch in its own way.

    Args:
        images: (N, ..., H, H) of any type.
        rotations: (N,) int64, 0 to 7: quarter turns (`rotation % 4`), mirrored left to right before that from 4 on.

    Returns:
        The same shape and type; rotation 0 leaves an image as it is.

    Raises:
        ValueError: images are not square.
    """
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"images of {images.shape[-2]} x {images.shape[-1]} pixels: expected square ones to rotate")
    result = images.clone()
    for rotation in range(1, ROTATIONS):
        chosen = (rotations == rotation).nonzero().flatten().to(images.device)
        if len(chosen):
            part = images.index_select(0, chosen)
            part = part.flip(-1) if rotation >= 4 else part
            result.index_copy_(0, chosen, torch.rot90(part, rotation % 4, dims=(-2, -1)))
    return result


def rotated_back(images: Tensor, rotations: Tensor) -> Tensor:
    """Undoes `rotated`; arguments as there."""
    plain = rotations < ROTATIONS // 2  # a mirrored rotation undoes itself
    return rotated(images, torch.where(plain, (ROTATIONS // 2 - rotations) % (ROTATIONS // 2), rotations))
