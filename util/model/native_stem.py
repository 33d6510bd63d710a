"""The stem of a channel group: feature maps at base pixels, made of the group's native, finer pixels.

A base pixel of a group has s x s native pixels. Each is described by its value, its detail (the value less that of the
base pixel, in standard deviations of the layer's detail) and its validity; a small network turns them into M feature
maps. It is not linear, because a linear map of pixels cannot measure how rough they are. Nothing reaches beyond a base
pixel, and so nothing leaks from a hidden patch into a visible token. The idea of a convolutional stem before a
transformer is that of Xiao et al. (NeurIPS 2021, section 3); stride equals kernel here, as masking requires.

Shape letters: N batch, T patches, c channels of the group, L patches of an image, p patch edge in base pixels, s scale
of the group, M feature maps, D encoder width, H W base-scale pixels, t scale of a dense head.
"""

from collections.abc import Sequence
from math import lcm
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.model.scale_heads import at_least_float32

STEMS = ("native", "base", "tokens", "head")
"""Choices of --stem: native pixels in tokens and dense heads, in neither, in tokens alone, in heads alone."""
STEM_MAPS = 32
"""Number of feature maps M of a group."""
SOFT_LIMIT = 4.0  # model units, which are standard deviations by default; smaller values stay nearly unchanged
LEAST_DETAIL = 0.01  # model units: a layer with less detail is not amplified further


def soft_limit(x: Tensor) -> Tensor:
    """Compress values beyond about `SOFT_LIMIT` logarithmically, in float32: 1e5 becomes 43."""
    return SOFT_LIMIT * torch.asinh(at_least_float32(x) / SOFT_LIMIT)


def compressed(x: Tensor) -> Tensor:
    """Compress values logarithmically as `soft_limit` does, at half its cost: 1 becomes 0.9, and 1e5 becomes 41."""
    return x.abs().div_(SOFT_LIMIT).log1p_().mul_(SOFT_LIMIT).copysign_(x)


class StemPixels(NamedTuple):
    """Native pixels of a group, sorted by base pixel; leading dimensions are patches or samples.

    Attributes:
        own: (T, c, p, s, p, s) model units, NaN = invalid.
        base: (T, c, p, p) value of each base pixel, 0 where invalid.
        valid: (T, c, p, p) bool, True = the base pixel is usable.
    """

    own: Tensor
    base: Tensor
    valid: Tensor


class NativeStem(nn.Module):
    """Feature maps of one channel group from its native pixels.

    Args:
        scale: s, native pixels along the edge of a base pixel.
        detail_scales: standard deviation of each channel's detail in model units; 0 for channels that have none, such
            as fractions of classes.
        maps: M.
        patch_pixels: p*p, base pixels of a token; None: the maps are not embedded as tokens.
        width: D, of the tokens.
    """

    gains: Tensor
    with_detail: Tensor

    def __init__(
        self,
        *,
        scale: int,
        detail_scales: Sequence[float],
        maps: int = STEM_MAPS,
        patch_pixels: int | None = None,
        width: int = 0,
    ) -> None:
        super().__init__()
        self.scale = scale
        chosen = [k for k, detail in enumerate(detail_scales) if detail > 0 and scale > 1]
        gains = [1 / max(detail_scales[k], LEAST_DETAIL) for k in chosen]
        self.register_buffer("with_detail", torch.tensor(chosen, dtype=torch.int64), persistent=False)
        self.register_buffer("gains", torch.tensor(gains).view(-1, 1, 1), persistent=False)
        inputs = 2 * len(detail_scales) + len(chosen)
        self.pixels = nn.Linear(inputs * scale**2, maps)
        self.mix = nn.Sequential(nn.Linear(maps, maps), nn.GELU(), nn.Linear(maps, maps))
        self.proj = None if patch_pixels is None else nn.Linear(patch_pixels * maps, width)

    def forward(self, pixels: StemPixels) -> Tensor:
        """Feature maps (T, p, p, M) of base pixels."""
        parts = self._describe(pixels)
        shape = parts[0].shape[:-1]
        first, *others = zip(parts, self.pixels.weight.split([part.shape[-1] for part in parts], dim=1), strict=True)
        x = F.linear(first[0].flatten(0, -2), first[1], self.pixels.bias)
        for part, weight in others:  # not put together, which takes longer
            x = torch.addmm(x, part.flatten(0, -2), weight.t())
        x = F.gelu(x)
        return (x + self.mix(x)).view(*shape, self.pixels.out_features)

    @torch.no_grad()  # inputs are data
    def _describe(self, pixels: StemPixels) -> list[Tensor]:
        """Value, validity and detail of native pixels by base pixel: (T, p, p, c*s*s) each, 0 where invalid."""
        own = at_least_float32(pixels.own).permute(0, 2, 4, 1, 3, 5).contiguous()  # (T, p, p, c, s, s)
        base, usable = (x.permute(0, 2, 3, 1)[..., None, None] for x in (pixels.base, pixels.valid))
        valid = torch.isfinite(own) & usable
        value, known = torch.where(valid, own, 0.0), valid.to(own.dtype)
        parts = [compressed(value), known]
        if len(self.with_detail):
            detail = (value - base).mul_(known)
            if len(self.with_detail) < own.shape[3]:
                detail = detail.index_select(3, self.with_detail)
            parts.append(compressed(detail.mul_(self.gains)))
        return [part.flatten(3) for part in parts]

    def tokens(self, maps: Tensor) -> Tensor:
        """Embed the feature maps (T, p, p, M) of patches as tokens (T, D)."""
        assert self.proj is not None
        return self.proj(maps.flatten(1))


def patches_of(own: Tensor | None, base: Tensor, valid: Tensor, *, patch_size: int, scale: int) -> StemPixels:
    """Views of all patches of a group's images, by sample, row and column.

    Args:
        own: (N, c, sH, sW) model units, NaN = invalid; None if s is 1: the base pixels themselves.
        base: (N, c, H, W), 0 where invalid.
        valid: (N, c, H, W) bool.
        patch_size: p.
        scale: s.

    Returns:
        As `StemPixels`, with three leading dimensions (N, H / p, W / p) in place of T.
    """
    p = patch_size
    side = base.shape[-1] // p
    if own is None:
        own = base
    own = own.unflatten(3, (side, p, scale)).unflatten(2, (side, p, scale))  # (N, c, side, p, s, side, p, s)
    base, valid = (x.unflatten(3, (side, p)).unflatten(2, (side, p)) for x in (base, valid))
    return StemPixels(
        own.permute(0, 2, 5, 1, 3, 4, 6, 7), base.permute(0, 2, 4, 1, 3, 5), valid.permute(0, 2, 4, 1, 3, 5)
    )


def maps_by_patch(maps: Tensor, patch_size: int) -> Tensor:
    """Cut the feature maps of images into patches: (N, H, W, M) -> (N*L, p, p, M)."""
    side = maps.shape[1] // patch_size
    patches = maps.unflatten(2, (side, patch_size)).unflatten(1, (side, patch_size))  # (N, side, p, side, p, M)
    return patches.transpose(2, 3).flatten(0, 2)


class StemFeatures(NamedTuple):
    """What a dense head is given of native pixels.

    Attributes:
        maps: (N, H, W, G*M) feature maps of all groups.
        own: images of the groups that have finer pixels, (N, c, sH, sW) each, NaN = invalid.
    """

    maps: Tensor
    own: Sequence[Tensor]


class FineStem(nn.Module):
    """Feature maps of one channel group at the scale of a dense head, finer than the base scale.

    Where the group's scale is no multiple of the head's, its pixels are repeated to the least common multiple.

    Args:
        scale: s.
        head_scale: t.
        detail_scales: as of `NativeStem`.
        maps: number of feature maps.
    """

    def __init__(self, *, scale: int, head_scale: int, detail_scales: Sequence[float], maps: int) -> None:
        super().__init__()
        common = lcm(scale, head_scale)
        self.repeats, self.head_scale = common // scale, head_scale
        self.stem = NativeStem(scale=common // head_scale, detail_scales=detail_scales, maps=maps)

    def forward(self, own: Tensor, base: Tensor, valid: Tensor) -> Tensor:
        """Native pixels (N, c, sH, sW), base image (N, c, H, W) and its validity -> feature maps (N, maps, tH, tW)."""
        own, base, valid = (
            _repeated(own, self.repeats),
            _repeated(base, self.head_scale),
            _repeated(valid, self.head_scale),
        )
        if self.stem.scale == 1:  # the pixels themselves, against those of the base: there is no finer detail
            usable = torch.isfinite(own) & valid
            base, valid = torch.where(usable, own, 0.0), usable
        scale = self.stem.scale
        own = own.unflatten(3, (-1, scale)).unflatten(2, (-1, scale))
        return self.stem(StemPixels(own, base, valid)).permute(0, 3, 1, 2)


def _repeated(images: Tensor, times: int) -> Tensor:
    """Images (N, c, h, w) with each pixel repeated along both axes."""
    return images if times == 1 else images.repeat_interleave(times, -1).repeat_interleave(times, -2)
