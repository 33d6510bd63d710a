"""Area of interest: polygons outside which no pixel is valid."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.features import geometry_mask
from shapely import affinity

from datasets.ground.planet import Planet, planet_of

logger = logging.getLogger(__name__)

# A straight edge in one CRS is curved in another: before reprojection edges are cut to this share of the
# polygons' extent.
_EDGE_SHARE = 0.005


@dataclass(frozen=True)
class AreaOfInterest:
    """Polygons in one CRS, picklable.

    Attributes:
        path: file they came from.
        crs: CRS of the polygons' coordinates.
        polygons: shapely polygons and multipolygons, none empty.
        period: length of a full circle of longitude, CRS units: polygons repeat at this distance in x; 0 = they do not.
    """

    path: str
    crs: CRS
    polygons: tuple[shapely.Geometry, ...]
    period: float = 0.0

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of all polygons, in CRS units."""
        left, bottom, right, top = shapely.total_bounds(np.array(self.polygons, dtype=object))
        return float(left), float(bottom), float(right), float(top)

    def plain(self) -> dict[str, Any]:
        """Path, CRS as WKT and polygons as hexadecimal WKB, for a checkpoint; see `stored_area_of_interest`."""
        polygons = shapely.to_wkb(np.array(self.polygons, dtype=object), hex=True).tolist()
        return {"path": self.path, "crs": self.crs.to_wkt(), "polygons": polygons}

    def near(self, left: float, bottom: float, right: float, top: float) -> list[shapely.Geometry]:
        """Polygons whose bounds meet a rectangle, each shifted by as many periods as it takes."""
        lows_x, lows_y, highs_x, highs_y = shapely.bounds(np.array(self.polygons, dtype=object)).T
        found = []
        for k in np.flatnonzero((lows_y <= top) & (highs_y >= bottom)):
            first = math.ceil((left - highs_x[k]) / self.period) if self.period else 0
            last = math.floor((right - lows_x[k]) / self.period) if self.period else 0
            for turns in range(first, last + 1):
                shift = turns * self.period
                if lows_x[k] + shift <= right and highs_x[k] + shift >= left:
                    found.append(affinity.translate(self.polygons[k], shift) if turns else self.polygons[k])
        return found

    def inside(self, transform: Affine, rows: int, cols: int) -> np.ndarray:
        """Return which pixels have their centre inside a polygon.

        Args:
            transform: affine transform of the window's upper left corner.
            rows: rows of the window.
            cols: columns of the window.

        Returns:
            (rows, cols) bool, True = inside.
        """
        left, top = transform.c, transform.f
        right, bottom = left + cols * transform.a, top + rows * transform.e
        near = self.near(min(left, right), min(bottom, top), max(left, right), max(bottom, top))
        if not near:
            return np.zeros((rows, cols), dtype=bool)
        return geometry_mask(near, out_shape=(rows, cols), transform=transform, all_touched=False, invert=True)


def stored_area_of_interest(plain: Mapping[str, Any], crs: CRS) -> AreaOfInterest:
    """The polygons that `AreaOfInterest.plain` described, in ``crs``.

    Raises:
        ValueError: they cannot be brought to ``crs``.
    """
    shapes = geopandas.GeoSeries(shapely.from_wkb(list(plain["polygons"])), crs=plain["crs"])
    return _area_of(shapes, crs, plain["path"])


def load_area_of_interest(path: str | Path, crs: CRS) -> AreaOfInterest:
    """Read the polygons of a vector file into ``crs``.

    Args:
        path: any vector file that GDAL reads (GeoPackage, Shapefile, GeoJSON, ...); of several tables the
            first is used.
        crs: CRS to bring the polygons to, that of the reference grid.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no CRS, holds no polygon, or cannot be brought to ``crs``.
    """
    if not str(path).startswith("/vsi") and not Path(path).exists():
        raise FileNotFoundError(f"area of interest {path}: no such file; --aoi takes a vector file with polygons")
    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # the drivers raise a different type each
        raise ValueError(f"area of interest {path}: cannot be read as a vector file ({error})") from error
    geometries = getattr(frame, "geometry", None) if isinstance(frame, geopandas.GeoDataFrame) else None
    if geometries is None:
        raise ValueError(f"area of interest {path}: a table without geometry, expected polygons")
    kept = geometries[geometries.notna() & geometries.geom_type.isin(["Polygon", "MultiPolygon"])]
    kept = kept[~kept.is_empty]
    if not len(kept):
        kinds = ", ".join(sorted(set(geometries.geom_type.dropna()))) or "nothing"
        raise ValueError(f"area of interest {path}: no polygons (it holds {kinds}); draw the area as polygons")
    if len(kept) < len(geometries):
        logger.warning(
            "area of interest %s: %d of %d shapes are not polygons, not used",
            path,
            len(geometries) - len(kept),
            len(geometries),
        )
    if kept.crs is None:
        raise ValueError(f"area of interest {path}: has no CRS, expected one; set it (for example with ogr2ogr -a_srs)")
    return _area_of(kept, crs, path)


def _area_of(shapes: geopandas.GeoSeries, crs: CRS, path: str | Path) -> AreaOfInterest:
    planet = planet_of(crs)
    return AreaOfInterest(str(path), crs, _to_crs(shapes, crs, path), 0.0 if planet is None else planet.period)


def _to_crs(shapes: geopandas.GeoSeries, crs: CRS, path: str | Path) -> tuple[shapely.Geometry, ...]:
    target = crs.to_wkt()
    shapes = shapes.make_valid()
    if shapes.crs != target:
        left, bottom, right, top = shapes.total_bounds
        try:
            shapes = shapes.segmentize(max(right - left, top - bottom) * _EDGE_SHARE).to_crs(target)
        except ProjError as error:
            raise ValueError(
                f"area of interest {path}: cannot be brought from {str(shapes.crs)[:60]} to {crs.to_string()[:60]} "
                f"({error}); give polygons of the same planet, with its CRS (GeoJSON is always of Earth)"
            ) from error
        planet = planet_of(crs)
        if planet is not None:
            shapes = shapes.apply(lambda shape: unwrapped(shape, planet))
    polygons = [part for part in shapes.make_valid() if part is not None and not part.is_empty and part.area > 0]
    if not polygons or not np.isfinite(shapely.total_bounds(np.array(polygons, dtype=object))).all():
        raise ValueError(
            f"area of interest {path}: its polygons have no area in {crs.to_string()[:60]}; check its CRS "
            f"({shapes.crs})"
        )
    return tuple(polygons)


def unwrapped(shape: shapely.Geometry, planet: Planet) -> shapely.Geometry:
    """Polygons and lines across the date line made whole again; their vertices were reprojected one by one.

    Neighbouring vertices are taken to lie less than half a circle apart. A ring around a pole ends a full circle from
    where it began: it is closed along the pole.
    """
    if isinstance(shape, shapely.LineString):
        return shapely.transform(shape, lambda xy: np.stack([np.unwrap(xy[:, 0], period=planet.period), xy[:, 1]], 1))
    if isinstance(shape, shapely.MultiLineString):
        return shapely.MultiLineString([unwrapped(line, planet) for line in shape.geoms])
    if not isinstance(shape, shapely.Polygon | shapely.MultiPolygon) or shape.is_empty:
        return shape
    parts = []
    for polygon in getattr(shape, "geoms", [shape]):
        part = _unwrapped_ring(polygon.exterior, planet)
        for interior in polygon.interiors:
            hole = _unwrapped_ring(interior, planet)
            turns = round((hole.centroid.x - part.centroid.x) / planet.period)
            for k in (-1 - turns, -turns, 1 - turns):
                part = part.difference(affinity.translate(hole, k * planet.period))
        parts.append(part)
    return shapely.union_all(parts)


def _unwrapped_ring(ring: shapely.LinearRing, planet: Planet) -> shapely.Geometry:
    x, y = np.asarray(ring.coords)[:, :2].T
    x = np.unwrap(x, period=planet.period)
    if abs(x[-1] - x[0]) > planet.period / 2:
        pole = planet.equator + math.copysign(90.0, float(planet.latitude(y).mean())) / planet.degrees
        x, y = np.append(x, [x[-1], x[0]]), np.append(y, [pole, pole])
    return shapely.make_valid(shapely.Polygon(np.stack([x, y], axis=1)))
