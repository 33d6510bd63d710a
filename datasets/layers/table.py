"""Layers: which band of which file is a channel, from a directory of rasters or from a table (CSV)."""

from __future__ import annotations

import csv
import glob
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from datasets.ground.grid import GDAL_ERRORS
from datasets.layers.continuous import NORMALIZE
from datasets.layers.discovery import RASTER_ENDINGS, RasterContents, inspect_raster, may_be_raster, rasters_among
from datasets.layers.kinds import KINDS
from datasets.layers.layer import Layer
from datasets.layers.passed_over import is_store, remarks, unreadable
from datasets.layers.paths import (
    SHEET_SEPARATOR,
    absolute_path,
    clean_label,
    file_of,
    is_plain_path,
    parse_array_path,
    sheet_paths,
    stem_of,
    with_own_separators,
)
from datasets.layers.sheets import join_sheets, longer_name_of, name_of
from datasets.layers.transforms import TRANSFORMS

logger = logging.getLogger(__name__)

COLUMNS = (
    *("path", "name", "band", "kind", "group", "nodata", "units"),
    *("transform", "normalize", "loss", "loss_weight", "classes"),
)

# Characters. A cell may name thousands of sheets; Python's own limit is 131,072.
_LONGEST_CELL = 2**26


def layers_from_directory(directory: str | Path) -> list[Layer]:
    """Return a layer for every band of every raster in a directory, sorted by file name.

    If the directory itself holds no raster, those in its subfolders are taken, sorted by relative path.
    Sidecar files, documents, tables and vector files are passed over, and so are files that another raster
    consists of (the tiles of a VRT, the data of an ERS header). A picture without CRS is passed over with a
    warning, and so is other data (`datasets/layers/passed_over.py`). Alpha bands are masks, not layers. Sheets of
    one layer (`datasets/layers/sheets.py`) are one layer.

    Raises:
        FileNotFoundError: there is no such directory, or no raster in it.
        ValueError: a file whose ending says raster cannot be opened; files may be sheets of one layer, or layers.
    """
    root = Path(os.path.abspath(Path(directory).expanduser()))
    if root.is_file():
        flag = "give the folder that holds it, or a table of layers by --train_path"
        if root.suffix.lower() == ".csv":
            flag = f"give a table of layers by --train_path {directory}"
        raise ValueError(f"--data_dir {directory}: a file, expected a folder of rasters; {flag}")
    if not root.is_dir():
        raise FileNotFoundError(f"data directory {directory}: no such directory; --data_dir takes a folder of rasters")
    entries = sorted(root.iterdir())
    found = rasters_among(path for path in entries if not path.is_dir())
    if not found:
        entries += sorted(
            path for path in root.rglob("*") if path.parent != root and not any(map(is_store, path.parents))
        )
        found = rasters_among(path for path in entries if not path.is_dir())
    used = {Path(name) for _, contents in found for name in contents.files} | {path for path, _ in found}
    for remark in remarks(path for path in entries if path not in used):
        logger.warning("%s", remark)
    if not found:
        raise FileNotFoundError(
            f"data directory {directory}: no rasters in it or in its subfolders; looked for files that GDAL "
            "opens (GeoTIFF, ERS, netCDF, GXF, Surfer grid, VRT, ...), apart from pictures without CRS, "
            "documents, tables and vector files"
        )
    sheets = join_sheets(found, root)
    layers = [layer for path, contents, name in sheets for layer in _layers_of(path, contents, stem=name)]
    return _make_unique(layers, root)


def read_layers_table(path: str | Path) -> list[Layer]:
    """Read a layers table: a CSV with a row per layer.

    The column `path` is required, relative to the table's folder; the others of `COLUMNS` are optional, as is every
    cell in them. A row without `band` for a file of several
    bands gives one layer a band.

    Raises:
        FileNotFoundError: the table, or a file it names, does not exist.
        ValueError: the table is empty or has unknown columns, a cell has a value that is not allowed, a file
            cannot be opened, or two layers have one name; the message names row and column.
    """
    table = Path(path).expanduser()
    if table.is_dir():
        raise ValueError(
            f"--train_path {path}: a folder, expected a CSV with a column 'path'; give a folder of rasters by "
            f"--data_dir {path}"
        )
    if not table.is_file():
        raise FileNotFoundError(f"layers table {path}: no such file; --train_path takes a CSV with a column 'path'")
    with open(table, newline="", encoding="utf-8-sig") as stream:
        try:
            csv.field_size_limit(_LONGEST_CELL)
            reader = csv.reader(stream, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            remedy = "save it as CSV, UTF-8"
            if table.suffix.lower() in RASTER_ENDINGS:
                remedy = f"it is a raster: give its folder by --data_dir {table.parent}, or a table that names it"
            raise ValueError(f"layers table {path}: not a CSV text file ({error}); {remedy}") from error
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
            cells["path"] = absolute_path(layer.path, Path.cwd())
            cells["classes"] = None if layer.classes is None else absolute_path(layer.classes, Path.cwd())
            if layer.has_default_kind:
                cells["kind"] = ""
            writer.writerow(["" if cells[column] is None else cells[column] for column in COLUMNS])


def with_transforms(layers: Sequence[Layer], transforms: Mapping[str, str]) -> list[Layer]:
    """The layers with some of their transforms replaced, by name.

    Raises:
        ValueError: there is no such layer or transform.
    """
    names = [layer.name for layer in layers]
    for name, transform in transforms.items():
        if name not in names:
            raise ValueError(
                f"--transform {name}={transform}: no layer of that name, expected one of {', '.join(names)}"
            )
        if transform not in TRANSFORMS:
            raise ValueError(f"--transform {name}={transform}: expected one of {', '.join(TRANSFORMS)}")
    return [replace(layer, transform=transforms.get(layer.name, layer.transform)) for layer in layers]


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
    path = _path_of_cell(cells["path"], where, folder)
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
        kind=_choice(cells, "kind", where, tuple(KINDS)),
        group=cells.get("group"),
        nodata=None if nodata is None or math.isnan(nodata) else nodata,  # NaN is never valid: nothing to add
        units=cells.get("units", ""),
        normalize=_choice(cells, "normalize", where, tuple(NORMALIZE)),
        loss_weight=1.0 if weight is None else weight,
        kind_stated="kind" in cells,
        transform=_choice(cells, "transform", where, tuple(TRANSFORMS)),
        loss=cells.get("loss", "").lower(),
        classes=absolute_path(with_own_separators(cells["classes"], folder), folder) if "classes" in cells else None,
    )
    if band is not None:
        return [replace(template, name=cells.get("name", name_of(path)))]
    if parse_array_path(path) is not None:
        return [replace(template, name=cells.get("name", stem_of(path)), band=1)]
    contents = _contents_of(path, where)
    made = _layers_of(Path(path), contents, stem=cells.get("name", name_of(path)))
    return [replace(template, name=layer.name, path=layer.path, band=layer.band) for layer in made]


def _path_of_cell(cell: str, where: str, folder: Path) -> str:
    """The path of a layer that a cell names: a file, several joined by `|`, or a pattern of files.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a variable that xarray opens is named as a sheet.
    """
    paths: list[str] = []
    for part in (cell,) if os.path.exists(folder / cell) else sheet_paths(cell):
        path = absolute_path(with_own_separators(part, folder), folder)
        if not is_plain_path(path) or os.path.exists(path):
            paths.append(path)
            continue
        matches = sorted(match for match in glob.glob(path) if may_be_raster(Path(match)))
        if not matches:
            raise FileNotFoundError(
                f"{where}, column 'path': {cell}: no such file (looked for {path}); paths are relative to the table"
            )
        paths += matches
    paths = list(dict.fromkeys(paths))
    if len(paths) > 1 and any(parse_array_path(path) is not None for path in paths):
        raise ValueError(
            f"{where}, column 'path': {cell}: a variable of a store, expected raster files as sheets of a layer; join "
            "such variables in one store (xarray.combine_by_coords), or give each a row"
        )
    return SHEET_SEPARATOR.join(paths)


def _contents_of(path: str, where: str) -> RasterContents:
    """What a row's file holds; of sheets, what the first one holds, under the path of all."""
    first, *others = sheet_paths(path)
    contents = _inspected(first, where)
    if not others:
        return contents
    if len(contents.rasters) > 1:
        raise ValueError(
            f"{where}: {first} holds {len(contents.rasters)} rasters, expected one in each sheet of a layer; name the "
            f"variable of each, such as {contents.rasters[0][0]}"
        )
    return replace(contents, rasters=((path, *contents.rasters[0][1:]),))


def _inspected(path: str, where: str) -> RasterContents:
    try:
        return inspect_raster(path)
    except GDAL_ERRORS as error:
        raise ValueError(f"{where}: {unreadable(Path(path), error)}") from error


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


def _layers_of(path: Path, contents: RasterContents, *, stem: str | None = None) -> list[Layer]:
    stem = stem or stem_of(str(path))
    layers = []
    for file, variable, bands in contents.rasters:
        prefix = f"{stem}_{clean_label(variable)}" if len(contents.rasters) > 1 else stem
        labels = [clean_label(description) for _, description in bands]
        repeated = Counter(labels)
        for (number, _), label in zip(bands, labels, strict=True):
            distinct = label if label and repeated[label] == 1 else f"b{number}"
            layers.append(Layer(name=prefix if len(bands) == 1 else f"{prefix}_{distinct}", path=file, band=number))
    return layers


def _make_unique(
    layers: list[Layer], root: Path, *, stated: Sequence[bool] | None = None, source: str = "data directory"
) -> list[Layer]:
    """Tell layers of one name apart by numbers of sheets, folder, ending; names that a person has stated stay."""
    stated = stated or [False] * len(layers)
    for prefix in (_numbers_of_sheets, _folder_prefix, _ending_suffix):
        counts = Counter(layer.name for layer in layers)
        layers = [
            layer if fixed or counts[layer.name] == 1 else replace(layer, name=prefix(layer, root))
            for layer, fixed in zip(layers, stated, strict=True)
        ]
    for name, count in Counter(layer.name for layer in layers).items():
        if count > 1:
            paths = ", ".join(f"{layer.files} band {layer.band}" for layer in layers if layer.name == name)
            raise ValueError(
                f"{source}: {count} layers are named '{name}' ({paths}), expected unique names; give each a "
                "'name' of its own"
            )
    return layers


def _numbers_of_sheets(layer: Layer, _: Path) -> str:
    if len(sheet_paths(layer.path)) == 1:
        return layer.name
    return longer_name_of(layer.path) + layer.name.removeprefix(name_of(layer.path))


def _folder_prefix(layer: Layer, root: Path) -> str:
    folder = os.path.relpath(Path(file_of(layer.path)).parent, root)
    parts = [part for part in Path(folder).parts if part not in (".", "..")]
    return "_".join([*parts, layer.name])


def _ending_suffix(layer: Layer, root: Path) -> str:
    return f"{layer.name}_{Path(file_of(layer.path)).suffix.lstrip('.').lower()}"
