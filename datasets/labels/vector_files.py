"""Features of vector files and of tables of coordinates, brought to the survey's CRS."""

from __future__ import annotations

import logging
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

from datasets.ground.area_of_interest import unwrapped
from datasets.ground.grid import GDAL_ERRORS, Grid, crs_agree
from datasets.ground.planet import longitude_periods, planet_of
from datasets.labels.overlap import overlap_advice
from datasets.labels.tables import TABLES, has_wkt_areas, read_table

logger = logging.getLogger(__name__)

# A straight edge in one CRS is curved in another: before reprojection edges are cut to this fraction of the survey.
_EDGE_FRACTION = 0.005
# Ground beyond the survey for which features are reprojected, as a fraction of its size.
_MARGIN_FRACTION = 0.1


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
        crs = None if label_crs is None else parse_crs(label_crs, where)
        frame = read_table(path, grid=grid, label_crs=crs, x_column=x_column, y_column=y_column)
        correctable = True
    else:
        frame, correctable = _with_crs(_read_vectors(path), path, label_crs)
    there = frame.geometry.notna() & ~frame.geometry.is_empty
    if not there.any():
        raise ValueError(f"{where}: no feature has a geometry, expected polygons, lines or points")
    if not there.all():
        logger.warning("%s: %d of %d features have no geometry: not used", where, (~there).sum(), len(there))
    frame = frame[there]
    frame = frame.set_geometry(geopandas.GeoSeries(shapely.force_2d(frame.geometry.values), frame.index, frame.crs))
    moved = _on_all_periods(_to_grid(frame, grid, where), grid)
    _check_overlap(moved, frame, grid, path, correctable=correctable)
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


def holds_points(path: str, *, x_column: str | None = None) -> bool:
    """Whether a vector file or a table holds points alone; False also for what cannot be read as either.

    Args:
        path: the labels; no raster.
        x_column: column of eastings: given, a table holds points whatever its other columns.
    """
    try:
        if path.lower().endswith(TABLES):
            return x_column is not None or not has_wkt_areas(path)
        layer = _first_layer(path)
        kind = str(pyogrio.read_info(path, layer=layer).get("geometry_type"))
        if kind in ("Unknown", "None", "GeometryCollection"):  # several kinds may be in one layer
            kinds = set(geopandas.read_file(path, layer=layer, columns=[]).geom_type.dropna())
            return bool(kinds) and kinds <= {"Point", "MultiPoint"}
        return "Point" in kind
    except Exception:  # the drivers raise a different type each; whoever reads the file says what is wrong
        return False


def _first_layer(path: str) -> str | None:
    return next((str(name) for name, kind in pyogrio.list_layers(path) if kind is not None), None)


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
    frame.index = pandas.RangeIndex(1, len(frame) + 1, name="feature")
    return frame


def _with_crs(frame: geopandas.GeoDataFrame, path: str, label_crs: str | None) -> tuple[geopandas.GeoDataFrame, bool]:
    """The features with a CRS, and whether --label_crs decides it.

    It does where the file has none, and for GeoJSON, which is in longitude and latitude unless an outdated member
    `crs` says otherwise: programs write metres into it all the same.

    Raises:
        ValueError: neither the file nor `label_crs` names a CRS.
    """
    where = f"labels {path}"
    optional = path.lower().endswith((".geojson", ".json", ".geojsonl", ".geojsons"))
    if frame.crs is None and label_crs is None:
        raise ValueError(
            f"{where}: has no CRS, expected one; give it by --label_crs EPSG:..., or set it (ogr2ogr -a_srs)"
        )
    if label_crs is None:
        return frame, optional
    if frame.crs is not None and not optional:
        logger.warning("%s: says its CRS itself (%s): --label_crs is not used", where, frame.crs.to_string()[:60])
        return frame, False
    crs = parse_crs(label_crs, where)
    if frame.crs is not None and CRS.from_wkt(frame.crs.to_wkt()) != crs:
        logger.warning(
            "%s: read in %s (--label_crs), not in %s as GeoJSON says", where, label_crs, frame.crs.to_string()[:60]
        )
    return frame.set_crs(crs.to_wkt(), allow_override=True), True


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
    planet = planet_of(crs)
    if planet is not None and left > right:  # across the line where longitudes begin anew
        right += planet.period
    margin_x, margin_y = _MARGIN_FRACTION * (right - left), _MARGIN_FRACTION * (top - bottom)
    if planet is not None:  # no place is twice in the box
        margin_x = min(margin_x, max((planet.period - (right - left)) / 2, 0.0))
    box = (left - margin_x, bottom - margin_y, right + margin_x, top + margin_y)
    frame = _near(frame, box, longitude_periods(crs))
    shapes = np.asarray(frame.geometry.values, dtype=object)
    wide = shapely.get_dimensions(shapes) > 0
    # Near a pole the grid may cover far more of the file's CRS than the features do, or all of it.
    low_x, low_y, high_x, high_y = frame.total_bounds
    step = min(max(right - left, top - bottom), max(high_x - low_x, high_y - low_y)) * _EDGE_FRACTION
    polygons = shapely.get_dimensions(shapes) == 2
    shapes[polygons] = _areas_alone(shapely.make_valid(shapes[polygons]))
    shapes[wide] = shapely.segmentize(shapely.clip_by_rect(shapes[wide], *box), step)
    moved = geopandas.GeoSeries(shapes, frame.index, frame.crs).to_crs(grid.crs.to_wkt())
    frame = frame.set_geometry(_made_whole(moved, grid))
    return frame[np.isfinite(frame.geometry.bounds.to_numpy()).all(axis=1)]


def _made_whole(shapes: geopandas.GeoSeries, grid: Grid) -> geopandas.GeoSeries:
    """Features across the line where the grid's longitudes begin anew, whose vertices were brought there one by one."""
    planet = planet_of(grid.crs)
    if planet is None:
        return shapes
    bounds = shapes.bounds
    torn = (bounds["maxx"] - bounds["minx"] > planet.period / 2).to_numpy()
    if torn.any():
        shapes = shapes.copy()
        shapes[torn] = shapes[torn].apply(lambda shape: unwrapped(shape, planet))
    return shapes


def _areas_alone(shapes: np.ndarray) -> np.ndarray:
    """Polygons without the loose lines and points that repairing them may have left."""
    return np.array(
        [
            shapely.MultiPolygon([part for part in _flat(shape) if part.geom_type == "Polygon"])
            if shape.geom_type == "GeometryCollection"
            else shape
            for shape in shapes
        ],
        dtype=object,
    )


def _flat(shape: shapely.Geometry) -> list[shapely.Geometry]:
    """Single geometries of a nested collection."""
    return [shape] if not hasattr(shape, "geoms") else [part for each in shape.geoms for part in _flat(each)]


def _on_all_periods(frame: geopandas.GeoDataFrame, grid: Grid) -> geopandas.GeoDataFrame:
    """The features and, where x is a longitude, copies on the grid of those 360 degrees away, in file order."""
    copies = _near(frame, grid.bounds, longitude_periods(grid.crs)[1:])
    return frame if copies.empty else pandas.concat([frame, copies]).sort_index(kind="stable")


def _near(
    frame: geopandas.GeoDataFrame, box: tuple[float, float, float, float], periods: Sequence[float]
) -> geopandas.GeoDataFrame:
    """The features, moved in x by each of some periods, whose bounds meet those of a box; in file order."""
    frames = []
    for period in periods:
        moved = frame.set_geometry(frame.geometry.translate(period)) if period else frame
        lows_x, lows_y, highs_x, highs_y = moved.geometry.bounds.to_numpy().T
        meets = (lows_y <= box[3]) & (highs_y >= box[1])
        # The ends of a turn are the same ground: what touches the box there from outside is no copy.
        along = (lows_x < box[2]) & (highs_x > box[0]) if period else (lows_x <= box[2]) & (highs_x >= box[0])
        frames.append(moved[meets & along])
    found = [each for each in frames if len(each)]
    return pandas.concat(found).sort_index(kind="stable") if found else frame[:0]


def _check_overlap(
    moved: geopandas.GeoDataFrame, frame: geopandas.GeoDataFrame, grid: Grid, path: str, *, correctable: bool
) -> None:
    """Refuse features none of which is near the grid.

    Args:
        moved: the features in the grid's CRS.
        frame: the features as they lie in the file.
        grid: the grid.
        path: the labels.
        correctable: --label_crs would be used.
    """
    left, bottom, right, top = grid.bounds
    lows_x, lows_y, highs_x, highs_y = moved.geometry.bounds.to_numpy().T
    if ((lows_x <= right) & (highs_x >= left) & (lows_y <= top) & (highs_y >= bottom)).any():
        return
    extent = frame.total_bounds
    crs = CRS.from_wkt(frame.crs.to_wkt())
    remedy = "name its CRS by --label_crs {crs}"
    if not correctable:
        name = Path(path).name
        remedy = f"correct its CRS (ogr2ogr -a_srs {{crs}} corrected.gpkg {name}): --label_crs is not used"
    raise ValueError(
        f"labels {path}: does not overlap the survey: it covers x {extent[0]:.10g}..{extent[2]:.10g}, y "
        f"{extent[1]:.10g}..{extent[3]:.10g} in {crs.to_string()[:60]}, expected ground in x {left:.10g}.."
        f"{right:.10g}, y {bottom:.10g}..{top:.10g} in {grid.crs.to_string()[:60]}; "
        f"{overlap_advice(extent, crs, grid, remedy=remedy)}"
    )
