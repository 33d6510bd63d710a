"""Per-pixel outputs of a fine-tuned network for a rectangle of ground: overlapping tiles, blended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from util.mosaics.mosaic import (
    Block,
    Mosaic,
    WeightedMoments,
    columns_between,
    origin_pairs,
    raised_cosine,
    tile_columns,
    tile_origins,
    tile_stride,
)

Forward = Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]
"""(N, C, H, W) values, validity, and native pixels for a model with a stem -> (N, K, s * size, s * size): class
probabilities, or values.
"""

SampleOf = Callable[[np.ndarray], Any]
"""(N, 2) base-scale origins -> an object with `imgs`, `valid` and `native`, on the device."""


@dataclass(frozen=True)
class DensePrediction:
    """How tiles become a map.

    Attributes:
        views: predictions as class probabilities or values; more than one to predict each tile in
            several ways, whose mean counts.
        bands: number of outputs K.
        size: tile edge, base-scale pixels.
        patch: patch edge, base-scale pixels: tiles start on patches of the whole ground.
        overlap: fraction of a tile that the next one repeats.
        scale: target pixels along the edge of a base-scale pixel.
        batch_size: most tiles in a forward pass.
        device: where it runs.
        wrap_columns: base-scale columns after which the ground repeats, around a planet; 0 = never.
    """

    views: Sequence[Forward]
    bands: int
    size: int
    patch: int
    overlap: float
    scale: int
    batch_size: int
    device: torch.device
    wrap_columns: int = 0

    def origins(self, block: Block, shape: tuple[int, int]) -> np.ndarray:
        """(n, 2) origins of the tiles that share ground with a block, out of those that cover base-scale `shape`."""
        stride = tile_stride(self.size, patch=self.patch, overlap=self.overlap)
        lattice = {"tile": self.size, "stride": stride, "align": self.patch}
        rows = tile_origins(shape[0], **lattice)
        rows = rows[(rows < block.bottom) & (rows + self.size > block.top)]
        cols = tile_columns(shape[1], **lattice, wrap_columns=self.wrap_columns)
        cols = columns_between(cols, block.left, block.right, tile=self.size, wrap_columns=self.wrap_columns)
        return origin_pairs(rows, cols)

    def of(self, block: Block, shape: tuple[int, int], sample_of: SampleOf) -> np.ndarray:
        """Predicts a block; arguments as of `mosaic`.

        Returns:
            (K, rows * s, cols * s) float32, NaN where no layer has a valid pixel.
        """
        return self.mosaic(block, shape, sample_of).mean

    @torch.inference_mode()
    def mosaic(
        self,
        block: Block,
        shape: tuple[int, int],
        sample_of: SampleOf,
        *,
        with_std: bool = False,
        watch: Callable[[float], None] | None = None,
    ) -> Mosaic:
        """Predicts a block.

        Args:
            block: the rectangle, base-scale pixels.
            shape: (rows, cols) of the whole ground, base-scale pixels: tiles lie the same whatever the block.
            sample_of: gives tiles.
            with_std: keep what the standard deviation over tiles and views needs.
            watch: is told before each batch which fraction of the tiles is done.

        Returns:
            The blended outputs, nothing where no layer has a valid pixel.
        """
        s = self.scale
        shape_out = ((block.bottom - block.top) * s, (block.right - block.left) * s)
        mosaic = Mosaic(self.bands, *shape_out, device=self.device, with_std=with_std)
        taper = raised_cosine(self.size * s).to(self.device)
        taper = taper[:, None] * taper
        origins = self.origins(block, shape)
        for first in range(0, len(origins), self.batch_size):
            if watch is not None:
                watch(first / len(origins))
            part = origins[first : first + self.batch_size]
            sample = sample_of(part)
            seen = seen_pixels(sample.valid, self.size)
            useful = seen.flatten(1).any(dim=1)
            if not useful.any():
                continue
            native = [image[useful] for image in sample.native]
            outputs, squares = viewed(self.views, sample.imgs[useful], sample.valid[useful], native)
            weights = seen[useful].repeat_interleave(s, dim=1).repeat_interleave(s, dim=2) * taper
            for n, (row, col) in enumerate(part[useful.cpu().numpy()]):
                place = {"row": (int(row) - block.top) * s, "col": (int(col) - block.left) * s}
                mosaic.add(
                    outputs[n], weights[n], **place, squares=None if squares is None else squares[n] * weights[n]
                )
        return mosaic


def seen_pixels(valid: Tensor, size: int) -> Tensor:
    """(N, size, size) bool, True for base pixels where some layer is valid.

    Args:
        valid: (N, C, H, W) bool, in base pixels or in whole parts of them.
        size: edge of the tiles, base pixels.
    """
    parts = (size, valid.shape[-1] // size)
    return valid.any(dim=1).unflatten(2, parts).unflatten(1, parts).any(dim=4).any(dim=2)


def viewed(
    views: Sequence[Forward], imgs: Tensor, valid: Tensor, native: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Predicts tiles in several ways.

    Returns:
        Mean over the views and, of more than one, the mean squared difference from it; float32, as one view's output.
    """
    first = views[0](imgs, valid, native).float()
    if len(views) == 1:
        return first, None
    moments, each = WeightedMoments(tuple(first.shape), first.device), torch.ones_like(first)
    moments.add(first, each)
    for view in views[1:]:
        moments.add(view(imgs, valid, native).float(), each)
    return moments.mean, moments.squares / len(views)
