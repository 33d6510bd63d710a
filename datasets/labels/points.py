"""Points as labels: deposits, samples, sites; each with a class, or known to be present alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import shapely

from datasets.labels.columns import choose_column, with_codes
from datasets.labels.open_labels import TargetGrid
from datasets.labels.vector_files import read_features
from datasets.layers.class_table import ClassTable, Code, make_class_table
from datasets.layers.paths import is_plain_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Points:
    """Points inside the survey, in the order of the file; points at one place are kept.

    Attributes:
        xy: (n, 2) float64, easting and northing in the grid's CRS.
        classes: (n,) int64 class numbers; None: presence only.
        table: the classes; None: presence only.
        source: the file, for messages and records.
        names: (n,) texts of a column `name`; None if there is none.
    """

    xy: np.ndarray
    classes: np.ndarray | None
    table: ClassTable | None
    source: str
    names: np.ndarray | None

    def __len__(self) -> int:
        return len(self.xy)


def open_points(
    path: str | Path,
    *,
    grid: TargetGrid,
    column: str | None = None,
    x_column: str | None = None,
    y_column: str | None = None,
    label_crs: str | None = None,
    nodata: float | None = None,
    classes_csv: str | Path | None = None,
    class_codes: Sequence[Code] | None = None,
) -> Points:
    """Read points and bring them to the grid's CRS. Those outside the grid are counted and left out.

    Args:
        path: a vector file, or a CSV with two columns of coordinates or one of WKT.
        grid: the ground.
        column: attribute that holds the class; None: presence only.
        x_column: column of eastings of a CSV; None: recognised.
        y_column: column of northings of a CSV; None: recognised.
        label_crs: CRS of the coordinates where the file does not say; a CSV's is otherwise the grid's, or
            EPSG:4326 for columns named longitude and latitude.
        nodata: number in the column that means no class, besides those that are recognised.
        classes_csv: table of code, name and colour.
        class_codes: codes of a trained model, in its order: others are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be used: not readable, no CRS, other shapes than points, none on the grid, an unknown
            column, one class only, classes that the model does not know, or a class table that does not fit.
    """
    text = str(Path(path).expanduser()) if is_plain_path(str(path)) else str(path)
    where = f"labels {path}"
    frame, total = read_features(text, grid=grid.pixels, label_crs=label_crs, x_column=x_column, y_column=y_column)
    kinds = sorted(set(frame.geometry.geom_type) - {"Point", "MultiPoint"})
    if kinds:
        raise ValueError(f"{where}: holds {', '.join(kinds)}, expected points; for areas use --task segmentation")
    frame = _inside(frame, grid, total, where)
    codes: tuple[Code, ...] | None = None
    table: ClassTable | None = None
    if column is not None:
        frame, codes = with_codes(frame, choose_column(frame, column, where), where, nodata)
        table = make_class_table(Counter(codes), where=where, known=class_codes, classes_csv=classes_csv)
    named = next((name for name in frame.columns if str(name).lower() == "name"), None)
    return Points(
        xy=shapely.get_coordinates(frame.geometry.values).astype(np.float64),
        classes=None
        if table is None or codes is None
        else np.array([table.codes.index(code) for code in codes], np.int64),
        table=table,
        source=text,
        names=None if named is None else frame[named].astype("string").fillna("").to_numpy(dtype=object),
    )


def _inside(frame: geopandas.GeoDataFrame, grid: TargetGrid, total: int, where: str) -> geopandas.GeoDataFrame:
    """The single points whose pixel is on the grid.

    Raises:
        ValueError: there is none.
    """
    frame = frame.explode(index_parts=False)
    x, y = shapely.get_coordinates(frame.geometry.values).T
    col, row = np.floor((x - grid.left) / grid.resolution), np.floor((grid.top - y) / grid.resolution)
    inside = (row >= 0) & (row < grid.rows) & (col >= 0) & (col < grid.cols)
    left, bottom, right, top = grid.pixels.bounds
    ground = f"x {left:.10g}..{right:.10g}, y {bottom:.10g}..{top:.10g} in {grid.crs.to_string()[:60]}"
    if not inside.any():
        raise ValueError(
            f"{where}: does not overlap the survey: none of {total} points is inside {ground}; check their CRS "
            "(--label_crs) and coordinates"
        )
    outside = total - int(inside.sum())
    if outside:
        logger.warning("%s: %d of %d points are outside the survey (%s): not used", where, outside, total, ground)
    return frame[inside]
