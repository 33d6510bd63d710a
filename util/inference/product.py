"""What main_inference asks of a product, and what the table in `products.py` states about each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from util.geotiff.parts import Parts
from util.geotiff.raster_spec import RasterSpec
from util.inference.engine import Ground
from util.mosaics.mosaic import Block

Arrays = dict[str, tuple[RasterSpec, np.ndarray, int, int]]
"""Name of a raster -> (raster, (B, rows, cols) pixels, first row, first column)."""


class Window(Protocol):
    """Pixels of all layers in a block and around it."""

    def sample(self, origins: np.ndarray, device: torch.device) -> Any:
        """Tiles at (N, 2) base-scale origins."""

    def read(self, channel: int, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """Native pixels of one layer, NaN outside."""


class Product(ABC):
    """Rasters that are computed block by block from overlapping tiles.

    A product knows nothing of files: it receives the pixels of a block and returns arrays.

    Attributes:
        rasters: the rasters that `make` computes, by name.
        ground: the base-scale pixels.
        reach: base-scale pixels around a block that must be read.
        derived: names of further rasters that `derive` computes; pictures are drawn of these instead.
    """

    rasters: dict[str, RasterSpec]
    ground: Ground
    reach: int
    derived: tuple[str, ...] = ()

    def extent(self) -> tuple[int, int]:
        """Base-scale (rows, cols) to be divided into blocks."""
        return self.ground.rows, self.ground.cols

    @abstractmethod
    def make(self, block: Block, window: Any) -> Arrays:
        """The pixels of one block, out of its `Window`."""

    def derive(self, parts: Parts, into: Parts) -> dict[str, RasterSpec]:
        """Computes rasters from the finished parts of the others, and writes them as parts.

        Args:
            parts: the finished parts of `rasters`.
            into: where the new parts go.

        Returns:
            The new rasters, by name.
        """
        return {}


@dataclass(frozen=True)
class ProductType:
    """One entry of the table of products.

    Attributes:
        name: value of --output.
        help: what is written, for --help.
        build: (inputs, **options) -> product; checks the options and calibrates the product on the ground.
        options: names of the flags that only some products use; `build` takes their values by these keywords.
        pretrained: True if a checkpoint of main_pretrain can make it.
        finetuned: True if a checkpoint of main_finetune can make it.
        base_scale_only: True if it needs tiles at the base scale alone, whatever the scales of the model.
        shows_inputs: True if its first picture also shows the layers it was made of.
    """

    name: str
    help: str
    build: Callable[..., Product]
    options: tuple[str, ...]
    pretrained: bool = True
    finetuned: bool = False
    base_scale_only: bool = False
    shows_inputs: bool = False
