"""From native pixels to model input: encode, average down to every scale, split into values and validity.

Runs on the device of its input. Coarser pixels are means over valid native pixels, weighted by shared area.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from datasets.layers.encoding import Encoding, channel_ranges
from datasets.survey.stack import LayerBundle

LEAST_WEIGHT = 1e-4
"""Fraction of a pixel's area that must be valid for it to count: only guards against rounding."""


class Sample(NamedTuple):
    """A batch ready for the model.

    Attributes:
        imgs: (N, C, H, W) float32, model units, 0 where invalid.
        valid: (N, C, H, W) bool, True = usable.
        imgs_up: finer targets, (N, C, sH, sW) for each scale above 1, 0 where invalid or not scored.
        valid_up: likewise bool; False everywhere for layers not scored at that scale.
        native: native pixels of the channel groups that have finer ones than the base, (N, c, sH, sW) each, NaN =
            invalid; none unless the pyramid was built for them.
    """

    imgs: torch.Tensor
    valid: torch.Tensor
    imgs_up: list[torch.Tensor]
    valid_up: list[torch.Tensor]
    native: Sequence[torch.Tensor] = ()

    def to(self, device: torch.device) -> Sample:
        """The same on another device, copied without waiting."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Sample:
        """The same in page-locked memory, unless it is on a device already."""
        return self._each(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
        lists = ([change(tensor) for tensor in part] for part in (self.imgs_up, self.valid_up, self.native))
        return Sample(change(self.imgs), change(self.valid), *lists)

    def without(self, dropped: torch.Tensor) -> Sample:
        """The same where some channels, (N, C) bool, have no data at all; models ignore `native` of invalid ground."""
        kept = ~dropped[:, :, None, None]
        finer = [ok & kept for ok in self.valid_up]
        return Sample(
            torch.where(kept, self.imgs, 0.0),
            self.valid & kept,
            [torch.where(kept, image, 0.0) for image in self.imgs_up],
            finer,
            self.native,
        )


class NativeGroup(NamedTuple):
    """A channel group that is read at its native pixels, finer than the base pixel.

    Attributes:
        layers: numbers of its layers, in the order of its channels.
        scale: native pixels along the edge of a base pixel.
    """

    layers: tuple[int, ...]
    scale: int


def overlap_weights(phase: torch.Tensor, *, pixels: float, native: int, size: int) -> torch.Tensor:
    """Lengths that output pixels share with native pixels along one axis.

    Args:
        phase: (N,) start of the tile inside its first native pixel, native pixels.
        pixels: length of the tile, native pixels.
        native: number of native pixels read.
        size: number of output pixels.

    Returns:
        (N, size, native) float32; each row sums to pixels / size where the window reaches.
    """
    step = pixels / size
    start = phase.double()[:, None] + torch.arange(size, device=phase.device, dtype=torch.float64) * step
    left = torch.arange(native, device=phase.device, dtype=torch.float64)
    length = torch.minimum(start[..., None] + step, left + 1) - torch.maximum(start[..., None], left)
    return length.clamp_min(0.0).float()


def pool_overlap(
    values: torch.Tensor, valid: torch.Tensor, weights_y: torch.Tensor, weights_x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Area-weighted means over valid pixels for any ratio and phase.

    Args:
        values: (N, C, h, w) float32, 0 where invalid.
        valid: (N, C, h, w) float32, 1 = valid.
        weights_y: (N, H, h) shared lengths.
        weights_x: (N, W, w) shared lengths.

    Returns:
        values (N, C, H, W) float32 and valid (N, C, H, W) bool.
    """
    rows, columns = weights_y[:, None], weights_x[:, None].transpose(-1, -2)
    area = rows.sum(-1, keepdim=True) * columns.sum(-2, keepdim=True)
    weight = rows @ valid @ columns
    total = rows @ values @ columns
    usable = weight > LEAST_WEIGHT * area.clamp_min(1e-12)
    return torch.where(usable, total / weight.clamp_min(1e-12), 0.0), usable


class Pyramid:
    """Turns bundles of native pixels into a `Sample`.

    Args:
        bundles: the bundles of a stack.
        tile_rows: tile height, reference pixels.
        tile_cols: tile width, reference pixels.
        input_size: base-scale pixels along an edge, H = W.
        scales: reconstructed scales, 1 first.
        scored: for each scale, the numbers of the layers that are scored at it.
        encodings: per layer, how its values become channels.
        native: the groups to read at their native pixels as well, in the order of the model's groups.
    """

    def __init__(
        self,
        *,
        bundles: Sequence[LayerBundle],
        tile_rows: float,
        tile_cols: float,
        input_size: int,
        scales: Sequence[int],
        scored: Mapping[int, Sequence[int]],
        encodings: Sequence[Encoding],
        native: Sequence[NativeGroup] = (),
    ) -> None:
        self.bundles = tuple(bundles)
        self.native = tuple(native)
        self._native_scale = {layer: group.scale for group in native for layer in group.layers}
        self.encodings = tuple(encodings)
        self.ranges = channel_ranges(self.encodings)
        self.channels = sum(len(numbers) for numbers in self.ranges)
        self.input_size = input_size
        self.scales = tuple(scales)
        self.scored = {scale: frozenset(scored[scale]) for scale in scales}
        self._tile = (tile_rows, tile_cols)

    def __call__(self, arrays: Sequence[torch.Tensor], phases: Sequence[torch.Tensor | None]) -> Sample:
        """Builds the pyramid.

        Args:
            arrays: per bundle (N, its channels, rows, cols) float32, physical units, NaN = invalid.
            phases: per bundle (N, 2) float (row, col) start of the tile inside the first native pixel, or None.

        Returns:
            The sample, on the device of the arrays.
        """
        count, device = arrays[0].shape[0], arrays[0].device
        sizes = [self.input_size * scale for scale in self.scales]
        shape = [(count, self.channels, size, size) for size in sizes]
        values = [torch.zeros(s, device=device) for s in shape]
        valid = [torch.zeros(s, dtype=torch.bool, device=device) for s in shape]
        own: dict[int, torch.Tensor] = {}  # (N, sH, sW) by channel
        for bundle, array, phase in zip(self.bundles, arrays, phases, strict=True):
            encoded, usable = self._encode(array, bundle.channels)
            owners = [layer for layer in bundle.channels for _ in self.ranges[layer]]
            numbers = [channel for layer in bundle.channels for channel in self.ranges[layer]]
            pool = self._pool_whole if phase is None else self._pool_shifted
            for level, (mean, ok) in pool(bundle, encoded, usable, phase).items():
                for k, (layer, channel) in enumerate(zip(owners, numbers, strict=True)):
                    if level == 0 or self._is_scored(layer, level):  # lists as indices would make a GPU wait
                        values[level][:, channel], valid[level][:, channel] = mean[:, k], ok[:, k]
            for scale in {self._native_scale[layer] for layer in bundle.channels if layer in self._native_scale}:
                fine = self._at_scale(bundle, encoded, usable, phase, scale)
                own |= {
                    channel: fine[:, k]
                    for k, (layer, channel) in enumerate(zip(owners, numbers, strict=True))
                    if self._native_scale.get(layer) == scale
                }
        native = [torch.stack([own[channel] for channel in self.native_channels(group)], 1) for group in self.native]
        return Sample(values[0], valid[0], values[1:], valid[1:], native)

    def native_channels(self, group: NativeGroup) -> list[int]:
        """Channels of a group, in its order."""
        return [channel for layer in group.layers for channel in self.ranges[layer]]

    def finest_zoom(self, hidden: Collection[int] = ()) -> int:
        """Parts along the edge of a base pixel that are no finer than the finest layer's pixels, 1 at least.

        Args:
            hidden: numbers of layers that do not count.
        """
        parts = [
            min(bundle.placement.ratio_y * self._tile[0], bundle.placement.ratio_x * self._tile[1]) / self.input_size
            for bundle in self.bundles
            if set(bundle.channels) - set(hidden)
        ]
        return max(1, math.floor(max(parts, default=1.0) + 1e-6))

    def finer(self, zoom: int) -> Pyramid:
        """The same tiles in pixels `zoom` times finer than base pixels, which every layer is resampled to."""
        return Pyramid(
            bundles=self.bundles,
            tile_rows=self._tile[0],
            tile_cols=self._tile[1],
            input_size=self.input_size * zoom,
            scales=(1,),
            scored={1: range(len(self.encodings))},
            encodings=self.encodings,
        )

    @property
    def native_encodings(self) -> list[list[Encoding]]:
        """Encodings of the layers of each group that is read at its native pixels."""
        return [[self.encodings[layer] for layer in group.layers] for group in self.native]

    def channels_at(self, level: int) -> list[int]:
        """Channels that hold anything at a level: all at the base, those of layers scored there at finer scales."""
        return [
            channel
            for layer, numbers in enumerate(self.ranges)
            for channel in numbers
            if level == 0 or self._is_scored(layer, level)
        ]

    def to_physical(self, images: torch.Tensor) -> torch.Tensor:
        """Model units (N, C, h, w) back to values (N, layers, h, w), as `Encoding.decode` does."""
        parts = [
            encoding.decode(images[:, list(numbers)])
            for encoding, numbers in zip(self.encodings, self.ranges, strict=True)
        ]
        return torch.stack(parts, dim=1)

    def _is_scored(self, layer: int, level: int) -> bool:
        return layer in self.scored[self.scales[level]]

    def _levels(self, bundle: LayerBundle) -> list[int]:
        """Levels of the pyramid that some layer of a bundle takes part in; the base always."""
        return [
            level
            for level in range(len(self.scales))
            if level == 0 or any(self._is_scored(c, level) for c in bundle.channels)
        ]

    def _encode(self, array: torch.Tensor, layers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Native pixels (N, layers, rows, cols) to channels in model units and their validity, alike in shape."""
        parts = [self.encodings[layer].encode(array[:, k]) for k, layer in enumerate(layers)]
        usable = [ok.unsqueeze(1).expand_as(channels) for channels, ok in parts]
        return torch.cat([channels for channels, _ in parts], dim=1), torch.cat(usable, dim=1)

    def _at_scale(
        self,
        bundle: LayerBundle,
        values: torch.Tensor,
        usable: torch.Tensor,
        phase: torch.Tensor | None,
        scale: int,
    ) -> torch.Tensor:
        """Channels (N, k, sH, sW) at a scale, NaN where invalid: the pixels themselves where they fit it."""
        size = self.input_size * scale
        (factor_y, rest_y), (factor_x, rest_x) = divmod(values.shape[-2], size), divmod(values.shape[-1], size)
        if phase is not None or rest_y or rest_x or not factor_y or not factor_x:
            phase = torch.zeros(values.shape[0], 2, device=values.device) if phase is None else phase
            means, ok = pool_overlap(values, usable.float(), *self._weights(bundle, values, phase, size))
        elif (factor_y, factor_x) == (1, 1):
            means, ok = values, usable
        else:
            weight = F.avg_pool2d(usable.float(), (factor_y, factor_x))
            means = F.avg_pool2d(values * usable, (factor_y, factor_x)) / weight.clamp_min(1e-12)
            ok = weight > LEAST_WEIGHT
        return torch.where(ok, means, torch.nan)

    def _pool_whole(
        self, bundle: LayerBundle, values: torch.Tensor, usable: torch.Tensor, phase: torch.Tensor | None
    ) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Aligned windows: block means where the ratio is whole, from fine to coarse, else shared areas."""
        result: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        means, weight = values, usable.float()
        whole = True
        for level in sorted(self._levels(bundle), key=lambda k: -self.scales[k]):
            size = self.input_size * self.scales[level]
            factor_y, rest_y = divmod(means.shape[-2], size)
            factor_x, rest_x = divmod(means.shape[-1], size)
            if rest_y or rest_x or not factor_y or not factor_x:
                whole = False
                break
            if (factor_y, factor_x) != (1, 1):
                total = F.avg_pool2d(means * weight, (factor_y, factor_x))
                weight = F.avg_pool2d(weight, (factor_y, factor_x))
                means = torch.where(weight > 0, total / weight.clamp_min(1e-12), 0.0)
            result[level] = (means, weight > LEAST_WEIGHT)
        if whole:
            return result
        zero = torch.zeros(values.shape[0], 2, device=values.device)
        return self._pool_shifted(bundle, values, usable, zero)

    def _pool_shifted(
        self, bundle: LayerBundle, values: torch.Tensor, usable: torch.Tensor, phase: torch.Tensor | None
    ) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        assert phase is not None
        result = {}
        for level in self._levels(bundle):
            weights = self._weights(bundle, values, phase, self.input_size * self.scales[level])
            result[level] = pool_overlap(values, usable.float(), *weights)
        return result

    def _weights(
        self, bundle: LayerBundle, values: torch.Tensor, phase: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shared lengths of native pixels with `size` output pixels, along rows and columns."""
        ratios = bundle.placement.ratio_y, bundle.placement.ratio_x
        rows, cols = (
            overlap_weights(phase[:, k], pixels=ratio * tile, native=values.shape[k - 2], size=size)
            for k, (ratio, tile) in enumerate(zip(ratios, self._tile, strict=True))
        )
        return rows, cols
