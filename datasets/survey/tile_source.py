"""The interface of training data: rasters of one survey (`Survey`) or separate images (`Scenes`).

A tile is a row of whole numbers that only its source interprets: a position on the ground, or an image and its crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datasets.layers.encoding import Encoding
from datasets.layers.layer import Layer
from datasets.layers.layer_statistics import LayerStatistics
from datasets.survey.pyramid import Pyramid, Sample
from datasets.survey.tile_reader import Tiles


class Reader(Protocol):
    """Reads tiles; may be called from several threads."""

    def read(self, tiles: np.ndarray) -> Tiles | Sample:
        """Tiles, (N, k) rows of their source: their native pixels, or samples ready for the model.

        Raises:
            OSError: naming what could not be read.
        """


class TileSource(Protocol):
    """Tiles to train on and to score, and their layers, statistics and encodings."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers in order."""

    @property
    def statistics(self) -> Sequence[LayerStatistics]:
        """Per layer, statistics of training values."""

    @property
    def encodings(self) -> Sequence[Encoding]:
        """Per layer, how its values become channels of the model."""

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Groups of layers that share tokens, a partition of the layers."""

    @property
    def scales(self) -> tuple[int, ...]:
        """Scales at which some layer is scored, 1 first."""

    @property
    def scored(self) -> Mapping[int, Sequence[int]]:
        """For each of those scales, the numbers of the layers scored there."""

    @property
    def base_resolution(self) -> float:
        """Edge of a base-scale pixel, CRS units."""

    @property
    def length_unit(self) -> str:
        """Unit of lengths in pictures."""

    def base_pixel(self, tile: Sequence[int] | np.ndarray) -> tuple[float, float]:
        """Width and height of a base-scale pixel in the middle of a tile, in `length_unit`."""

    @property
    def training_tiles(self) -> int:
        """Number of tiles in an epoch that visits each once."""

    @property
    def held_out_tiles(self) -> np.ndarray:
        """(m, k) int64 tiles that are scored and not trained on."""

    def epoch_tiles(self, *, seed: int, epoch: int, tiles: int) -> np.ndarray:
        """(tiles, k) int64 training tiles of an epoch in the order of visiting, a function of (seed, epoch)."""

    def reader(self) -> Reader:
        """Reads the tiles of this source."""

    def pyramid(self, source: Any = None) -> Pyramid:
        """On-device pooling with this source's statistics, for its own tiles or those of another of its kind."""

    def valid_share(self, tiles: np.ndarray) -> np.ndarray:
        """(N,) float: valid fraction of tiles, as far as it is known without reading them."""

    def name_tiles(self, tiles: Sequence[Sequence[int]]) -> str:
        """Names of tiles, for messages."""

    def summary_lines(self) -> list[str]:
        """Summary of layers and tiles, as lines to log."""

    def overview(self) -> dict[str, Any]:
        """Layers with histograms, numbers of tiles and, if they lie on ground, a map, as plain values for a page."""

    def training_warnings(self, patch_size: int) -> list[str]:
        """Warnings before training with patches of this size."""

    def channel_options(self) -> dict[str, Any]:
        """Description of the channels, as keyword arguments of `build_model`."""

    def write_tables(self, folder: Path) -> None:
        """Write tables of the training data beside the checkpoints."""

    def record(self) -> dict[str, Any]:
        """Entries of a checkpoint about this source, besides layers and statistics."""
