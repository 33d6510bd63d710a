"""A survey: layers on one reference grid with their tiles, statistics and encodings, ready to be trained on.

`datasets.survey.open_survey` builds it from files.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.ground.grid import length_text
from datasets.ground.wraparound import pixel_size_lines, pixel_size_m
from datasets.layers.encoding import Encoding, channel_ranges, per_channel
from datasets.layers.kinds import kind_of
from datasets.layers.layer import Layer
from datasets.layers.layer_statistics import LayerStatistics
from datasets.layers.table import write_layers_table
from datasets.rasters.scan import BandSummary
from datasets.survey.detail import measure_detail
from datasets.survey.overview import ground_map, layer_rows, plain_rows, tile_centres
from datasets.survey.pyramid import Pyramid
from datasets.survey.scales_and_groups import native_groups
from datasets.survey.stack import LayerBundle, Stack
from datasets.survey.tile_reader import TileReader
from datasets.survey.tiles import TileIndex

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """Everything known about a set of layers before the first batch.

    Attributes:
        stack: the layers on their reference grid.
        summaries: per layer, what scanning it found.
        statistics: per layer, values on training ground.
        encodings: per layer, how its values become channels of the model.
        groups: groups of layers that share tokens, each a tuple of layer numbers; a partition of the layers. Those of
            targets come last.
        base_resolution: ground edge of a base-scale pixel, CRS units.
        input_size: base-scale pixels along a tile's edge.
        scales: scales at which some layer is scored, 1 first.
        scored: for each of those scales, the numbers of the layers scored there.
        tiles: training and validation windows.
        bundles: layers that are read into one tensor.
        correlation_cells: per layer, autocorrelation length in base-scale pixels.
        layer_warnings: warnings about the layers.
        scale_warnings: layers and scales that are not scored.
        native_scales: per layer, its native pixels along the edge of a base pixel, at which a stem reads it; empty if
            models see base pixels alone.
        targets: numbers of the layers that models predict and never see.
    """

    stack: Stack
    summaries: tuple[BandSummary, ...]
    statistics: tuple[LayerStatistics, ...]
    encodings: tuple[Encoding, ...]
    groups: tuple[tuple[int, ...], ...]
    base_resolution: float
    input_size: int
    scales: tuple[int, ...]
    scored: dict[int, tuple[int, ...]]
    tiles: TileIndex
    bundles: tuple[LayerBundle, ...]
    correlation_cells: tuple[float, ...]
    layer_warnings: tuple[str, ...] = field(default=())
    scale_warnings: tuple[str, ...] = field(default=())
    native_scales: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings about layers and scales."""
        return self.layer_warnings + self.scale_warnings

    @property
    def layers(self) -> list[Layer]:
        """The layers in their order."""
        return [band.layer for band in self.stack.bands]

    @property
    def channels(self) -> tuple[tuple[int, ...], ...]:
        """The channel numbers of each layer."""
        return channel_ranges(self.encodings)

    @property
    def seen_groups(self) -> tuple[tuple[int, ...], ...]:
        """The groups that models see: all but the targets."""
        return tuple(group for group in self.groups if group[0] not in self.targets)

    def summary_lines(self) -> list[str]:
        """Summary of layers and tiles, as lines to log."""
        lines = []
        for channel, (band, summary) in enumerate(zip(self.stack.bands, self.summaries, strict=True)):
            values = kind_of(band.layer).describe(band.layer, self.encodings[channel], summary.minimum, summary.maximum)
            scored = " ".join(f"{scale}x" for scale in self.scales if channel in self.scored[scale]) or "no scale"
            lines.append(
                f"layer {channel} {band.layer.name}: {band.grid.cols} x {band.grid.rows} pixels of "
                f"{length_text(band.grid.resolution_x, band.grid.crs)}, {100 * summary.valid_fraction:.0f} % valid, "
                f"{values}, scored at {scored}{', a target that is never seen' if channel in self.targets else ''}"
            )
        base, ground = (
            length_text(self.base_resolution * pixels, self.stack.reference.crs) for pixels in (1, self.input_size)
        )
        lines.append(
            f"base pixel {base}, tile {self.input_size} pixels = {ground}; "
            f"{len(self.tiles.train)} training and {len(self.tiles.val)} held-out tiles; groups "
            f"{[list(group) for group in self.groups]}; layers "
            f"{'in memory' if self.stack.in_memory else 'read by window'}"
        )
        first, last = self.tiles.train[:, 0].min(), self.tiles.train[:, 0].max()
        middles = (int(first) + self.tiles.height // 2, int(last) + self.tiles.height // 2)
        return lines + pixel_size_lines(self.stack.reference, self.base_resolution, middles)

    def base_pixel(self, tile: Sequence[int] | np.ndarray) -> tuple[float, float]:
        """Width and height of a base-scale pixel in the middle of a tile, in `length_unit`."""
        across, along = pixel_size_m(self.stack.reference, float(tile[0]) + self.tiles.height / 2)
        return self.base_resolution * across, self.base_resolution * along

    def held_out_ground(self) -> list[list[float]]:
        """Held-out blocks as [left, bottom, right, top], CRS units."""
        grid = self.stack.reference
        return [
            [
                grid.left + col * grid.resolution_x,
                grid.top - (row + height) * grid.resolution_y,
                grid.left + (col + width) * grid.resolution_x,
                grid.top - row * grid.resolution_y,
            ]
            for row, col, height, width in self.tiles.held_out.rectangles()
        ]

    def overview(self) -> dict[str, Any]:
        """What was opened, as plain values for a page: layers with histograms, numbers of tiles, a map of the ground.

        Raises:
            OSError: a layer cannot be read.
        """
        grid, index, layers = self.stack.reference, self.tiles, range(len(self.layers))
        rows = layer_rows(self.stack, self.summaries, self.encodings, self.groups)
        scored = [" ".join(f"{scale}x" for scale in self.scales if c in self.scored[scale]) for c in layers]
        size = {"height": index.height, "width": index.width}
        tile = length_text(self.base_resolution * self.input_size, grid.crs)
        counts = [
            ("base pixel", length_text(self.base_resolution, grid.crs)),
            ("tile", f"{self.input_size} base pixels = {tile}"),
            ("training tiles", len(index.train)),
            ("held-out tiles", len(index.val)),
            ("held-out blocks", int(index.held_out.chosen.sum())),
        ]
        drawn = {
            "rectangles": [{"bounds": bounds, "name": "held-out block"} for bounds in self.held_out_ground()],
            "points": [
                {"name": f"centre of a {name} tile", "places": tile_centres(grid, origins, **size)}
                for name, origins in (("training", index.train), ("held-out", index.val))
            ],
            "tile": [index.width * grid.resolution_x, index.height * grid.resolution_y],
        }
        return {
            "layers": [row | {"scored": text} for row, text in zip(rows, scored, strict=True)],
            "counts": plain_rows(counts),
            "map": ground_map(grid, fraction=index.coverage.fraction, cell=index.coverage.cell) | drawn,
        }

    def channel_options(self) -> dict[str, Any]:
        """Description of the layers, as keyword arguments of `build_model`."""
        channels = self.channels

        def expanded(layers: Sequence[int]) -> tuple[int, ...]:
            return tuple(c for layer in layers for c in channels[layer])

        options: dict[str, Any] = {
            "in_chans": sum(encoding.channels for encoding in self.encodings),
            "channel_groups": tuple(expanded(group) for group in self.groups),
            "scales": self.scales,
            "scored": {scale: expanded(layers) for scale, layers in self.scored.items()},
            "channel_weights": [
                layer.loss_weight for layer, numbers in zip(self.layers, channels, strict=True) for _ in numbers
            ],
        }
        if self.targets:
            options["target_groups"] = len(self.groups) - len(self.seen_groups)
        if self.native_scales:
            options["native_scales"] = per_channel(self.native_scales, self.encodings)
            options["detail_scales"] = per_channel([item.detail for item in self.statistics], self.encodings)
        if not all(encoding.is_continuous for encoding in self.encodings) or any(la.loss for la in self.layers):
            options["layers"] = [
                {
                    "kind": encoding.kind,
                    "form": encoding.form,
                    "channels": encoding.channels,
                    "loss": layer.loss,
                    "loss_scale": encoding.loss_scale,
                    "where": layer.where,
                }
                for layer, encoding in zip(self.layers, self.encodings, strict=True)
            ]
        return options

    def pyramid(self, source: Survey | None = None) -> Pyramid:
        """The on-device pooling with this survey's statistics, for its own tiles or those of another survey.

        A layer that is coarser in the other survey is not scored there at scales finer than its pixels.
        """
        source = source or self
        return Pyramid(
            bundles=source.bundles,
            tile_rows=source.tiles.height,
            tile_cols=source.tiles.width,
            input_size=self.input_size,
            scales=self.scales,
            scored={s: sorted({*self.scored[s]} & {*source.scored.get(s, ())}) for s in self.scales},
            encodings=self.encodings,
            native=native_groups(self.seen_groups, self.native_scales) if self.native_scales else (),
        )

    @property
    def length_unit(self) -> str:
        """Unit of lengths in pictures; on a planet metres on the ground."""
        return "m"

    @property
    def training_tiles(self) -> int:
        """Number of unshifted training tiles."""
        return len(self.tiles.train)

    @property
    def held_out_tiles(self) -> np.ndarray:
        """(m, 2) int64 (row, col) origins of tiles in held-out blocks."""
        return self.tiles.val

    def epoch_tiles(self, *, seed: int, epoch: int, tiles: int | None = None) -> np.ndarray:
        """Training windows of an epoch, (tiles, 2) (row, col) origins; see `TileIndex.epoch`."""
        return self.tiles.epoch(seed=seed, epoch=epoch, tiles=tiles)

    def reader(self) -> TileReader:
        """Cuts tiles out of the stack."""
        return TileReader(self.stack, self.bundles)

    def valid_share(self, tiles: np.ndarray) -> np.ndarray:
        """Valid fraction of the ground of windows at (N, 2) origins, averaged over layers."""
        index = self.tiles
        return index.coverage.of_windows(tiles[:, 0], tiles[:, 1], height=index.height, width=index.width)

    def name_tiles(self, tiles: Sequence[Sequence[int]]) -> str:
        """Windows by their origins."""
        return f"as (row, col) of {self.tiles.height} x {self.tiles.width} reference pixels: {list(tiles)}"

    def training_warnings(self, patch_size: int) -> list[str]:
        """Warnings before training with patches of this size."""
        return [*self.warnings, *smooth_layers(self, patch_size)]

    def write_tables(self, folder: Path) -> None:
        """Write layers.csv, a table of the layers that training can start from."""
        write_layers_table(folder / "layers.csv", self.layers)

    def record(self) -> dict[str, Any]:
        """The ground edge of a base-scale pixel, where the ground lies, what was held out, and the area of interest."""
        aoi, grid = self.stack.aoi, self.stack.reference
        return {
            "base_resolution": self.base_resolution,
            "ground": {"crs": grid.crs.to_wkt(), "bounds": list(grid.bounds)},
            "held_out": self.held_out_ground(),
            "aoi": None if aoi is None else aoi.plain(),
        }


def with_detail(survey: Survey) -> Survey:
    """The survey with the detail of each layer measured on training ground, among its statistics."""
    detail = measure_detail(survey.reader(), survey.pyramid(), survey.tiles.train, survey.encodings)
    measured = tuple(replace(item, detail=d) for item, d in zip(survey.statistics, detail, strict=True))
    return replace(survey, statistics=measured)


def smooth_layers(survey: Survey, patch_size: int) -> list[str]:
    """Warnings about layers whose hidden patches interpolation predicts well, so that a model has little to add.

    Args:
        survey: the survey.
        patch_size: patch edge, base-scale pixels.

    Returns:
        One sentence for each layer whose autocorrelation length is at least a patch.
    """
    return [
        f"layer '{layer.name}' is smooth: its autocorrelation length, {_length_text(length)}, is not below a patch's "
        f"{patch_size} base pixels, so interpolation will be hard to beat; a larger --base_resolution or --patch_size "
        "asks for more than smoothness"
        for layer, length in zip(survey.layers, survey.correlation_cells, strict=True)
        if length >= patch_size
    ]


def _length_text(length: float) -> str:
    return f"{length:.1f} base pixels" if np.isfinite(length) else "over a third of the survey"
