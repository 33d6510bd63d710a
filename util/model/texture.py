"""Texture of hidden patches: how rough each layer is there, by direction and distance, as a target of pre-training.

Where a field is smooth, its hidden pixels can be interpolated; its texture tells rocks apart. The texture of a layer in
a patch is the mean absolute first and second difference of its finest pixels along four directions at two spacings.
These are fixed measures of steepness and curvature, of short and longer wavelengths. No difference reaches beyond the
patch or across invalid pixels, and no number depends on other samples. Angles and classes have no texture.

References: mean absolute first differences by lag and direction are madograms (Deutsch and Journel, GSLIB, 1998,
section III.1); fixed descriptors of hidden patches as targets are the idea of MaskFeat (Wei et al., CVPR 2022,
section 3), whose descriptors are histograms of gradients.

Shape letters: N batch, T layers with a texture, G groups, L patches per group, E decoder width, H W base-scale pixels,
p patch edge, s scale of a layer, K numbers of a texture.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.model.native_stem import LEAST_DETAIL
from util.model.patches import patchify
from util.model.reconstruction_losses import masked_patch_mean
from util.model.scale_heads import at_least_float32

DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))
"""Steps (rows, columns) along which pixels are compared."""
STENCILS = ((-1.0, 0.0, 1.0), (1.0, -2.0, 1.0))
"""Weights of three pixels in a row: first and second difference."""
SPACINGS = (1, 2)
"""Distances between the three pixels."""
TEXTURE_NUMBERS = len(DIRECTIONS) * len(STENCILS) * len(SPACINGS)
"""K."""
LEAST_EDGE = 2 * max(SPACINGS) + 1
"""Pixels along the edge of a patch that the widest difference needs."""
TYPICAL_DETAIL = 0.1  # model units, of layers whose detail is unknown; chosen, not tuned
FLAT = 0.05  # differences in units of a layer's detail that count as none: noise and rounding; chosen, not tuned


class TextureSource(NamedTuple):
    """The pixels of which the texture of a layer is measured.

    Attributes:
        channel: the channel of the layer.
        layer: its number.
        group: its channel group.
        scale: s, pixels along the edge of a base pixel.
        native: number of the image of native pixels, channel in it, and step between its pixels; None: the target at
            this scale.
    """

    channel: int
    layer: int
    group: int
    scale: int
    native: tuple[int, int, int] | None


def source_images(
    sources: Sequence[TextureSource],
    targets: Mapping[int, tuple[Tensor, Tensor]],
    native: Sequence[Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Pixels and validity of each layer, (N, 1, sH, sW) each.

    Args:
        sources: of the layers.
        targets: by scale, base scale included: images (N, C, sH, sW) and their validity.
        native: native pixels of the groups that have finer ones, (N, c, sH, sW) each, NaN = invalid.
    """
    images = []
    for source in sources:
        image, valid = (
            part[:, source.channel].unsqueeze(1) for part in targets[source.scale if not source.native else 1]
        )
        if source.native is not None:
            number, channel, step = source.native
            image = at_least_float32(native[number][:, channel, ::step, ::step].unsqueeze(1))
            usable = valid.repeat_interleave(source.scale, 2).repeat_interleave(source.scale, 3)
            valid = torch.isfinite(image) & usable
        images.append((image, valid))
    return images


def difference_kernels() -> Tensor:
    """First and second differences along all directions, (K / 2, 1, 3, 3): sum 0, sum of squares 1."""
    kernels = torch.zeros(len(STENCILS) * len(DIRECTIONS), 1, 3, 3)
    for k, (stencil, (row, col)) in enumerate((s, d) for s in STENCILS for d in DIRECTIONS):
        for step, weight in zip((-1, 0, 1), stencil, strict=True):
            kernels[k, 0, 1 + step * row, 1 + step * col] = weight
    return kernels / kernels.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


@torch.no_grad()  # inputs are data
def mean_differences(image: Tensor, valid: Tensor, kernels: Tensor, *, edge: int) -> tuple[Tensor, Tensor]:
    """Mean absolute differences inside the patches of one layer, over the 3 x 3 pixels that are all valid.

    Args:
        image: (N, 1, h, w); invalid pixels are ignored.
        valid: (N, 1, h, w) bool, True = usable.
        kernels: from `difference_kernels`.
        edge: of a patch, in pixels; at least `LEAST_EDGE`.

    Returns:
        (N, L, K) in the units of the image, 0 where nothing is valid; and (N, L, K) bool, True where something is.
    """
    count = image.shape[0]
    pixels = patchify(torch.where(valid, image, 0.0), edge).reshape(-1, 1, edge, edge)  # (N * L, 1, edge, edge)
    gone = patchify((~valid).to(image.dtype), edge).reshape(-1, 1, edge, edge)
    means, known = [], []
    for spacing in SPACINGS:
        whole = F.max_pool2d(gone, 3, stride=1, dilation=spacing) == 0
        sizes = F.conv2d(pixels, kernels, dilation=spacing).abs_().mul_(whole)  # (N * L, K / 2, rows, columns)
        counted = whole.sum(dim=(2, 3))
        means.append(sizes.sum(dim=(2, 3)) / counted.clamp(min=1))
        known.append((counted > 0).expand_as(means[-1]))
    return torch.cat(means, dim=1).unflatten(0, (count, -1)), torch.cat(known, dim=1).unflatten(0, (count, -1))


class TextureHead(nn.Module):
    """Predicts the texture of each layer in each patch from the decoder's tokens, one linear map for each group.

    Args:
        sources: of the layers, group by group.
        groups: G.
        details: standard deviation of the detail of each of these layers, model units; 0: unknown.
        patch_size: p.
        width: E, of the tokens.
    """

    kernels: Tensor
    scales: Tensor
    layers: Tensor
    order: Tensor

    def __init__(
        self, sources: Sequence[TextureSource], *, groups: int, details: Sequence[float], patch_size: int, width: int
    ) -> None:
        super().__init__()
        self.sources, self.patch_size = tuple(sources), patch_size
        self.group_sizes = [sum(source.group == g for source in sources) for g in range(groups)]
        scales = [max(detail, LEAST_DETAIL) if detail else TYPICAL_DETAIL for detail in details]
        self.register_buffer("kernels", difference_kernels(), persistent=False)
        self.register_buffer("scales", torch.tensor(scales).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("layers", torch.tensor([source.layer for source in sources]), persistent=False)
        self.register_buffer("order", torch.arange(len(sources)), persistent=False)
        self.linear = nn.ModuleDict(
            {str(g): nn.Linear(width, size * TEXTURE_NUMBERS) for g, size in enumerate(self.group_sizes) if size}
        )
        for linear in self.linear.values():
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predicted textures (N, T, L, K) from tokens (N, G, L, E)."""
        parts = [linear(tokens[:, int(g)]).unflatten(-1, (-1, TEXTURE_NUMBERS)) for g, linear in self.linear.items()]
        return torch.cat([part.transpose(1, 2) for part in parts], dim=1)

    def target(self, images: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Textures and where they are known, (N, T, L, K) each.

        A texture is the logarithm of `FLAT` + the mean difference in standard deviations of the layer's detail, so that
        twice as rough is the same distance for all layers.

        Args:
            images: pixels of the layers, from `source_images`.
        """
        found = [
            mean_differences(image, valid, self.kernels, edge=self.patch_size * source.scale)
            for source, (image, valid) in zip(self.sources, images, strict=True)
        ]
        means, known = (torch.stack(part, dim=1) for part in zip(*found, strict=True))
        return (FLAT + means / self.scales).log(), known

    def loss(self, tokens: Tensor, images: Sequence[tuple[Tensor, Tensor]], *, mask: Tensor, weights: Tensor) -> Tensor:
        """Smooth absolute error (squared below 1) over the hidden tokens.

        Averaged as the base-scale loss is, with the numbers of a texture in place of pixels, see
        `util.model.reconstruction_losses.masked_patch_mean`.

        Args:
            tokens: (N, G, L, E), decoded.
            images: pixels of the layers, from `source_images`.
            mask: (N, G, L), 1 = removed.
            weights: of all layers of the model.
        """
        target, known = self.target(images)
        return masked_patch_mean(
            F.smooth_l1_loss(self(at_least_float32(tokens)), target, reduction="none"),
            mask=mask,
            valid=known,
            weights=weights.index_select(0, self.layers),
            group_order=self.order,
            group_sizes=self.group_sizes,
        )
