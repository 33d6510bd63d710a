"""GeoTIFFs written window by window, as parts, and joined into cloud-optimised files under their final names.

Every part is a small file that is complete or absent, so any number of processes may write, a stopped run goes on
where it was, and what bears a final name is whole. Parts are joined by a virtual raster and GDAL's COG driver, at a
memory that does not grow with the raster.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

BLOCK = 256
"""Edge of a block of the files, pixels."""

BLOCK_BYTES = 16 * 2**20
"""Most bytes of a block with all its bands."""

STRIP_PIXELS = 8192
"""Columns that are read back together, about."""

CACHE_BYTES = 64 * 2**20
"""Decoded pixels that GDAL may keep."""

# What rasterio raises when GDAL fails: some of GDAL's own errors pass through it unchanged.
GDAL_ERRORS = (RasterioError, CPLE_BaseError)

DTYPES = {"float32": "float32", "float16": "float32", "uint8": "uint8"}
"""What can be written, and how it is held in memory: GDAL stores float16 as a float of 16 bits."""


@dataclass(frozen=True)
class RasterInfo:
    """A raster to be written.

    Attributes:
        crs: coordinate reference system, as WKT.
        left: western edge, CRS units.
        top: northern edge, CRS units.
        resolution_x: width of a pixel, CRS units.
        resolution_y: height of a pixel, CRS units.
        rows: number of rows.
        cols: number of columns.
        dtype: `float32`, `float16` or `uint8`.
        nodata: stored where nothing is known.
        names: of the bands.
        units: of the bands.
        tags: facts about the file.
        classes: class code -> (name, (red, green, blue)), for classes.
        is_picture: three bands of colours.
    """

    crs: str
    left: float
    top: float
    resolution_x: float
    resolution_y: float
    rows: int
    cols: int
    dtype: str
    nodata: float
    names: tuple[str, ...]
    units: tuple[str, ...]
    tags: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[int, tuple[str, tuple[int, int, int]]] | None = None
    is_picture: bool = False

    def __post_init__(self) -> None:
        """Refuse a nodata value that the type cannot hold, and bands without unit.

        Raises:
            ValueError: naming value and type.
        """
        check_nodata(self.nodata, self.dtype)
        if len(self.names) != len(self.units):
            raise ValueError(f"{len(self.names)} band names and {len(self.units)} units: expected as many")

    @property
    def transform(self) -> Affine:
        """From (column, row) to (x, y)."""
        return self.window_transform(0, 0)

    def window_transform(self, row: int, col: int) -> Affine:
        """The same for a window that starts at (row, col)."""
        x, y = self.left + col * self.resolution_x, self.top - row * self.resolution_y
        return Affine(self.resolution_x, 0.0, x, 0.0, -self.resolution_y, y)

    @property
    def is_discrete(self) -> bool:
        """True for classes, which must not be averaged."""
        return self.classes is not None


def check_nodata(nodata: float, dtype: str) -> None:
    """Refuses a nodata value that pixels of a type cannot hold exactly.

    Raises:
        ValueError: the type is unknown, or does not hold the value.
    """
    if dtype not in DTYPES:
        raise ValueError(f"data type {dtype!r}: expected one of {', '.join(DTYPES)}")
    kind = np.dtype(dtype)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            fits = math.isnan(nodata) or float(kind.type(nodata)) == nodata
    else:
        fits = nodata == math.floor(nodata) and 0 <= nodata <= np.iinfo(kind).max if math.isfinite(nodata) else False
    if not fits:
        raise ValueError(f"nodata {nodata:g} does not fit pixels of type {dtype}; choose a value that they can hold")


def limited_cache() -> rasterio.Env:
    """A context in which GDAL keeps few decoded pixels: its own default is a share of the machine's memory."""
    return rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES)


# ------------------------------------------------------------------------------------------------------------
# Parts
# ------------------------------------------------------------------------------------------------------------


class Parts:
    """The folder in which parts of results wait until all are there.

    Args:
        folder: where; made by `open`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def open(self, job: Mapping[str, Any], *, resume: bool) -> None:
        """Makes the folder, or goes on with the one that an earlier run of the same job left.

        Args:
            job: what the parts depend on, fit for JSON.
            resume: keep the parts that are there; otherwise they are removed.

        Raises:
            ValueError: the parts there are of another job.
        """
        record = self.folder / "job.json"
        job = json.loads(json.dumps(job))
        if self.folder.exists() and not resume:
            shutil.rmtree(self.folder)
        if record.exists():
            before = json.loads(record.read_text(encoding="utf-8"))
            changed = [key for key in {**before, **job} if before.get(key) != job.get(key)]
            if changed:
                raise ValueError(
                    f"--resume: {self.folder} holds parts of another job: {changed[0]} was "
                    f"{before.get(changed[0])!r}, now {job.get(changed[0])!r}; give the same options, or leave "
                    "--resume out to begin again"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_text(record, json.dumps(job, indent=1))

    def is_done(self, row: int, col: int) -> bool:
        """Whether a unit's parts were all written."""
        return self._mark(row, col).exists()

    def write(self, row: int, col: int, arrays: Mapping[str, tuple[RasterInfo, np.ndarray, int, int]]) -> None:
        """Writes the parts of one unit, and marks it as done.

        Args:
            row: number of the unit from the north.
            col: number of the unit from the west.
            arrays: name of the raster -> (raster, (B, r, c) pixels, first row, first column). Parts without any
                valid pixel are left out.

        Raises:
            OSError: a part could not be written.
        """
        written = {}
        for name, (info, pixels, first_row, first_col) in arrays.items():
            if pixels.size and not _is_empty(pixels, info.nodata):
                file = f"{name}-{row}-{col}.tif"
                _write_part(self.folder / file, info, pixels)
                written[name] = [file, first_row, first_col, *pixels.shape[1:]]
        _write_text(self._mark(row, col), json.dumps(written))

    def of(self, name: str) -> list[tuple[Path, int, int, int, int]]:
        """(file, first row, first column, rows, columns) of every part of one raster, in order."""
        found = []
        for mark in sorted(self.folder.glob("unit-*.json"), key=_numbers):
            part = json.loads(mark.read_text(encoding="utf-8")).get(name)
            if part is not None:
                found.append((self.folder / part[0], *part[1:]))
        return found

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mark(self, row: int, col: int) -> Path:
        return self.folder / f"unit-{row}-{col}.json"


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.stem.split("-")[1:])


def _is_empty(pixels: np.ndarray, nodata: float) -> bool:
    return bool(np.isnan(pixels).all() if math.isnan(nodata) else (pixels == nodata).all())


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _write_part(path: Path, info: RasterInfo, pixels: np.ndarray) -> None:
    if info.dtype == "float16" and np.nanmax(np.abs(pixels)) > np.finfo(np.float16).max:
        raise OSError(
            f"{path.name}: a value of {np.nanmax(np.abs(pixels)):.6g} is beyond float16's range; use --dtype float32"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    half = {"nbits": 16} if info.dtype == "float16" else {}
    try:
        with rasterio.open(
            temporary,
            "w",
            driver="GTiff",
            dtype=DTYPES[info.dtype],
            count=pixels.shape[0],
            height=pixels.shape[1],
            width=pixels.shape[2],
            nodata=info.nodata,
            crs=info.crs,
            transform=info.transform,
            tiled=True,
            blockxsize=min(BLOCK, -(-pixels.shape[2] // 16) * 16),  # a block is stored whole: no larger than the part
            blockysize=min(BLOCK, -(-pixels.shape[1] // 16) * 16),
            compress="deflate",
            zlevel=1,
            interleave="band",
            bigtiff="if_safer",
            **half,
        ) as sink:
            # Half floats are rounded here: GDAL cuts their last bits off.
            sink.write(pixels.astype(info.dtype, copy=False).astype(DTYPES[info.dtype], copy=False))
        os.replace(temporary, path)
    except GDAL_ERRORS as error:
        raise OSError(f"{path}: cannot be written ({error}); is the disk full?") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------
# Joining
# ------------------------------------------------------------------------------------------------------------


def join(path: str | os.PathLike[str], info: RasterInfo, parts: Sequence[tuple[Path, int, int, int, int]]) -> None:
    """Joins parts into one cloud-optimised GeoTIFF: tiled, compressed, with overviews, BigTIFF if it may need it.

    Written under a temporary name, read back against the parts, and renamed. Takes the uncompressed size of the raster
    on disk meanwhile.

    Args:
        path: final name; an existing file is replaced.
        info: the raster.
        parts: (file, first row, first column, rows, columns); ground without part is nodata.

    Raises:
        OSError: a part cannot be read, the file cannot be written, or does not hold what was written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.tif")
    virtual = temporary.with_suffix(".vrt")
    whole = temporary.with_name(temporary.name + ".whole")
    block = _block(info)
    options = {
        "blocksize": block,
        "compress": "deflate",
        "predictor": "yes",
        "bigtiff": "if_safer",
        "overviews": "auto",
        "overview_resampling": "mode" if info.is_discrete else "average",
        "num_threads": 1,
    } | ({"nbits": 16, "predictor": "no"} if info.dtype == "float16" else {})
    try:
        with limited_cache():
            _write_whole(whole, info, parts, block=block)
            virtual.write_text(_virtual_raster(info, whole), encoding="utf-8")
            rasterio.shutil.copy(str(virtual), str(temporary), driver="COG", **options)
            _read_back(temporary, info, parts, name=path)
        os.replace(temporary, path)
    except GDAL_ERRORS as error:
        raise OSError(f"{path}: cannot be written ({error}); is the disk full?") from error
    finally:
        for left in (whole, virtual, *temporary.parent.glob(f"{temporary.name}*")):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)


def _block(info: RasterInfo) -> int:
    """Edge of a block: GDAL holds all bands of one at a time, so those of many bands are smaller."""
    edge = BLOCK if min(info.rows, info.cols) <= 2 * BLOCK else 2 * BLOCK
    while edge > BLOCK // 2 and edge**2 * len(info.names) * 4 > BLOCK_BYTES:
        edge //= 2
    return edge


def _write_whole(path: Path, info: RasterInfo, parts: Iterable[tuple[Path, int, int, int, int]], *, block: int) -> None:
    """Put the parts in place, uncompressed, so that blocks may be written piece by piece; the rest stays sparse."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=DTYPES[info.dtype],
        count=len(info.names),
        height=info.rows,
        width=info.cols,
        nodata=info.nodata,
        tiled=True,
        blockxsize=block,
        blockysize=block,
        interleave="band",
        sparse_ok=True,
        bigtiff="if_safer",
        crs=info.crs,
        transform=info.transform,
    ) as sink:
        for part, row, col, rows, cols in parts:
            sink.write(read_part(part), window=Window(col, row, cols, rows))


def _read_back(path: Path, info: RasterInfo, parts: Iterable[tuple[Path, int, int, int, int]], *, name: Path) -> None:
    """Compare the first band with the parts: GDAL can report success although a tile was lost."""
    with rasterio.open(path) as file:
        if file.shape != (info.rows, info.cols) or file.count != len(info.names):
            raise OSError(
                f"{name}: {file.count} bands of {file.shape} were written, expected {len(info.names)} of "
                f"{(info.rows, info.cols)}"
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


def _virtual_raster(info: RasterInfo, whole: Path) -> str:
    """The text of a VRT of a file, with all that is said about the raster."""
    kind = {"float32": "Float32", "uint8": "Byte"}[DTYPES[info.dtype]]
    transform = info.transform
    numbers = (transform.c, transform.a, transform.b, transform.f, transform.d, transform.e)
    lines = [f'<VRTDataset rasterXSize="{info.cols}" rasterYSize="{info.rows}">']
    lines.append(f"<SRS>{escape(CRS.from_user_input(info.crs).to_wkt())}</SRS>")
    lines.append(f"<GeoTransform>{', '.join(repr(float(x)) for x in numbers)}</GeoTransform>")
    lines.append(_metadata(info.tags))
    nodata = "nan" if math.isnan(info.nodata) else repr(info.nodata)
    colours = ("Red", "Green", "Blue") if info.is_picture else ("Palette",) if info.classes else ("Gray",)
    for band, (name, unit) in enumerate(zip(info.names, info.units, strict=True), start=1):
        lines.append(f'<VRTRasterBand dataType="{kind}" band="{band}">')
        lines.append(f"<Description>{escape(name)}</Description><NoDataValue>{nodata}</NoDataValue>")
        lines.append(f"<UnitType>{escape(unit)}</UnitType>" if unit else "")
        lines.append(f"<ColorInterp>{colours[min(band, len(colours)) - 1]}</ColorInterp>")
        if info.classes:
            lines.append(_metadata({f"class_{code}": name for code, (name, _) in info.classes.items()}))
            lines.append(_colour_table(info))
        lines.append(
            f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(whole.resolve()))}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand></SimpleSource>"
        )
        lines.append("</VRTRasterBand>")
    return "\n".join([*filter(None, lines), "</VRTDataset>"])


def _metadata(tags: Mapping[str, str]) -> str:
    entries = "".join(f"<MDI key={quoteattr(key)}>{escape(str(value))}</MDI>" for key, value in tags.items())
    return f"<Metadata>{entries}</Metadata>"


def _colour_table(info: RasterInfo) -> str:
    assert info.classes is not None
    entries = []
    for code in range(256):
        red, green, blue = info.classes[code][1] if code in info.classes else (0, 0, 0)
        alpha = 255 if code in info.classes else 0
        entries.append(f'<Entry c1="{red}" c2="{green}" c3="{blue}" c4="{alpha}"/>')
    return f"<ColorTable>{''.join(entries)}</ColorTable>"


# ------------------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------------------


def read_part(path: str | os.PathLike[str]) -> np.ndarray:
    """The (B, r, c) pixels of a part as written, nodata and all.

    Raises:
        OSError: it cannot be read.
    """
    with rasterio.open(path) as file:
        return file.read()


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
