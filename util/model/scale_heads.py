"""Cross-scale heads: the published upsampling block, and light heads whose cost is linear in the number of layers.

Shape letters: N batch, C channels, H W base-scale pixels, G groups, L patches per group, E decoder width, p
patch edge, s scale, n channels of a head, K detail patterns.

References: SatMAE++ (Noman et al., CVPR 2024) for the published block; the light heads are an addition.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from util.model.patches import unpatchify

HEAD_BUDGET = 0.16
"""Forward multiply-adds that the light heads may take, as a fraction of those of the rest of the model."""
MAX_DETAIL_RANK = 32  # chosen, not tuned: half as many as a patch of 8 pixels has
FRACTION_FLOOR = 1e-3  # added to class fractions before their logarithm is taken; chosen, not tuned
ASSUMED_MASK_RATIO = 0.75  # for the estimate of cost


def full_precision(device: torch.device) -> AbstractContextManager:
    """A context without autocast; the meta device has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, and leave other types as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def mean_pool(x: Tensor, factor: int) -> Tensor:
    """Mean over squares of `factor` x `factor` pixels; on a CPU sums are faster than a pooling kernel."""
    columns = x.unflatten(3, (-1, factor)).sum(dim=4)  # (N, C, H, W / factor)
    return columns.unflatten(2, (-1, factor)).sum(dim=3) / factor**2


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose output, halved, is added to the input; (N, width, H, W) in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Refine the features."""
        return x + 0.5 * self.conv2(F.relu(self.conv1(x)))


class UpsampleBlock(nn.Module):
    """The upsampling block of SatMAE++: features at twice the resolution and, if `channels` > 0, an image."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.up_norm = LayerNorm2d(width, eps=1e-6)
        self.res_block = ResidualBlock(width)
        self.res_norm = LayerNorm2d(width, eps=1e-6)
        self.proj_out = nn.Conv2d(width, channels, 3, padding=1) if channels else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, width, H, W) -> features (N, width, 2H, 2W) and the image (N, channels, 2H, 2W) or None."""
        x = F.leaky_relu(self.up_norm(self.up_conv(x)), 0.01)
        x = self.res_norm(self.res_block(x))
        return x, None if self.proj_out is None else self.proj_out(x)


def cell_average_taps(scale: int) -> Tensor:
    """Weights that interpolate three neighbouring cell averages to averages over the parts of the middle cell.

    The middle cell has `scale` parts. The weights belong to the parabola that has the three averages. They are
    therefore exact for quadratic fields, and the parts always average back to the cell.

    Returns:
        (scale, 3): a row for each part, in the order of the cells.
    """
    middle = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5  # of each part, in cells
    curvature = (middle.square() + 1 / (12 * scale**2) - 1 / 12) / 2  # mean of (x^2 - 1/12) / 2 over the part
    taps = torch.stack([curvature - middle / 2, 1 - 2 * curvature, curvature + middle / 2], dim=1)
    return taps.to(torch.float32)


def neighbours(x: Tensor, known: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """The pixels before and after each pixel along one axis, for interpolation.

    A predicted pixel seldom fits a given one beside it exactly, and the step between them would distort the given
    pixel when it is refined. A predicted neighbour of a given pixel is therefore replaced: by the extrapolation through
    the given pixel and its other neighbour, or by the given pixel's own value if the other neighbour is predicted too.
    Beyond the edge of the image a predicted pixel is repeated.

    Args:
        x: (N, n, H, W).
        known: (N, n, H, W) bool, True where a pixel is given and not predicted.
        dim: the axis, 2 or 3.

    Returns:
        Values before and after, each (N, n, H, W).
    """
    size = x.shape[dim]
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, size - 1, 1)
    before = torch.cat([first, x.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([x.narrow(dim, 1, size - 1), last], dim)
    outside = torch.zeros_like(known.narrow(dim, 0, 1))
    known_before = torch.cat([outside, known.narrow(dim, 0, size - 1)], dim)
    known_after = torch.cat([known.narrow(dim, 1, size - 1), outside], dim)
    return (
        torch.where(known & ~known_before, torch.where(known_after, 2 * x - after, x), before),
        torch.where(known & ~known_after, torch.where(known_before, 2 * x - before, x), after),
    )


class SubpixelHead(nn.Module):
    """The light head: an image `scale` times finer by learned interpolation, plus detail from the decoder's tokens.

    Interpolation is separable, with three taps for each part of a pixel and each channel, and starts as
    `cell_average_taps`. Detail is a sum of `rank` patterns over the patch, which all channels share; their amplitudes
    are linear in the tokens of the channel's group and start at zero. No convolution mixes channels at the fine scale,
    so the cost grows linearly with the number of channels.
    """

    channels: Tensor
    is_fraction: Tensor
    amplitude_order: Tensor

    def __init__(
        self,
        *,
        scale: int,
        channel_groups: Sequence[Sequence[int]],
        patch_size: int,
        width: int,
        rank: int,
        fraction_channels: Sequence[int] = (),
    ) -> None:
        """Build the head.

        Args:
            scale: s, parts of a base pixel along each side.
            channel_groups: for each group of the model, the channels that this head predicts; may be empty.
            patch_size: p, in base pixels.
            width: E, of the tokens.
            rank: number of patterns; 0 for interpolation alone.
            fraction_channels: channels that hold class fractions.
        """
        super().__init__()
        grouped = [c for group in channel_groups for c in group]
        channels = sorted(grouped)
        self.scale, self.patch_size, self.rank = scale, patch_size, rank
        self.row_taps = nn.Parameter(torch.empty(len(channels), scale, 3))
        self.col_taps = nn.Parameter(torch.empty(len(channels), scale, 3))
        self.register_buffer("channels", torch.tensor(channels), persistent=False)
        self.has_fractions = bool(set(fraction_channels) & set(channels))
        is_fraction = torch.tensor([c in set(fraction_channels) for c in channels])
        self.register_buffer("is_fraction", is_fraction.view(1, -1, 1, 1), persistent=False)
        if rank:
            self.patterns = nn.Parameter(torch.empty(rank, (patch_size * scale) ** 2))
            self.amplitudes = nn.ModuleDict(
                {str(i): nn.Linear(width, len(g) * rank) for i, g in enumerate(channel_groups) if g}
            )
            order = torch.tensor([grouped.index(c) for c in channels])
            self.register_buffer("amplitude_order", order, persistent=False)

    def init_weights(self) -> None:
        """Start as plain interpolation."""
        for taps in (self.row_taps, self.col_taps):
            with torch.no_grad():
                taps.copy_(cell_average_taps(self.scale).expand_as(taps))
        if self.rank:
            nn.init.normal_(self.patterns, std=0.02)
            for linear in self.amplitudes.values():
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)

    def interpolate(self, base: Tensor, known: Tensor | None = None) -> Tensor:
        """Interpolate, in full precision.

        Args:
            base: (N, n, H, W).
            known: (N, n, H, W) bool, True where the pixel was given and not predicted; given pixels are refined with
                given neighbours only (see `neighbours`). None: nowhere.

        Returns:
            (N, n, sH, sW).
        """
        n, count, height, width = base.shape
        s = self.scale
        known = torch.zeros_like(base, dtype=torch.bool) if known is None else known
        with full_precision(base.device):
            above, below = neighbours(base, known, dim=2)
            x = torch.stack([above, base, below], dim=2).flatten(1, 2)  # (N, n * 3, H, W)
            x = F.conv2d(x, self.row_taps.reshape(count * s, 3, 1, 1), groups=count)
            x = x.view(n, count, s, height, width).transpose(2, 3).reshape(n, count, s * height, width)
            left, right = neighbours(x, known.repeat_interleave(s, dim=2), dim=3)
            x = torch.stack([left, x, right], dim=2).flatten(1, 2)  # (N, n * 3, sH, W)
            x = F.conv2d(x, self.col_taps.reshape(count * s, 3, 1, 1), groups=count)
            x = x.view(n, count, s, s * height, width).permute(0, 1, 3, 4, 2)
            return x.reshape(n, count, s * height, s * width)

    def forward(self, base: Tensor, tokens: Tensor, known: Tensor | None = None) -> Tensor:
        """Predict the finer image of this head's channels.

        Args:
            base: (N, C, H, W), all channels at the base scale.
            tokens: (N, G, L, E), decoded.
            known: (N, C, H, W) bool, True where `base` was given and not predicted. None: nowhere.

        Returns:
            (N, n, sH, sW) for the n channels of this head, in channel order; logits of class fractions, so that a
            softmax gives the fractions.
        """
        known = None if known is None else known.index_select(1, self.channels)
        fine = self.interpolate(base.index_select(1, self.channels), known)
        if self.has_fractions:
            fine = torch.where(self.is_fraction, (F.relu(fine) + FRACTION_FLOOR).log(), fine)
        if not self.rank:
            return fine
        amplitudes = torch.cat([linear(tokens[:, int(i)]) for i, linear in self.amplitudes.items()], dim=-1).unflatten(
            -1, (-1, self.rank)
        )  # (N, L, n, K), group by group
        detail = amplitudes.index_select(2, self.amplitude_order).transpose(1, 2) @ self.patterns
        return fine + unpatchify(at_least_float32(detail), self.patch_size * self.scale)


def plan_subpixel(scored: Mapping[int, Sequence[int]]) -> dict[int, dict[int, tuple[int, ...]]]:
    """Choose how the image of each finer scale is computed: by a head, or by pooling a finer image.

    A channel's finest image is predicted. Where a coarser scale divides the finest, its image is the mean over pixels
    of the finer one, which is cheap; targets are computed in the same way.

    Args:
        scored: the channels scored at each scale.

    Returns:
        {scale: {source scale: channels}}, finest scale first; a source equal to the scale is a head, a finer source is
        pooled.
    """
    plan: dict[int, dict[int, tuple[int, ...]]] = {}
    for scale in sorted((s for s in scored if s > 1 and scored[s]), reverse=True):
        sources: dict[int, list[int]] = {}
        for c in scored[scale]:
            finer = [t for t in plan if t % scale == 0 and c in scored[t]]
            sources.setdefault(min(finer, default=scale), []).append(c)
        plan[scale] = {source: tuple(channels) for source, channels in sources.items()}
    return plan


def detail_rank(config: Mapping[str, Any], *, scored: Mapping[int, Sequence[int]]) -> int:
    """Number of detail patterns of the light heads: as many as their budget `HEAD_BUDGET` allows.

    Args:
        config: arguments of the model.
        scored: the channels scored at each scale.

    Returns:
        A whole number from 0 to `MAX_DETAIL_RANK`.
    """
    pixels, p2 = config["img_size"] ** 2, config["patch_size"] ** 2
    channels, patches = config["in_chans"], pixels // p2
    tokens = len(config["channel_groups"]) * patches
    visible = 1 + int(tokens * (1 - ASSUMED_MASK_RATIO))
    width, decoder_width = config["embed_dim"], config["decoder_embed_dim"]

    def blocks(count: int, length: int, d: int) -> float:
        return count * length * ((4 + 2 * config["mlp_ratio"]) * d * d + 2 * length * d)

    rest = blocks(config["depth"], visible, width) + blocks(config["decoder_depth"], 1 + tokens, decoder_width)
    rest += channels * pixels * (width + decoder_width) + visible * width * decoder_width
    interpolation, per_pattern = 0, 0
    for s, sources in plan_subpixel(scored).items():
        predicted = len(sources.get(s, ()))
        interpolation += predicted * pixels * 3 * s * (s + 1)
        per_pattern += predicted * patches * (decoder_width + p2 * s * s)
    if not per_pattern:
        return 0
    return max(0, min(MAX_DETAIL_RANK, int((HEAD_BUDGET * rest - interpolation) // per_pattern)))
