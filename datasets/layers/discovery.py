"""Which files are rasters, and what is in them: headers only, no pixels."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from datasets.ground.grid import GDAL_ERRORS
from datasets.layers.hdf5 import require_whole_hdf5
from datasets.layers.passed_over import unreadable, what_to_do

logger = logging.getLogger(__name__)

# A file with one of these endings is meant to be a raster: if it cannot be opened, that is an error.
RASTER_ENDINGS = frozenset(
    ".tif .tiff .gtiff .ers .nc .nc4 .cdf .gxf .grd .vrt .img .asc .agr .bil .bip .bsq .jp2 .flt .dem .hgt "
    ".dt0 .dt1 .dt2 .h5 .hdf5 "
    ".sdat .mrf .kea .bt .pix .grib .grb2".split()
)
# Pictures count only if they carry a CRS: a quick look beside the grids is no layer.
PICTURE_ENDINGS = frozenset(".png .jpg .jpeg .gif .bmp .webp .svg".split())
# Sidecars of rasters, documents, tables and vector files: never opened.
OTHER_ENDINGS = frozenset(
    ".aux .xml .ovr .msk .rrd .tfw .tifw .wld .pgw .jgw .gfw .blw .prj .hdr .clr .stx .sgrd .mgrd .rdc .gi "
    ".qpj .qml .qmd .sld .lyr .lyrx .csv .tsv .txt .xyz .md .json .geojson .jsonl .yaml .yml .toml .ini "
    ".html .htm .pdf .doc .docx .odt .xls .xlsx .ods .ppt .pptx .gpkg .shp .shx .dbf .cpg .sbn .sbx .fix "
    ".kml .kmz .gml .tab .id .mif .mid .fgb .parquet .sqlite .db .qgs .qgz .mxd .aprx "
    ".py .sh .ipynb .log .zip .gz .tgz .tar .7z .rar .bak .tmp .pth .pt .npz .npy .pkl .lock".split()
)


# (path, variable, ((band number, description), ...)) of one raster in a file.
Raster = tuple[str, str, tuple[tuple[int, str], ...]]


@dataclass(frozen=True)
class RasterHeader:
    """Type and place of a raster: CRS as text (empty if there is none), and what its bands are stored as."""

    crs: str
    transform: Affine
    rows: int
    cols: int
    dtypes: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top), also where rows begin in the south."""
        x = self.transform.c, self.transform.c + self.cols * self.transform.a
        y = self.transform.f, self.transform.f + self.rows * self.transform.e
        return min(x), min(y), max(x), max(y)


@dataclass(frozen=True)
class RasterContents:
    """What a file holds: each raster in it, the other files it consists of, whether it has a CRS, and the header of a
    single raster.
    """

    rasters: tuple[Raster, ...]
    files: frozenset[str] = field(default_factory=frozenset)
    has_crs: bool = True
    header: RasterHeader | None = None


def rasters_among(paths: Iterable[Path]) -> list[tuple[Path, RasterContents]]:
    """Return the rasters among some files with their contents, in the order given.

    Sidecars, documents, tables and vector files are passed over, as are files that another raster consists of, and
    pictures without CRS (with a warning).

    Raises:
        ValueError: a file whose ending says raster cannot be opened.
    """
    opened: dict[Path, RasterContents] = {}
    for path in paths:
        ending = path.suffix.lower()
        if path.name.startswith(".") or ending in OTHER_ENDINGS:
            continue
        try:
            contents = inspect_raster(str(path))
        except GDAL_ERRORS as error:
            if ending in RASTER_ENDINGS:
                raise ValueError(unreadable(path, error)) from error
            if ending and what_to_do(path) is None:
                logger.warning(
                    "%s: not a raster that GDAL reads here, not used; if it is a grid: convert it to GeoTIFF", path
                )
            continue
        if ending in PICTURE_ENDINGS and not contents.has_crs:
            logger.warning("%s: a picture without CRS, not used as a layer", path)
            continue
        opened[path] = contents
    names = {path: os.path.realpath(path) for path in opened}
    parts = {
        name
        for path, contents in opened.items()
        for other, name in names.items()
        if other != path and name in contents.files and not (names[path] in opened[other].files and other < path)
    }
    for path in opened:
        if names[path] in parts:
            logger.info("%s: part of another raster in the directory, not a layer of its own", path)
    return [(path, contents) for path, contents in opened.items() if names[path] not in parts]


def may_be_raster(path: Path) -> bool:
    """Whether a file is no folder, hidden file, sidecar, document, table or vector file, by its name."""
    return not path.is_dir() and not path.name.startswith(".") and path.suffix.lower() not in OTHER_ENDINGS


def inspect_raster(path: str) -> RasterContents:
    """Look at a file's header, or at that of each of its subdatasets (netCDF variables, TIFF pages).

    Raises:
        rasterio.errors.RasterioIOError, OSError: the file cannot be opened.
    """
    require_whole_hdf5(path)
    with rasterio.Env(), warnings.catch_warnings():  # the Env brings what GDAL remarks to the log
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            files = frozenset(os.path.realpath(name) for name in dataset.files) - {os.path.realpath(path)}
            if not dataset.subdatasets:
                bands = _data_bands(dataset)
                return RasterContents(((path, "", bands),), files, dataset.crs is not None, _header(dataset))
            names = list(dataset.subdatasets)
        rasters: list[Raster] = []
        coordinates: list[Raster] = []
        for name in names:
            with rasterio.open(name) as dataset:
                entry = (name, _variable(name), _data_bands(dataset))
                # Coordinate arrays (latitudes, cell bounds) of a netCDF file have no place on the ground.
                (coordinates if dataset.transform.is_identity else rasters).append(entry)
    if rasters and coordinates:
        logger.warning(
            "%s: variables without georeference are not used: %s",
            path,
            ", ".join(entry[1] for entry in coordinates),
        )
    return RasterContents(tuple(rasters or coordinates), files)


def _header(dataset: rasterio.DatasetReader) -> RasterHeader:
    return RasterHeader(
        crs=dataset.crs.to_wkt() if dataset.crs else "",
        transform=dataset.transform,
        rows=dataset.height,
        cols=dataset.width,
        dtypes=tuple(dataset.dtypes),
        scales=tuple(dataset.scales),
        offsets=tuple(dataset.offsets),
    )


def _variable(name: str) -> str:
    """The label of a subdataset: the variable of a netCDF file, the page of a TIFF."""
    page = re.match(r"GTIFF_DIR:(\d+):", name)
    return f"page{page[1]}" if page else name.rsplit(":", 1)[-1].strip('"')


def _data_bands(dataset: rasterio.DatasetReader) -> tuple[tuple[int, str], ...]:
    alpha = [interpretation == ColorInterp.alpha for interpretation in dataset.colorinterp]
    return tuple(
        (number, description or "")
        for number, description, is_alpha in zip(dataset.indexes, dataset.descriptions, alpha, strict=True)
        if not is_alpha
    )
