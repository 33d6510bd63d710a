"""Planets and moons: CRS in longitude and latitude, or equidistant cylindrical in metres, on any ellipsoid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
from pyproj.exceptions import ProjError
from rasterio.crs import CRS


@dataclass(frozen=True)
class Planet:
    """How the coordinates of a CRS lie on a planet.

    Attributes:
        period: length of a full circle of longitude, CRS units.
        west: x of the meridian opposite to the middle one (-180 degrees), CRS units.
        equator: y of the equator, CRS units.
        degrees: degrees of latitude in a CRS unit of y.
        semi_major_m: equatorial radius, metres.
        semi_minor_m: polar radius, metres.
    """

    period: float
    west: float
    equator: float
    degrees: float
    semi_major_m: float
    semi_minor_m: float

    def latitude(self, y: Any) -> Any:
        """Latitude of y coordinates, degrees, clipped to -90..90."""
        return np.clip((np.asarray(y, dtype=np.float64) - self.equator) * self.degrees, -90.0, 90.0)

    def ground_m(self, y: float) -> tuple[float, float]:
        """Metres on the ground of a CRS unit of x and of a CRS unit of y, at a y coordinate."""
        latitude = math.radians(float(self.latitude(y)))
        squared = 1 - (self.semi_minor_m / self.semi_major_m) ** 2
        root = math.sqrt(1 - squared * math.sin(latitude) ** 2)
        parallel = self.semi_major_m * math.cos(latitude) / root
        meridian = self.semi_major_m * (1 - squared) / root**3
        return parallel * 2 * math.pi / self.period, meridian * math.radians(self.degrees)


def planet_of(crs: CRS) -> Planet | None:
    """The planet of a CRS in longitude and latitude, or of an equidistant cylindrical one; else None."""
    return _planet_of_wkt(crs.to_wkt())


@lru_cache(maxsize=64)
def _planet_of_wkt(wkt: str) -> Planet | None:
    try:
        crs = pyproj.CRS.from_wkt(wkt)
        ellipsoid = crs.ellipsoid
        if ellipsoid is None:
            return None
        axes = (ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre)
        if crs.is_geographic:
            factor = math.degrees(CRS.from_wkt(wkt).units_factor[1])
            return Planet(360.0 / factor, -180.0 / factor, 0.0, factor, *axes)
        operation = crs.coordinate_operation
        if operation is None or not operation.method_name.startswith("Equidistant Cylindrical"):
            return None
        middle = {p.name: float(p.value) for p in operation.params}.get("Longitude of natural origin", 0.0)
        place = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform
        (x, x_east), (y, y_north) = place([middle, middle + 45.0], [0.0, 45.0])
    except ProjError:
        return None
    period = (x_east - x) * 8
    return Planet(period, x - period / 2, y, 45.0 / (y_north - y), *axes)


def longitude_periods(crs: CRS) -> tuple[float, ...]:
    """Shifts in x that lead to the same ground, CRS units: 0, and on a planet a full circle to either side."""
    planet = planet_of(crs)
    return (0.0,) if planet is None else (0.0, planet.period, -planet.period)
