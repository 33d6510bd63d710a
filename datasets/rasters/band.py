"""Reading one band of one raster by window: file handles, the file's native pixels, the north-up grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling
from rasterio.windows import Window

from datasets.ground.area_of_interest import AreaOfInterest
from datasets.ground.grid import GDAL_ERRORS, Grid, crs_agree
from datasets.ground.planet import longitude_periods
from datasets.ground.warp import WARP_BLOCK, footprint, north_in, warp_window
from datasets.layers.kinds import kind_of
from datasets.layers.layer import Layer
from datasets.rasters.cf_attributes import NO_LIMITS
from datasets.rasters.chunk_cache import CHUNKS
from datasets.rasters.handles import _begin_session, close_dataset, gdal_session, open_dataset
from datasets.rasters.nodata import invalid_pixels, to_physical
from datasets.rasters.retry import with_retries

# Blocks of fewer rows are read for each window: GDAL puts many strips together faster than we do.
_LEAST_ROWS = 64


@dataclass(frozen=True)
class BandSource:
    """One band in the file's own pixel frame, as stored. Picklable, holds no handle.

    Attributes:
        layer: the layer it is for.
        crs: CRS of the file.
        transform: affine transform of the file, possibly south-up or rotated.
        rows: rows stored.
        cols: columns stored.
        dtype: NumPy name of the stored type.
        scale: physical = stored * scale + offset.
        offset: see scale.
        nodata: stored values that mean no data, each as the file's type holds it.
        has_mask: a mask has to be read besides the values.
        alpha: number of the alpha band, 0 = none.
        block: (rows, cols) of a block of the file.
        limits: smallest and largest stored number that is data.
        only_positive: physical values of 0 and below are no data.
    """

    layer: Layer
    crs: CRS
    transform: Affine
    rows: int
    cols: int
    dtype: str
    scale: float
    offset: float
    nodata: tuple[float, ...]
    has_mask: bool
    alpha: int
    block: tuple[int, int]
    limits: tuple[float, float] = NO_LIMITS
    only_positive: bool = False

    def with_nodata(self, values: Sequence[float]) -> BandSource:
        """The same pixels with further stored values that mean no data."""
        return replace(self, nodata=(*self.nodata, *values))

    def moved(self, period: float) -> BandSource:
        """The same pixels, moved in x by a number of units of their CRS."""
        a, b, c, d, e, f = tuple(self.transform)[:6]
        return replace(self, transform=Affine(a, b, c + period, d, e, f))

    def invalid_stored(self, raw: np.ndarray) -> np.ndarray | None:
        """Which stored numbers are no data by their value: True = invalid, None if none is."""
        invalid = invalid_pixels(raw, self.nodata)
        if self.limits != NO_LIMITS:
            outside = (raw < self.limits[0]) | (raw > self.limits[1])
            invalid = outside if invalid is None else invalid | outside
        if self.only_positive:
            outside = raw.astype(np.float64) * self.scale + self.offset <= 0
            invalid = outside if invalid is None else invalid | outside
        return invalid

    def read_stored(self, row: int, col: int, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the file.

        Returns:
            (rows, cols) in the file's type, and a boolean array of invalid pixels, or None if none can be
            invalid.

        Raises:
            OSError: the window cannot be read; names layer, file and window.
        """
        window = Window(col, row, cols, rows)
        path = self.layer.path

        def read() -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
            with gdal_session():
                _begin_session()
                dataset = open_dataset(path)
                raw = dataset.read(self.layer.band, window=window)
                masked = dataset.read_masks(self.layer.band, window=window) == 0 if self.has_mask else None
                clear = dataset.read(self.alpha, window=window) == 0 if self.alpha else None
            return raw, masked, clear

        try:
            what = f"{self.layer.where}: window {row}, {col}"
            raw, masked, clear = with_retries(read, path=path, what=what, again=lambda: close_dataset(path))
        except GDAL_ERRORS as error:
            raise OSError(
                f"layer '{self.layer.name}' ({self.layer.files}, band {self.layer.band}): rows {row} to "
                f"{row + rows - 1}, columns {col} to {col + cols - 1} of the file cannot be read "
                f"({_reason(error)}); it may be damaged or incomplete: restore it from a good copy"
            ) from error
        invalid = self.invalid_stored(raw)
        for more in (masked, clear):
            if more is not None:
                invalid = more if invalid is None else invalid | more
        return raw, invalid

    def read(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """Read a window that lies inside the file as float32 in physical units, NaN = invalid."""
        raw, invalid = self.read_stored(row, col, rows, cols)
        return to_physical(raw, invalid, scale=self.scale, offset=self.offset)


def _reason(error: BaseException) -> str:
    """The innermost message of a chain of errors: GDAL's own, where there is one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


@dataclass(frozen=True, eq=False)
class RasterBand:
    """A layer on its native north-up grid, or on a grid it is warped to. Picklable, holds no handle.

    Attributes:
        layer: the layer.
        grid: its pixels on the ground.
        dtype: NumPy name of the type stored in the file.
        nodata: stored values that mean no data.
        nodata_rule: what is invalid, in words.
        scale: physical = stored * scale + offset.
        offset: see scale.
        notes: what is odd about the file though it can be used.
        source: the file's native pixels.
        warped: True if the grid is not the file's own: values are interpolated (bilinear), those of categorical and
            circular layers taken from the nearest pixel. Directions follow the north of the grid.
        aoi: polygons outside which pixels are invalid.
        stated: nodata values as the file declares and the layers table gives them, not rounded to the type.
    """

    layer: Layer
    grid: Grid
    dtype: str
    nodata: tuple[float, ...]
    nodata_rule: str
    scale: float
    offset: float
    notes: list[str]
    source: BandSource = field(repr=False)
    warped: bool = False
    aoi: AreaOfInterest | None = field(default=None, repr=False)
    stated: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check that the polygons fit the grid.

        Raises:
            ValueError: the area of interest is in another CRS than the grid.
        """
        if self.aoi is not None and not crs_agree(self.grid, self.aoi.crs):
            raise ValueError(
                f"layer '{self.layer.name}' ({self.layer.files}): area of interest in "
                f"{self.aoi.crs.to_string()[:60]}, expected {self.grid.crs.to_string()[:60]} of the layer's "
                "grid; load it in that CRS"
            )

    def read(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """Read a window in physical units.

        Args:
            row: first row on the grid; may be negative or beyond the grid, as may every edge of the window.
            col: first column.
            rows: number of rows.
            cols: number of columns.

        Returns:
            (rows, cols) float32, contiguous, NaN where invalid or outside the grid; the caller may change it.

        Raises:
            OSError: the window cannot be read; names layer, file and window.
        """
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + rows, self.grid.rows), min(col + cols, self.grid.cols)
        if bottom <= top or right <= left:
            return np.full((rows, cols), np.nan, dtype=np.float32)
        values = self._read_kept(top, left, bottom - top, right - left)
        if values.shape == (rows, cols):
            return values
        padded = np.full((rows, cols), np.nan, dtype=np.float32)
        padded[top - row : bottom - row, left - col : right - col] = values
        return padded

    def _read_kept(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """Read a window inside the grid, out of chunks that are kept as `_read_inside` gives them."""
        chunk = (WARP_BLOCK, WARP_BLOCK) if self.warped else self.source.block
        window, shape = (row, col, rows, cols), (self.grid.rows, self.grid.cols)
        if chunk[0] < _LEAST_ROWS or (rows, cols) == shape:  # whoever reads the whole keeps it
            return self._read_inside(row, col, rows, cols)
        try:
            return CHUNKS.read(self, window, chunk=chunk, shape=shape, dtype=np.float32, read=self._read_inside)
        except OSError:  # of a chunk; read by itself, the window is named by its error, or lies beside the damage
            return self._read_inside(row, col, rows, cols)

    def _read_inside(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        if self.warped:
            how = Resampling.bilinear if kind_of(self.layer).is_continuous else Resampling.nearest
            values = self._warped(row, col, rows, cols, how)
            if kind_of(self.layer).ground_turns and not crs_agree(self.grid, self.source.crs):
                turn = north_in(self.grid, self.source, (row, col, rows, cols))
                values = ((values + turn) % kind_of(self.layer).period).astype(np.float32)
        else:
            values = self.flip(self.source.read(*self.to_source(row, col, rows, cols)))
        if self.aoi is not None:
            values[~self.aoi.inside(self.grid.window_transform(row, col), rows, cols)] = np.nan
        return values

    def _warped(self, row: int, col: int, rows: int, cols: int, how: Resampling) -> np.ndarray:
        """A window made of the file's pixels, wherever a full circle to either side puts them."""
        values = np.full((rows, cols), np.nan, dtype=np.float32)
        for frame in self._frames:
            part = warp_window(self.source.read, frame, self.grid, (row, col, rows, cols), resampling=how)
            values = np.where(np.isnan(values), part, values)
        return values

    @cached_property
    def _frames(self) -> tuple[BandSource, ...]:
        """The file where it lies and a full circle away, if it then shares ground with the grid."""
        whole = (0, 0, self.grid.rows, self.grid.cols)
        moved = (self.source.moved(period) for period in longitude_periods(self.source.crs)[1:])
        return self.source, *(frame for frame in moved if footprint(frame, self.grid, whole) is not None)

    def to_source(self, row: int, col: int, rows: int, cols: int) -> tuple[int, int, int, int]:
        """Turn a window of the grid into that of the file, or the reverse; not for warped bands."""
        first_row = row if self.source.transform.e < 0 else self.grid.rows - row - rows
        first_col = col if self.source.transform.a > 0 else self.grid.cols - col - cols
        return first_row, first_col, rows, cols

    def flip(self, values: np.ndarray) -> np.ndarray:
        """Turn a (rows, cols) window in the file's orientation north up, or the reverse."""
        if self.source.transform.e > 0:
            values = values[::-1]
        if self.source.transform.a < 0:
            values = values[:, ::-1]
        return np.ascontiguousarray(values)
