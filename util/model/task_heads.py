"""Per-pixel heads for fine-tuning: from the tokens of all groups to K outputs for each pixel, at one scale.

To add a head, write a class like those here and add one line to `HEADS`. Both heads merge the groups by one linear map
per group, summed over the groups that have a valid pixel in the patch; if no group has one, the sum is the bias.

Shape letters: N batch, C channels, H W base-scale pixels, G groups, L patches per group, D encoder width, p patch
edge, s scale, K outputs.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.model.native_stem import FineStem, StemFeatures, soft_limit
from util.model.patches import unpatchify
from util.model.scale_heads import ResidualBlock, UpsampleBlock, at_least_float32, full_precision

HEAD_WIDTH = 16
"""Default number of feature maps of the upsampling head at the base scale; docs/model.md says what they cost."""
MIN_HEAD_WIDTH = 8  # each finer scale has half the feature maps of the one before, but not fewer than this


@dataclass(frozen=True)
class HeadSize:
    """Sizes from which a head is built.

    Attributes:
        groups: G.
        width: D, the width of the tokens.
        patch_size: p, base pixels.
        scale: s, output pixels along the edge of a base pixel.
        outputs: K, the number of classes, or 1 for a property.
        channels: C.
        head_width: number of feature maps at the base scale, of heads that have any.
        stem_maps: feature maps that the stems give at the base scale; 0 if the head sees base pixels alone.
        native: scale s and detail of each channel of the groups that have pixels finer than the base pixel, as of
            `NativeStem`.
        native_channels: channels of each of these groups.

    Raises:
        ValueError: a scale, number of outputs or width below 1.
    """

    groups: int
    width: int
    patch_size: int
    scale: int
    outputs: int
    channels: int
    head_width: int = HEAD_WIDTH
    stem_maps: int = 0
    native: tuple[tuple[int, tuple[float, ...]], ...] = ()
    native_channels: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.scale < 1 or self.outputs < 1 or self.head_width < 1:
            raise ValueError(
                f"scale {self.scale}, {self.outputs} outputs, head_width {self.head_width}: expected each to be at "
                "least 1; give a scale such as 1, 2 or 4 and the number of classes, or 1 output for a property"
            )


class GroupMerge(nn.Module):
    """One linear map per group, summed over the groups with a valid token in the patch, plus a bias."""

    def __init__(self, *, groups: int, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(groups * width, outputs)  # columns g * width onwards belong to group g

    def init_weights(self) -> None:
        """Start small: outputs have a standard deviation of about 0.3 for layer-normalised tokens; no bias."""
        nn.init.normal_(self.linear.weight, std=0.3 / self.linear.in_features**0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor, token_valid: Tensor) -> Tensor:
        """Merge the groups: tokens (N, G, L, D) and their validity (N, G, L) bool -> (N, L, outputs)."""
        tokens = torch.where(token_valid.unsqueeze(-1), tokens, 0.0)
        return self.linear(tokens.transpose(1, 2).flatten(2))  # (N, L, G*D) -> (N, L, outputs)


class LinearHead(nn.Module):
    """Every output pixel is a linear function of the tokens of its patch, in full precision."""

    def __init__(self, size: HeadSize) -> None:
        super().__init__()
        self.edge, self.outputs = size.patch_size * size.scale, size.outputs
        self.merge = GroupMerge(groups=size.groups, width=size.width, outputs=size.outputs * self.edge**2)

    def init_weights(self) -> None:
        """Start small."""
        self.merge.init_weights()

    def forward(
        self, tokens: Tensor, token_valid: Tensor, imgs: Tensor, valid: Tensor, stem: StemFeatures | None = None
    ) -> Tensor:
        """Predict pixels.

        Args:
            tokens: (N, G, L, D).
            token_valid: (N, G, L) bool, True = the token holds a valid pixel.
            imgs: (N, C, H, W), unused.
            valid: (N, C, H, W), unused.
            stem: unused.

        Returns:
            (N, K, sH, sW), at least float32.
        """
        with full_precision(tokens.device):
            pixels = self.merge(at_least_float32(tokens), token_valid)  # (N, L, K * (p*s)^2)
            pixels = pixels.unflatten(-1, (self.outputs, -1)).transpose(1, 2)  # (N, K, L, (p*s)^2)
            return unpatchify(pixels, self.edge)


class UpsampleHead(nn.Module):
    """Convolutions over token features and the input images, upsampled by factors of two to the output scale.

    At the base scale a 1x1 convolution fuses token features, the images (compressed by `soft_limit`), their validity
    and the maps of the stems, and 3x3 convolutions refine them. Their prediction is interpolated to the output scale;
    there, detail is added, which starts at zero: upsampling blocks make it from the same features, and from pixels
    finer than the base pixel where layers have them.
    """

    def __init__(self, size: HeadSize) -> None:
        """Build the head.

        Raises:
            ValueError: the scale is not a power of two.
        """
        super().__init__()
        scale, width = size.scale, size.head_width
        if scale & (scale - 1):
            raise ValueError(f"scale {scale} with head 'upsample': expected 1, 2, 4 or another power of two")
        self.scale, self.patch_size = scale, size.patch_size
        self.merge = GroupMerge(groups=size.groups, width=size.width, outputs=width * size.patch_size**2)
        self.fuse = nn.Conv2d(width + 2 * size.channels + size.stem_maps, width, 1)
        self.refine = nn.Sequential(ResidualBlock(width), ResidualBlock(width))
        self.proj_out = nn.Conv2d(width, size.outputs, 1)
        widths = [width]  # of the feature maps at scales 1, 2, 4, ..., s
        while len(widths) < scale.bit_length():
            widths.append(max(min(MIN_HEAD_WIDTH, widths[-1]), widths[-1] // 2))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.up_blocks = nn.ModuleList(UpsampleBlock(b, 0) for b in widths[1:])
        self.native_channels = size.native_channels if scale > 1 else ()
        self.fine_stems = nn.ModuleList(
            FineStem(scale=s, head_scale=scale, detail_scales=details, maps=widths[-1])
            for s, details in (size.native if scale > 1 else ())
        )
        if self.fine_stems:
            self.fine_fuse = nn.Conv2d((1 + len(self.fine_stems)) * widths[-1], widths[-1], 1)
            self.fine_refine = ResidualBlock(widths[-1])
        self.detail_out = nn.Conv2d(widths[-1], size.outputs, 1) if scale > 1 else None

    def init_weights(self) -> None:
        """Start as interpolation of the base-scale prediction; convolutions keep PyTorch's default."""
        self.merge.init_weights()
        if self.detail_out is not None:
            nn.init.zeros_(self.detail_out.weight)
            nn.init.zeros_(self.detail_out.bias)

    def forward(
        self, tokens: Tensor, token_valid: Tensor, imgs: Tensor, valid: Tensor, stem: StemFeatures | None = None
    ) -> Tensor:
        """Predict pixels.

        Args:
            tokens: (N, G, L, D).
            token_valid: (N, G, L) bool, True = the token holds a valid pixel.
            imgs: (N, C, H, W), model units, 0 where invalid.
            valid: (N, C, H, W) bool, True = usable.
            stem: features of native pixels, if the head was built for them.

        Returns:
            (N, K, sH, sW), at least float32.
        """
        features = self.merge(tokens, token_valid)  # (N, L, head_width * p*p)
        features = features.unflatten(-1, (-1, self.patch_size**2)).transpose(1, 2)  # (N, head_width, L, p*p)
        features = unpatchify(features, self.patch_size)  # (N, head_width, H, W)
        images = soft_limit(imgs)
        features = torch.cat([features.to(images.dtype), images, valid.to(images.dtype)], dim=1)
        x = self.refine(self._fused(features, stem))
        with full_precision(x.device):
            base = self.proj_out(at_least_float32(x))
        if self.detail_out is None:
            return base
        for shrink, block in zip(self.shrink, self.up_blocks, strict=True):
            x, _ = block(shrink(x))
        if self.fine_stems:
            x = self._with_own_pixels(x, imgs, valid, stem)
        with full_precision(x.device):
            smooth = F.interpolate(base, scale_factor=self.scale, mode="bilinear", align_corners=False)
            return smooth + self.detail_out(at_least_float32(x))

    def _fused(self, features: Tensor, stem: StemFeatures | None) -> Tensor:
        """`fuse` of features (N, c, H, W) and the maps of the stems, which are not moved before there are fewer."""
        weights, bias = self.fuse.weight, self.fuse.bias
        if stem is None:
            return F.conv2d(features, weights, bias)
        own, of_maps = weights.split([features.shape[1], stem.maps.shape[-1]], dim=1)
        return F.conv2d(features, own, bias) + F.linear(stem.maps, of_maps.flatten(1)).permute(0, 3, 1, 2)

    def _with_own_pixels(self, x: Tensor, imgs: Tensor, valid: Tensor, stem: StemFeatures | None) -> Tensor:
        """Features (N, w, sH, sW) refined by pixels finer than the base pixel."""
        assert stem is not None
        maps = [x]
        for fine, own, channels in zip(self.fine_stems, stem.own, self.native_channels, strict=True):
            first, count = channels[0], len(channels)
            consecutive = channels == tuple(range(first, first + count))
            index = slice(first, first + count) if consecutive else list(channels)
            maps.append(fine(own, imgs[:, index], valid[:, index]).to(x.dtype))
        return self.fine_refine(self.fine_fuse(torch.cat(maps, dim=1)))


HEADS: dict[str, type[nn.Module]] = {"linear": LinearHead, "upsample": UpsampleHead}
"""Every choice of `--head`: a module built from a `HeadSize`, with `init_weights` and the `forward` of `LinearHead`."""


def make_task_head(name: str, size: HeadSize) -> Any:
    """Build a head by its name.

    Raises:
        ValueError: the name is unknown, or the head cannot reach the scale.
    """
    if name not in HEADS:
        raise ValueError(f"head {name!r}: expected one of {', '.join(HEADS)}")
    return HEADS[name](size)
