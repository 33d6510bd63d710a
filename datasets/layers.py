"""Layers: which band of which file is a channel, from a directory of rasters or from a table (CSV)."""

from __future__ import annotations

import csv
import logging
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

logger = logging.getLogger(__name__)

KINDS = ("continuous", "categorical", "circular")
NORMALIZE = ("standard", "robust", "none")
COLUMNS = ("path", "name", "band", "kind", "group", "nodata", "units", "normalize", "loss_weight")

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

_SUBDATASET = re.compile(r'^(?P<driver>NETCDF|HDF5):"?(?P<file>[^"]+?)"?:(?P<variable>[^:]+)$', re.IGNORECASE)
_SCHEME = re.compile(r"^(/vsi|[A-Za-z][A-Za-z0-9_+]+:)")


@dataclass(frozen=True)
class Layer:
    """One band of one raster: a channel of the model.

    Attributes:
        name: unique name, used in logs, tables and checkpoints.
        path: file, or anything else that GDAL opens (/vsi path, `netcdf:file.nc:variable`).
        band: number of the band, from 1.
        kind: `continuous`, `categorical` or `circular` (the last two are not supported yet).
        group: label of the channel group, None = grouped by native resolution.
        nodata: stored value that means no data, besides the one that the file declares.
        units: physical units, for display.
        normalize: `standard` (mean and standard deviation), `robust` (median and quartiles) or `none`.
        loss_weight: weight in the loss, 0 = input only.
        kind_stated: True if a person has stated the kind: a continuous band may then carry a colour table.
    """

    name: str
    path: str
    band: int = 1
    kind: str = "continuous"
    group: str | None = None
    nodata: float | None = None
    units: str = ""
    normalize: str = "standard"
    loss_weight: float = 1.0
    kind_stated: bool = False

    @property
    def where(self) -> str:
        """How messages name the layer: name, file and band."""
        return f"layer '{self.name}' ({self.path}, band {self.band})"


# (path, variable, ((band number, description), ...)) of one raster in a file.
_Raster = tuple[str, str, tuple[tuple[int, str], ...]]


@dataclass(frozen=True)
class _Contents:
    """What a file holds: each raster in it, the other files it consists of, and whether it has a CRS."""

    rasters: tuple[_Raster, ...]
    files: frozenset[str] = field(default_factory=frozenset)
    has_crs: bool = True


def layers_from_directory(directory: str | Path) -> list[Layer]:
    """Return a layer for every band of every raster in a directory, sorted by file name.

    If the directory itself holds no raster, those in its subfolders are taken, sorted by relative path.
    Sidecar files, documents, tables and vector files are passed over, and so are files that another raster
    consists of (the tiles of a VRT, the data of an ERS header). A picture without CRS is passed over with a
    warning. Alpha bands are masks, not layers.

    Raises:
        FileNotFoundError: there is no such directory, or no raster in it.
        ValueError: a file whose ending says raster cannot be opened.
    """
    root = Path(os.path.abspath(Path(directory).expanduser()))
    if not root.is_dir():
        raise FileNotFoundError(f"data directory {directory}: no such directory; --data_dir takes a folder of rasters")
    here = sorted(path for path in root.iterdir() if path.is_file())
    found = _rasters_among(here)
    if not found:
        found = _rasters_among(sorted(path for path in root.rglob("*") if path.is_file() and path.parent != root))
    if not found:
        raise FileNotFoundError(
            f"data directory {directory}: no rasters in it or in its subfolders; looked for files that GDAL "
            "opens (GeoTIFF, ERS, netCDF, GXF, Surfer grid, VRT, ...), apart from pictures without CRS, "
            "documents, tables and vector files"
        )
    layers = [layer for path, contents in found for layer in _layers_of(path, contents)]
    return _make_unique(layers, root)


def read_layers_table(path: str | Path) -> list[Layer]:
    """Read a layers table: a CSV with a row per layer.

    The column `path` is required, relative to the table's folder; `name, band, kind, group, nodata, units,
    normalize, loss_weight` are optional, as is every cell in them. A row without `band` for a file of several
    bands gives one layer a band.

    Raises:
        FileNotFoundError: the table, or a file it names, does not exist.
        ValueError: the table is empty or has unknown columns, a cell has a value that is not allowed, a file
            cannot be opened, or two layers have one name; the message names row and column.
    """
    table = Path(path).expanduser()
    if not table.is_file():
        raise FileNotFoundError(f"layers table {path}: no such file; --train_path takes a CSV with a column 'path'")
    with open(table, newline="", encoding="utf-8-sig") as stream:
        try:
            reader = csv.reader(stream, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"layers table {path}: not a CSV text file ({error}); save it as CSV, UTF-8") from error
    lines = [(number, row) for number, row in lines if any(row)]
    columns = _check_columns(table, [cell.lower() for cell in lines[0][1]] if lines else [])
    layers: list[Layer] = []
    stated: list[bool] = []
    for number, row in lines[1:]:
        where = f"layers table {path}, row {number}"
        if len(row) > len(columns):
            raise ValueError(
                f"{where}: {len(row)} cells, expected at most {len(columns)} ({', '.join(columns)}); quote "
                "cells with commas"
            )
        cells = {column: cell for column, cell in zip(columns, row, strict=False) if cell}
        made = _layers_of_row(cells, where, table.parent)
        layers += made
        stated += ["name" in cells] * len(made)
    if not layers:
        raise ValueError(f"layers table {path}: no rows, expected one a layer below the header")
    return _make_unique(layers, table.parent, stated=stated, source=f"layers table {path}")


def write_layers_table(path: str | Path, layers: Sequence[Layer]) -> None:
    """Write layers to a CSV that `read_layers_table` reads back to equal layers, wherever the table lies.

    Files are written as absolute paths, so that the table may lie anywhere.
    """
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for layer in layers:
            cells = {column: getattr(layer, column) for column in COLUMNS}
            cells["path"] = _absolute(layer.path, Path.cwd())
            if layer.kind == "continuous" and not layer.kind_stated:
                cells["kind"] = ""
            writer.writerow(["" if cells[column] is None else cells[column] for column in COLUMNS])


def is_plain_path(path: str) -> bool:
    """Return whether a layer's path names a file, rather than a /vsi path, a URL or a subdataset."""
    return not _SCHEME.match(path)


def _check_columns(table: Path, columns: list[str]) -> list[str]:
    known = ", ".join(COLUMNS)
    if "path" not in columns:
        found = ", ".join(columns) or "nothing"
        raise ValueError(
            f"layers table {table}: no column 'path' in its first row ({found}); expected a comma-separated "
            f"header out of: {known}"
        )
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise ValueError(
            f"layers table {table}: unknown column '{unknown[0]}', expected some of: {known}; rename or remove it"
        )
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    if repeated:
        raise ValueError(f"layers table {table}: column '{repeated[0]}' appears twice; remove one")
    return columns


def _layers_of_row(cells: dict[str, str], where: str, folder: Path) -> list[Layer]:
    if "path" not in cells:
        raise ValueError(f"{where}, column 'path': empty, expected a raster file")
    path = _absolute(cells["path"], folder)
    if is_plain_path(path) and not Path(path).exists():
        raise FileNotFoundError(
            f"{where}, column 'path': {cells['path']}: no such file (looked for {path}); paths are relative "
            "to the table"
        )
    band = _number(
        cells,
        "band",
        where,
        default=None,
        check=lambda value: value >= 1 and value == int(value),
        expected="a whole number from 1",
    )
    weight = _number(
        cells,
        "loss_weight",
        where,
        default=1.0,
        check=lambda value: 0 <= value < math.inf,
        expected="a number >= 0",
    )
    nodata = _number(
        cells,
        "nodata",
        where,
        default=None,
        check=lambda value: not math.isinf(value),
        expected="a finite number or nan",
    )
    template = Layer(
        name="",
        path=path,
        band=int(band or 1),
        kind=_choice(cells, "kind", where, KINDS),
        group=cells.get("group"),
        nodata=None if nodata is None or math.isnan(nodata) else nodata,  # NaN is never valid: nothing to add
        units=cells.get("units", ""),
        normalize=_choice(cells, "normalize", where, NORMALIZE),
        loss_weight=1.0 if weight is None else weight,
        kind_stated="kind" in cells,
    )
    if band is not None:
        return [replace(template, name=cells.get("name", _stem(path)))]
    try:
        contents = _contents(path)
    except (RasterioError, OSError) as error:
        raise ValueError(
            f"{where}: {path} cannot be opened as a raster ({error}); it may be damaged or incomplete"
        ) from error
    made = _layers_of(Path(path), contents, stem=cells.get("name"))
    return [replace(template, name=layer.name, path=layer.path, band=layer.band) for layer in made]


def _number(
    cells: dict[str, str],
    column: str,
    where: str,
    *,
    default: float | None,
    check: Callable[[float], bool],
    expected: str,
) -> float | None:
    if column not in cells:
        return default
    try:
        value = float(cells[column])
        allowed = check(value)
    except (ValueError, OverflowError):
        allowed = False
    if not allowed:
        raise ValueError(f"{where}, column '{column}': '{cells[column]}', expected {expected}, or nothing")
    return value


def _choice(cells: dict[str, str], column: str, where: str, allowed: Sequence[str]) -> str:
    value = cells.get(column, allowed[0]).lower()
    if value not in allowed:
        raise ValueError(
            f"{where}, column '{column}': '{cells[column]}', expected one of {', '.join(allowed)}, or nothing"
        )
    return value


def _rasters_among(paths: Iterable[Path]) -> list[tuple[Path, _Contents]]:
    opened: dict[Path, _Contents] = {}
    for path in paths:
        ending = path.suffix.lower()
        if path.name.startswith(".") or ending in OTHER_ENDINGS:
            continue
        try:
            contents = _contents(str(path))
        except (RasterioError, OSError) as error:
            if ending in RASTER_ENDINGS:
                raise ValueError(
                    f"{path}: cannot be opened as a raster ({error}); expected what its ending {path.suffix} "
                    "says: it may be damaged or incomplete, copy it again or move it away"
                ) from error
            logger.info("%s: not a raster, not used", path)
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


def _contents(path: str) -> _Contents:
    """Look at a file's header, or at that of each of its subdatasets (netCDF variables, TIFF pages)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            files = frozenset(os.path.realpath(name) for name in dataset.files) - {os.path.realpath(path)}
            if not dataset.subdatasets:
                return _Contents(((path, "", _data_bands(dataset)),), files, dataset.crs is not None)
            names = list(dataset.subdatasets)
        rasters: list[_Raster] = []
        coordinates: list[_Raster] = []
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
    return _Contents(tuple(rasters or coordinates), files)


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


def _layers_of(path: Path, contents: _Contents, *, stem: str | None = None) -> list[Layer]:
    stem = stem or _stem(str(path))
    layers = []
    for file, variable, bands in contents.rasters:
        prefix = f"{stem}_{_clean(variable)}" if len(contents.rasters) > 1 else stem
        labels = [_clean(description) for _, description in bands]
        repeated = Counter(labels)
        for (number, _), label in zip(bands, labels, strict=True):
            distinct = label if label and repeated[label] == 1 else f"b{number}"
            layers.append(Layer(name=prefix if len(bands) == 1 else f"{prefix}_{distinct}", path=file, band=number))
    return layers


def _make_unique(
    layers: list[Layer], root: Path, *, stated: Sequence[bool] | None = None, source: str = "data directory"
) -> list[Layer]:
    """Tell layers of one name apart by folder, then by ending; names that a person has stated stay."""
    stated = stated or [False] * len(layers)
    for prefix in (_folder_prefix, _ending_suffix):
        counts = Counter(layer.name for layer in layers)
        layers = [
            layer if fixed or counts[layer.name] == 1 else replace(layer, name=prefix(layer, root))
            for layer, fixed in zip(layers, stated, strict=True)
        ]
    for name, count in Counter(layer.name for layer in layers).items():
        if count > 1:
            paths = ", ".join(f"{layer.path} band {layer.band}" for layer in layers if layer.name == name)
            raise ValueError(
                f"{source}: {count} layers are named '{name}' ({paths}), expected unique names; give each a "
                "'name' of its own"
            )
    return layers


def _folder_prefix(layer: Layer, root: Path) -> str:
    folder = os.path.relpath(Path(_file_of(layer.path)).parent, root)
    parts = [part for part in Path(folder).parts if part not in (".", "..")]
    return "_".join([*parts, layer.name])


def _ending_suffix(layer: Layer, root: Path) -> str:
    return f"{layer.name}_{Path(_file_of(layer.path)).suffix.lstrip('.').lower()}"


def _file_of(path: str) -> str:
    match = _SUBDATASET.match(path)
    return match["file"] if match else path


def _stem(path: str) -> str:
    match = _SUBDATASET.match(path)
    return f"{Path(match['file']).stem}_{_clean(match['variable'])}" if match else Path(path).stem


def _clean(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", label.strip()).strip("_")


def _absolute(path: str, folder: Path) -> str:
    match = _SUBDATASET.match(path)
    if match:
        return f"{match['driver']}:{os.path.abspath(folder / match['file'])}:{match['variable']}"
    if _SCHEME.match(path):
        return path
    return os.path.abspath(folder / Path(path).expanduser())
