"""Whether the coordinates of a raster can be those of its CRS: latitudes, units, the order of axes."""

from __future__ import annotations

import math

import pyproj
from pyproj.exceptions import ProjError

from datasets.ground.planet import planet_of
from datasets.rasters.band import BandSource

# Half a pixel beyond a pole is normal in gridline-registered grids; in coarser grids than 10 degrees no more than this.
_MOST_BEYOND_POLE = 5.0
# Longitudes run from -180 to 360 degrees; layers across the date line may be given one circle to either side.
_MOST_LONGITUDE = 720.0
# Degrees between a grid and the area in which its CRS is used, from which on swapped axes are suspected.
_FAR_FROM_AREA = 20.0
# CRS units. A finer pixel that lies where longitudes and latitudes do is one in degrees.
_FINE_PIXEL = 0.2

Bounds = tuple[float, float, float, float]


def source_bounds(source: BandSource) -> Bounds:
    """(left, bottom, right, top) of a raster's corners in its own CRS, also where it is rotated."""
    a, b, c, d, e, f = tuple(source.transform)[:6]
    corners = [(col, row) for col in (0, source.cols) for row in (0, source.rows)]
    xs, ys = [a * col + b * row + c for col, row in corners], [d * col + e * row + f for col, row in corners]
    return min(xs), min(ys), max(xs), max(ys)


def check_coordinates(source: BandSource) -> list[str]:
    """Refuse coordinates that the CRS cannot have, and return warnings about those that it hardly has.

    A latitude may exceed 90 degrees by half a pixel, as it does in gridline-registered grids.

    Raises:
        ValueError: a latitude or longitude that does not exist, or axes that are swapped.
    """
    bounds = source_bounds(source)
    if planet_of(source.crs) is not None:
        _check_degrees(source, bounds)
    elif source.crs.is_projected:
        notes = _check_place(source, bounds)
        left, bottom, right, top = bounds
        pixel = max(right - left, top - bottom) / max(source.rows, source.cols)
        if -180 <= left and right <= 360 and -90 <= bottom and top <= 90 and pixel < _FINE_PIXEL:
            return [
                f"its coordinates (x {left:.6g} to {right:.6g}, y {bottom:.6g} to {top:.6g}) look like degrees, but "
                f"its CRS {source.crs.to_string()[:50]} is projected: check it; if so, set EPSG:4326"
            ]
        return notes
    return []


def _check_degrees(source: BandSource, bounds: Bounds) -> None:
    planet = planet_of(source.crs)
    assert planet is not None
    left, bottom, right, top = bounds
    south, north = ((y - planet.equator) * planet.degrees for y in (bottom, top))
    west, east = (((x - planet.west) / planet.period - 0.5) * 360 for x in (left, right))
    beyond = min(0.501 * (north - south) / source.rows, _MOST_BEYOND_POLE)
    if max(-south, north) <= 90 + beyond and max(-west, east) <= _MOST_LONGITUDE:
        return
    remedy = (
        "check the CRS: set the one that the coordinates are in (gdal_edit.py -a_srs EPSG:... FILE, or "
        "rio edit-info --crs EPSG:... FILE)"
    )
    if source.crs.is_geographic and max(-west, east) <= 90 and max(-south, north) <= 360:
        remedy = (
            "x and y look swapped: write it again with longitudes as x and latitudes as y (if only its corners are "
            "swapped: gdal_edit.py -a_ullr WEST NORTH EAST SOUTH FILE)"
        )
    raise ValueError(
        f"{source.layer.where}: spans latitudes {south:.10g} to {north:.10g} and longitudes {west:.10g} to {east:.10g} "
        f"in CRS {source.crs.to_string()[:60]}, expected latitudes from -90 to 90; {remedy}"
    )


def _check_place(source: BandSource, bounds: Bounds) -> list[str]:
    """Refuse a projected grid far outside the area of its CRS that lies inside once x and y are exchanged, or in km.

    Returns:
        A warning about any other grid that lies as far outside.
    """
    code = source.crs.to_epsg()
    if code is None:
        return []
    try:
        crs = pyproj.CRS.from_epsg(code)
        area = crs.area_of_use
        if area is None or crs.geodetic_crs is None:
            return []
        to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform
    except ProjError:
        return []
    x, y = (bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2
    away = _distance(to_degrees(x, y), area.bounds)
    where = f"its centre at x {x:.10g}, y {y:.10g} is far from the area of CRS EPSG:{code} ({area.name[:80]})"
    in_km = away > 0 and _distance(to_degrees(1000 * x, 1000 * y), area.bounds) == 0
    if in_km and away <= _FAR_FROM_AREA and abs(source.transform.a) < 1:
        return [
            f"its coordinates (x {bounds[0]:.6g} to {bounds[2]:.6g}, y {bounds[1]:.6g} to {bounds[3]:.6g}) look "
            f"like km, as only a thousand times as much lies in the area of CRS EPSG:{code}: check them and the pixel "
            "size"
        ]
    if away <= _FAR_FROM_AREA:
        return []
    if _distance(to_degrees(y, x), area.bounds) == 0:
        raise ValueError(
            f"{source.layer.where}: {where}, but x and y exchanged lie in it; expected eastings as x and northings as "
            "y; write it again with the axes in that order (if only its corners are swapped: "
            "gdal_edit.py -a_ullr WEST NORTH EAST SOUTH FILE)"
        )
    if in_km:
        raise ValueError(
            f"{source.layer.where}: {where}, but a thousand times as much lies in it; expected metres, found km; write "
            "its corners in metres (gdal_edit.py -a_ullr WEST NORTH EAST SOUTH FILE)"
        )
    return [f"{where}: check its CRS and coordinates"]


def _distance(place: tuple[float, float], area: Bounds) -> float:
    """Degrees between a longitude and latitude and an area; infinite for a point that is nowhere."""
    longitude, latitude = place
    if not (math.isfinite(longitude) and math.isfinite(latitude)):
        return math.inf
    west, south, east, north = area
    width = 360.0 if east - west >= 360 else (east - west) % 360  # an area may lie across the date line
    beyond_east = (longitude - west) % 360 - width
    across = 0.0 if beyond_east <= 0 else min(beyond_east, 360 - width - beyond_east)
    return max(across, south - latitude, latitude - north, 0.0)
