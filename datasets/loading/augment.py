"""Flips and quarter turns, the same for values, validity and per-pixel targets."""

from __future__ import annotations

import torch
from torch import Tensor

TURNS = 8
"""Number of ways to lay a square on itself: four quarter turns, each plain or mirrored."""


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Turns each image of a batch its own way.

    Args:
        images: (N, ..., H, H) of any type.
        turns: (N,) int64, 0 to 7: quarter turns (`turn % 4`), mirrored left to right before that from 4 on.

    Returns:
        The same shape and type; turn 0 leaves an image as it is.

    Raises:
        ValueError: images are not square.
    """
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"images of {images.shape[-2]} x {images.shape[-1]} pixels: expected square ones to turn")
    result = images.clone()
    for turn in range(1, TURNS):
        chosen = (turns == turn).nonzero().flatten().to(images.device)
        if len(chosen):
            part = images.index_select(0, chosen)
            part = part.flip(-1) if turn >= 4 else part
            result.index_copy_(0, chosen, torch.rot90(part, turn % 4, dims=(-2, -1)))
    return result


def rotated_back(images: Tensor, turns: Tensor) -> Tensor:
    """Undoes `rotated`; arguments as there."""
    plain = turns < TURNS // 2  # a mirrored turn undoes itself
    return rotated(images, torch.where(plain, (TURNS // 2 - turns) % (TURNS // 2), turns))
