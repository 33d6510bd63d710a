"""A layer as inference writes it: name, unit and decoding of its channels, and its own grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from util.mosaics.mosaic import Block


class Decoder(Protocol):
    """Model units back to values, as `datasets.layers.encoding.Encoding` does it."""

    @property
    def kind(self) -> str:
        """`continuous`, `circular` or `categorical`."""

    @property
    def is_continuous(self) -> bool:
        """True if values are measurements."""

    @property
    def band_names(self) -> tuple[str, str, str]:
        """Names of the `reconstruction_bands`."""

    @property
    def error_text(self) -> str:
        """Meaning of the last of the `reconstruction_bands`."""

    def unit(self, stated: str) -> str:
        """Unit of decoded values, given the unit that the layer table states."""

    def decode(self, images: Tensor) -> Tensor:
        """Model units (..., k, h, w) -> values (..., h, w)."""

    def physical(self, image: np.ndarray) -> np.ndarray:
        """One channel (h, w) of a continuous layer in physical units, from model units."""

    def reconstruction_bands(self, mean: np.ndarray, spread: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """(3, h, w) prediction, its spread and the error, from (k, h, w) each in model units."""


@dataclass(frozen=True)
class LayerValues:
    """A layer's name and unit, a name for files, and how its channels become values."""

    name: str
    unit: str
    file: str
    encoding: Decoder

    def physical(self, image: np.ndarray) -> np.ndarray:
        """One channel (h, w) of a continuous layer in physical units, from model units."""
        return self.encoding.physical(image)


@dataclass(frozen=True)
class NativeLayer:
    """A layer's own grid, and where it lies among base-scale pixels: native = offset + ratio * base, per axis.

    Attributes:
        channel: number of the layer, which is continuous.
        values: name, unit and statistics.
        left: western edge, CRS units.
        top: northern edge, CRS units.
        resolution_x: width of a pixel, CRS units.
        resolution_y: height of a pixel, CRS units.
        rows: number of rows.
        cols: number of columns.
        ratio_yx: native pixels per base-scale pixel.
        offset_yx: native coordinate of the first base-scale pixel's edge.
        scale: the finest scale at which the model predicts it.
    """

    channel: int
    values: LayerValues
    left: float
    top: float
    resolution_x: float
    resolution_y: float
    rows: int
    cols: int
    ratio_yx: tuple[float, float]
    offset_yx: tuple[float, float]
    scale: int = 1

    def window(self, block: Block) -> tuple[int, int, int, int]:
        """(row, col, rows, cols) of the pixels whose centres lie in a block; they may lie outside of the layer."""
        first = [
            math.ceil(round(offset + ratio * edge - 0.5, 6))
            for offset, ratio, edge in zip(self.offset_yx, self.ratio_yx, (block.top, block.left), strict=True)
        ]
        last = [
            math.ceil(round(offset + ratio * edge - 0.5, 6))
            for offset, ratio, edge in zip(self.offset_yx, self.ratio_yx, (block.bottom, block.right), strict=True)
        ]
        return first[0], first[1], last[0] - first[0], last[1] - first[1]

    def base_coordinates(self, first: int, count: int, *, axis: int) -> np.ndarray:
        """(count,) base-scale coordinates of the centres of pixels along an axis (0 = rows)."""
        return (np.arange(first, first + count) + 0.5 - self.offset_yx[axis]) / self.ratio_yx[axis]
