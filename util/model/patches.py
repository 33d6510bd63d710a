"""Patches and tokens of images: cutting, joining, validity, and random masking. Pure functions.

Shape letters: N batch, C channels, H W pixels, G groups, L patches per group, p patch edge, s scale, K positions that
masking chooses from: tokens, or patches in all groups together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SENTINEL_GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
"""Channel groups of the published models, SatMAE and SatMAE++."""


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, keeping the channels apart.

    Args:
        images: (N, C, H, W), any dtype.
        patch_size: p, the patch edge in pixels.

    Returns:
        (N, C, L, p*p); patches and the pixels inside them run row by row.

    Raises:
        ValueError: H or W is not a multiple of the patch edge.
    """
    n, c, height, width = images.shape
    p = patch_size
    if height % p or width % p:
        raise ValueError(
            f"image of {height} x {width} pixels: expected multiples of patch_size {p}; change one of them"
        )
    patches = images.reshape(n, c, height // p, p, width // p, p)
    return patches.transpose(3, 4).reshape(n, c, -1, p * p)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Join the patches of square images; the inverse of `patchify`.

    Args:
        patches: (N, C, L, p*p), L a square number.
        patch_size: p, the patch edge in pixels.

    Returns:
        (N, C, H, H) with H = sqrt(L) * p.

    Raises:
        ValueError: L is not a square number, or the last axis is not p*p.
    """
    n, c, count, pixels = patches.shape
    p, edge = patch_size, round(count**0.5)
    if edge * edge != count or pixels != p * p:
        raise ValueError(f"patches of shape {tuple(patches.shape)}: expected (N, C, L, {p * p}) with L a square number")
    images = patches.reshape(n, c, edge, edge, p, p)
    return images.transpose(3, 4).reshape(n, c, edge * p, edge * p)


def token_validity(valid: Tensor, patch_size: int, *, group_order: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Validity of tokens: a token is valid if any channel of its group has a valid pixel in the patch.

    Args:
        valid: (N, C, H, W) bool, True = usable.
        patch_size: p, the patch edge in pixels.
        group_order: (C,) int64, the channels in the order of the concatenated groups.
        group_sizes: number of channels of each group.

    Returns:
        (N, G, L) bool.
    """
    patch_valid = patchify(valid, patch_size).any(dim=-1)  # (N, C, L)
    parts = patch_valid.index_select(1, group_order).split(list(group_sizes), dim=1)
    return torch.stack([part.any(dim=1) for part in parts], dim=1)


def random_masking(
    noise: Tensor, *, keep: int, token_valid: Tensor, spatial: bool, keep_valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the visible tokens of each sample: valid tokens first, in order of increasing noise.

    A token without valid pixels is visible only if there are too few valid ones. The number of visible tokens is the
    same in all samples, so that shapes do not depend on the data.

    Args:
        noise: (N, G*L) in group-major order, or (N, L) if `spatial`.
        keep: number of visible positions, of the K = noise.shape[1] positions of a sample.
        token_valid: (N, G, L) bool, True = the token has a valid pixel.
        spatial: keep or remove a patch in all groups together; it counts as valid if it is valid in any group.
        keep_valid: (N,) int64, most valid positions that stay visible in each sample; positions without valid pixels
            take the places of the others. None: as many as there are.

    Returns:
        ids_keep: (N, visible) int64, indices of the visible tokens among the G*L tokens.
        ids_restore: (N, G*L) int64, index of each token in [visible tokens, removed tokens].
        mask: (N, G, L) float32, 1 = removed.
    """
    n, groups, patches = token_valid.shape
    position_valid = token_valid.any(dim=1) if spatial else token_valid.flatten(1)  # (N, K)
    order = noise.argsort(dim=1, stable=True)
    in_order = position_valid.gather(1, order)
    turn = (~in_order).to(torch.int32)  # 0 visible, 1 without valid pixels, 2 removed
    if keep_valid is not None:
        turn = turn + 2 * (in_order & (in_order.cumsum(dim=1) > keep_valid.unsqueeze(1)))
    order = order.gather(1, turn.argsort(dim=1, stable=True))
    if spatial:
        # Visible patches of group 0, then of group 1, ...; results do not depend on the order of tokens.
        shift = (torch.arange(groups, device=order.device) * patches).view(1, groups, 1)
        shifted = order.unsqueeze(1) + shift  # (N, G, L)
        order = torch.cat([shifted[:, :, :keep].flatten(1), shifted[:, :, keep:].flatten(1)], dim=1)
        keep = keep * groups
    ids_restore = order.argsort(dim=1)
    mask = (ids_restore >= keep).to(torch.float32).view(n, groups, patches)
    return order[:, :keep], ids_restore, mask


def visible_valid_counts(token_valid: Tensor, mask_ratio: float, *, keep: int, spatial: bool) -> Tensor:
    """How many valid positions stay visible so that `mask_ratio` of a sample's valid positions is removed.

    Args:
        token_valid: (N, G, L) bool, True = the token has a valid pixel.
        mask_ratio: fraction to remove, 0 <= ratio < 1.
        keep: visible positions of a sample without invalid ones, which is the most.
        spatial: positions are patches in all groups together.

    Returns:
        (N,) int64, at least 1, so that no sample is wholly hidden.
    """
    positions = token_valid.any(dim=1) if spatial else token_valid.flatten(1)
    return (positions.sum(dim=1).double() * (1 - mask_ratio)).long().clamp(1, keep)


def token_pixels(tokens: Tensor, *, scale: int, patch_size: int) -> Tensor:
    """Expand a property of tokens, (N, C, L) bool, to the pixels at a scale, (N, C, sH, sW) bool."""
    side = round(tokens.shape[-1] ** 0.5)
    image = tokens.unflatten(-1, (side, side))
    return image.repeat_interleave(patch_size * scale, -1).repeat_interleave(patch_size * scale, -2)
