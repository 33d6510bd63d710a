"""Labels: class maps, measured values and vectors, read by window on target pixels.

A class raster keeps its classes: a target pixel gets the class of the pixel it lies in, or the commonest one where
the file is finer. Measurements are interpolated, or averaged where the file is finer. Vectors are burned, later
features over earlier ones. Pixels without a label are unlabelled, never background.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import rasterio
from rasterio.crs import CRS

from datasets.ground.grid import GDAL_ERRORS, Grid
from datasets.labels.columns import choose_column
from datasets.labels.raster_labels import (
    check_codes_without_names,
    find_codes,
    open_label_raster,
    without_undeclared_nodata,
)
from datasets.labels.tables import TABLES
from datasets.labels.vector_files import holds_points, read_features
from datasets.labels.vector_labels import open_label_vectors
from datasets.layers.class_table import ClassTable, Code, check_class_count, make_class_table, sorted_codes
from datasets.layers.paths import is_plain_path, parse_array_path
from datasets.rasters.legend import read_legend

logger = logging.getLogger(__name__)

UNLABELLED = -1
"""Class number of target pixels without a label."""

# Fraction of labelled pixels with the code 0 from which on a warning is given, as for layers.
_MANY_ZEROS = 0.2
# Target pixels that are read at a time in a pass over all labels.
_CHUNK_ROWS, _CHUNK_COLS = 512, 4096


@dataclass(frozen=True)
class TargetGrid:
    """Square target pixels on the ground, north up.

    Attributes:
        crs: coordinate reference system.
        left: western edge, CRS units.
        top: northern edge, CRS units.
        resolution: edge of a pixel, CRS units.
        rows: number of rows.
        cols: number of columns.
    """

    crs: CRS
    left: float
    top: float
    resolution: float
    rows: int
    cols: int

    @property
    def pixels(self) -> Grid:
        """The same as a `Grid`."""
        return Grid(self.crs, self.left, self.top, self.resolution, self.resolution, self.rows, self.cols)


class _Source(Protocol):
    """Where labels come from: (rows, cols) float32 of any window inside the grid, NaN = unlabelled."""

    def read(self, row: int, col: int, rows: int, cols: int) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels on target pixels. Picklable, holds no handle; any number of threads may read.

    Attributes:
        kind: `classes` or `values`.
        classes: the classes; None for values.
        units: unit of the values, as the file states it.
        source: the file, for messages and records.
        grid: target pixels.
        reader: reads inside the grid.
    """

    kind: str
    classes: ClassTable | None
    units: str
    source: str
    grid: TargetGrid
    reader: _Source

    def read(self, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """Read a window of target pixels; it may stick out of the grid, where nothing is labelled.

        Returns:
            (rows, cols): int16 class numbers, -1 = unlabelled; or float32 values, NaN = unlabelled.

        Raises:
            OSError: the window cannot be read; names file and window.
        """
        window = np.full((rows, cols), np.nan, dtype=np.float32)
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + rows, self.grid.rows), min(col + cols, self.grid.cols)
        if bottom > top and right > left:
            inside = self.reader.read(top, left, bottom - top, right - left)
            window[top - row : bottom - row, left - col : right - col] = inside
        if self.classes is None:
            return window
        return np.where(np.isnan(window), np.float32(UNLABELLED), window).astype(np.int16)

    def count(self, cell: int) -> np.ndarray:
        """Count labelled target pixels in square cells; a pass over all labels.

        Args:
            cell: edge of a cell, target pixels; cells start at the grid's corner, the last may stick out.

        Returns:
            (ceil(rows / cell), ceil(cols / cell), K) int64, by class; K = 1 for values.

        Raises:
            OSError: the labels cannot be read.
        """
        kinds = 1 if self.classes is None else len(self.classes)
        cells = -(-self.grid.rows // cell), -(-self.grid.cols // cell)
        counts = np.zeros((*cells, kinds), dtype=np.int64)
        for row, col, rows, cols in _chunks(self.grid):
            values = self.read(row, col, rows, cols)
            number = np.where(np.isnan(values), -1, 0) if self.classes is None else values
            first_row, first_col = row // cell, col // cell
            down, across = (row + rows - 1) // cell - first_row + 1, (col + cols - 1) // cell - first_col + 1
            cell_row = np.arange(row, row + rows) // cell - first_row
            cell_col = np.arange(col, col + cols) // cell - first_col
            place = (cell_row[:, None] * across + cell_col[None, :]) * kinds + number
            part = np.bincount(place[number >= 0], minlength=down * across * kinds).reshape(down, across, kinds)
            counts[first_row : first_row + down, first_col : first_col + across] += part
        return counts


def _chunks(grid: TargetGrid) -> Iterator[tuple[int, int, int, int]]:
    for row in range(0, grid.rows, _CHUNK_ROWS):
        for col in range(0, grid.cols, _CHUNK_COLS):
            yield row, col, min(_CHUNK_ROWS, grid.rows - row), min(_CHUNK_COLS, grid.cols - col)


def open_labels(
    path: str | Path,
    *,
    kind: str,
    grid: TargetGrid,
    column: str | None = None,
    classes_csv: str | Path | None = None,
    band: int = 1,
    nodata: float | None = None,
    class_codes: Sequence[Code] | None = None,
    label_crs: str | None = None,
    x_column: str | None = None,
    y_column: str | None = None,
) -> Labels:
    """Open labels, find their classes and check that they can be used; all target pixels are read once.

    Args:
        path: a raster, a vector file, or a CSV with a column of WKT or two of coordinates.
        kind: `classes` or `values`.
        grid: target pixels.
        column: attribute of vectors; None: the only one there is.
        classes_csv: table of code, name and colour.
        band: band of a raster, from 1.
        nodata: stored value of a raster, or number in the column of vectors, that means unlabelled, besides the
            file's own and those that are recognised.
        class_codes: codes of a trained model, in its order: others are refused.
        label_crs: CRS of vectors whose file does not say.
        x_column: column of eastings of a CSV; None: recognised.
        y_column: column of northings of a CSV; None: recognised.

    Returns:
        The labels; without `class_codes` every class has at least one target pixel.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be used: not readable, no CRS, no common ground, no labelled pixel, an unknown
            column, one class only, numbers that are no codes, too many classes, classes that the model does
            not know, or a class table that does not fit.
        OSError: it cannot be read to the end.
    """
    if kind not in ("classes", "values"):
        raise ValueError(f"labels {path}: kind is '{kind}', expected 'classes' or 'values'")
    text = str(Path(path).expanduser()) if is_plain_path(str(path)) else str(path)
    if is_plain_path(text) and not Path(text).exists():
        raise FileNotFoundError(f"labels {path}: no such file; check the path (current folder: {Path.cwd()})")
    if _is_raster(text):
        unused = {"--label_column": column, "--label_crs": label_crs, "--x_column": x_column, "--y_column": y_column}
        _warn_of_unused(unused, f"labels {path}: a raster")
        return _open_raster(text, kind, grid, band, nodata, classes_csv, class_codes)
    where = f"labels {path}"
    _warn_of_unused({"--label_band": None if band == 1 else band}, f"{where}: no raster")
    frame, _ = read_features(text, grid=grid.pixels, label_crs=label_crs, x_column=x_column, y_column=y_column)
    column = choose_column(frame, column, where)
    vectors = open_label_vectors(frame, kind=kind, grid=grid.pixels, column=column, where=where, nodata=nodata)
    if vectors.codes is None:
        return _checked(Labels("values", None, "", text, grid, vectors))
    numbering = _numbering(sorted_codes(vectors.codes), class_codes, where)
    counts = _count_codes(vectors.numbered(numbering), numbering, grid, where)
    table = make_class_table(counts, where=where, known=class_codes, classes_csv=classes_csv)
    return Labels("classes", table, "", text, grid, vectors.numbered(table.codes))


def _open_raster(
    path: str,
    kind: str,
    grid: TargetGrid,
    band: int,
    nodata: float | None,
    classes_csv: str | Path | None,
    class_codes: Sequence[Code] | None,
) -> Labels:
    raster = open_label_raster(path, kind=kind, grid=grid.pixels, band=band, nodata=nodata)
    where, legend = f"labels {path}", read_legend(path, band)
    if kind == "values":
        return _checked(Labels("values", None, legend.units, path, grid, without_undeclared_nodata(raster)))
    found = find_codes(raster)
    raster = without_undeclared_nodata(raster, found)
    if not (legend.names or legend.colours or classes_csv or class_codes):
        check_codes_without_names(raster, found)
    numbering = _numbering([code for code in found if code not in raster.source.nodata], class_codes, where)
    counts = _count_codes(raster.numbered(numbering), numbering, grid, where)
    if class_codes is None and classes_csv is None and not raster.source.nodata and 0 not in legend.names:
        _warn_of_zeros(counts, where)
    table = make_class_table(
        counts, where=where, known=class_codes, names=legend.names, colours=legend.colours, classes_csv=classes_csv
    )
    return Labels("classes", table, "", path, grid, raster.numbered(table.codes))


def _warn_of_zeros(counts: Mapping[Code, int], where: str) -> None:
    """Warn if many pixels hold 0, which often means that there is no label, as a class without a name."""
    fraction = counts.get(0, 0) / max(sum(counts.values()), 1)
    if len(counts) > 2 and fraction >= _MANY_ZEROS:  # of two classes 0 is one
        logger.warning(
            "%s: %.0f %% of the labelled pixels hold 0, which is not declared as nodata and has no name: taken for a "
            "class; if it means unlabelled: --label_nodata 0",
            where,
            100 * fraction,
        )


def _warn_of_unused(options: Mapping[str, object], what: str) -> None:
    given = [flag for flag, value in options.items() if value is not None]
    if given:
        logger.warning("%s: %s is not used", what, ", ".join(given))


def _numbering(found: Sequence[Code], known: Sequence[Code] | None, where: str) -> tuple[Code, ...]:
    """Codes in the order in which they are counted: those of a trained model, then those it does not know."""
    codes = (*(known or ()), *(code for code in found if known is None or code not in known))
    check_class_count(codes, where)
    return codes


def are_points(path: str, *, x_column: str | None = None) -> bool:
    """Whether labels are points alone, of a vector file or a table; False also for a file that cannot be read."""
    text = str(Path(path).expanduser()) if is_plain_path(path) else path
    return not _is_raster(text) and holds_points(text, x_column=x_column)


def _is_raster(path: str) -> bool:
    if path.lower().endswith(TABLES):  # GDAL takes some tables for grids
        return False
    if parse_array_path(path) is not None:
        return True
    try:
        with rasterio.open(path) as dataset:
            return dataset.count > 0 or bool(dataset.subdatasets)
    except GDAL_ERRORS:
        return False


def _count_codes(source: _Source, codes: Sequence[Code], grid: TargetGrid, where: str) -> dict[Code, int]:
    """Labelled target pixels of each code."""
    blank = ("",) * len(codes)
    table = ClassTable(tuple(codes), blank, blank, (0,) * len(codes))
    counts = Labels("classes", table, "", where, grid, source).count(max(grid.rows, grid.cols))
    if not counts.any():
        raise _unlabelled(where)
    return dict(zip(codes, counts[0, 0].tolist(), strict=True))


def _checked(labels: Labels) -> Labels:
    if not labels.count(max(labels.grid.rows, labels.grid.cols)).any():
        raise _unlabelled(f"labels {labels.source}")
    return labels


def _unlabelled(where: str) -> ValueError:
    return ValueError(
        f"{where}: no target pixel of the survey is labelled: all is nodata, not finite or elsewhere; expected labels "
        "on the survey's ground; check coordinates and nodata"
    )
