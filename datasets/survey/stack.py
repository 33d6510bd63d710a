"""The stack: layers of different resolution laid over one reference grid.

The reference grid is the pixel grid of the finest layer, extended over the union (or cut to the intersection)
of all extents. A layer keeps its native pixels: what ties it to the reference grid is a `Placement`, two numbers
per axis. Ratios of resolution need not be whole numbers and grids may be shifted by part of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from datasets.ground.area_of_interest import AreaOfInterest
from datasets.ground.grid import ALIKE, SNAP, Grid, crs_agree
from datasets.ground.wraparound import bounds_near, split_at_seam, wrap_columns, wrapped_reference, wraps
from datasets.rasters.band import RasterBand
from datasets.rasters.wrapped_band import WrappedBand, wrapped_band


@dataclass(frozen=True)
class Placement:
    """Where a layer's pixels lie: `native = offset + ratio * reference`, in pixels, per axis.

    Attributes:
        ratio_x: native columns per reference column (0.5 for a 200 m layer on a 100 m reference grid).
        ratio_y: native rows per reference row.
        offset_x: native column of the reference grid's left edge.
        offset_y: native row of the reference grid's top edge.
    """

    ratio_x: float
    ratio_y: float
    offset_x: float
    offset_y: float

    def native_row(self, row: float) -> float:
        """Native row coordinate of a reference row edge."""
        return round(self.offset_y + self.ratio_y * row, 6)

    def native_col(self, col: float) -> float:
        """Native column coordinate of a reference column edge."""
        return round(self.offset_x + self.ratio_x * col, 6)

    def is_aligned(self, *, rows: float, cols: float, step: float) -> bool:
        """True when windows of (rows, cols) at multiples of `step` start and end on native pixel edges."""
        parts = (
            self.offset_x,
            self.offset_y,
            self.ratio_x * cols,
            self.ratio_y * rows,
            self.ratio_x * step,
            self.ratio_y * step,
        )
        return all(math.isfinite(part) and abs(part - round(part)) < 1e-6 for part in parts)


def place(layer: Grid, reference: Grid) -> Placement:
    """Places a layer's grid on the reference grid.

    Args:
        layer: grid of the layer.
        reference: the reference grid, same CRS.

    Returns:
        The placement; ratios and offsets within `SNAP` of a simple fraction are snapped to it, so that rounding
        of stored coordinates (0.0008 m on a 200 m grid, say) does not become a sub-pixel shift.
    """
    ratio_x = _snap_ratio(reference.resolution_x / layer.resolution_x, reference.cols)
    ratio_y = _snap_ratio(reference.resolution_y / layer.resolution_y, reference.rows)
    offset_x = _snap_offset((reference.left - layer.left) / layer.resolution_x)
    offset_y = _snap_offset((layer.top - reference.top) / layer.resolution_y)
    return Placement(ratio_x=ratio_x, ratio_y=ratio_y, offset_x=offset_x, offset_y=offset_y)


def _snap_ratio(ratio: float, length: int) -> float:
    simple = float(Fraction(ratio).limit_denominator(64))
    return simple if abs(simple - ratio) * length < SNAP else ratio


def _snap_offset(offset: float) -> float:
    simple = float(Fraction(offset).limit_denominator(64))
    nearest_half = round(offset * 2) / 2
    if abs(offset - nearest_half) < SNAP:
        return nearest_half
    return simple if abs(simple - offset) < SNAP / 10 else offset


def reference_grid(bands: Sequence[RasterBand], *, extent: str = "union", square: bool = False) -> Grid:
    """The finest layer's pixel grid over the union or the intersection of the layers' extents.

    Args:
        bands: opened layers; all must share one CRS.
        extent: `union` or `intersection`.
        square: the grid has square pixels as wide as the longer edge of the finest layer's, or as its width if it wraps
            around a planet in pixels that are nearly square.

    Returns:
        A grid whose pixel edges coincide with those of the finest layer (the first one among those `ALIKE`). The
        union grows outwards to whole pixels, the intersection shrinks inwards. Where the layers
        together wrap around a planet, and a full circle is a whole number of the finest pixels, so does the grid, from
        -180 degrees.

    Raises:
        ValueError: if CRS differ, or if the layers share no ground.
    """
    first = bands[0]
    for band in bands[1:]:
        if not crs_agree(band.grid, first.grid.crs):
            raise ValueError(
                f"layer '{band.layer.name}' ({band.layer.files}): CRS {_crs_name(band.grid)}, expected "
                f"{_crs_name(first.grid)} of layer '{first.layer.name}' ({first.layer.files}); all layers must share "
                "one CRS: add --reproject to warp them on the fly, or reproject the file first (gdalwarp -t_srs)"
            )
    smallest = min(longest_edge(band) for band in bands)
    finest = next(band.grid for band in bands if longest_edge(band) <= smallest * ALIKE)
    finest = _with_square_pixels(finest) if square else finest
    bounds = _bounds_together([band.grid for band in bands], finest)
    _check_overlap(bands, bounds)
    pick, shrink = (max, min) if extent == "intersection" else (min, max)
    inwards = extent == "intersection"
    sides = [b for b, band in zip(bounds, bands, strict=True) if not wraps(band.grid)]  # those that wrap have no edges
    sides = sides if sides and inwards else bounds
    left, right = pick(b[0] for b in sides), shrink(b[2] for b in sides)
    bottom, top = pick(b[1] for b in bounds), shrink(b[3] for b in bounds)
    col_start = _edge((left - finest.left) / finest.resolution_x, up=inwards)
    col_stop = _edge((right - finest.left) / finest.resolution_x, up=not inwards)
    row_start = _edge((finest.top - top) / finest.resolution_y, up=inwards)
    row_stop = _edge((finest.top - bottom) / finest.resolution_y, up=not inwards)
    if col_stop <= col_start or row_stop <= row_start:
        raise ValueError(
            "the layers' extents share no ground (intersection is empty); use --extent union or check coordinates: "
            + _extents(bands)
        )
    grid = Grid(
        crs=finest.crs,
        left=finest.left + col_start * finest.resolution_x,
        top=finest.top - row_start * finest.resolution_y,
        resolution_x=finest.resolution_x,
        resolution_y=finest.resolution_y,
        rows=row_stop - row_start,
        cols=col_stop - col_start,
    )
    return wrapped_reference(grid) if wraps(grid) else grid


def _with_square_pixels(grid: Grid) -> Grid:
    edges = grid.resolution_x, grid.resolution_y
    edge = grid.resolution_x if wraps(grid) and max(edges) <= min(edges) * ALIKE else max(edges)
    rows, cols = grid.rows * grid.resolution_y / edge, grid.cols * grid.resolution_x / edge
    return replace(grid, resolution_x=edge, resolution_y=edge, rows=math.ceil(rows), cols=math.ceil(cols))


def _bounds_together(grids: Sequence[Grid], finest: Grid) -> list[tuple[float, float, float, float]]:
    """Bounds of each layer; on a planet, shifted by whole periods to lie near the finest one."""
    middle = finest.left + finest.cols * finest.resolution_x / 2
    return [bounds_near(grid, middle) if wrap_columns(grid) else grid.bounds for grid in grids]


def longest_edge(band: RasterBand | WrappedBand) -> float:
    """The resolution of a layer as one number: the longer edge of its pixels, CRS units."""
    return max(band.grid.resolution_x, band.grid.resolution_y)


def _edge(position: float, *, up: bool) -> int:
    nearest = round(position)
    if abs(position - nearest) < SNAP:
        return nearest
    return math.ceil(position) if up else math.floor(position)


def _check_overlap(bands: Sequence[RasterBand], bounds: Sequence[tuple[float, float, float, float]]) -> None:
    """Refuse layers that overlap none of the others: most often a wrong zone or swapped coordinates."""
    whole = (-math.inf, math.inf)
    bounds = [
        (whole[0], b[1], whole[1], b[3]) if wraps(band.grid) else b for b, band in zip(bounds, bands, strict=True)
    ]
    together, found = {0}, {0}
    while found:
        found = {k for k in range(len(bands)) if k not in together and any(_meet(bounds[k], bounds[j]) for j in found)}
        together |= found
    apart = set(range(len(bands))) - together
    if not apart:
        return
    lonely, others = (apart, together) if len(apart) <= len(together) else (together, apart)
    band, names = bands[min(lonely)], ", ".join(f"'{bands[k].layer.name}'" for k in sorted(others))
    raise ValueError(
        f"layer '{band.layer.name}' ({band.layer.files}) does not overlap {names}; expected common ground; check its "
        "coordinates, or leave it out; if they are sheets of one layer, name them in one row of layers.csv "
        f"(a.tif|b.tif). Extents: {_extents(bands)}"
    )


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two rectangles (left, bottom, right, top) share ground."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _extents(bands: Sequence[RasterBand]) -> str:
    return "; ".join(
        f"{name} x {left:.10g}..{right:.10g}, y {bottom:.10g}..{top:.10g}"
        for name, (left, bottom, right, top) in ((band.layer.name, band.grid.bounds) for band in bands)
    )


def _crs_name(grid: Grid) -> str:
    return grid.crs.to_string()


class Stack:
    """Layers on a reference grid, read by window at their own resolution.

    Attributes:
        bands: the opened layers, in channel order.
        reference: the reference grid.
        placements: one per layer.
        hidden: channels presented as wholly invalid (`--masked_bands`).
    """

    def __init__(self, bands: Sequence[RasterBand], reference: Grid, *, hidden: Sequence[int] = ()) -> None:
        self.bands: tuple[RasterBand | WrappedBand, ...] = tuple(wrapped_band(band, reference) for band in bands)
        self.reference = reference
        self.placements = tuple(place(band.grid, reference) for band in self.bands)
        self.hidden = frozenset(hidden)
        self._arrays: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.bands)

    def hide(self, channels: Iterable[int]) -> None:
        """Presents further layers as wholly invalid."""
        self.hidden |= frozenset(channels)

    @property
    def aoi(self) -> AreaOfInterest | None:
        """Polygons outside which pixels of every layer are invalid."""
        return self.bands[0].aoi

    @property
    def memory_bytes(self) -> int:
        """Bytes that all layers take when decoded to float32."""
        return sum(4 * band.grid.rows * band.grid.cols for band in self.bands)

    @property
    def in_memory(self) -> bool:
        """True once `load` has decoded every layer."""
        return len(self._arrays) == len(self.bands)

    def load(self) -> None:
        """Decodes every layer into memory once; later reads are slices of these arrays."""
        for channel, band in enumerate(self.bands):
            self._arrays[channel] = band.read(0, 0, band.grid.rows, band.grid.cols)

    def read(self, channel: int, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """Reads a window of one layer in its native pixels.

        Args:
            channel: number of the layer.
            row: first native row, may be negative or beyond the layer.
            col: first native column, likewise.
            rows: number of rows.
            cols: number of columns.

        Returns:
            (rows, cols) float32, physical units, NaN where invalid or outside the layer.

        Raises:
            OSError: if the file cannot be read there; the message names layer, file and window.
        """
        if channel in self.hidden:
            return np.full((rows, cols), np.nan, dtype=np.float32)
        array = self._arrays.get(channel)
        if array is None:
            return self.bands[channel].read(row, col, rows, cols)
        if row >= 0 and col >= 0 and row + rows <= array.shape[0] and col + cols <= array.shape[1]:
            return array[row : row + rows, col : col + cols]
        band = self.bands[channel]
        if isinstance(band, WrappedBand):
            parts = [
                _slice(array, row, first, rows, count) for first, count in split_at_seam(col, cols, band.wrap_columns)
            ]
            return np.concatenate(parts, axis=1)
        return _slice(array, row, col, rows, cols)


def _slice(array: np.ndarray, row: int, col: int, rows: int, cols: int) -> np.ndarray:
    """A window of an array that may stick out, NaN outside."""
    if row >= 0 and col >= 0 and row + rows <= array.shape[0] and col + cols <= array.shape[1]:
        return array[row : row + rows, col : col + cols]
    window = np.full((rows, cols), np.nan, dtype=np.float32)
    top, left = max(row, 0), max(col, 0)
    bottom, right = min(row + rows, array.shape[0]), min(col + cols, array.shape[1])
    if bottom > top and right > left:
        window[top - row : bottom - row, left - col : right - col] = array[top:bottom, left:right]
    return window


@dataclass(frozen=True)
class LayerBundle:
    """Layers whose windows have the same shape and place, read into one tensor.

    Attributes:
        channels: numbers of the layers.
        rows: native rows of a window.
        cols: native columns of a window.
        aligned: every window starts on a native pixel edge; otherwise each window has a phase.
        placement: the common placement.
    """

    channels: tuple[int, ...]
    rows: int
    cols: int
    aligned: bool
    placement: Placement

    def window(self, row: float, col: float) -> tuple[int, int, float, float]:
        """First native row and column of the tile at reference (row, col), and the tile's phase inside them."""
        y, x = self.placement.native_row(row), self.placement.native_col(col)
        first_row, first_col = math.floor(y), math.floor(x)
        return first_row, first_col, y - first_row, x - first_col


def make_bundles(stack: Stack, *, tile_rows: float, tile_cols: float, step: float) -> tuple[LayerBundle, ...]:
    """Groups the layers of a stack by the shape and place of their windows.

    Args:
        stack: the stack.
        tile_rows: tile height, reference pixels.
        tile_cols: tile width, reference pixels.
        step: tile origins are multiples of this, reference pixels.

    Returns:
        Bundles that together hold every channel once.
    """
    groups: dict[tuple[Placement, bool], list[int]] = {}
    for channel, placement in enumerate(stack.placements):
        aligned = placement.is_aligned(rows=tile_rows, cols=tile_cols, step=step)
        groups.setdefault((placement, aligned), []).append(channel)
    bundles = []
    for (placement, aligned), channels in groups.items():
        extra = 0 if aligned else 1
        rows = math.ceil(round(placement.ratio_y * tile_rows, 6)) + extra
        cols = math.ceil(round(placement.ratio_x * tile_cols, 6)) + extra
        bundles.append(
            LayerBundle(channels=tuple(channels), rows=rows, cols=cols, aligned=aligned, placement=placement)
        )
    return tuple(bundles)
