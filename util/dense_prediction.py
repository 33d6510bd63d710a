"""Per-pixel outputs of a fine-tuned network for a rectangle of ground: overlapping tiles, blended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from util.mosaic import Mosaic, Unit, raised_cosine, tile_origins

Forward = Callable[[Tensor, Tensor], Tensor]
"""(N, C, H, W) values and validity -> (N, K, sH, sW): class shares, or values."""

SampleOf = Callable[[np.ndarray], Any]
"""(N, 2) base-scale origins -> an object with `imgs` and `valid`, on the device."""


@dataclass(frozen=True)
class DensePrediction:
    """How tiles become a map.

    Attributes:
        forward: the network, with what turns its outputs into shares or values.
        bands: number of outputs K.
        size: tile edge, base-scale pixels.
        patch: patch edge, base-scale pixels: tiles start on patches of the whole ground.
        overlap: share of a tile that the next one repeats.
        scale: target pixels along the edge of a base-scale pixel.
        batch_size: most tiles in a forward pass.
        device: where it runs.
    """

    forward: Forward
    bands: int
    size: int
    patch: int
    overlap: float
    scale: int
    batch_size: int
    device: torch.device

    @property
    def stride(self) -> int:
        """Distance between tiles, base-scale pixels: whole patches."""
        return min(self.size, max(self.patch, round(self.size * (1 - self.overlap) / self.patch) * self.patch))

    def origins(self, unit: Unit, shape: tuple[int, int]) -> np.ndarray:
        """(n, 2) origins of the tiles that share ground with a unit, out of those that cover base-scale `shape`."""
        lattices = [tile_origins(length, tile=self.size, stride=self.stride, align=self.patch) for length in shape]
        rows = lattices[0][(lattices[0] < unit.bottom) & (lattices[0] + self.size > unit.top)]
        cols = lattices[1][(lattices[1] < unit.right) & (lattices[1] + self.size > unit.left)]
        return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)

    @torch.inference_mode()
    def of(self, unit: Unit, shape: tuple[int, int], sample_of: SampleOf) -> np.ndarray:
        """Predicts a unit.

        Args:
            unit: the rectangle, base-scale pixels.
            shape: (rows, cols) of the whole ground, base-scale pixels: tiles lie the same whatever the unit.
            sample_of: gives tiles.

        Returns:
            (K, rows * s, cols * s) float32, NaN where no layer has a valid pixel.
        """
        s = self.scale
        mosaic = Mosaic(
            self.bands, (unit.bottom - unit.top) * s, (unit.right - unit.left) * s, device=self.device, spread=False
        )
        taper = raised_cosine(self.size * s).to(self.device)
        taper = taper[:, None] * taper
        origins = self.origins(unit, shape)
        for first in range(0, len(origins), self.batch_size):
            part = origins[first : first + self.batch_size]
            sample = sample_of(part)
            seen = sample.valid.any(dim=1)  # (N, H, W)
            useful = seen.flatten(1).any(dim=1)
            if not useful.any():
                continue
            outputs = self.forward(sample.imgs[useful], sample.valid[useful]).float()
            weights = seen[useful].repeat_interleave(s, dim=1).repeat_interleave(s, dim=2) * taper
            for n, (row, col) in enumerate(part[useful.cpu().numpy()]):
                place = {"row": (int(row) - unit.top) * s, "col": (int(col) - unit.left) * s}
                mosaic.add(outputs[n], weights[n], **place)
        return mosaic.mean
