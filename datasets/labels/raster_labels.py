"""Raster labels: resampled to target pixels as they are read; classes are never interpolated."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import Resampling
from rasterio.warp import transform as transform_points

from datasets.ground.grid import ALIKE, GDAL_ERRORS, Grid, crs_agree
from datasets.ground.planet import longitude_periods
from datasets.ground.warp import WARP_BLOCK, footprint, warp_window
from datasets.labels.columns import warn_of_doubtful_nodata
from datasets.labels.overlap import overlap_advice
from datasets.layers.class_table import MAX_CLASSES, Code, check_class_count, sorted_codes
from datasets.layers.layer import Layer
from datasets.layers.paths import parse_array_path
from datasets.rasters.band import BandSource
from datasets.rasters.nodata import NodataScan, listed, stored_values
from datasets.rasters.open_band import layer_crs, open_band

logger = logging.getLogger(__name__)

# Longest edge of the window of a file that is read for one block: 16 MB of float32.
_SOURCE_EDGE = 2048
# Colour interpretations that together make a picture.
_PICTURES = (
    frozenset({"red", "green", "blue"}),
    frozenset({"cyan", "magenta", "yellow"}),
    frozenset({"hue", "saturation", "lightness"}),
    frozenset({"y", "cb", "cr"}),
)
# So many codes that nothing names are those of a picture, or measurements, rather than classes.
_MANY_CODES = 100
# Class number of pixels without a label, as GDAL warps bytes.
_NO_CLASS = 255
assert MAX_CLASSES <= _NO_CLASS


class NoOverlapError(ValueError):
    """A raster lies wholly outside the ground."""


@dataclass(frozen=True, eq=False)
class LabelRaster:
    """A band of labels, read on target pixels. Picklable, holds no handle.

    Attributes:
        source: the file's native pixels.
        grid: the target pixels.
        resampling: how target pixels follow from those of the file.
        edge: edge of the blocks that are warped at a time, target pixels.
        codes: class codes in order of size, as stored; None: measurements.
        numbers: class number of each of `codes`.
        periods: shifts in x by multiples of 360 degrees that bring the file onto the grid, units of its CRS.
    """

    source: BandSource = field(repr=False)
    grid: Grid
    resampling: Resampling
    edge: int
    codes: np.ndarray | None = None
    numbers: np.ndarray | None = None
    periods: tuple[float, ...] = (0.0,)

    @property
    def frames(self) -> list[BandSource]:
        """The file at its own position, and shifted by 360 degrees of longitude where the grid needs it."""
        return [self.source.moved(period) for period in self.periods]

    def read(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """Read a window inside the grid as float32: class numbers or physical values, NaN = unlabelled.

        Raises:
            OSError: the window cannot be read; names file and window.
        """
        values = np.full((rows, cols), np.nan, dtype=np.float32)
        for frame in self.frames:
            part = self._read_from(frame, (row, col, rows, cols))
            values = np.where(np.isnan(values), part, values)
        return values

    def _read_from(self, frame: BandSource, window: tuple[int, int, int, int]) -> np.ndarray:
        how: dict[str, Any] = {"resampling": self.resampling, "edge": self.edge}
        if self.codes is None:
            return warp_window(self.source.read, frame, self.grid, window, **how)
        # Of larger types GDAL takes very long to find the commonest number.
        how |= {"dtype": np.uint8, "invalid": _NO_CLASS}
        numbers = warp_window(self._read_numbers, frame, self.grid, window, **how)
        return np.where(numbers == _NO_CLASS, np.float32(np.nan), numbers.astype(np.float32))

    def _read_numbers(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        assert self.codes is not None and self.numbers is not None
        raw, invalid = self.source.read_stored(row, col, rows, cols)
        place = np.minimum(np.searchsorted(self.codes, raw), len(self.codes) - 1)
        numbers = self.numbers[place]
        numbers[self.codes[place] != raw] = _NO_CLASS
        if invalid is not None:
            numbers[invalid] = _NO_CLASS
        return numbers

    def numbered(self, codes: tuple[Code, ...]) -> LabelRaster:
        """The same labels with classes numbered as in `codes`; pixels of other codes are unlabelled."""
        whole = [(code, number) for number, code in enumerate(codes) if isinstance(code, int)]
        ordered = sorted(whole) or [(0, _NO_CLASS)]
        return replace(
            self,
            codes=np.array([code for code, _ in ordered], dtype=np.float64),  # also what no integer type holds
            numbers=np.array([number for _, number in ordered], dtype=np.uint8),
        )

    def stored(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """All pixels of the file under the grid, block by block, some twice: stored numbers, invalid."""
        # Without projection a larger block's footprint is as exact as that of the blocks that are read.
        step = self.edge * (8 if self.grid.crs == self.source.crs and self.edge == WARP_BLOCK else 1)
        for row in range(0, self.grid.rows, step):
            for col in range(0, self.grid.cols, step):
                shape = min(step, self.grid.rows - row), min(step, self.grid.cols - col)
                for frame in self.frames:
                    window = footprint(frame, self.grid, (row, col, *shape))
                    if window is not None:
                        yield self.source.read_stored(*window)


def open_label_raster(path: str, *, kind: str, grid: Grid, band: int, nodata: float | None) -> LabelRaster:
    """Open a raster of labels on target pixels; classes are numbered by `LabelRaster.numbered` afterwards.

    Args:
        path: any raster that GDAL reads.
        kind: `classes`: nearest pixel, or the commonest class where the file is finer than target pixels;
            `values`: bilinear, or the average.
        grid: target pixels.
        band: band of the file, from 1.
        nodata: stored value that means unlabelled, besides the file's own.

    Raises:
        FileNotFoundError: there is no such file.
        NoOverlapError: it does not overlap the grid.
        ValueError: it cannot be opened, or has no CRS.
    """
    layer = Layer("labels", path, band=band, nodata=nodata, kind_stated=True)
    _check_bands(layer)
    opened = open_band(layer, reproject_to=layer_crs(layer))  # rotated grids are welcome, the CRS is the file's own
    for note in opened.notes:
        logger.warning("%s: %s", layer.where, note)
    source = opened.source
    if crs_agree(grid, source.crs):
        source = replace(source, crs=grid.crs)
    ratio = _finer(source, grid)
    smooth, many = (
        (Resampling.nearest, Resampling.mode) if kind == "classes" else (Resampling.bilinear, Resampling.average)
    )
    whole = (0, 0, grid.rows, grid.cols)
    periods = tuple(period for period in longitude_periods(source.crs) if footprint(source.moved(period), grid, whole))
    labels = LabelRaster(
        source=source,
        grid=grid,
        resampling=many if ratio > ALIKE else smooth,  # many: labels are finer than target pixels
        edge=max(1, min(WARP_BLOCK, int(_SOURCE_EDGE / ratio))),
        periods=periods,
    )
    if not periods:
        remedy = f"correct its CRS (rio edit-info --crs {{crs}} {Path(layer.path).name}): --label_crs is not used"
        raise NoOverlapError(
            f"{layer.where}: does not overlap the survey: it covers {_numbers(_bounds(source))} in "
            f"{source.crs.to_string()[:60]}, expected ground in {_numbers(grid.bounds)} in "
            f"{grid.crs.to_string()[:60]}; {overlap_advice(_bounds(source), source.crs, grid, remedy=remedy)}"
        )
    return labels


@dataclass(frozen=True)
class _Bands:
    """Colour interpretations, in lower case, and types of the bands of a file."""

    colours: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()

    @property
    def may_be_picture(self) -> bool:
        """Whether they are three or four bands of 8 bits, as those of a picture are, whatever they say of colours."""
        return len(self.dtypes) in (3, 4) and set(self.dtypes) == {"uint8"}

    @property
    def data(self) -> int:
        """Number of bands that are no mask."""
        return sum(colour != "alpha" for colour in self.colours)


def _bands_of(path: str) -> _Bands:
    """The bands of a raster; none of what cannot be opened (opening a band says what is wrong) or xarray opens."""
    if parse_array_path(path) is not None:
        return _Bands()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return _Bands(tuple(colour.name.lower() for colour in dataset.colorinterp), dataset.dtypes)
    except GDAL_ERRORS:
        return _Bands()


def _check_bands(layer: Layer) -> None:
    """Refuse a colour of a picture: several classes may share its number, and most numbers are shades.

    Where other bands are left unread that nobody chose between, a warning says so.

    Raises:
        ValueError: the band is red, green, blue or the like, and others of the file complete the picture.
    """
    bands = _bands_of(layer.path)
    names = bands.colours
    colours = next((each for each in _PICTURES if each <= set(names)), None)
    if colours is None or layer.band > len(names) or names[layer.band - 1] not in colours | {"alpha"}:
        if layer.band == 1 and bands.data > 1:
            logger.warning(
                "%s: has %d bands, of which the first is read; name another by --label_band", layer.where, bands.data
            )
        return
    others = [str(number) for number, name in enumerate(names, 1) if name not in colours | {"alpha"}]
    remedy = f"name another band by --label_band (here {', '.join(others)})" if others else "give a raster of codes"
    raise ValueError(
        f"{layer.where}: band {layer.band} is {names[layer.band - 1]} of a picture ({', '.join(names)}), "
        f"expected one band of class codes or values; {remedy}, or vectors; if the bands are no colours after all: "
        f"gdal_translate -b {layer.band} -colorinterp_1 gray {Path(layer.path).name} band.tif"
    )


def check_codes_without_names(labels: LabelRaster, codes: Sequence[Code]) -> None:
    """Warn of as many codes without names as a picture or measurements have.

    Raises:
        ValueError: they are in one of three or four bands of 8 bits.
    """
    if len(codes) < _MANY_CODES:
        return
    layer = labels.source.layer
    bands = _bands_of(layer.path)
    if bands.may_be_picture:
        raise ValueError(
            f"{layer.where}: {len(codes)} different codes without names in one of {len(bands.dtypes)} bands of 8 bits, "
            "which look like a picture; expected one band of class codes; give a raster of codes, or vectors; if they "
            "are classes after all, name them by --label_classes"
        )
    logger.warning(
        "%s: %d different codes without names: taken for classes; if they are measurements or a picture, use --task "
        "regression or other labels; if they are classes, --label_classes gives them names",
        layer.where,
        len(codes),
    )


def without_undeclared_nodata(labels: LabelRaster, codes: Sequence[Code] | None = None) -> LabelRaster:
    """Return the labels with dummies that nobody declared as nodata, by the rule for layers (`NodataScan`), and say so.

    Doubtful dummies stay data, as in layers, with a warning.

    Args:
        labels: the labels.
        codes: the codes that occur, if they are known; else all pixels are read.

    Raises:
        OSError: the file cannot be read.
    """
    census = NodataScan(labels.source.dtype)
    if codes is None:
        for raw, invalid in labels.stored():
            census.add(raw, invalid)
    else:
        census.add(np.array(codes, dtype=labels.source.dtype), None)
    dummies, doubtful = census.classify_nodata_candidates()
    if codes is None or len(codes) > 2:  # without one of two codes a single class would be left
        for value, _ in doubtful:
            warn_of_doubtful_nodata(value, _pixels_that_hold(labels, value), labels.source.layer.where)
    if not dummies:
        return labels
    logger.warning(
        "%s: %s is not declared as nodata but stands far from all other values: taken for unlabelled; set nodata in "
        "the file, or by --label_nodata, to settle it",
        labels.source.layer.where,
        listed(dummies),
    )
    return replace(labels, source=labels.source.with_nodata(stored_values(dummies, labels.source.dtype)))


def _pixels_that_hold(labels: LabelRaster, value: float) -> str:
    """How many pixels under the grid hold a stored number; about, where blocks overlap. A pass over all pixels."""
    count = blocks = 0
    for raw, invalid in labels.stored():
        same = raw == raw.dtype.type(value)
        count += int(np.count_nonzero(same if invalid is None else same & ~invalid))
        blocks += 1
    return f"{'about ' if blocks > 1 else ''}{count} pixels"


def find_codes(labels: LabelRaster) -> tuple[Code, ...]:
    """Return the codes that occur under the grid, sorted; streaming.

    Raises:
        ValueError: numbers that are not whole, or more than `MAX_CLASSES` different ones.
        OSError: the file cannot be read.
    """
    where, found = labels.source.layer.where, set[int]()
    for raw, invalid in labels.stored():
        distinct = np.unique(raw if invalid is None else raw[~invalid])
        broken = distinct[distinct != np.rint(distinct)] if distinct.dtype.kind == "f" else distinct[:0]
        if broken.size:
            raise ValueError(
                f"{where}: holds {broken[0]:.9g}, which is no class code, expected whole numbers; if these are "
                "measurements, use --task regression"
            )
        found.update(int(code) for code in distinct[: MAX_CLASSES + 1])
        check_class_count(sorted_codes(found), where)
    return sorted_codes(found)


def _finer(source: BandSource, grid: Grid) -> float:
    """Pixels of the file along the edge of a target pixel, at the middle of the grid."""
    rows, cols = grid.rows / 2 + np.array([0.0, 0.0, 1.0]), grid.cols / 2 + np.array([0.0, 1.0, 0.0])
    x, y = transform_points(
        grid.crs, source.crs, grid.left + cols * grid.resolution_x, grid.top - rows * grid.resolution_y
    )
    inverse = ~source.transform
    at_col = inverse.a * np.array(x) + inverse.b * np.array(y)
    at_row = inverse.d * np.array(x) + inverse.e * np.array(y)
    right, down = np.array([at_col[1:] - at_col[0], at_row[1:] - at_row[0]]).T
    area = abs(right[0] * down[1] - right[1] * down[0])
    return math.sqrt(area) if math.isfinite(area) and area > 0 else 1.0


def _bounds(source: BandSource) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of a raster, which may be rotated."""
    cols, rows = np.array([0, source.cols, 0, source.cols]), np.array([0, 0, source.rows, source.rows])
    a, b, c, d, e, f = tuple(source.transform)[:6]
    x, y = a * cols + b * rows + c, d * cols + e * rows + f
    return x.min(), y.min(), x.max(), y.max()


def _numbers(bounds: tuple[float, float, float, float]) -> str:
    left, bottom, right, top = bounds
    return f"x {left:.10g}..{right:.10g}, y {bottom:.10g}..{top:.10g}"
