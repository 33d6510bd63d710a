"""Coordinates of netCDF and zarr variables: their values, even spacing, and units against those of the CRS."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from rasterio.crs import CRS

from datasets.ground.grid import metres_per_unit
from datasets.rasters.cf_attributes import actual_dtype, fill_values, number

AXIS_NAMES = {
    "x": frozenset("x lon long longitude easting east projection_x_coordinate grid_longitude".split()),
    "y": frozenset("y lat latitude northing north projection_y_coordinate grid_latitude".split()),
}
"""Names of coordinates, and standard names, by axis."""
DEGREE_UNITS = {
    "x": ("degrees_e", "degree_e", "degreee", "degreese"),
    "y": ("degrees_n", "degree_n", "degreen", "degreesn"),
}
"""How units of longitudes and latitudes begin."""

# Coordinates that stray from even spacing by less than this fraction of a pixel, anywhere, are rounded.
_STRAY = 0.01
# The same where the type of the coordinates, such as float32, cannot hold them more exactly.
_STRAY_OF_TYPE = 0.1

_METRES = {
    **dict.fromkeys("m metre metres meter meters".split(), 1.0),
    **dict.fromkeys("km kilometre kilometres kilometer kilometers".split(), 1000.0),
    **dict.fromkeys("cm centimetre centimetres centimeter centimeters".split(), 0.01),
    **dict.fromkeys("ft foot feet international_foot international_feet".split(), 0.3048),
    **dict.fromkeys("us_survey_foot us_survey_feet us-ft ftus".split(), 1200 / 3937),
    **dict.fromkeys("mi mile miles".split(), 1609.344),
    **dict.fromkeys("nmi nautical_mile nautical_miles".split(), 1852.0),
}
_DEGREES = {
    **dict.fromkeys("degree degrees deg arc_degree arc_degrees".split(), 1.0),
    **dict.fromkeys("arcmin arc_minute arc_minutes arcminute arcminutes".split(), 1 / 60),
    **dict.fromkeys("arcsec arc_second arc_seconds arcsecond arcseconds".split(), 1 / 3600),
    **dict.fromkeys("rad radian radians".split(), math.degrees(1)),
    **dict.fromkeys("mrad milliradian milliradians".split(), math.degrees(1e-3)),
    **dict.fromkeys("urad microradian microradians".split(), math.degrees(1e-6)),
}
_COMPASS = re.compile(r"^degrees?_?(e|n|east|north)$")
_MULTIPLE = re.compile(r"^([-+.\de]*\d\.?)\s*\*?\s*([a-z].*)$")


def axis_by_attributes(attributes: Mapping[str, Any]) -> str | None:
    """The axis (`x` or `y`) that a coordinate's attributes say it belongs to, None if they do not say."""
    axis = str(attributes.get("axis", "")).lower()
    if axis in AXIS_NAMES:
        return axis
    for name, known in AXIS_NAMES.items():
        if str(attributes.get("standard_name", "")).lower() in known:
            return name
        if str(attributes.get("units", "")).lower().startswith(DEGREE_UNITS[name]):
            return name
    return None


def coordinate_values(raw: np.ndarray, attributes: Mapping[str, Any], dim: str, where: str) -> np.ndarray:
    """Pixel centres along a dimension as float64, unpacked by scale_factor and add_offset, NaN where declared missing.

    Raises:
        ValueError: they are not numbers, or their attributes are not.
    """
    if raw.dtype.kind not in "iuf":
        raise ValueError(f"{where}: coordinate '{dim}' is of type {raw.dtype}, expected numbers")
    where = f"{where}, coordinate '{dim}'"
    stored = raw.dtype
    raw = raw.astype(stored.newbyteorder("="), copy=False).view(actual_dtype(attributes, stored))
    scale, offset = number(attributes, "scale_factor", 1.0, where), number(attributes, "add_offset", 0.0, where)
    values = raw.astype(np.float64)
    missing = np.isin(values, fill_values(attributes, stored, where))
    if (scale, offset) != (1.0, 0.0):
        values = values * scale + offset
    values[missing] = np.nan
    return values


def rounding_of(raw: np.ndarray, attributes: Mapping[str, Any], where: str) -> float:
    """How far rounding to the stored type may move a coordinate, in its own units."""
    scale = abs(number(attributes, "scale_factor", 1.0, where))
    if raw.dtype.kind != "f":
        return scale / 2
    return float(np.spacing(np.abs(raw).max())) * scale


def evenly_spaced(centres: np.ndarray, dim: str, where: str, *, rounding: float = 0.0) -> tuple[float, float]:
    """The first pixel centre and the signed step of coordinates, all of which are checked for even spacing.

    Args:
        centres: (pixels,) float64, pixel centres along a dimension.
        dim: its name.
        where: layer and file, for messages.
        rounding: how far rounding may have moved a coordinate.

    Raises:
        ValueError: fewer than two coordinates, or they are not finite, sorted and evenly spaced.
    """
    if len(centres) < 2:
        raise ValueError(
            f"{where}: dimension '{dim}' has {len(centres)} coordinate, expected at least 2, from which the pixel size "
            "follows"
        )
    if not np.isfinite(centres).all():
        raise ValueError(f"{where}: coordinate '{dim}' holds values that are not finite; expected pixel centres")
    steps = np.diff(centres)
    if not ((steps > 0).all() or (steps < 0).all()):
        turn = int(np.flatnonzero(np.sign(steps) != np.sign(steps[0]))[0]) if steps[0] else 0
        raise ValueError(
            f"{where}: coordinate '{dim}' is not sorted: {centres[turn]:.9g} is followed by {centres[turn + 1]:.9g} at "
            f"index {turn + 1}; sort it (dataset.sortby('{dim}'))"
        )
    step = (centres[-1] - centres[0]) / (len(centres) - 1)
    stray = np.abs(centres - (centres[0] + step * np.arange(len(centres)))) / abs(step)
    if stray.max() > max(_STRAY, min(rounding / abs(step), _STRAY_OF_TYPE)):
        raise ValueError(
            f"{where}: coordinate '{dim}' is irregular: steps from {np.abs(steps).min():.6g} to "
            f"{np.abs(steps).max():.6g}, farthest from even spacing at index {int(stray.argmax())}; regrid it "
            "(dataset.interp) to evenly spaced coordinates"
        )
    return float(centres[0]), float(step)


def unit_factor(units: str, crs: CRS, dim: str, where: str) -> tuple[float, list[str]]:
    """The number by which coordinates are multiplied to be in the units of their CRS, and warnings.

    Raises:
        ValueError: lengths under a CRS in degrees, or angles under one in metres.
    """
    text, multiple = units.strip().lower().replace("µ", "u"), 1.0
    match = _MULTIPLE.match(text)
    if match:
        text, multiple = match[2], float(match[1])
    text = re.sub(r"\s+", "_", text)
    if not (crs.is_geographic or crs.is_projected) or text in ("", "1"):
        return 1.0, []
    degrees = 1.0 if _COMPASS.match(text) else _DEGREES.get(text)
    metres = _METRES.get(text)
    if degrees is None and metres is None:
        return 1.0, [f"coordinate '{dim}' has unknown units '{units}': taken for the units of the CRS"]
    if crs.is_geographic and degrees is not None:
        return degrees * multiple, []
    if crs.is_projected and metres is not None:
        return metres * multiple / metres_per_unit(crs), []
    height = _satellite_height(crs)
    if degrees is not None and height is not None:
        return math.radians(degrees) * multiple * height / metres_per_unit(crs), []
    expected = "degrees" if crs.is_geographic else "a length, such as m or km"
    raise ValueError(
        f"{where}: coordinate '{dim}' has units '{units}' under the CRS {crs.to_string()[:60]}, expected {expected}; "
        "correct the units or the CRS in the file"
    )


def _satellite_height(crs: CRS) -> float | None:
    """The height in metres by which a geostationary view scales its angles, None for other projections."""
    parameters = crs.to_dict()
    return float(parameters["h"]) if parameters.get("proj") == "geos" and "h" in parameters else None
