"""Small rasters with known content, written to disk for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine


def write_grid(
    path: str | Path,
    values: Any,
    *,
    resolution: float | tuple[float, float] = 100.0,
    left: float = 500_000.0,
    top: float = 6_000_000.0,
    crs: str | None = "EPSG:28354",
    nodata: float | None = None,
    south_up: bool = False,
    rotation: float = 0.0,
    scale: float | None = None,
    offset: float | None = None,
    mask: Any = None,
    band_names: list[str] | None = None,
    colormap: dict[int, tuple[int, int, int]] | None = None,
    **profile: Any,
) -> Path:
    """Write an array as a raster and return its path.

    Args:
        path: file to write; the driver is GeoTIFF unless `driver` is among the profile options.
        values: (rows, cols) or (bands, rows, cols), row 0 = northern edge, stored numbers in the file's type.
        resolution: pixel size, CRS units, one number or (x, y).
        left: western edge, CRS units.
        top: northern edge, CRS units.
        crs: coordinate reference system, None = none.
        nodata: declared nodata value.
        south_up: store the rows from south to north.
        rotation: degrees by which the grid is turned anticlockwise about its upper left corner.
        scale: declared scale, physical = stored * scale + offset.
        offset: declared offset.
        mask: (rows, cols) bool, True = valid, stored as the file's internal mask.
        band_names: description of each band.
        colormap: colour table of the first band.
        **profile: further creation options of rasterio.
    """
    array = np.asarray(values)
    array = array[None] if array.ndim == 2 else array
    bands, rows, cols = array.shape
    width, height = resolution if isinstance(resolution, tuple) else (resolution, resolution)
    transform = Affine(width, 0.0, left, 0.0, -height, top)
    if south_up:
        array, mask = array[:, ::-1], None if mask is None else np.asarray(mask)[::-1]
        transform = Affine(width, 0.0, left, 0.0, height, top - rows * height)
    if rotation:
        turned = np.array(transform).reshape(3, 3) @ np.array(Affine.rotation(-rotation)).reshape(3, 3)
        transform = Affine(*turned[:2].ravel())
    options = {"driver": "GTiff", "dtype": array.dtype.name, "nodata": nodata, **profile}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", width=cols, height=rows, count=bands, crs=crs, transform=transform, **options) as file,
    ):
        file.write(np.ascontiguousarray(array))
        if scale is not None:
            file.scales = [scale] * bands
        if offset is not None:
            file.offsets = [offset] * bands
        if mask is not None:
            file.write_mask(np.ascontiguousarray(mask, dtype=bool))
        for number, name in enumerate(band_names or [], start=1):
            file.set_band_description(number, name)
        if colormap is not None:
            file.write_colormap(1, colormap)
    return Path(path)


def ramp(rows: int, cols: int, dtype: str = "float32") -> np.ndarray:
    """(rows, cols) array whose value at (row, column) is 10 * row + column."""
    return (10.0 * np.arange(rows)[:, None] + np.arange(cols)[None, :]).astype(dtype)
