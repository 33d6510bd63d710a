"""Heads for fine-tuning: from the tokens of all groups to outputs for every pixel, at one chosen scale.

Both merge the groups by a linear map of each group's token, added up over the groups that hold a valid pixel at that
place; a group without contributes nothing, and where no group has one only the bias is left.

Shape letters: N batch, C channels, H W base-scale pixels, G groups, L patches per group, D encoder width, p patch
edge, s scale, K outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.model.patches import unpatchify
from util.model.scale_heads import ResidualBlock, UpsampleBlock, at_least_float32, full_precision

TASK_HEADS = ("linear", "upsample")
HEAD_WIDTH = 16
"""Feature maps of the upsampling head at the base scale: 16 p p numbers for every token, more than it has (see
docs/model.md for what they cost)."""
LEAST_WIDTH = 8  # of its feature maps at finer scales, which are half as many at every step
SOFT_LIMIT = 4.0  # standard deviations, where model units are those: below, values pass nearly as they are


def soft_limit(x: Tensor) -> Tensor:
    """Values that grow with the logarithm beyond about `SOFT_LIMIT`, computed in float32: 1e5 becomes 43."""
    return SOFT_LIMIT * torch.asinh(at_least_float32(x) / SOFT_LIMIT)


class GroupMerge(nn.Module):
    """One linear map for each group, added up over the groups that are valid at a place, and a bias."""

    def __init__(self, *, groups: int, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(groups * width, outputs)  # columns g * width onwards belong to group g

    def init_weights(self) -> None:
        """Start small: outputs of about a third for tokens as a layer norm leaves them, and no bias."""
        nn.init.normal_(self.linear.weight, std=0.3 / self.linear.in_features**0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor, token_valid: Tensor) -> Tensor:
        """Merge the groups: tokens (N, G, L, D) and their validity (N, G, L) bool -> (N, L, outputs)."""
        tokens = torch.where(token_valid.unsqueeze(-1), tokens, 0.0)
        return self.linear(tokens.transpose(1, 2).flatten(2))


class LinearHead(nn.Module):
    """Every output pixel is a linear function of the tokens at its place, in full precision."""

    def __init__(self, *, groups: int, width: int, patch_size: int, scale: int, outputs: int) -> None:
        super().__init__()
        self.edge, self.outputs = patch_size * scale, outputs
        self.merge = GroupMerge(groups=groups, width=width, outputs=outputs * self.edge**2)

    def init_weights(self) -> None:
        """Start small."""
        self.merge.init_weights()

    def forward(self, tokens: Tensor, token_valid: Tensor, imgs: Tensor, valid: Tensor) -> Tensor:
        """Predict pixels.

        Args:
            tokens: (N, G, L, D).
            token_valid: (N, G, L) bool, True = the token holds a valid pixel.
            imgs: (N, C, H, W), not looked at.
            valid: (N, C, H, W), not looked at.

        Returns:
            (N, K, sH, sW), at least float32.
        """
        with full_precision(tokens.device):
            pixels = self.merge(at_least_float32(tokens), token_valid).unflatten(-1, (self.outputs, -1))
            return unpatchify(pixels.transpose(1, 2), self.edge)


class UpsampleHead(nn.Module):
    """Convolutions over features of the tokens beside the images themselves, and steps of two to finer scales.

    At the base scale: features out of the tokens, the images (under a soft limit, in this branch alone) and their
    validity, merged by a 1x1 convolution and refined by 3x3 ones. Their prediction is interpolated to the chosen
    scale, where detail is added that upsampling blocks have made out of the same features; it starts at zero.
    """

    def __init__(
        self,
        *,
        groups: int,
        width: int,
        patch_size: int,
        scale: int,
        outputs: int,
        channels: int,
        head_width: int = HEAD_WIDTH,
    ) -> None:
        """Build the head.

        Args:
            groups: G.
            width: D, of the tokens.
            patch_size: p, in base pixels.
            scale: s, a power of two.
            outputs: K.
            channels: C.
            head_width: number of feature maps at the base scale.

        Raises:
            ValueError: the scale is no power of two.
        """
        super().__init__()
        if scale < 1 or scale & (scale - 1):
            raise ValueError(f"scale {scale} with head 'upsample': expected 1, 2, 4 or another power of two")
        self.scale, self.patch_size = scale, patch_size
        self.merge = GroupMerge(groups=groups, width=width, outputs=head_width * patch_size**2)
        self.fuse = nn.Conv2d(head_width + 2 * channels, head_width, 1)
        self.refine = nn.Sequential(ResidualBlock(head_width), ResidualBlock(head_width))
        self.proj_out = nn.Conv2d(head_width, outputs, 1)
        widths = [head_width]
        while len(widths) < scale.bit_length():
            widths.append(max(min(LEAST_WIDTH, widths[-1]), widths[-1] // 2))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.up_blocks = nn.ModuleList(UpsampleBlock(b, 0) for b in widths[1:])
        self.detail_out = nn.Conv2d(widths[-1], outputs, 1) if scale > 1 else None

    def init_weights(self) -> None:
        """Start as interpolation of the base-scale prediction; convolutions as torch has them."""
        self.merge.init_weights()
        if self.detail_out is not None:
            nn.init.zeros_(self.detail_out.weight)
            nn.init.zeros_(self.detail_out.bias)

    def forward(self, tokens: Tensor, token_valid: Tensor, imgs: Tensor, valid: Tensor) -> Tensor:
        """Predict pixels.

        Args:
            tokens: (N, G, L, D).
            token_valid: (N, G, L) bool, True = the token holds a valid pixel.
            imgs: (N, C, H, W), model units, 0 where invalid.
            valid: (N, C, H, W) bool, True = usable.

        Returns:
            (N, K, sH, sW), at least float32.
        """
        features = self.merge(tokens, token_valid).unflatten(-1, (-1, self.patch_size**2)).transpose(1, 2)
        features = unpatchify(features, self.patch_size)  # (N, head_width, H, W)
        images = soft_limit(imgs)
        x = self.fuse(torch.cat([features.to(images.dtype), images, valid.to(images.dtype)], dim=1))
        x = self.refine(x)
        with full_precision(x.device):
            base = self.proj_out(at_least_float32(x))
        if self.detail_out is None:
            return base
        for shrink, block in zip(self.shrink, self.up_blocks, strict=True):
            x, _ = block(shrink(x))
        with full_precision(x.device):
            smooth = F.interpolate(base, scale_factor=self.scale, mode="bilinear", align_corners=False)
            return smooth + self.detail_out(at_least_float32(x))


def make_task_head(
    kind: str,
    *,
    groups: int,
    width: int,
    patch_size: int,
    scale: int,
    outputs: int,
    channels: int,
    head_width: int = HEAD_WIDTH,
) -> LinearHead | UpsampleHead:
    """Build a head by its name; arguments as in `UpsampleHead`.

    Raises:
        ValueError: unknown name, or a scale or number of outputs that cannot be.
    """
    if scale < 1 or outputs < 1 or head_width < 1:
        raise ValueError(
            f"scale {scale}, {outputs} outputs, head_width {head_width}: expected each to be at least 1; give a "
            "scale such as 1, 2 or 4 and the number of classes, or 1 output for a property"
        )
    if kind == "linear":
        return LinearHead(groups=groups, width=width, patch_size=patch_size, scale=scale, outputs=outputs)
    if kind == "upsample":
        return UpsampleHead(
            groups=groups,
            width=width,
            patch_size=patch_size,
            scale=scale,
            outputs=outputs,
            channels=channels,
            head_width=head_width,
        )
    raise ValueError(f"head {kind!r}: expected one of {', '.join(TASK_HEADS)}")
