"""Rasters on disk -> a survey that can be trained on -> batches of native pixels.

`open_survey` does everything that comes before the first batch: layers, reference grid, scan, tiles, held-out
blocks, statistics; and refuses, by name, what cannot be trained on. `TileReader` cuts tiles out of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.ground.grid import Grid
from datasets.ground.wraparound import latitude_weights, pixel_size_lines, pixel_size_m
from datasets.layers.encoding import Encoding, channel_ranges
from datasets.layers.kinds import kind_of
from datasets.layers.layer import Layer
from datasets.layers.layer_statistics import LayerStatistics
from datasets.layers.table import with_transforms, write_layers_table
from datasets.rasters.open_band import layer_crs, open_band
from datasets.rasters.scan import BandSummary
from datasets.rasters.wrapped_band import wraparound_remarks
from datasets.survey.coverage import MAX_CELLS, correlation_length, map_cells, mean_coverage
from datasets.survey.layer_classes import layer_classes
from datasets.survey.memory import fits_memory
from datasets.survey.open_layers import check_numbers, choose_layers, scan_bands
from datasets.survey.pyramid import Pyramid
from datasets.survey.scales_and_groups import channel_groups, score_scales
from datasets.survey.stack import LayerBundle, Stack, make_bundles, reference_grid
from datasets.survey.statistics import fit_statistics
from datasets.survey.tile_reader import TileReader
from datasets.survey.tiles import TileIndex, index_tiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """Everything known about a set of layers before the first batch.

    Attributes:
        stack: the layers on their reference grid.
        summaries: per layer, what scanning it found.
        statistics: per layer, values on training ground.
        encodings: per layer, how its values become channels of the model.
        groups: groups of layers that share tokens, each a tuple of layer numbers; a partition of the layers.
        base_resolution: ground edge of a base-scale pixel, CRS units.
        input_size: base-scale pixels along a tile's edge.
        scales: scales at which some layer is scored, 1 first.
        scored: for each of those scales, the numbers of the layers scored there.
        tiles: training and validation windows.
        bundles: layers that travel together.
        correlation_cells: per layer, autocorrelation length in base-scale pixels.
        layer_warnings: what a user should know about the layers.
        scale_warnings: which layers and scales are not scored.
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

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before training."""
        return self.layer_warnings + self.scale_warnings

    @property
    def layers(self) -> list[Layer]:
        """The layers in their order."""
        return [band.layer for band in self.stack.bands]

    @property
    def channels(self) -> tuple[tuple[int, ...], ...]:
        """The channel numbers of each layer."""
        return channel_ranges(self.encodings)

    def summary_lines(self) -> list[str]:
        """What will be read, as lines to log."""
        lines = []
        for channel, (band, summary) in enumerate(zip(self.stack.bands, self.summaries, strict=True)):
            values = kind_of(band.layer).describe(band.layer, self.encodings[channel], summary.minimum, summary.maximum)
            scored = " ".join(f"{scale}x" for scale in self.scales if channel in self.scored[scale]) or "no scale"
            lines.append(
                f"layer {channel} {band.layer.name}: {band.grid.cols} x {band.grid.rows} pixels of "
                f"{band.grid.resolution_x:g}, {100 * summary.valid_fraction:.0f} % valid, "
                f"{values}, scored at {scored}"
            )
        ground = self.base_resolution * self.input_size
        lines.append(
            f"base pixel {self.base_resolution:g}, tile {self.input_size} pixels = {ground:g}; "
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

    def channel_options(self) -> dict[str, Any]:
        """What a model must know of the layers, as keyword arguments of `build_model`."""
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
        if not all(encoding.is_continuous for encoding in self.encodings) or any(la.loss for la in self.layers):
            options["layers"] = [
                {
                    "kind": encoding.kind,
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
        )

    @property
    def length_unit(self) -> str:
        """Unit of lengths in pictures; on a round body metres on the ground."""
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
        """Valid share of the ground of windows at (N, 2) origins, averaged over layers."""
        index = self.tiles
        return index.coverage.of_windows(tiles[:, 0], tiles[:, 1], height=index.height, width=index.width)

    def name_tiles(self, tiles: Sequence[Sequence[int]]) -> str:
        """Windows by their origins."""
        return f"as (row, col) of {self.tiles.height} x {self.tiles.width} reference pixels: {list(tiles)}"

    def training_warnings(self, patch_size: int) -> list[str]:
        """What a user should know before training with such patches."""
        return [*self.warnings, *smooth_layers(self, patch_size)]

    def write_tables(self, folder: Path) -> None:
        """Writes layers.csv: the layers as a table that can be trained from."""
        write_layers_table(folder / "layers.csv", self.layers)

    def record(self) -> dict[str, Any]:
        """The ground edge of a base-scale pixel, and the ground that was held out."""
        return {"base_resolution": self.base_resolution, "held_out": self.held_out_ground()}


def open_survey(
    *,
    data_dir: str | None = None,
    layers_table: str | None = None,
    data_path: Sequence[str] | None = None,
    layer_dim: str | None = None,
    crs: str | None = None,
    dropped_bands: Sequence[int] = (),
    masked_bands: Sequence[int] = (),
    grouped_bands: Sequence[Sequence[int]] | None = None,
    one_group: bool = False,
    input_size: int,
    scales: Sequence[int],
    base_resolution: float | None = None,
    extent: str = "union",
    reproject: bool = False,
    aoi: str | None = None,
    min_valid: float = 0.5,
    tile_overlap: float = 0.75,
    val_fraction: float = 0.1,
    val_block: int = 0,
    val_buffer: int = 8,
    seed: int = 0,
    cache: str = "auto",
    local_ranks: int = 1,
    transforms: Mapping[str, str] | None = None,
    classes: Sequence[Encoding | None] | None = None,
) -> Survey:
    """Opens layers and prepares everything that training needs to know of them.

    Args:
        data_dir: directory of rasters, stacked in sorted order.
        layers_table: CSV that names layers, one a row.
        data_path: stores that xarray opens, each variable a layer; give one of the three.
        layer_dim: third dimension of their variables whose elements are layers.
        crs: CRS of stores that state none.
        dropped_bands: layer numbers to leave out; the others are numbered anew.
        masked_bands: layer numbers (after dropping) presented as wholly invalid.
        grouped_bands: channel groups by layer number; default by the table's `group` column, else by resolution.
        one_group: all layers in one group.
        input_size: base-scale pixels along a tile's edge.
        scales: reconstructed scales, whole numbers with 1 among them.
        base_resolution: ground edge of a base-scale pixel, CRS units; default finest resolution x largest scale.
        extent: `union` or `intersection` of the layers' extents.
        reproject: warp layers lazily to the first layer's CRS.
        aoi: polygons file; ground outside is invalid.
        min_valid: least valid share of a tile.
        tile_overlap: share of a training tile that the next repeats.
        val_fraction: share of valid ground held out.
        val_block: edge of a held-out block in tiles, 0 = automatic.
        val_buffer: distance of training from held-out blocks, base-scale pixels.
        seed: decides which blocks are held out.
        cache: `auto`, `ram` or `none`; `device` (see `datasets/survey/pyramid_cache.py`) reads like `auto`.
        local_ranks: processes on this machine that each hold the layers.
        transforms: by name of a layer, the transform of its values, in the place of that of the table.
        classes: per layer, the classes that may occur in it; None for those of its table or pixels.

    Returns:
        The survey.

    Raises:
        ValueError: for anything in the data or the numbers that cannot be trained on, by name.
        FileNotFoundError: for files that are not there.
    """
    # What the headers alone can refuse is refused before a pixel is read.
    chosen = choose_layers(data_dir, layers_table, dropped_bands, data_path=data_path, layer_dim=layer_dim, crs=crs)
    layers = with_transforms(chosen, transforms or {})
    check_numbers(masked_bands, len(layers), "--masked_bands")
    if len(set(masked_bands)) == len(layers):
        raise ValueError(f"--masked_bands hides every one of the {len(layers)} layers; leave at least one")
    target = layer_crs(layers[0]) if reproject else None
    bands = [open_band(layer, reproject_to=target) for layer in layers]
    reference = reference_grid(bands, extent=extent)
    groups = channel_groups(bands, grouped_bands=grouped_bands, one_group=one_group)
    base = base_resolution or max(reference.resolution_x, reference.resolution_y) * max(scales)
    height = _tile_edge(input_size, base, reference.resolution_y)
    width = _tile_edge(input_size, base, reference.resolution_x)
    step = _origin_step(base, reference)
    unscored = {*masked_bands, *(c for c, layer in enumerate(layers) if layer.loss_weight == 0)}
    if len(unscored) == len(layers):
        raise ValueError(
            f"none of the {len(layers)} layers has a loss_weight above 0 and is shown; there is nothing to learn"
        )
    kept_scales, scored, scale_notes = score_scales(bands, scales=scales, base_resolution=base, hidden=sorted(unscored))

    bands, summaries, notes = scan_bands(bands, aoi=aoi)
    tables, class_notes = layer_classes(bands, classes)
    stack = Stack(bands, reference, hidden=masked_bands)
    if fits_memory(stack, cache, local_ranks):
        stack.load()
    maps, cell = [], step
    for channel in range(len(stack)):
        cell_map, cell = map_cells(stack, channel, step=step)
        maps.append(cell_map)
    tiles = index_tiles(
        mean_coverage([m for channel, m in enumerate(maps) if channel not in stack.hidden], cell),
        (reference.rows, reference.cols),
        height=height,
        width=width,
        step=step,
        overlap=tile_overlap,
        min_valid=min_valid,
        val_fraction=val_fraction,
        val_block=val_block,
        buffer=round(val_buffer * max(height, width) / input_size),
        seed=seed,
        ground=latitude_weights(reference),
    )
    fitted = [fit_statistics(stack, channel, tiles.held_out, tables[channel]) for channel in range(len(stack))]
    return Survey(
        stack=stack,
        summaries=summaries,
        statistics=tuple(statistics for statistics, _ in fitted),
        encodings=tuple(encoding for _, encoding in fitted),
        groups=groups,
        base_resolution=float(base),
        input_size=input_size,
        scales=kept_scales,
        scored=scored,
        tiles=tiles,
        bundles=make_bundles(stack, tile_rows=height, tile_cols=width, step=step),
        correlation_cells=tuple(
            _correlation_cells(m.mean, cell * input_size / height)
            if kind_of(band.layer).is_continuous
            else float("nan")
            for band, m in zip(bands, maps, strict=True)
        ),
        layer_warnings=tuple(notes + class_notes + wraparound_remarks(bands, reference)),
        scale_warnings=tuple(scale_notes),
    )


def open_test_survey(survey: Survey, table: str, *, chosen: Mapping[str, Any]) -> Survey:
    """Opens another survey of the same layers, all of whose tiles are held out: for scoring.

    Args:
        survey: the survey that is trained on.
        table: CSV that names the other survey's layers.
        chosen: arguments of `open_survey` that the first one was opened with.

    Raises:
        ValueError: if its layers are not those that are trained on, or it cannot be used.
        FileNotFoundError: for files that are not there.
    """
    replaced: dict[str, Any] = {
        "data_dir": None,
        "data_path": None,
        "layers_table": table,
        "base_resolution": survey.base_resolution,
    }
    replaced["classes"] = [e if e.is_classes else None for e in survey.encodings]
    other = open_survey(**{**chosen, **replaced, "val_fraction": 0.0, "tile_overlap": 0.5})
    names, expected = [layer.name for layer in other.layers], [layer.name for layer in survey.layers]
    if names != expected:
        raise ValueError(
            f"--test_path {table}: layers {', '.join(names)}; expected {', '.join(expected)} as in training; name and "
            "order them in the table like those"
        )
    return replace(other, tiles=replace(other.tiles, val=other.tiles.train))


def _tile_edge(input_size: int, base: float, resolution: float) -> int:
    edge = input_size * base / resolution
    if abs(edge - round(edge)) > 1e-6 * edge or round(edge) < 1:
        raise ValueError(
            f"--input_size {input_size} x --base_resolution {base:g} is {edge:.6g} reference pixels of {resolution:g}, "
            "expected a whole number; choose a base resolution that is a simple multiple of the finest resolution"
        )
    return round(edge)


def _origin_step(base: float, reference: Grid) -> int:
    """Tile origins lie on base-scale pixels where those are whole reference pixels, else on any reference pixel."""
    steps = {base / reference.resolution_x, base / reference.resolution_y}
    whole = {round(s) for s in steps if abs(s - round(s)) < 1e-6 and round(s) >= 1}
    return whole.pop() if len(whole) == 1 and len(whole) == len({round(s, 6) for s in steps}) else 1


def smooth_layers(survey: Survey, patch_size: int) -> list[str]:
    """Names the layers whose hidden patches interpolation predicts well, so that a model has little to add.

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


def _correlation_cells(mean: np.ndarray, cell_in_base_pixels: float) -> float:
    """Autocorrelation length in base-scale pixels; NaN where the cell map is too large to ask."""
    if mean.size > MAX_CELLS // 4 or not np.isfinite(mean).any():
        return float("nan")
    return correlation_length(mean) * cell_in_base_pixels
