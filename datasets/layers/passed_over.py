"""What lies in a folder of rasters and is no layer: what it is, and what makes it one."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import rasterio

from datasets.ground.grid import GDAL_ERRORS

_TO_GEOTIFF = "convert it to GeoTIFF"
# Formats of grids and pictures that GDAL reads only with a driver that few builds have, or not at all.
_NO_DRIVER = {
    ".ecw": "an ECW picture",
    ".sid": "a MrSID picture",
    ".map": "a Geosoft map",
    ".ggf": "a Geosoft grid",
    ".gdb": "a database (Geosoft or Esri)",
    ".npy": "an array without a place on the ground",
    ".npz": "arrays without a place on the ground",
    ".mdb": "a database",
    ".lpk": "a package of layers",
    ".mpk": "a map package",
}
_ARCHIVES = (".zip", ".gz", ".tgz", ".tar", ".7z", ".rar", ".bz2", ".xz")
_POINTS = (".xyz", ".xyzi", ".dat", ".csv", ".tsv", ".txt")
_ZARR_FILES = (".zgroup", ".zarray", "zarr.json")
_X_NAMES = frozenset("x easting east lon long longitude".split())
_NUMBERS = re.compile(r"\s*[-+]?[\d.]+(?:[eE][-+]?\d+)?(?:[\s,;]+[-+]?[\d.]+(?:[eE][-+]?\d+)?){2,}\s*$")
# The first bytes of a Geosoft grid: bytes a value (from 1024 on compressed), sign flag, columns, rows, order.
_GEOSOFT_HEADER = struct.Struct("<5i")


def what_to_do(path: Path) -> str | None:
    """Says what a file or folder that is no layer is, and how to make a layer of it; None if it needs no word.

    Args:
        path: in a folder of rasters, not read as a layer.
    """
    ending = path.suffix.lower()
    if path.name.startswith("."):
        return None
    if path.is_dir():
        return _store(path, ending)
    if ending in _ARCHIVES:
        return "an archive: unpack it in this folder if it holds grids" + _inside(path, ending)
    if ending in _NO_DRIVER:
        return f"{_NO_DRIVER[ending]}, which GDAL does not read here: {_TO_GEOTIFF} in the program that wrote it"
    if ending == ".gpkg" and _opens(path):
        return "a raster in a GeoPackage, not taken as a layer by itself: name it in a table of layers (--train_path)"
    if ending in _POINTS and _holds_points(path):
        return (
            "a table of points, no raster: grid it and write a GeoTIFF (where the points are already a regular grid: "
            "gdal_translate -a_srs EPSG:... FILE.xyz FILE.tif); points that are labels go to --labels"
        )
    return None


def unreadable(path: Path, error: Exception) -> str:
    """Says why a file whose ending says raster cannot be opened, and what to do."""
    if is_geosoft_grid(path):
        return (
            f"{path}: a Geosoft (Oasis montaj) grid, which GDAL does not read; export it as GeoTIFF or ER Mapper grid "
            "(in Oasis montaj: Grid and Image, Copy/Convert), or read it with harmonica "
            "(harmonica.load_oasis_montaj_grid) and write a GeoTIFF"
        )
    return (
        f"{path}: cannot be opened as a raster ({error}); expected what its ending {path.suffix} says: it may be "
        "damaged or incomplete, copy it again or move it away"
    )


def is_geosoft_grid(path: Path) -> bool:
    """Whether a file begins as a Geosoft grid does: sizes and signs that no other grid of that ending has."""
    try:
        with open(path, "rb") as stream:
            header = stream.read(_GEOSOFT_HEADER.size)
        size, sign, columns, rows, order = _GEOSOFT_HEADER.unpack(header)
    except (OSError, struct.error):
        return False
    is_size = size % 1024 in (1, 2, 4, 8) and size < 2048
    return is_size and sign in (0, 1, 2, 3) and order in (-1, 1) and min(columns, rows) > 0


def remarks(paths: Iterable[Path]) -> Iterator[str]:
    """One message for each of some paths that is passed over though it may hold data."""
    for path in paths:
        advice = what_to_do(path)
        if advice is not None:
            yield f"{path}: not used as a layer; it is {advice}"


def is_store(folder: Path) -> bool:
    """Whether a folder is one array or group of arrays of zarr."""
    return folder.suffix.lower() == ".zarr" or any((folder / name).exists() for name in _ZARR_FILES)


def _store(path: Path, ending: str) -> str | None:
    if is_store(path):
        return (
            f"a zarr store, which is read through xarray: --dataset_type xarray --data_path {path}, or beside "
            f"the rasters a row xarray:{path}#VARIABLE in a table of layers (--train_path)"
        )
    if ending == ".gdb":
        return "an Esri geodatabase: export its rasters as GeoTIFF"
    return None


def _inside(path: Path, ending: str) -> str:
    if ending != ".zip":
        return ""
    return f", or name a grid in it by a table of layers (--train_path): /vsizip/{os.path.abspath(path)}/FILE"


def _opens(path: Path) -> bool:
    try:
        with rasterio.open(path):
            return True
    except GDAL_ERRORS:
        return False


def _holds_points(path: Path) -> bool:
    """Whether a text begins with a header that names coordinates, or with rows of at least three numbers."""
    try:
        with open(path, encoding="utf-8-sig", errors="strict") as stream:
            lines = [line for _, line in zip(range(3), stream, strict=False)]
    except (OSError, UnicodeDecodeError):
        return False
    if not lines:
        return False
    names = {name.strip().strip('"').lower() for name in re.split(r"[\s,;]+", lines[0])}
    return bool(names & _X_NAMES) or all(_NUMBERS.match(line) for line in lines)
