"""Tables of labels: their separator, and the columns of coordinates or of well-known text."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass

import geopandas
import numpy as np
import pandas
import shapely
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from datasets.ground.grid import GDAL_ERRORS, Grid, metres_per_unit
from datasets.labels.columns import parse_numbers, without_missing

TABLES = (".csv", ".tsv", ".txt")
"""Endings of files that are read as tables with coordinates."""

_SEPARATORS = ",;\t|"
_WKT_COLUMNS = ("polygon", "wkt", "geometry", "geom", "the_geom")
_DEGREES = CRS.from_epsg(4326)
# Pairs of columns that hold coordinates, by their names in lower case; degrees of longitude and latitude last.
_COORDINATES = (
    (r"x", r"y"),
    (r"easting", r"northing"),
    (r"east", r"north"),
    (r"utm[ _]?\d*[ _]?[a-z]?[ _]?(e|easting)", r"utm[ _]?\d*[ _]?[a-z]?[ _]?(n|northing)"),
    (r"lon|long|longitude", r"lat|latitude"),
)
_ZONE_COLUMN = re.compile(r"((utm|mga|amg|map|grid)[ _]?)?zone([ _]?(no|num|number|utm|mga|amg))?", re.IGNORECASE)
_ZONE = re.compile(r"(\d{1,2})(?:\.0)?\s*[A-Za-z]?")
# Metres within which two pairs of coordinates describe one place: datums differ by 200 m, rounded degrees by more.
_SAME_PLACE = 5000.0
# A column `zone` holds zones of a map projection if none of them is farther from the survey's own.
_NEAR_ZONES = 3


@dataclass(frozen=True)
class _Pair:
    """Columns of eastings and northings, and whether their names say longitude and latitude."""

    x: str
    y: str
    degrees: bool


def has_wkt_areas(path: str) -> bool:
    """Whether a table has a column of well-known text that holds other shapes than points.

    Raises:
        ValueError: the table cannot be read.
    """
    table = _read(path)
    wkt = _wkt_column(table)
    texts = [] if wkt is None else without_missing(table[wkt]).dropna().astype(str).str.strip().str.upper()
    return any(not text.startswith(("POINT", "MULTIPOINT")) for text in texts)


def read_table(
    path: str, *, grid: Grid, label_crs: CRS | None, x_column: str | None, y_column: str | None
) -> geopandas.GeoDataFrame:
    """Read the features of a table; arguments as of `read_features`.

    Raises:
        ValueError: it is no table, has no coordinates, or holds some that cannot be read or are ambiguous.
    """
    where = f"labels {path}"
    table = _read(path)
    wkt = _wkt_column(table)
    if wkt is not None and x_column is None and y_column is None:
        geometries = _from_wkt(table[wkt], where)
        crs, used = label_crs or grid.crs, [wkt]
    else:
        pair = _choose_pair(table, x_column, y_column, grid=grid, label_crs=label_crs, where=where)
        xy = _positions(table, pair, where)
        geometries = np.full(len(xy), None, dtype=object)
        usable = np.isfinite(xy).all(axis=1)
        geometries[usable] = shapely.points(xy[usable])
        crs, used = label_crs or (_DEGREES if pair.degrees else grid.crs), [pair.x, pair.y]
    return geopandas.GeoDataFrame(table.drop(columns=used), geometry=geometries, crs=crs.to_wkt())


def _read(path: str) -> pandas.DataFrame:
    """The rows of a table, numbered as in the file: the header is row 1."""
    where = f"labels {path}"
    try:
        with open(path, encoding="utf-8-sig") as stream:
            header = re.sub(r'"[^"]*"', "", stream.readline())
        separator = max(_SEPARATORS, key=header.count)
        columns = Counter(name.strip() for name in header.strip().split(separator))
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            table = pandas.read_csv(
                path,
                sep=separator,
                encoding="utf-8-sig",
                skipinitialspace=True,
                index_col=False,
                keep_default_na=False,  # None and NA may be names of classes
                na_values=[""],
                low_memory=False,  # a column has one type in all rows, not one for each part of a long table
            )
    except pandas.errors.ParserWarning as error:  # otherwise columns would be shifted or cut
        raise ValueError(
            f"{where}, row 2: has more fields than the header ({header.strip()}), expected as many; if numbers have "
            "decimal commas, separate columns by semicolons, or write decimal points; put texts with separators in "
            "quotes"
        ) from error
    except (UnicodeDecodeError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(
            f"{where}: cannot be read as a table ({str(error).strip()}); save it as CSV in UTF-8 with a header; put "
            "texts with separators in quotes, and separate columns by semicolons where numbers have decimal commas"
        ) from error
    if twice := [name for name, count in columns.items() if count > 1 and name]:
        count = columns[twice[0]]
        raise ValueError(f"{where}: has {count} columns '{twice[0]}', expected names that differ; rename one")
    table.columns = [str(name).strip() for name in table.columns]
    table.index = pandas.RangeIndex(2, len(table) + 2, name="row")
    return table.apply(_as_numbers) if len(table) else table


def _as_numbers(column: pandas.Series) -> pandas.Series:
    """A column that pandas left as texts because of NA and the like among its numbers; any other as it is."""
    numbers = without_missing(column)
    if numbers is column or numbers.isna().all():
        return column
    try:
        return pandas.to_numeric(numbers)
    except (ValueError, TypeError):
        return column


def _wkt_column(table: pandas.DataFrame) -> str | None:
    return next((name for name in table.columns if name.lower() in _WKT_COLUMNS), None)


def _from_wkt(column: pandas.Series, where: str) -> np.ndarray:
    column = without_missing(column)
    texts = column.astype("string").to_numpy(dtype=object, na_value=None)
    geometries = shapely.from_wkt(texts, on_invalid="ignore")
    broken = np.flatnonzero(shapely.is_missing(geometries) & column.notna().to_numpy())
    if broken.size:
        raise ValueError(
            f"{where}, row {column.index[broken[0]]}: column '{column.name}' holds {str(texts[broken[0]])[:60]!r}, "
            "expected well-known text such as POLYGON ((0 0, 1 0, 1 1, 0 0)); correct it, or name columns of "
            "coordinates by --x_column and --y_column"
        )
    return np.asarray(geometries, dtype=object)


def _positions(table: pandas.DataFrame, pair: _Pair, where: str) -> np.ndarray:
    return np.column_stack([parse_numbers(table[name], where) for name in (pair.x, pair.y)])


def _choose_pair(
    table: pandas.DataFrame,
    x_column: str | None,
    y_column: str | None,
    *,
    grid: Grid,
    label_crs: CRS | None,
    where: str,
) -> _Pair:
    """The columns of coordinates: those named, or those recognised.

    Raises:
        ValueError: there are none, or several that disagree, or eastings of another zone than the CRS.
    """
    columns = list(table.columns)
    crs = label_crs or grid.crs
    if x_column is not None or y_column is not None:
        for flag, name in (("--x_column", x_column), ("--y_column", y_column)):
            if name not in columns:
                raise ValueError(f"{where}: {flag} {name}, expected one of the columns: {', '.join(columns)}")
        x, y = str(x_column), str(y_column)
        east, north = _COORDINATES[-1]
        return _Pair(x, y, bool(re.fullmatch(east, x.lower()) and re.fullmatch(north, y.lower())))
    pairs = _recognise_pairs(columns)
    if not pairs:
        raise ValueError(
            f"{where}: no coordinates recognised among the columns {', '.join(columns)}; expected x and y, easting and "
            "northing, lon and lat, or a column 'polygon' of WKT; name them by --x_column and --y_column"
        )
    pair = next((each for each in pairs if each.degrees == crs.is_geographic), pairs[0])
    if not pair.degrees and not crs.is_geographic:
        _check_zones(table, pairs, grid=grid, crs=crs, stated=label_crs is not None, where=where)
        for other in pairs[1:]:
            _check_agreement(table, pair, other, crs=crs, where=where)
    return pair


def _recognise_pairs(columns: list[str]) -> list[_Pair]:
    pairs = []
    for number, (east, north) in enumerate(_COORDINATES):
        xs = [name for name in columns if re.fullmatch(east, name.lower())]
        ys = [name for name in columns if re.fullmatch(north, name.lower())]
        if len(xs) == 1 and len(ys) == 1:
            pairs.append(_Pair(xs[0], ys[0], number == len(_COORDINATES) - 1))
    return pairs


def _check_zones(
    table: pandas.DataFrame, pairs: list[_Pair], *, grid: Grid, crs: CRS, stated: bool, where: str
) -> None:
    """Refuse eastings of another zone of a map projection than the CRS that they are read in.

    Raises:
        ValueError: a column `zone` names several zones, or another than that of the CRS.
    """
    name = next((name for name in table.columns if _ZONE_COLUMN.fullmatch(name)), None)
    zones = [] if name is None else _zones_in(table[name], grid)
    own = _zone_of(crs)
    if not zones or zones == [own] or (len(zones) == 1 and own is None and stated):
        return
    degrees = next((pair for pair in pairs if pair.degrees), None)
    by_degrees = "" if degrees is None else f"use --x_column {degrees.x} --y_column {degrees.y}, or "
    read_in = f"{crs.to_string()[:60]}" + ("" if own is None else f" (zone {own})")
    if len(zones) > 1:
        advice = "reproject the rows of each zone to one CRS first"
    else:
        advice = f"name the CRS of zone {zones[0]} by --label_crs EPSG:..."
    raise ValueError(
        f"{where}: column '{name}' holds zone {' and '.join(map(str, zones))}, but {pairs[0].x} and {pairs[0].y} are "
        f"read in {read_in}, expected coordinates of one zone, that of the CRS; {by_degrees}{advice}; if '{name}' "
        f"is no zone of a projection, say so by --x_column {pairs[0].x} --y_column {pairs[0].y}"
    )


def _zones_in(column: pandas.Series, grid: Grid) -> list[int]:
    """The zones of UTM that a column names, sorted; none where it holds something else, or zones far from the grid."""
    texts = without_missing(column).dropna().astype(str).str.strip()
    matches = [_ZONE.fullmatch(text) for text in texts if text]
    zones = sorted({int(match[1]) for match in matches if match})
    if not all(matches):
        return []
    try:
        left, bottom, right, top = grid.bounds
        longitude = transform_points(grid.crs, _DEGREES, [(left + right) / 2], [(bottom + top) / 2])[0][0]
    except GDAL_ERRORS:
        return []
    if not np.isfinite(longitude):
        return []
    here = int((longitude + 180) // 6) + 1
    return zones if all(min((zone - here) % 60, (here - zone) % 60) <= _NEAR_ZONES for zone in zones) else []


def _zone_of(crs: CRS) -> int | None:
    """The zone of UTM, or of a grid with the same zones, whose eastings a CRS holds."""
    wkt = crs.to_wkt()
    parameters = dict(re.findall(r'PARAMETER\["(central_meridian|false_easting)",([-\d.]+)', wkt))
    if "Transverse_Mercator" not in wkt or float(parameters.get("false_easting", 0)) != 500_000:
        return None
    zone = (float(parameters.get("central_meridian", 0)) + 183) / 6
    return int(zone) if zone == int(zone) else None


def _check_agreement(table: pandas.DataFrame, pair: _Pair, other: _Pair, *, crs: CRS, where: str) -> None:
    """Refuse two pairs of coordinates that describe different places.

    Raises:
        ValueError: they do in some row.
    """
    try:
        xy, other_xy = _positions(table, pair, where), _positions(table, other, where)
        if other.degrees:
            other_xy = np.column_stack(transform_points(_DEGREES, crs, *other_xy.T))
    except (ValueError, *GDAL_ERRORS):  # the other pair is not needed: no reason to refuse the table
        return
    apart = np.hypot(*(xy - other_xy).T) * metres_per_unit(crs)
    wrong = np.flatnonzero(np.isfinite(apart) & (apart > _SAME_PLACE))
    if not wrong.size:
        return
    first, row = wrong[0], table.index[wrong[0]]
    raise ValueError(
        f"{where}, row {row}: {pair.x} {xy[first, 0]:.10g}, {pair.y} {xy[first, 1]:.10g} in {crs.to_string()[:60]} "
        f"lies {apart[first] / 1000:.4g} km from {other.x} {table[other.x].iloc[first]}, {other.y} "
        f"{table[other.y].iloc[first]} (so do {wrong.size} of {len(table)} rows), expected one place; choose the right "
        f"ones: --x_column {other.x} --y_column {other.y}, or --x_column {pair.x} --y_column {pair.y} with --label_crs "
        "for their CRS"
    )
