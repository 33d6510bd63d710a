"""Layers for a model that is trained already: its channels, groups and statistics, on rasters old or new.

Base-scale pixels are those of training, laid over the new ground from its north-western corner. Nothing is decoded
ahead: a window of ground is read once, and tiles are cut out of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from affine import Affine
from rasterio.crs import CRS

from datasets.ground.area_of_interest import AreaOfInterest, load_area_of_interest, stored_area_of_interest
from datasets.ground.grid import Grid, check_unit, crs_name, length_text, length_unit, metres_per_unit
from datasets.ground.planet import planet_of
from datasets.ground.wraparound import pixel_size_m, wrap_columns, wraps
from datasets.layers.encoding import Encoding, channel_ranges, encoding_from_dict, linear_encodings
from datasets.layers.layer import Layer
from datasets.rasters.band import RasterBand
from datasets.rasters.open_band import layer_crs, open_band
from datasets.rasters.scan import BandSummary
from datasets.rasters.wrapped_band import WrappedBand, wraparound_remarks
from datasets.survey.layer_classes import layer_classes
from datasets.survey.open_layers import as_trained, choose_layers, scan_bands
from datasets.survey.overview import ground_map, layer_rows, plain_rows
from datasets.survey.pyramid import NativeGroup, Pyramid, Sample
from datasets.survey.scales_and_groups import check_native_scales, native_groups, score_scales
from datasets.survey.stack import LayerBundle, Stack, make_bundles, reference_grid
from datasets.survey.survey import Survey
from datasets.survey.tile_reader import TileReader

logger = logging.getLogger(__name__)

STRANGE = 5.0
"""Standard deviations between the means of a layer here and in training beyond which a warning is logged."""


@dataclass(frozen=True)
class InferenceSurvey:
    """Ground to apply a model to.

    Attributes:
        stack: the layers in the model's channel order; absent ones are hidden.
        bundles: layers that are read into one tensor.
        pyramid: pooling with the statistics of training.
        base_resolution: ground edge of a base-scale pixel, CRS units.
        input_size: base-scale pixels along a tile's edge.
        known: for each scale, the layers whose native pixels are fine enough to be compared with at it.
        summaries: per layer, what scanning it found; None for absent ones.
        missing: names of the absent layers.
        aoi: polygons that limit what is written.
        warnings: for the user, to be logged.
        encodings: per layer, how values become channels.
        native: channel groups that are read at their native pixels as well.
    """

    stack: Stack
    bundles: tuple[LayerBundle, ...]
    pyramid: Pyramid
    base_resolution: float
    input_size: int
    known: dict[int, tuple[int, ...]]
    summaries: tuple[BandSummary | None, ...]
    missing: tuple[str, ...]
    aoi: AreaOfInterest | None
    warnings: tuple[str, ...]
    encodings: tuple[Encoding, ...]
    native: tuple[NativeGroup, ...] = ()
    _zoomed: dict[int, InferenceSurvey] = field(default_factory=dict, repr=False, compare=False)

    @property
    def layers(self) -> list[Layer]:
        """The layers in channel order."""
        return [band.layer for band in self.stack.bands]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of base-scale pixels that cover the reference grid; the last may stick out."""
        grid, base = self.stack.reference, self.base_resolution
        return (
            math.ceil(grid.rows * grid.resolution_y / base - 1e-6),
            math.ceil(grid.cols * grid.resolution_x / base - 1e-6),
        )

    @property
    def wrap_columns(self) -> int:
        """Base-scale columns after which the ground repeats; 0 if it does not, or they are not a whole number."""
        grid = self.stack.reference
        columns = wrap_columns(grid) * grid.resolution_x / self.base_resolution if wraps(grid) else 0.0
        return round(columns) if abs(columns - round(columns)) < 1e-6 * columns else 0

    @property
    def metres_per_unit(self) -> float:
        """Metres in a unit of the CRS if it is projected; otherwise 1."""
        return metres_per_unit(self.stack.reference.crs)

    @property
    def map_scale(self) -> dict[str, Any]:
        """`length_unit` of maps, `unit_length`: how many of these a CRS unit of x has, and `where` that holds."""
        grid = self.stack.reference
        planet = planet_of(grid.crs)
        if planet is None and grid.crs.is_projected:
            return {"length_unit": "m", "unit_length": self.metres_per_unit}
        if planet is None:
            unit = grid.crs.linear_units
            return {"length_unit": "m" if unit.startswith("met") else unit}
        latitude = float(planet.latitude(grid.top - grid.rows / 2 * grid.resolution_y))
        length = pixel_size_m(grid, grid.rows / 2)[0]
        return {"length_unit": "m", "unit_length": length, "where": f"at latitude {latitude:.3g}"}

    @property
    def hidden(self) -> frozenset[int]:
        """Channels shown as no-data, absent ones among them."""
        return self.stack.hidden

    def ground(self) -> dict[str, Any]:
        """Where it lies: `crs` as WKT, and `bounds` as [left, bottom, right, top] in its units."""
        grid, (rows, cols) = self.stack.reference, self.shape
        right, bottom = grid.left + cols * self.base_resolution, grid.top - rows * self.base_resolution
        return {"crs": grid.crs.to_wkt(), "bounds": [grid.left, bottom, right, grid.top]}

    def read(self, top: int, left: int, bottom: int, right: int) -> GroundWindow:
        """Reads a window of base-scale pixels of every layer; around a planet the columns wrap.

        Raises:
            OSError: naming layer, file and window that could not be read.
        """
        grid = self.stack.reference
        step_y, step_x = self.base_resolution / grid.resolution_y, self.base_resolution / grid.resolution_x
        arrays = []
        for channel, placement in enumerate(self.stack.placements):
            row, col = math.floor(placement.native_row(top * step_y)), math.floor(placement.native_col(left * step_x))
            last_row = math.ceil(placement.native_row(bottom * step_y)) + 1
            last_col = math.ceil(placement.native_col(right * step_x)) + 1
            shape = (last_row - row, last_col - col)
            hidden = channel in self.stack.hidden
            pixels = np.empty((0, 0), np.float32) if hidden else self.stack.read(channel, row, col, *shape)
            arrays.append((row, col, pixels))
        return GroundWindow(self, arrays)

    def zoomed(self, zoom: int) -> InferenceSurvey:
        """The same layers, base-scale pixels `zoom` times finer: a tile covers so much less ground.

        Tiles hold no native pixels (`native`), since layers have none so much finer.
        """
        if zoom not in self._zoomed:
            base, scales = self.base_resolution / zoom, self.pyramid.scales
            known = _known(self.stack.bands, scales=scales, base=base, hidden=self.stack.hidden)
            bundles, pyramid = _pyramid(
                self.stack,
                base=base,
                input_size=self.input_size,
                scales=scales,
                known=known,
                encodings=self.encodings,
            )
            self._zoomed[zoom] = replace(
                self, base_resolution=base, bundles=bundles, pyramid=pyramid, known=known, native=(), _zoomed={}
            )
        return self._zoomed[zoom]

    def with_encodings(self, encodings: Sequence[Encoding]) -> InferenceSurvey:
        """The same layers, whose values become channels in another way; stack and pixels are shared."""
        bundles, pyramid = _pyramid(
            self.stack,
            base=self.base_resolution,
            input_size=self.input_size,
            scales=self.pyramid.scales,
            known=self.known,
            encodings=encodings,
            native=self.native,
        )
        return replace(self, bundles=bundles, pyramid=pyramid, encodings=tuple(encodings), _zoomed={})

    def inside(self, transform: Affine, rows: int, cols: int) -> np.ndarray:
        """(rows, cols) bool, True where results are wanted: everywhere, or inside the area of interest."""
        return np.ones((rows, cols), dtype=bool) if self.aoi is None else self.aoi.inside(transform, rows, cols)

    def is_wanted(self, top: int, left: int, bottom: int, right: int) -> bool:
        """Whether results are wanted somewhere in a rectangle of base-scale pixels, as far as bounds tell."""
        if self.aoi is None:
            return True
        grid, base = self.stack.reference, self.base_resolution
        west, east = grid.left + left * base, grid.left + right * base
        return bool(self.aoi.near(west, grid.top - bottom * base, east, grid.top - top * base))

    def summary_lines(self) -> list[str]:
        """What will be read, one line a layer and one for the base-scale pixels."""
        lines = [
            f"layer {channel} {band.layer.name}: "
            + (
                "absent"
                if summary is None
                else f"{band.grid.cols} x {band.grid.rows} pixels of "
                f"{length_text(band.grid.resolution_x, band.grid.crs)}, "
                f"{100 * summary.valid_fraction:.0f} % valid"
            )
            for channel, (band, summary) in enumerate(zip(self.stack.bands, self.summaries, strict=True))
        ]
        rows, cols = self.shape
        base = length_text(self.base_resolution, self.stack.reference.crs)
        return [*lines, f"{cols} x {rows} base pixels of {base}"]

    def overview(self) -> dict[str, Any]:
        """What was opened, as plain values for a page: layers with histograms, and the frame of a map.

        Raises:
            OSError: a layer cannot be read.
        """
        grid, (rows, cols) = self.stack.reference, self.shape
        counts = [
            ("base pixel", length_text(self.base_resolution, grid.crs)),
            ("ground", f"{cols:,} x {rows:,} base pixels"),
            ("CRS", crs_name(grid.crs)),
        ]
        return {
            "layers": layer_rows(self.stack, self.summaries, self.encodings),
            "counts": plain_rows(counts),
            "map": ground_map(grid),
        }

    def log_summary(self, *, with_warnings: bool = True) -> None:
        """Logs the summary and, if wanted, the warnings and the absent layers."""
        for line in self.summary_lines():
            logger.info("%s", line)
        if with_warnings:
            for warning in (*self.warnings, *(f"layer '{name}' is absent" for name in self.missing)):
                logger.warning("%s", warning)


class GroundWindow:
    """Native pixels of every layer in one window of ground, out of which tiles are cut.

    Args:
        survey: where they come from.
        arrays: per channel (first native row, first native column, pixels).
    """

    def __init__(self, survey: InferenceSurvey, arrays: list[tuple[int, int, np.ndarray]]) -> None:
        self._survey = survey
        self._arrays = arrays

    def read(self, channel: int, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """Native pixels of one layer as `Stack.read` gives them; NaN outside the window."""
        first_row, first_col, pixels = self._arrays[channel]
        window = np.full((rows, cols), np.nan, dtype=np.float32)
        top, left = max(row, first_row), max(col, first_col)
        bottom, right = min(row + rows, first_row + pixels.shape[0]), min(col + cols, first_col + pixels.shape[1])
        if bottom > top and right > left:
            part = pixels[top - first_row : bottom - first_row, left - first_col : right - first_col]
            window[top - row : bottom - row, left - col : right - col] = part
        return window

    def without(self, channel: int, native: tuple[int, int, int, int], gap: np.ndarray) -> GroundWindow:
        """The same ground with some pixels of one layer made invalid.

        Args:
            channel: number of the layer.
            native: (row, col, rows, cols) of a window of its pixels.
            gap: (rows, cols) bool, True = made invalid.
        """
        row, col, rows, cols = native
        first_row, first_col, pixels = self._arrays[channel]
        pixels = pixels.copy()
        part = pixels[row - first_row : row - first_row + rows, col - first_col : col - first_col + cols]
        part[gap] = np.nan
        arrays = list(self._arrays)
        arrays[channel] = (first_row, first_col, pixels)
        return GroundWindow(self._survey, arrays)

    def zoomed(self, zoom: int) -> GroundWindow:
        """The same pixels under base-scale pixels `zoom` times finer."""
        return GroundWindow(self._survey.zoomed(zoom), self._arrays)

    def sample(self, origins: np.ndarray, device: torch.device) -> Sample:
        """Tiles at (N, 2) base-scale (row, col) origins, ready for the model."""
        survey, grid = self._survey, self._survey.stack.reference
        step = np.array([survey.base_resolution / grid.resolution_y, survey.base_resolution / grid.resolution_x])
        # Not stored: reader and window would reference each other, and stay in memory until garbage collection.
        reader = TileReader(self, survey.bundles)
        return survey.pyramid(*reader.read(origins * step).to(device).parts)


def stored_layers(rows: Sequence[Mapping[str, Any]]) -> list[Layer]:
    """Layers as a checkpoint lists them."""
    names = {field.name for field in fields(Layer)}
    layers = [Layer(**{key: value for key, value in row.items() if key in names}) for row in rows]
    return [replace(layer, dummies=tuple(layer.dummies)) for layer in layers]


def stored_base_crs(state: Mapping[str, Any]) -> str | None:
    """WKT of the CRS whose units a checkpoint's base pixel has; None in those of older versions, and of images."""
    return (state.get("ground") or {}).get("crs")


def stored_encodings(state: Mapping[str, Any]) -> tuple[Encoding, ...]:
    """How values become channels, as a checkpoint says; those of older ones follow from the statistics."""
    if "encodings" in state:
        return tuple(encoding_from_dict(plain) for plain in state["encodings"])
    statistics = state["statistics"]
    return linear_encodings([item["location"] for item in statistics], [item["spread"] for item in statistics])


@dataclass(frozen=True)
class NativeLayers:
    """At which of their native pixels a trained model's stem reads layers; empty if it sees base pixels alone.

    Attributes:
        scales: per layer, native pixels along the edge of a base pixel.
        groups: the groups that are read at pixels finer than the base pixel.
    """

    scales: tuple[int, ...] = ()
    groups: tuple[NativeGroup, ...] = ()


def stored_native(state: Mapping[str, Any], encodings: Sequence[Encoding]) -> NativeLayers:
    """What the stem of a checkpoint's model reads.

    Args:
        state: the checkpoint, with `model_config`.
        encodings: per layer, how its values become channels.
    """
    config = state["model_config"]
    if config.get("stem", "base") == "base":
        return NativeLayers()
    first = {numbers[0]: layer for layer, numbers in enumerate(channel_ranges(encodings))}
    scales = tuple(config["native_scales"][channel] for channel in first)
    seen = config["channel_groups"][: len(config["channel_groups"]) - config.get("target_groups", 0)]
    groups = [[first[c] for c in group if c in first] for group in seen]
    return NativeLayers(scales, native_groups(groups, scales))


def open_inference_survey(
    trained: Sequence[Layer],
    *,
    data_dir: str | None = None,
    layers_table: str | None = None,
    input_size: int,
    scales: Sequence[int],
    base_resolution: float | None,
    base_crs: str | None = None,
    finest_scale: int,
    encodings: Sequence[Encoding],
    hidden: Sequence[int] = (),
    targets: Sequence[int] = (),
    extent: str = "union",
    reproject: bool = False,
    aoi: str | None = None,
    shown: str | Mapping[str, Any] | None = None,
    allow_missing: bool = False,
    native: NativeLayers = NativeLayers(),
) -> InferenceSurvey:
    """Opens the layers that a model was trained on, where they lay then or by name among others.

    Args:
        trained: the model's layers in channel order.
        data_dir: directory of rasters in which to find them by name.
        layers_table: table of layers in which to find them by name; with neither, their own paths are used.
        input_size: base-scale pixels along a tile's edge.
        scales: scales of the model, 1 first.
        base_resolution: edge of a base-scale pixel, CRS units; None: finest resolution x `finest_scale`.
        base_crs: WKT of the CRS whose units `base_resolution` has, if it is that of training; None: the layers'.
        finest_scale: largest scale that training was asked for.
        encodings: per layer, how values become channels.
        hidden: layers that training presented as wholly invalid; they need not be there.
        targets: those of them that training predicted: they are never opened.
        extent: `union` or `intersection` of the layers' extents.
        reproject: warp layers to the first layer's CRS.
        aoi: polygons file that limits what is written.
        shown: polygons outside which pixels are invalid: a file, or as a checkpoint stores them
            (`AreaOfInterest.plain`); the latter do not count if they lie elsewhere.
        allow_missing: go on without layers that are not there.
        native: what the model's stem reads.

    Raises:
        ValueError: a layer is missing, or cannot be used; all are missing; their CRS has another unit than training's.
        FileNotFoundError: for files that are not there.
    """
    found, extra = _find_layers(trained, data_dir, layers_table)
    found = [None if number in targets else layer for number, layer in enumerate(found)]
    where = data_dir or layers_table
    missing = _missing(trained, found, hidden=hidden, allowed=allow_missing, where=where, extra=extra)
    encodings = tuple(encodings)
    stack, summaries, notes = _open_stack(
        trained, found, encodings, hidden=hidden, extent=extent, reproject=reproject, shown=shown
    )
    if extra:
        notes.append(f"layers that the model does not know are left out: {', '.join(extra)}")
    notes += _strangers(trained, summaries, encodings)
    reference = stack.reference
    base = base_resolution or max(reference.resolution_x, reference.resolution_y) * finest_scale
    _check_base(base, reference, crs=base_crs, where=where or "the layers of the checkpoint")
    if native.scales:
        check_native_scales(stack.bands, native.scales, base_resolution=base, hidden=stack.hidden)
    return _assemble(
        stack,
        summaries,
        base=base,
        input_size=input_size,
        scales=scales,
        encodings=encodings,
        missing=missing,
        aoi=None if aoi is None else load_area_of_interest(aoi, reference.crs),
        warnings=notes,
        native=native.groups,
    )


def _check_base(base: float, reference: Grid, *, crs: str | None, where: str) -> None:
    """Refuses base pixels in other units than the ground's, or larger than all of it, as a wrong unit makes them."""
    unit = length_unit(reference.crs)
    if crs:
        remedy = f", or give --base_resolution in {unit}" if unit else ", or give --base_resolution"
        check_unit(reference.crs, CRS.from_wkt(crs), base=base, where=where, remedy=remedy)
    width, height = reference.cols * reference.resolution_x, reference.rows * reference.resolution_y
    if base > max(width, height):
        raise ValueError(
            f"{where}: {width:g} x {height:g} {unit}, less than one base pixel of {base:g} {unit}; expected ground in "
            "the units of training: warp the layers, or give --base_resolution"
        )


def inference_survey_from(survey: Survey, *, scales: Sequence[int], hidden: Sequence[int] = ()) -> InferenceSurvey:
    """The layers of an opened survey, for a model to be applied to: nothing is opened or scanned again.

    Args:
        survey: the survey; the two share its stack.
        scales: scales of the model, 1 first.
        hidden: channels shown as no-data.
    """
    survey.stack.hide(hidden)
    return _assemble(
        survey.stack,
        survey.summaries,
        base=survey.base_resolution,
        input_size=survey.input_size,
        scales=scales,
        encodings=survey.encodings,
        warnings=survey.layer_warnings,
        native=native_groups(survey.groups, survey.native_scales) if survey.native_scales else (),
    )


def _assemble(
    stack: Stack,
    summaries: tuple[BandSummary | None, ...],
    *,
    base: float,
    input_size: int,
    scales: Sequence[int],
    encodings: tuple[Encoding, ...],
    missing: tuple[str, ...] = (),
    aoi: AreaOfInterest | None = None,
    warnings: Sequence[str],
    native: tuple[NativeGroup, ...] = (),
) -> InferenceSurvey:
    """A survey of opened and scanned layers at base-scale pixels of some size."""
    known = _known(stack.bands, scales=scales, base=base, hidden=stack.hidden)
    bundles, pyramid = _pyramid(
        stack, base=base, input_size=input_size, scales=scales, known=known, encodings=encodings, native=native
    )
    survey = InferenceSurvey(
        stack=stack,
        bundles=bundles,
        pyramid=pyramid,
        base_resolution=float(base),
        input_size=input_size,
        known=known,
        summaries=summaries,
        missing=missing,
        aoi=aoi,
        warnings=tuple(warnings),
        encodings=encodings,
        native=native,
    )
    reference = stack.reference
    if wraps(reference) and not survey.wrap_columns:
        note = (
            f"a base pixel of {base:g} does not divide a turn: results begin and end at {reference.left:g}, with a seam"
        )
        survey = replace(survey, warnings=(*survey.warnings, note))
    return survey


def _pyramid(
    stack: Stack,
    *,
    base: float,
    input_size: int,
    scales: Sequence[int],
    known: Mapping[int, Sequence[int]],
    encodings: Sequence[Encoding],
    native: Sequence[NativeGroup] = (),
) -> tuple[tuple[LayerBundle, ...], Pyramid]:
    """How tiles are cut out of the layers, and pooled, at base-scale pixels of some size."""
    reference = stack.reference
    rows, cols = input_size * base / reference.resolution_y, input_size * base / reference.resolution_x
    bundles = make_bundles(stack, tile_rows=rows, tile_cols=cols, step=_tile_step(base, reference))
    pyramid = Pyramid(
        bundles=bundles,
        tile_rows=rows,
        tile_cols=cols,
        input_size=input_size,
        scales=scales,
        scored=known,
        encodings=encodings,
        native=native,
    )
    return bundles, pyramid


def _open_stack(
    trained: Sequence[Layer],
    found: Sequence[Layer | None],
    encodings: Sequence[Encoding],
    *,
    hidden: Sequence[int],
    extent: str,
    reproject: bool,
    shown: str | Mapping[str, Any] | None,
) -> tuple[Stack, tuple[BandSummary | None, ...], list[str]]:
    """The layers found on their reference grid, absent ones hidden; what scanning each found; and notes."""
    present = [c for c, layer in enumerate(found) if layer is not None]
    opened = [layer for layer in found if layer is not None]
    target = layer_crs(opened[0]) if reproject else None
    bands = [open_band(layer, reproject_to=target) for layer in opened]
    reference = reference_grid(bands, extent=extent)
    area, elsewhere = _shown_area(shown, reference)
    bands, summaries, notes = scan_bands(bands, aoi=area, trained=True)
    notes += elsewhere + wraparound_remarks(bands, reference)
    layer_classes(bands, [encodings[c] for c in present])
    at = dict(zip(present, bands, strict=True))
    # An absent layer borrows the pixels of another, and shows none of them.
    every = [at.get(c) or replace(bands[0], layer=layer) for c, layer in enumerate(trained)]
    absent = [c for c, layer in enumerate(found) if layer is None]
    by_channel = dict(zip(present, summaries, strict=True))
    stack = Stack(every, reference, hidden=[*absent, *hidden])
    return stack, tuple(by_channel.get(c) for c in range(len(trained))), notes


def _shown_area(shown: str | Mapping[str, Any] | None, reference: Grid) -> tuple[AreaOfInterest | None, list[str]]:
    """Polygons outside which pixels are invalid, and a note if stored ones lie elsewhere and do not count."""
    if shown is None:
        return None, []
    if isinstance(shown, str):
        return load_area_of_interest(shown, reference.crs), []
    area = stored_area_of_interest(shown, reference.crs)
    if area.near(*reference.bounds):
        return area, []
    return None, [
        f"the area of interest of the checkpoint ({area.path}) lies elsewhere: all of this ground is shown (--aoi "
        "limits it)"
    ]


def _missing(
    trained: Sequence[Layer],
    found: Sequence[Layer | None],
    *,
    hidden: Sequence[int],
    allowed: bool,
    where: str | None,
    extra: Sequence[str],
) -> tuple[str, ...]:
    """Names of the layers that were not found, apart from hidden ones.

    Raises:
        ValueError: some are missing and that is not allowed, or all are.
    """
    needed = [c for c in range(len(found)) if c not in hidden]
    missing = tuple(trained[c].name for c in needed if found[c] is None)
    if missing and len(missing) == len(needed):
        raise ValueError(
            f"{where} has none of the layers {', '.join(repr(name) for name in missing)} of the checkpoint, expected "
            f"one at least; it has {', '.join(repr(name) for name in extra) or 'no others'}. Give them the names "
            "of the checkpoint's (column `name` of layers.csv)"
        )
    if missing and not allowed:
        raise ValueError(
            f"{where} lacks the layers {', '.join(repr(name) for name in missing)} of the checkpoint; it has "
            f"{', '.join(repr(name) for name in extra) or 'no others'}. Give them these names (column `name` of "
            "layers.csv), or run without them: --missing_layers allow"
        )
    return missing


def _strangers(
    trained: Sequence[Layer], summaries: Sequence[BandSummary | None], encodings: Sequence[Encoding]
) -> list[str]:
    """What to say of layers of measurements whose values are not at all those of training.

    Nothing is said of layers that are not normalised: their encodings do not hold the spread of their values.
    """
    notes = []
    for layer, summary, encoding in zip(trained, summaries, encodings, strict=True):
        if summary is None or not encoding.is_linear or layer.normalize == "none":
            continue
        spread = encoding.scales[0]
        mean = encoding.centres[0] + encoding.means[0] * spread
        if abs(summary.mean - mean) > STRANGE * max(spread, summary.std):
            notes.append(
                f"layer '{layer.name}': values here are about {summary.mean:.6g}, in training they were {mean:.6g} "
                f"with a spread of {spread:.3g}: the model has not seen such values; are the units the same?"
            )
    return notes


def _find_layers(
    trained: Sequence[Layer], data_dir: str | None, layers_table: str | None
) -> tuple[list[Layer | None], list[str]]:
    """The layers of a model among those given, None where there is none; and the names of the others."""
    if data_dir is None and layers_table is None:
        return list(trained), []
    by_name = {layer.name: layer for layer in choose_layers(data_dir, layers_table, ())}
    names = {layer.name for layer in trained}
    found = [as_trained(by_name[layer.name], layer) if layer.name in by_name else None for layer in trained]
    return found, [name for name in by_name if name not in names]


def _tile_step(base: float, reference: Grid) -> float:
    """What tile origins are multiples of, reference pixels; a half, which aligns with nothing, if rows and columns
    differ and are not whole.
    """
    step_y, step_x = base / reference.resolution_y, base / reference.resolution_x
    if step_y == step_x:
        return step_y
    return 1.0 if all(abs(step - round(step)) < 1e-9 for step in (step_y, step_x)) else 0.5


def _known(
    bands: Sequence[RasterBand | WrappedBand],
    *,
    scales: Sequence[int],
    base: float,
    hidden: Sequence[int] | frozenset[int],
) -> dict[int, tuple[int, ...]]:
    """Channels whose pixels are no coarser than those of each scale."""
    _, known, _ = score_scales(bands, scales=scales, base_resolution=base, hidden=tuple(hidden))
    return {scale: known.get(scale, ()) for scale in scales}
