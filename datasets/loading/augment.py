"""Flips and rotations by 90 degrees, the same for values, validity and per-pixel targets; directions turn along."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.layers.encoding import Encoding, channel_ranges
from datasets.layers.on_device import on_device

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
        chosen = on_device((rotations == rotation).nonzero().flatten(), images.device)
        if len(chosen):
            part = images.index_select(0, chosen)
            part = part.flip(-1) if rotation >= 4 else part
            result.index_copy_(0, chosen, torch.rot90(part, rotation % 4, dims=(-2, -1)))
    return result


def rotated_tiles(
    imgs: Tensor, valid: Tensor, rotations: Tensor, encodings: Sequence[Encoding]
) -> tuple[Tensor, Tensor]:
    """Rotates (and mirrors) tiles, and with them the directions that their values are.

    A quarter turn to the left takes 90 degrees from an azimuth, a mirror from left to right changes its sign. The
    cosine and sine of a layer follow by a matrix of 0, 1 and -1; its centres are moved along.

    Args:
        imgs: (N, C, H, H) float32, model units, 0 where invalid.
        valid: (N, C, H, H) bool, True = usable.
        rotations: (N,) int64 as of `rotated`.
        encodings: per layer, how its values became channels.

    Returns:
        The same shapes; rotation 0 leaves a tile as it is.
    """
    imgs, valid = rotated(imgs, rotations), rotated(valid, rotations)
    return torch.where(valid, turned_directions(imgs, rotations, encodings), 0.0), valid


def rotated_native(
    native: Sequence[Tensor], rotations: Tensor, encodings: Sequence[Sequence[Encoding]]
) -> list[Tensor]:
    """Rotates (and mirrors) native pixels of channel groups as `rotated_tiles` does; NaN stays NaN.

    Args:
        native: (N, c, sH, sH) for each group, model units.
        rotations: (N,) int64 as of `rotated`.
        encodings: of the layers of each group.
    """
    return [
        turned_directions(rotated(images, rotations), rotations, layers)
        for images, layers in zip(native, encodings, strict=True)
    ]


def turned_directions(images: Tensor, rotations: Tensor, encodings: Sequence[Encoding]) -> Tensor:
    """Channels (N, C, h, w) of rotated tiles in which directions are turned with the ground."""
    for layer, channels in zip(encodings, channel_ranges(encodings), strict=True):
        if not layer.ground_turns:
            continue
        cosine, sine = images[:, channels[0]], images[:, channels[1]]
        matrices = torch.stack([_turn_of_direction(int(k), layer.ground_turns) for k in range(ROTATIONS)])
        centres = torch.tensor(layer.centres, dtype=torch.float64)
        shifts = (matrices @ centres - centres) / torch.tensor(layer.scales, dtype=torch.float64)
        m = on_device(matrices[rotations.cpu()].float(), images.device)[..., None, None]  # (N, 2, 2, 1, 1)
        shift = on_device(shifts[rotations.cpu()].float(), images.device)[..., None, None]
        turned = torch.stack([m[:, k, 0] * cosine + m[:, k, 1] * sine + shift[:, k] for k in range(2)], dim=1)
        images = torch.cat([images[:, : channels[0]], turned, images[:, channels[1] + 1 :]], dim=1)
    return images


def _turn_of_direction(rotation: int, ground_turns: int) -> Tensor:
    """(2, 2) float64 of 0, 1 and -1: what becomes of (cosine, sine) of an azimuth times `ground_turns`."""
    quarters, sign = ground_turns * (rotation % 4) % 4, -1 if rotation >= 4 else 1
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]  # of the angle that is taken away
    return torch.tensor([[cosine, sign * sine], [-sine, sign * cosine]], dtype=torch.float64)


def rotated_back(images: Tensor, rotations: Tensor) -> Tensor:
    """Undoes `rotated`; arguments as there."""
    plain = rotations < ROTATIONS // 2  # a mirrored rotation undoes itself
    return rotated(images, torch.where(plain, (ROTATIONS // 2 - rotations) % (ROTATIONS // 2), rotations))
