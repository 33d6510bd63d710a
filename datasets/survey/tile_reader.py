"""Tiles cut from a survey: native pixels of every layer for a batch of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from datasets.rasters.handles import gdal_session
from datasets.survey.stack import LayerBundle


@dataclass(frozen=True)
class Tiles:
    """Native pixels of some tiles.

    Attributes:
        arrays: per bundle (N, channels, rows, cols) float32, physical units, NaN = invalid.
        phases: per bundle (N, 2) float32 (row, col) start of the tile in its first native pixel; None when aligned.
    """

    arrays: list[torch.Tensor]
    phases: list[torch.Tensor | None]

    @property
    def parts(self) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """(arrays, phases), as a `Pyramid` takes them."""
        return self.arrays, self.phases

    def to(self, device: torch.device) -> Tiles:
        """The same on another device, copied without waiting."""
        return Tiles(
            arrays=[array.to(device, non_blocking=True) for array in self.arrays],
            phases=[None if p is None else p.to(device, non_blocking=True) for p in self.phases],
        )

    def pin(self) -> Tiles:
        """The same in page-locked memory, from which copies to a GPU need not wait."""
        return Tiles(
            arrays=[array.pin_memory() for array in self.arrays],
            phases=[None if p is None else p.pin_memory() for p in self.phases],
        )


class NativePixels(Protocol):
    """Source of native pixels: a stack, or a window of one."""

    def read(self, channel: int, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """(rows, cols) float32 native pixels of a layer, NaN where invalid or outside."""


class TileReader:
    """Cuts tiles out of a stack, in native pixels.

    Args:
        stack: the stack, or a window of one.
        bundles: layers that are read into one tensor.
    """

    def __init__(self, stack: NativePixels, bundles: Sequence[LayerBundle]) -> None:
        self.stack = stack
        self.bundles = tuple(bundles)

    def read(self, origins: np.ndarray) -> Tiles:
        """Read tiles.

        Args:
            origins: (N, 2) reference (row, col) of the tiles; fractions count where a bundle is not aligned.

        Returns:
            The tiles' native pixels.

        Raises:
            OSError: naming tile, layer, file and window that could not be read.
        """
        with gdal_session():
            return self._read(origins)

    def _read(self, origins: np.ndarray) -> Tiles:
        arrays, phases = [], []
        for bundle in self.bundles:
            array = np.empty((len(origins), len(bundle.channels), bundle.rows, bundle.cols), dtype=np.float32)
            phase = np.zeros((len(origins), 2), dtype=np.float32)
            for n, (row, col) in enumerate(origins.tolist()):
                first_row, first_col, phase_y, phase_x = bundle.window(row, col)
                phase[n] = phase_y, phase_x
                for k, channel in enumerate(bundle.channels):
                    try:
                        array[n, k] = self.stack.read(channel, first_row, first_col, bundle.rows, bundle.cols)
                    except OSError as error:
                        raise OSError(f"tile at reference row {row:g}, column {col:g}: {error}") from error
            arrays.append(torch.from_numpy(array))
            phases.append(None if bundle.aligned else torch.from_numpy(phase))
        return Tiles(arrays=arrays, phases=phases)
