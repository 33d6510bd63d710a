"""Opens a survey: everything between the files and the first batch, in the order in which it happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from datasets.ground.area_of_interest import AreaOfInterest, load_area_of_interest
from datasets.ground.grid import Grid
from datasets.ground.wraparound import latitude_weights
from datasets.layers.kinds import kind_of
from datasets.layers.layer import Layer
from datasets.layers.table import with_transforms
from datasets.rasters.band import RasterBand
from datasets.rasters.open_band import layer_crs, open_band
from datasets.rasters.wrapped_band import wraparound_remarks
from datasets.survey.coverage import MAX_CELLS, CellMap, correlation_length, map_cells, mean_coverage
from datasets.survey.layer_classes import layer_classes
from datasets.survey.memory import fits_memory
from datasets.survey.open_layers import TrainedLayers, check_numbers, choose_layers, scan_bands
from datasets.survey.scales_and_groups import channel_groups, native_scales, score_scales
from datasets.survey.stack import Stack, longest_edge, make_bundles, reference_grid
from datasets.survey.statistics import fit_statistics
from datasets.survey.survey import Survey, with_detail
from datasets.survey.tiles import TileIndex, index_tiles


@dataclass(frozen=True, kw_only=True)
class SurveySettings:
    """Which layers a survey has, and how tiles are cut from it.

    Attributes:
        data_dir: directory of rasters, stacked in sorted order.
        layers_table: CSV that names layers, one per row.
        data_path: stores that xarray opens, each variable a layer. Give one of these three.
        layer_dim: third dimension of their variables whose elements are layers.
        crs: CRS of stores that state none.
        dropped_bands: layer numbers to leave out; the others are renumbered.
        masked_bands: layer numbers (after dropping) presented as wholly invalid.
        target_layers: names of layers that the model predicts and never sees.
        grouped_bands: channel groups by layer number; default by the table's `group` column, else by resolution.
        one_group: put all layers in one group.
        input_size: base-scale pixels along a tile's edge.
        scales: reconstructed scales, whole numbers with 1 among them.
        base_resolution: ground edge of a base-scale pixel, CRS units; default finest resolution x largest scale.
        extent: `union` or `intersection` of the layers' extents.
        reproject: warp layers lazily to the first layer's CRS.
        aoi: polygons file; ground outside is invalid.
        min_valid: least valid fraction of a tile.
        tile_overlap: fraction of a training tile that the next one repeats.
        val_fraction: fraction of valid ground held out.
        val_block: edge of a held-out block in tiles, 0 = automatic.
        val_buffer: distance of training from held-out blocks, base-scale pixels.
        seed: decides which blocks are held out.
        cache: `auto`, `ram` or `none`; `device` (see `datasets/survey/pyramid_cache.py`) reads like `auto`.
        local_ranks: processes on this machine that each hold the layers.
        transforms: transforms of values by name of the layer; they replace those of the table.
        trained: layers that are trained on, as which those of another survey are read to be scored (--test_path); no
            statistics are computed then.
        native: layers are read at their native pixels as well, for a model with a stem.
    """

    data_dir: str | None = None
    layers_table: str | None = None
    data_path: Sequence[str] | None = None
    layer_dim: str | None = None
    crs: str | None = None
    dropped_bands: Sequence[int] = ()
    masked_bands: Sequence[int] = ()
    target_layers: Sequence[str] = ()
    grouped_bands: Sequence[Sequence[int]] | None = None
    one_group: bool = False
    input_size: int
    scales: Sequence[int]
    base_resolution: float | None = None
    extent: str = "union"
    reproject: bool = False
    aoi: str | None = None
    min_valid: float = 0.5
    tile_overlap: float = 0.75
    val_fraction: float = 0.1
    val_block: int = 0
    val_buffer: int = 8
    seed: int = 0
    cache: str = "auto"
    local_ranks: int = 1
    transforms: Mapping[str, str] = field(default_factory=dict)
    trained: TrainedLayers | None = None
    native: bool = False


@dataclass(frozen=True)
class _Plan:
    """What the headers of the layers decide: the grid, the tile size, the scored scales.

    Attributes:
        reference: the reference grid.
        base: ground edge of a base-scale pixel, CRS units.
        height: tile height, reference pixels.
        width: tile width, reference pixels.
        step: tile origins are multiples of this, reference pixels.
        groups: channel groups, those of targets last.
        targets: numbers of the layers that are predicted and never seen.
        scales: scales at which some layer is scored.
        scored: for each of those scales, the numbers of the layers scored there.
        warnings: layers and scales that are not scored.
    """

    reference: Grid
    base: float
    height: int
    width: int
    step: int
    groups: tuple[tuple[int, ...], ...]
    targets: tuple[int, ...]
    scales: tuple[int, ...]
    scored: dict[int, tuple[int, ...]]
    warnings: list[str]


def open_survey(settings: SurveySettings) -> Survey:
    """Open layers and prepare everything that training needs to know about them.

    Raises:
        ValueError: the data or the settings cannot be trained on; the message names the layer or the flag.
        FileNotFoundError: a file does not exist.
    """
    bands = open_bands(settings)
    plan = _plan(settings, bands)  # errors that the headers reveal are raised before any pixel is read
    trained = settings.trained
    bands, summaries, notes = scan_bands(bands, aoi=_area_of_interest(settings, bands), trained=trained is not None)
    tables, class_notes = layer_classes(bands, None if trained is None else trained.classes)
    stack = Stack(bands, plan.reference, hidden=settings.masked_bands)
    if fits_memory(stack, settings.cache, settings.local_ranks):
        stack.load()
    maps, cell = _map_all(stack, step=plan.step)
    tiles = _index_tiles(settings, plan, stack, maps, cell)
    correlation_cells = tuple(
        _correlation_cells(band.layer, cell_map.mean, cell * settings.input_size / plan.height)
        for band, cell_map in zip(bands, maps, strict=True)
    )
    notes += _short_buffer(
        settings,
        plan,
        stack,
        correlation_cells,
        try_buffer=lambda longer: _index_tiles(longer, plan, stack, maps, cell),
    )
    fitted = []
    if trained is None:
        fitted = [fit_statistics(stack, channel, tiles.held_out, tables[channel]) for channel in range(len(stack))]
    survey = Survey(
        stack=stack,
        summaries=summaries,
        statistics=tuple(statistics for statistics, _ in fitted),
        encodings=tuple(encoding for _, encoding in fitted) if trained is None else tuple(trained.encodings),
        groups=plan.groups,
        targets=plan.targets,
        base_resolution=float(plan.base),
        input_size=settings.input_size,
        scales=plan.scales,
        scored=plan.scored,
        tiles=tiles,
        bundles=make_bundles(stack, tile_rows=plan.height, tile_cols=plan.width, step=plan.step),
        correlation_cells=correlation_cells,
        layer_warnings=tuple(notes + class_notes + wraparound_remarks(bands, plan.reference)),
        scale_warnings=tuple(plan.warnings),
        native_scales=native_scales(bands, base_resolution=plan.base) if settings.native else (),
    )
    return with_detail(survey) if settings.native and trained is None else survey


@dataclass(frozen=True)
class TileTrials:
    """Layers that were read once, on which tiles of other sizes are tried before a survey is opened.

    Attributes:
        settings: which layers they are; sizes may differ from trial to trial.
        bands: the layers.
        stack: the layers on their reference grid.
        maps: every layer on coverage cells.
        cell: edge of a cell, reference pixels.
    """

    settings: SurveySettings
    bands: list[RasterBand]
    stack: Stack
    maps: list[CellMap]
    cell: int

    def tiles(self, **sizes: Any) -> TileIndex:
        """The tiles of the survey with other values for some of the settings.

        Raises:
            ValueError: the sizes do not fit together, or leave no tile to train on.
        """
        settings = replace(self.settings, **sizes)
        return _index_tiles(settings, _plan(settings, self.bands), self.stack, self.maps, self.cell)

    def correlation_lengths(self) -> list[float]:
        """Autocorrelation length of each continuous layer in CRS units; NaN of others, infinite if over a third."""
        edge = self.cell * max(self.stack.reference.resolution_x, self.stack.reference.resolution_y)
        return [
            _correlation_cells(band.layer, cell_map.mean, edge)
            for band, cell_map in zip(self.bands, self.maps, strict=True)
        ]


def open_trials(settings: SurveySettings) -> TileTrials:
    """Read the layers once, to try tiles of any size on them.

    Raises:
        ValueError: the layers cannot be used.
        FileNotFoundError: a file does not exist.
    """
    bands = open_bands(settings)
    bands, _, _ = scan_bands(bands, aoi=_area_of_interest(settings, bands))
    stack = Stack(bands, reference_grid(bands, extent=settings.extent), hidden=settings.masked_bands)
    maps, cell = _map_all(stack, step=1)
    return TileTrials(settings, bands, stack, maps, cell)


def open_bands(settings: SurveySettings) -> list[RasterBand]:
    """The layers of a survey, of which headers alone are read, in one CRS if they are reprojected.

    Raises:
        ValueError, FileNotFoundError: they cannot be opened, or their numbers and names do not fit the settings.
    """
    layers = _choose_layers(settings)
    target = layer_crs(layers[0]) if settings.reproject else None
    return [open_band(layer, reproject_to=target) for layer in layers]


def _area_of_interest(settings: SurveySettings, bands: Sequence[RasterBand]) -> AreaOfInterest | None:
    return None if settings.aoi is None else load_area_of_interest(settings.aoi, bands[0].grid.crs)


def _choose_layers(settings: SurveySettings) -> list[Layer]:
    chosen = choose_layers(
        settings.data_dir,
        settings.layers_table,
        settings.dropped_bands,
        data_path=settings.data_path,
        layer_dim=settings.layer_dim,
        crs=settings.crs,
    )
    layers = with_transforms(chosen, settings.transforms)
    if settings.trained is not None:
        layers = settings.trained.read_as_trained(layers, f"--test_path {settings.layers_table}")
    check_numbers(settings.masked_bands, len(layers), "--masked_bands")
    if len(set(settings.masked_bands)) == len(layers):
        raise ValueError(f"--masked_bands hides every one of the {len(layers)} layers; leave at least one")
    _target_numbers(settings, layers)
    return layers


def _target_numbers(settings: SurveySettings, layers: Sequence[Layer]) -> tuple[int, ...]:
    """Numbers of the layers of `target_layers`.

    Raises:
        ValueError: there is no such layer, or it cannot be predicted; no other layer is left to be seen.
    """
    names = [layer.name for layer in layers]
    for name in settings.target_layers:
        flag = f"--target_layers {name}"
        if name not in names:
            raise ValueError(f"{flag}: there is no such layer, expected out of {', '.join(names)}")
        if names.index(name) in settings.masked_bands:
            raise ValueError(f"{flag} is hidden by --masked_bands {names.index(name)}; name it in one of the two")
        if layers[names.index(name)].loss_weight == 0:
            raise ValueError(f"{flag}: its loss_weight is 0, so it would be neither seen nor predicted; raise it")
    targets = tuple(number for number, name in enumerate(names) if name in settings.target_layers)
    if {*targets, *settings.masked_bands} == {*range(len(layers))}:
        raise ValueError(
            f"--target_layers {' '.join(settings.target_layers)}: no layer is left to predict from; expected at least "
            "one that is neither a target nor hidden (--masked_bands)"
        )
    return targets


def _plan(settings: SurveySettings, bands: Sequence[RasterBand]) -> _Plan:
    reference = reference_grid(bands, extent=settings.extent)
    targets = _target_numbers(settings, [band.layer for band in bands])
    groups = channel_groups(bands, grouped_bands=settings.grouped_bands, one_group=settings.one_group, targets=targets)
    base = settings.base_resolution or max(reference.resolution_x, reference.resolution_y) * max(settings.scales)
    tile = settings.input_size * base
    if not (_is_whole(tile / reference.resolution_x) and _is_whole(tile / reference.resolution_y)):
        reference = reference_grid(bands, extent=settings.extent, square=True)
        base = settings.base_resolution or reference.resolution_x * max(settings.scales)
    height = _tile_edge(settings.input_size, base, reference.resolution_y)
    width = _tile_edge(settings.input_size, base, reference.resolution_x)
    step = _origin_step(base, reference)
    unscored = {*settings.masked_bands, *(c for c, band in enumerate(bands) if band.layer.loss_weight == 0)}
    if len(unscored) == len(bands):
        raise ValueError(
            f"none of the {len(bands)} layers has a loss_weight above 0 and is shown, so there is nothing to learn; "
            "raise a loss_weight, or hide fewer layers (--masked_bands)"
        )
    scales, scored, warnings = score_scales(
        bands, scales=settings.scales, base_resolution=base, hidden=sorted(unscored)
    )
    coarse = [bands[number] for number in targets if number not in scored[1]]
    if coarse:
        raise ValueError(
            f"--target_layers {coarse[0].layer.name}: its pixels of {longest_edge(coarse[0]):g} are coarser than the "
            f"base pixel of {base:g}, so it cannot be predicted; give --base_resolution {longest_edge(coarse[0]):g}, "
            "or a finer layer"
        )
    return _Plan(reference, base, height, width, step, groups, targets, scales, scored, warnings)


def _tile_edge(input_size: int, base: float, resolution: float) -> int:
    edge = input_size * base / resolution
    if not _is_whole(edge):
        raise ValueError(
            f"--input_size {input_size} x --base_resolution {base:g} is {edge:.6g} reference pixels of {resolution:g}, "
            "expected a whole number; choose a base resolution that is a simple multiple of the finest resolution, "
            f"such as --base_resolution {max(round(base / resolution), 1) * resolution:.17g}"
        )
    return round(edge)


def _is_whole(length: float) -> bool:
    """Whether a length in pixels is a whole number of at least 1, but for rounding."""
    return math.isfinite(length) and abs(length - round(length)) <= 1e-6 * length and round(length) >= 1


def _origin_step(base: float, reference: Grid) -> int:
    """Tile origins lie on base-scale pixels where those are whole reference pixels, else on any reference pixel."""
    steps = {base / reference.resolution_x, base / reference.resolution_y}
    whole = {round(s) for s in steps if abs(s - round(s)) < 1e-6 and round(s) >= 1}
    return whole.pop() if len(whole) == 1 and len(whole) == len({round(s, 6) for s in steps}) else 1


def _map_all(stack: Stack, *, step: int) -> tuple[list[CellMap], int]:
    """Every layer on coverage cells, and the edge of a cell, reference pixels."""
    maps, cell = [], step
    for channel in range(len(stack)):
        cell_map, cell = map_cells(stack, channel, step=step)
        maps.append(cell_map)
    return maps, cell


def _index_tiles(settings: SurveySettings, plan: _Plan, stack: Stack, maps: Sequence[CellMap], cell: int) -> TileIndex:
    return index_tiles(
        mean_coverage([m for c, m in enumerate(maps) if c not in stack.hidden and c not in plan.targets], cell),
        (plan.reference.rows, plan.reference.cols),
        height=plan.height,
        width=plan.width,
        step=plan.step,
        overlap=settings.tile_overlap,
        min_valid=settings.min_valid,
        val_fraction=settings.val_fraction,
        val_block=settings.val_block,
        buffer=round(settings.val_buffer * max(plan.height, plan.width) / settings.input_size),
        seed=settings.seed,
        ground=latitude_weights(plan.reference),
    )


def _short_buffer(
    settings: SurveySettings,
    plan: _Plan,
    stack: Stack,
    lengths: Sequence[float],
    *,
    try_buffer: Callable[[SurveySettings], TileIndex],
) -> list[str]:
    """A warning if held-out ground is closer to training ground than a scored layer's autocorrelation reaches.

    Args:
        settings: as given.
        plan: knows which layers are scored.
        stack: the layers.
        lengths: autocorrelation length of each layer, base pixels; NaN if unknown.
        try_buffer: divides the survey with other settings, or raises ValueError.
    """
    scored = {channel for channels in plan.scored.values() for channel in channels}
    longest = max(scored, key=lambda channel: np.nan_to_num(lengths[channel], nan=-1.0, posinf=np.inf), default=None)
    if not settings.val_fraction or longest is None or not lengths[longest] > settings.val_buffer:
        return []
    layer, length = stack.bands[longest].layer.name, lengths[longest]
    near = "held-out tiles resemble the training tiles beside them, and scores are too good"
    if math.isinf(length):
        return [
            f"--val_buffer {settings.val_buffer}: layer '{layer}' is correlated over a third of the survey or more, so "
            f"that no buffer keeps held-out ground apart: {near}; score other ground (--test_path)"
        ]
    longer = math.ceil(length)
    text = (
        f"--val_buffer {settings.val_buffer} is shorter than the autocorrelation length of layer '{layer}', "
        f"{length:.1f} base pixels: {near}; "
    )
    try:
        try_buffer(replace(settings, val_buffer=longer))
    except ValueError:
        why = f"the {longer} that it takes leave too little of this survey; score other ground (--test_path)"
        return [text + why]
    return [f"{text}--val_buffer {longer} would do"]


def _correlation_cells(layer: Layer, mean: np.ndarray, cell_in_base_pixels: float) -> float:
    """Autocorrelation length of a continuous layer in base-scale pixels; NaN for others, and for too large maps."""
    if not kind_of(layer).is_continuous or mean.size > MAX_CELLS // 4 or not np.isfinite(mean).any():
        return float("nan")
    return correlation_length(mean) * cell_in_base_pixels
