"""Features of vector files and of tables of coordinates, brought to the survey's CRS."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import geopandas
import numpy as np
import pandas
import pyogrio
import shapely
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform_bounds

from datasets.ground.grid import GDAL_ERRORS, Grid, crs_agree
from datasets.ground.planet import longitude_periods
from datasets.layers.class_table import Code, check_class_count, sorted_codes

logger = logging.getLogger(__name__)

TABLES = (".csv", ".tsv", ".txt")
"""Endings of files that are read as tables with coordinates."""

# A straight edge in one CRS is curved in another: before reprojection edges are cut to this share of the survey.
_EDGE_SHARE = 0.005
# Ground beyond the survey that is kept of features to be reprojected, as a share of it.
_MARGIN_SHARE = 0.1
_WKT_COLUMNS = ("polygon", "wkt", "geometry", "geom", "the_geom")
# Pairs of columns that hold coordinates, by their names in lower case; degrees of longitude and latitude last.
_COORDINATES = (
    (r"x", r"y"),
    (r"easting", r"northing"),
    (r"east", r"north"),
    (r"utm[ _]?\d*[ _]?[a-z]?[ _]?(e|easting)", r"utm[ _]?\d*[ _]?[a-z]?[ _]?(n|northing)"),
    (r"lon|long|longitude", r"lat|latitude"),
)


def choose_column(frame: geopandas.GeoDataFrame, column: str | None, where: str) -> str:
    """Return the attribute to use: the one named, or the only one there is.

    Raises:
        ValueError: there is no such column, or none is named and there are several.
    """
    there = [str(name) for name in frame.columns if name != frame.geometry.name]
    if column is None and len(there) == 1:
        return there[0]
    if column is None or column not in there:
        asked = "no --label_column is given" if column is None else f"there is no column '{column}'"
        raise ValueError(f"{where}: {asked}; expected one of: {', '.join(there) or 'none, it has no attributes'}")
    return column


def read_features(
    path: str,
    *,
    grid: Grid,
    label_crs: str | None = None,
    x_column: str | None = None,
    y_column: str | None = None,
) -> tuple[geopandas.GeoDataFrame, int]:
    """Read the features of a vector file, or of a table of coordinates, and bring them to the grid's CRS.

    Args:
        path: any vector file that GDAL reads, or a CSV with a column of WKT or two of coordinates.
        grid: the grid; of features in another CRS only what lies on it or near it is kept.
        label_crs: CRS of the coordinates where the file does not say; a table's is otherwise the grid's, or
            EPSG:4326 for columns named longitude and latitude.
        x_column: column of eastings of a table; None: recognised by its name.
        y_column: column of northings.

    Returns:
        Two-dimensional features, without empty ones, and how many single shapes the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no geometry or no CRS, cannot be brought to the grid's CRS, or lies
            wholly beside the grid.
    """
    where = f"labels {path}"
    if not path.startswith("/vsi") and not Path(path).exists():
        raise FileNotFoundError(f"{where}: no such file; check the path (current folder: {Path.cwd()})")
    if path.lower().endswith(TABLES):
        frame = _read_table(path, grid=grid, label_crs=label_crs, x_column=x_column, y_column=y_column)
    else:
        frame = _read_vectors(path)
        if frame.crs is None and label_crs is None:
            raise ValueError(
                f"{where}: has no CRS, expected one; give it by --label_crs EPSG:..., or set it (ogr2ogr -a_srs)"
            )
        if frame.crs is not None and label_crs is not None:
            logger.warning("%s: says its CRS itself (%s): --label_crs is not used", where, frame.crs.to_string()[:60])
        if frame.crs is None:
            frame = frame.set_crs(parse_crs(label_crs, where).to_wkt())
    there = frame.geometry.notna() & ~frame.geometry.is_empty
    if not there.any():
        raise ValueError(f"{where}: no feature has a geometry, expected polygons, lines or points")
    if not there.all():
        logger.warning("%s: %d of %d features have no geometry: not used", where, (~there).sum(), len(there))
    frame = frame[there]
    frame = frame.set_geometry(geopandas.GeoSeries(shapely.force_2d(frame.geometry.values), frame.index, frame.crs))
    moved = _all_turns(_to_grid(frame, grid, where), grid)
    _check_overlap(moved, frame.total_bounds, grid, where)
    return moved, int(shapely.get_num_geometries(frame.geometry.values).sum())


def parse_crs(text: str | None, where: str) -> CRS:
    """Return the CRS that a text names.

    Raises:
        ValueError: it names none.
    """
    try:
        return CRS.from_user_input(text)
    except (CRSError, *GDAL_ERRORS) as error:
        raise ValueError(
            f"{where}: --label_crs '{text}' is no CRS, expected one such as EPSG:28354 ({error})"
        ) from error


def _read_vectors(path: str) -> geopandas.GeoDataFrame:
    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        frame = geopandas.read_file(path, layer=layers[0]) if layers else None
    except Exception as error:  # the drivers raise a different type each
        raise ValueError(
            f"labels {path}: cannot be read as a raster or as a vector file ({error}); expected a GeoTIFF, GeoPackage, "
            "GeoJSON, Shapefile, CSV or another file that GDAL reads"
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise ValueError(f"labels {path}: a table without geometry, expected polygons, lines or points")
    if len(layers) > 1:
        logger.warning("labels %s: holds %s; the first is used", path, ", ".join(layers))
    return frame


def _read_table(
    path: str, *, grid: Grid, label_crs: str | None, x_column: str | None, y_column: str | None
) -> geopandas.GeoDataFrame:
    """Features of a table, by a column of WKT or by two of coordinates."""
    where = f"labels {path}"
    try:
        with open(path, encoding="utf-8-sig") as stream:
            header = stream.readline()
        separator = max(",;\t", key=header.count)
        table = pandas.read_csv(path, sep=separator, encoding="utf-8-sig", skipinitialspace=True)
    except (UnicodeDecodeError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(
            f"{where}: cannot be read as a table ({error}); save it as CSV in UTF-8 with a header"
        ) from error
    table.columns = [str(name).strip() for name in table.columns]
    crs = None if label_crs is None else parse_crs(label_crs, where)
    wkt = next((name for name in table.columns if name.lower() in _WKT_COLUMNS), None)
    if wkt is not None and x_column is None and y_column is None:
        geometries = shapely.from_wkt(
            table[wkt].astype("string").to_numpy(dtype=object, na_value=None), on_invalid="ignore"
        )
        broken = np.flatnonzero(shapely.is_missing(geometries) & table[wkt].notna().to_numpy())
        if broken.size:
            raise ValueError(
                f"{where}, row {broken[0] + 2}: column '{wkt}' holds {str(table[wkt].iloc[broken[0]])[:60]!r}, "
                "expected well-known text such as POLYGON ((0 0, 1 0, 1 1, 0 0)); correct it"
            )
        table = table.drop(columns=wkt)
    else:
        x, y, degrees = _coordinate_columns(table, x_column, y_column, where)
        xy = table[[x, y]].apply(pandas.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        geometries = np.full(len(xy), None, dtype=object)
        usable = np.isfinite(xy).all(axis=1)
        geometries[usable] = shapely.points(xy[usable])
        table = table.drop(columns=[x, y])
        if crs is None and degrees:
            crs = CRS.from_epsg(4326)
    return geopandas.GeoDataFrame(table, geometry=geometries, crs=(crs or grid.crs).to_wkt())


def _coordinate_columns(
    table: pandas.DataFrame, x_column: str | None, y_column: str | None, where: str
) -> tuple[str, str, bool]:
    """The columns of eastings and northings, and whether their names say that they are longitude and latitude."""
    columns = list(table.columns)
    if x_column is not None or y_column is not None:
        for flag, name in (("--x_column", x_column), ("--y_column", y_column)):
            if name not in columns:
                raise ValueError(f"{where}: {flag} {name}, expected one of the columns: {', '.join(columns)}")
        return str(x_column), str(y_column), False
    for number, (east, north) in enumerate(_COORDINATES):
        xs = [name for name in columns if re.fullmatch(east, name.lower())]
        ys = [name for name in columns if re.fullmatch(north, name.lower())]
        if len(xs) == 1 and len(ys) == 1:
            return xs[0], ys[0], number == len(_COORDINATES) - 1
    raise ValueError(
        f"{where}: no coordinates recognised among the columns {', '.join(columns)}; expected x and y, easting and "
        "northing, lon and lat, or a column 'polygon' of WKT; name them by --x_column and --y_column"
    )


def _to_grid(frame: geopandas.GeoDataFrame, grid: Grid, where: str) -> geopandas.GeoDataFrame:
    """The features in the grid's CRS; of those in another, what lies on the grid and a tenth around it."""
    crs = CRS.from_wkt(frame.crs.to_wkt())
    if crs_agree(grid, crs):
        return frame.set_crs(grid.crs.to_wkt(), allow_override=True)
    try:
        left, bottom, right, top = transform_bounds(grid.crs, crs, *grid.bounds, densify_pts=21)
    except GDAL_ERRORS as error:
        raise ValueError(
            f"{where}: cannot be brought from {crs.to_string()[:60]} to {grid.crs.to_string()[:60]} ({error}); check "
            "that its CRS is right"
        ) from error
    margin_x, margin_y = _MARGIN_SHARE * (right - left), _MARGIN_SHARE * (top - bottom)
    box = (left - margin_x, bottom - margin_y, right + margin_x, top + margin_y)
    lows_x, lows_y, highs_x, highs_y = frame.geometry.bounds.to_numpy().T
    frame = frame[(lows_x <= box[2]) & (highs_x >= box[0]) & (lows_y <= box[3]) & (highs_y >= box[1])]
    shapes = np.asarray(frame.geometry.values, dtype=object)
    wide = shapely.get_dimensions(shapes) > 0
    step = max(right - left, top - bottom) * _EDGE_SHARE
    polygons = shapely.get_dimensions(shapes) == 2
    shapes[polygons] = shapely.make_valid(shapes[polygons])
    shapes[wide] = shapely.segmentize(shapely.clip_by_rect(shapes[wide], *box), step)
    moved = geopandas.GeoSeries(shapes, frame.index, frame.crs).to_crs(grid.crs.to_wkt())
    frame = frame.set_geometry(moved)
    return frame[np.isfinite(frame.geometry.bounds.to_numpy()).all(axis=1)]


def _all_turns(frame: geopandas.GeoDataFrame, grid: Grid) -> geopandas.GeoDataFrame:
    """The features and, where x goes round a body, those that lie on the grid a turn away, in the order of the file."""
    left, bottom, right, top = grid.bounds
    frames = [frame.reset_index(drop=True)]
    for turn in longitude_periods(grid.crs)[1:]:
        moved = frames[0].set_geometry(frames[0].geometry.translate(turn))
        lows_x, lows_y, highs_x, highs_y = moved.geometry.bounds.to_numpy().T
        near = (lows_x < right) & (highs_x > left) & (lows_y <= top) & (highs_y >= bottom)
        frames += [moved[near]] if near.any() else []
    return frame if len(frames) == 1 else pandas.concat(frames).sort_index(kind="stable")


def _check_overlap(frame: geopandas.GeoDataFrame, extent: Sequence[float], grid: Grid, where: str) -> None:
    """Refuse features none of which is near the grid; `extent` is that of all, as they lie in the file."""
    left, bottom, right, top = grid.bounds
    lows_x, lows_y, highs_x, highs_y = frame.geometry.bounds.to_numpy().T
    if ((lows_x <= right) & (highs_x >= left) & (lows_y <= top) & (highs_y >= bottom)).any():
        return
    raise ValueError(
        f"{where}: does not overlap the survey: it covers x {extent[0]:.10g}..{extent[2]:.10g}, y {extent[1]:.10g}.."
        f"{extent[3]:.10g}, expected ground in x {left:.10g}..{right:.10g}, y {bottom:.10g}..{top:.10g} in "
        f"{grid.crs.to_string()[:60]}; check its CRS (--label_crs EPSG:4326 for a table in degrees) and coordinates"
    )


def with_codes(
    frame: geopandas.GeoDataFrame, column: str, where: str
) -> tuple[geopandas.GeoDataFrame, tuple[Code, ...]]:
    """Return the features that have a class, and its code: a whole number, or a text.

    Raises:
        ValueError: numbers that are not whole, or too many classes.
    """
    values = frame[column]
    numeric = pandas.api.types.is_numeric_dtype(values) or pandas.api.types.is_bool_dtype(values)
    if numeric:
        known = values.notna().to_numpy() & np.isfinite(values.fillna(0).to_numpy(dtype=np.float64))
        kept = values[known].to_numpy(dtype=np.float64)
        broken = kept[kept != np.rint(kept)]
        if broken.size:
            raise ValueError(
                f"{where}: column '{column}' holds {broken[0]:.9g}, which is no class code, expected whole numbers or "
                "text; if these are measurements, use --task regression"
            )
        codes: tuple[Code, ...] = tuple(int(value) for value in kept)
    else:
        texts = values.astype("string").str.strip()
        known = (texts.notna() & (texts != "")).to_numpy(dtype=bool)
        codes = tuple(str(text) for text in texts[known])
    if not known.all():
        logger.warning("%s: %d of %d features have no '%s': not used", where, (~known).sum(), len(known), column)
    check_class_count(sorted_codes(codes), where)
    return frame[known], codes
