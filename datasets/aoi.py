"""Area of interest: polygons outside which no pixel is valid."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import geometry_mask

logger = logging.getLogger(__name__)

# A straight edge in one CRS is curved in another: before reprojection edges are cut to this share of the
# polygons' extent.
_EDGE_SHARE = 0.005


@dataclass(frozen=True)
class Aoi:
    """Polygons in one CRS, picklable.

    Attributes:
        path: file they came from.
        crs: CRS of the polygons' coordinates.
        polygons: shapely polygons and multipolygons, none empty.
    """

    path: str
    crs: CRS
    polygons: tuple[shapely.Geometry, ...]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of all polygons, in CRS units."""
        left, bottom, right, top = shapely.total_bounds(np.array(self.polygons, dtype=object))
        return float(left), float(bottom), float(right), float(top)

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
        lows_x, lows_y, highs_x, highs_y = shapely.bounds(np.array(self.polygons, dtype=object)).T
        touches_x = (lows_x <= max(left, right)) & (highs_x >= min(left, right))
        touches_y = (lows_y <= max(bottom, top)) & (highs_y >= min(bottom, top))
        near = [self.polygons[k] for k in np.flatnonzero(touches_x & touches_y)]
        if not near:
            return np.zeros((rows, cols), dtype=bool)
        return geometry_mask(near, out_shape=(rows, cols), transform=transform, all_touched=False, invert=True)


def load_aoi(path: str | Path, crs: CRS) -> Aoi:
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
    return Aoi(str(path), crs, _to_crs(kept, crs, path))


def _to_crs(shapes: geopandas.GeoSeries, crs: CRS, path: str | Path) -> tuple[shapely.Geometry, ...]:
    target = crs.to_wkt()
    shapes = shapes.make_valid()
    if shapes.crs != target:
        left, bottom, right, top = shapes.total_bounds
        shapes = shapes.segmentize(max(right - left, top - bottom) * _EDGE_SHARE).to_crs(target)
    polygons = [part for part in shapes.make_valid() if part is not None and not part.is_empty and part.area > 0]
    if not polygons or not np.isfinite(shapely.total_bounds(np.array(polygons, dtype=object))).all():
        raise ValueError(
            f"area of interest {path}: its polygons have no area in {crs.to_string()[:60]}; check its CRS "
            f"({shapes.crs})"
        )
    return tuple(polygons)
