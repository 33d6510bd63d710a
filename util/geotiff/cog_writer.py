"""GeoTIFFs written window by window, as parts, and joined into cloud-optimised files under their final names.

Every part is a small file that is complete or absent, so any number of processes may write, a stopped run goes on
where it was, and what bears a final name is whole. Parts are joined by a virtual raster and GDAL's COG driver, at a
memory that does not grow with the raster.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.windows import Window

from util.geotiff.parts import BLOCK, GDAL_ERRORS, Part, limited_cache
from util.geotiff.raster_spec import DTYPES, RasterSpec, virtual_raster
from util.hardware.system import replace_file

BLOCK_BYTES = 16 * 2**20
"""Most bytes of a block with all its bands."""

CHUNK_BYTES = 64 * 2**20
"""Most bytes of the pixels that are put in place together (at least a block)."""

STRIP_PIXELS = 8192
"""Columns that are read back together, about."""


# ------------------------------------------------------------------------------------------------------------
# Joining
# ------------------------------------------------------------------------------------------------------------


def join(
    path: str | os.PathLike[str],
    spec: RasterSpec,
    parts: Sequence[Part],
    *,
    workspace: str | os.PathLike[str] | None = None,
) -> None:
    """Joins parts into one cloud-optimised GeoTIFF: tiled, compressed, with overviews, BigTIFF if it may need it.

    Written under a temporary name, read back against the parts, and renamed. Meanwhile it takes about twice the size of
    the result on disk, beside the parts: the parts put in place, compressed, and the result itself.

    Args:
        path: final name; an existing file is replaced.
        spec: the raster.
        parts: the parts; ground without part is nodata.
        workspace: folder for temporary files, on the disk of `path` (default: that of `path`).

    Raises:
        OSError: a part cannot be read, the file cannot be written, or does not hold what was written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(workspace or path.parent) / f".{path.stem}.{os.getpid()}.tmp.tif"
    virtual = temporary.with_suffix(".vrt")
    whole = temporary.with_name(temporary.name + ".whole")
    block = _block(spec)
    options = {
        "blocksize": block,
        "compress": "deflate",
        "predictor": "yes",
        "bigtiff": "if_safer",
        "overviews": "auto",
        "overview_resampling": "mode" if spec.is_discrete else "average",
        "num_threads": 1,
    } | ({"nbits": 16, "predictor": "no"} if spec.dtype == "float16" else {})
    try:
        with limited_cache():
            _write_whole(whole, spec, parts, block=block)
            wkt = CRS.from_user_input(spec.crs).to_wkt()
            virtual.write_text(virtual_raster(spec, whole, wkt=wkt), encoding="utf-8")
            rasterio.shutil.copy(str(virtual), str(temporary), driver="COG", **options)
            _read_back(temporary, spec, parts, name=path)
        # Names and attributes of classes have no place in a TIFF: GDAL reads them from a file beside it.
        beside, beside_path = (Path(f"{file}.aux.xml") for file in (temporary, path))
        beside_path.unlink(missing_ok=True)
        replace_file(temporary, path)
        if spec.is_discrete and beside.exists():
            replace_file(beside, beside_path)
    except GDAL_ERRORS as error:
        message = f"{path}: cannot be written ({error}); is the disk full? Free some space, then go on with --resume"
        raise OSError(message) from error
    finally:
        for left in (whole, virtual, *temporary.parent.glob(f"{temporary.name}*")):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)


def _block(spec: RasterSpec) -> int:
    """Edge of a block: GDAL holds all bands of one at a time, so those of many bands are smaller."""
    edge = BLOCK if min(spec.rows, spec.cols) <= 2 * BLOCK else 2 * BLOCK
    while edge > BLOCK // 2 and edge**2 * len(spec.names) * 4 > BLOCK_BYTES:
        edge //= 2
    return edge


def _write_whole(path: Path, spec: RasterSpec, parts: Sequence[Part], *, block: int) -> None:
    """Put the parts in place, whole blocks at a time, so that each is compressed once; the rest stays sparse."""
    bands = len(spec.names)
    width = max(1, CHUNK_BYTES // (bands * 4 * block**2)) * block
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=DTYPES[spec.dtype],
        count=bands,
        height=spec.rows,
        width=spec.cols,
        nodata=spec.nodata,
        tiled=True,
        blockxsize=block,
        blockysize=block,
        compress="deflate",
        zlevel=1,
        interleave="band",
        sparse_ok=True,
        bigtiff="if_safer",
        crs=spec.crs,
        transform=spec.transform,
    ) as sink:
        for row in range(0, spec.rows, block):
            with contextlib.ExitStack() as stack:
                near = [
                    (stack.enter_context(rasterio.open(part[0])), *part[1:])
                    for part in parts
                    if part[1] < row + block and part[1] + part[3] > row
                ]
                for col in range(0, spec.cols, width):
                    window = Window(col, row, min(width, spec.cols - col), min(block, spec.rows - row))
                    pixels = _gather(near, window, shape=(bands, window.height, window.width), spec=spec)
                    if pixels is not None:
                        sink.write(pixels, window=window)


def _gather(
    parts: Iterable[tuple[rasterio.DatasetReader, int, int, int, int]],
    window: Window,
    *,
    shape: tuple[int, int, int],
    spec: RasterSpec,
) -> np.ndarray | None:
    """The pixels of a window out of open parts, nodata where there is none; None without any part."""
    pixels = None
    for file, row, col, rows, cols in parts:
        top, left = max(row, window.row_off), max(col, window.col_off)
        bottom = min(row + rows, window.row_off + window.height)
        right = min(col + cols, window.col_off + window.width)
        if bottom <= top or right <= left:
            continue
        if pixels is None:
            pixels = np.full(shape, spec.nodata, dtype=DTYPES[spec.dtype])
        place = np.s_[:, top - window.row_off : bottom - window.row_off, left - window.col_off : right - window.col_off]
        pixels[place] = file.read(window=Window(left - col, top - row, right - left, bottom - top))
    return pixels


def _read_back(path: Path, spec: RasterSpec, parts: Iterable[Part], *, name: Path) -> None:
    """Compare the first band with the parts: GDAL can report success although a tile was lost."""
    with rasterio.open(path) as file:
        if file.shape != (spec.rows, spec.cols) or file.count != len(spec.names):
            raise OSError(
                f"{name}: {file.count} bands of {file.shape} were written, expected {len(spec.names)} of "
                f"{(spec.rows, spec.cols)}"
            )
        # Blocks hold all bands, and decoding one takes time: neighbours are read together.
        for (row, rows, _), near in groupby(parts, key=lambda part: (part[1], part[3], part[2] // STRIP_PIXELS)):
            strip = list(near)
            left, right = strip[0][2], strip[-1][2] + strip[-1][4]
            found = file.read(1, window=Window(left, row, right - left, rows))
            for part, _, col, _, cols in strip:
                with rasterio.open(part) as source:
                    expected = source.read(1)
                if not np.array_equal(found[:, col - left : col - left + cols], expected, equal_nan=True):
                    raise OSError(
                        f"{name}: rows {row} to {row + rows - 1}, columns {col} to {col + cols - 1} read back with "
                        "other values than were written; is the disk full or failing?"
                    )


# ------------------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------------------


def read_reduced(path: str | os.PathLike[str], *, bands: Sequence[int], most: int) -> tuple[np.ndarray, float]:
    """Reads a raster for a picture, out of its overviews.

    Args:
        path: the file.
        bands: numbers of the bands, from 1.
        most: pixels along the longer side, at most.

    Returns:
        (B, r, c) float32 with NaN where nothing is known, and the ground width of a pixel in CRS units.
    """
    with rasterio.open(path) as file:
        factor = max(1.0, max(file.shape) / most)
        shape = (len(bands), *(max(1, round(size / factor)) for size in file.shape))
        pixels = file.read(list(bands), out_shape=shape, resampling=Resampling.nearest).astype(np.float32)
        nodata = file.nodata
        width = abs(file.transform.a) * file.width / shape[2]
    if nodata is not None and not math.isnan(nodata):
        pixels[pixels == nodata] = np.nan
    return pixels, width
