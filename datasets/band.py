"""Reading one band of one raster by window: file handles, the file's own pixels, the north-up grid."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import rasterio
import rasterio.env
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import Resampling
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from datasets.aoi import Aoi
from datasets.chunk_cache import CHUNKS
from datasets.layers import Layer
from datasets.retry import with_retries
from datasets.validity import invalid_pixels, to_physical
from datasets.warp import WARP_BLOCK, warp_window

# What rasterio raises when GDAL fails: some of GDAL's own errors pass through it unchanged.
GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError)
# Open files per process: well below the usual limit of 1024, and more than the layers of any survey.
MAX_HANDLES = 256
# Decoded blocks that GDAL keeps: its own default, 5 % of the memory, is too much for each of several processes, and
# what windows are made of is kept in `CHUNKS`.
GDAL_CACHE_BYTES = 128 << 20
# Blocks of fewer rows are read for each window: GDAL puts many strips together faster than we do.
_LEAST_ROWS = 64
# A dataset whose places in two CRS differ by less than this share of a pixel is in both.
_CRS_SHARE = 0.01


@dataclass(frozen=True)
class Grid:
    """Pixels on the ground, north up: row 0 is the northern edge.

    Attributes:
        crs: coordinate reference system.
        left: western edge, CRS units.
        top: northern edge, CRS units.
        resolution_x: width of a pixel, CRS units, > 0.
        resolution_y: height of a pixel, CRS units, > 0.
        rows: number of rows.
        cols: number of columns.
    """

    crs: CRS
    left: float
    top: float
    resolution_x: float
    resolution_y: float
    rows: int
    cols: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top), CRS units."""
        right = self.left + self.cols * self.resolution_x
        return self.left, self.top - self.rows * self.resolution_y, right, self.top

    @property
    def transform(self) -> Affine:
        """Affine transform from (column, row) to (x, y)."""
        return self.window_transform(0, 0)

    def window_transform(self, row: int, col: int) -> Affine:
        """Affine transform of a window that starts at (row, col)."""
        x, y = self.left + col * self.resolution_x, self.top - row * self.resolution_y
        return Affine(self.resolution_x, 0.0, x, 0.0, -self.resolution_y, y)


def crs_agree(grid: Grid, crs: CRS) -> bool:
    """Return whether a grid lies at the same place when its coordinates are taken to be in ``crs``.

    The same CRS is often spelled differently by different formats; what counts is that no point of the grid's
    outline moves by more than a hundredth of a pixel.
    """
    if grid.crs == crs:
        return True
    if grid.crs.is_geographic != crs.is_geographic:
        return False
    left, bottom, right, top = grid.bounds
    xs = [left, (left + right) / 2, right] * 3
    ys = [bottom] * 3 + [(bottom + top) / 2] * 3 + [top] * 3
    try:
        there_x, there_y = transform_points(grid.crs, crs, xs, ys)
    except GDAL_ERRORS:
        return False
    moved_x = np.abs(np.subtract(there_x, xs)) / grid.resolution_x
    moved_y = np.abs(np.subtract(there_y, ys)) / grid.resolution_y
    return bool(np.all(np.maximum(moved_x, moved_y) < _CRS_SHARE))


class _Handles:
    """Open files of one thread of one process, the least recently used first."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.open: OrderedDict[str, rasterio.DatasetReader] = OrderedDict()


_local = threading.local()
_registry: list[weakref.ref[_Handles]] = []  # those of every thread; a list, as copying one is atomic
_inherited: list[_Handles] = []  # handles from before a fork are the parent's: kept, neither used nor closed


def _own_handles() -> _Handles:
    pid = os.getpid()
    handles: _Handles | None = getattr(_local, "handles", None)
    if handles is None or handles.pid != pid:
        if handles is not None:
            _inherited.append(handles)
        handles = _local.handles = _Handles(pid)
        _registry.append(weakref.ref(handles))
    return handles


def _count_open(pid: int) -> int:
    alive = [handles for handles in (reference() for reference in list(_registry)) if handles is not None]
    return sum(len(handles.open) for handles in alive if handles.pid == pid)


def open_dataset(path: str) -> rasterio.DatasetReader:
    """Return an open dataset that belongs to this process and this thread, reused from call to call.

    At most `MAX_HANDLES` stay open in a process; beyond that, this thread's least recently used are closed.

    Raises:
        rasterio.errors.RasterioIOError: the file cannot be opened.
    """
    handles = _own_handles()
    dataset = handles.open.get(path)
    if dataset is not None:
        handles.open.move_to_end(path)
        return dataset
    for _ in range(min(len(handles.open), _count_open(handles.pid) - MAX_HANDLES + 1)):
        handles.open.popitem(last=False)[1].close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path)
    handles.open[path] = dataset
    return dataset


@contextmanager
def gdal_session() -> Iterator[None]:
    """A context in which what GDAL remarks comes to the log, from the first read to the end of the outermost one.

    The first in a process to read pixels settles how many decoded ones GDAL keeps.
    """
    if getattr(_local, "session", None) is not None:
        yield
        return
    with ExitStack() as session:
        _local.session = session
        try:
            yield
        finally:
            _local.session = None


def _begin_session() -> None:
    """What the first read in a session does: windows of kept pixels alone need none of it."""
    if not rasterio.env.hasenv():
        _local.session.enter_context(rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES))


def close_dataset(path: str) -> None:
    """Close a file that this thread may have open; the next read opens it again."""
    dataset = _own_handles().open.pop(path, None)
    if dataset is not None:
        dataset.close()


def close_datasets() -> None:
    """Close every file that this thread has open and forget all decoded pixels; the next read opens files again."""
    CHUNKS.forget()
    handles = _own_handles()
    while handles.open:
        handles.open.popitem()[1].close()


@dataclass(frozen=True)
class Source:
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
                f"layer '{self.layer.name}' ({self.layer.path}, band {self.layer.band}): rows {row} to "
                f"{row + rows - 1}, columns {col} to {col + cols - 1} of the file cannot be read "
                f"({_reason(error)}); it may be damaged or incomplete: restore it from a good copy"
            ) from error
        invalid = invalid_pixels(raw, self.nodata)
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
        source: the file's own pixels.
        warped: True if the grid is not the file's own: values are interpolated (bilinear), those of categorical and
            circular layers taken from the nearest pixel.
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
    source: Source = field(repr=False)
    warped: bool = False
    aoi: Aoi | None = field(default=None, repr=False)
    stated: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check that the polygons fit the grid.

        Raises:
            ValueError: the area of interest is in another CRS than the grid.
        """
        if self.aoi is not None and not crs_agree(self.grid, self.aoi.crs):
            raise ValueError(
                f"layer '{self.layer.name}' ({self.layer.path}): area of interest in "
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
            how = Resampling.bilinear if self.layer.kind == "continuous" else Resampling.nearest
            values = warp_window(self.source.read, self.source, self.grid, (row, col, rows, cols), resampling=how)
        else:
            values = self.flip(self.source.read(*self.to_source(row, col, rows, cols)))
        if self.aoi is not None:
            values[~self.aoi.inside(self.grid.window_transform(row, col), rows, cols)] = np.nan
        return values

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
