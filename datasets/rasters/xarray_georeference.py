"""Where a variable lies on the ground, from its coordinates and attributes: CF conventions and rioxarray's habits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from pyproj.exceptions import CRSError as PyprojCRSError
from rasterio.crs import CRS
from rasterio.errors import CRSError

from datasets.rasters.coordinate_variables import (
    AXIS_NAMES,
    DEGREE_UNITS,
    axis_by_attributes,
    coordinate_values,
    evenly_spaced,
    rounding_of,
    unit_factor,
)


@dataclass(frozen=True)
class VariableGeoreference:
    """Where a variable lies on the ground.

    Attributes:
        y_dim: the dimension of rows.
        x_dim: the dimension of columns.
        others: other dimensions of more than one element, in order.
        transform: from (column, row) as stored to (x, y).
        rows: rows stored.
        cols: columns stored.
        crs: coordinate reference system.
        notes: warnings about assumptions.
    """

    y_dim: str
    x_dim: str
    others: tuple[str, ...]
    transform: Affine
    rows: int
    cols: int
    crs: CRS
    notes: tuple[str, ...]


def other_dims(groups: Mapping[str, Any], group: str, name: str) -> tuple[str, ...] | None:
    """Dimensions of a variable besides rows and columns, those of one element left out; None if it has no rows and
    columns.
    """
    dataset, variable = groups[group], groups[group].variables[name]
    axes = _axes(groups, group, variable.dims)
    if set(axes) != {"x", "y"}:
        return None
    return tuple(d for d in variable.dims if d not in axes.values() and dataset.sizes[d] > 1)


def variable_georeference(
    groups: Mapping[str, Any], group: str, name: str, *, crs: str | None, where: str
) -> VariableGeoreference:
    """Where a variable lies.

    Args:
        groups: a store's groups as `open_groups` gives them.
        group: of the variable.
        name: of the variable, within its group.
        crs: CRS to use where the store states none.
        where: how messages name it.

    Raises:
        ValueError: dimensions or coordinates are missing, unsorted, irregular or curvilinear, or there is no CRS.
    """
    variable = groups[group].variables[name]
    axes = _axes(groups, group, variable.dims)
    missing = [axis for axis in ("y", "x") if axis not in axes]
    if missing:
        remedy = "name it x, y, lon, lat, easting or northing, or give its coordinate the attribute axis"
        for each in groups[group].variables.values():
            if each.ndim == 2 and set(each.dims) <= set(variable.dims) and axis_by_attributes(each.attrs):
                remedy = "its coordinates are two-dimensional (curvilinear): regrid it to evenly spaced ones first"
        raise ValueError(
            f"{where}: no dimension that is {' or '.join(missing)} among its dimensions "
            f"({', '.join(map(str, variable.dims)) or 'none'}); {remedy}"
        )
    found, notes = _crs(groups, group, variable, axes, crs, where)
    transform, warnings = _transform(groups, group, axes, found, where)
    sizes = groups[group].sizes
    return VariableGeoreference(
        y_dim=axes["y"],
        x_dim=axes["x"],
        others=other_dims(groups, group, name) or (),
        transform=transform,
        rows=sizes[axes["y"]],
        cols=sizes[axes["x"]],
        crs=found,
        notes=(*notes, *warnings),
    )


def _lookup(groups: Mapping[str, Any], group: str, name: str) -> Any:
    """A variable of a group, or of the groups around it, as CF lets coordinates be inherited; None if there is none."""
    while True:
        if group in groups and name in groups[group].variables:
            return groups[group].variables[name]
        if group == "/":
            return None
        group = group.rpartition("/")[0] or "/"


def _coordinate(groups: Mapping[str, Any], group: str, dim: str) -> Any:
    """The one-dimensional coordinate variable of a dimension, None if there is none."""
    found = _lookup(groups, group, dim)
    if found is not None and found.dims == (dim,):
        return found
    for variable in groups[group].variables.values():
        if variable.dims == (dim,) and axis_by_attributes(variable.attrs):
            return variable
    return None


def _axes(groups: Mapping[str, Any], group: str, dims: tuple[Any, ...]) -> dict[str, str]:
    """Which dimensions are x and y: by attributes of their coordinates, else by name."""
    found: dict[str, str] = {}
    for dim in dims:
        coordinate = _coordinate(groups, group, dim)
        axis = None if coordinate is None else axis_by_attributes(coordinate.attrs)
        if axis is not None:
            found.setdefault(axis, dim)
    for dim in dims:
        for axis, names in AXIS_NAMES.items():
            if str(dim).lower() in names and dim not in found.values():
                found.setdefault(axis, dim)
    return found


def _transform(
    groups: Mapping[str, Any], group: str, axes: Mapping[str, str], crs: CRS, where: str
) -> tuple[Affine, list[str]]:
    """The transform in units of the CRS, and warnings."""
    steps, warnings = {}, []
    for axis, dim in axes.items():
        coordinate = _coordinate(groups, group, dim)
        if coordinate is None:
            return _stated_transform(groups, group, dim, where), []
        if coordinate.dtype.kind not in "iuf":  # before any value is read
            raise ValueError(f"{where}: coordinate '{dim}' is of type {coordinate.dtype}, expected numbers")
        raw, attributes = np.asarray(coordinate.values), coordinate.attrs
        centres = coordinate_values(raw, attributes, dim, where)
        first, step = evenly_spaced(centres, dim, where, rounding=rounding_of(raw, attributes, where))
        factor, unknown = unit_factor(str(attributes.get("units", "")), crs, dim, where)
        steps[axis] = first * factor, step * factor
        warnings += unknown
    (x, step_x), (y, step_y) = steps["x"], steps["y"]
    return Affine(step_x, 0.0, x - step_x / 2, 0.0, step_y, y - step_y / 2), warnings


def _stated_transform(groups: Mapping[str, Any], group: str, dim: str, where: str) -> Affine:
    """The GeoTransform that GDAL and rioxarray write beside a CRS."""
    for variable in groups[group].variables.values():
        text = variable.attrs.get("GeoTransform")
        if text is not None:
            return Affine.from_gdal(*(float(part) for part in str(text).split()))
    raise ValueError(
        f"{where}: dimension '{dim}' has no coordinates, expected a one-dimensional variable '{dim}' of pixel centres; "
        "add it (or a GeoTransform attribute to spatial_ref)"
    )


def _crs(
    groups: Mapping[str, Any], group: str, variable: Any, axes: Mapping[str, str], given: str | None, where: str
) -> tuple[CRS, tuple[str, ...]]:
    mapping = variable.attrs.get("grid_mapping") or variable.encoding.get("grid_mapping") or ""
    names = [part.rstrip(":") for part in str(mapping).split()][:1] + ["spatial_ref", "crs"]
    for name in names:
        reference = _lookup(groups, group, name)
        if reference is not None:
            stated = _crs_of_attributes(reference.attrs, where)
            if stated is not None:
                return stated, ()
    for attributes in (variable.attrs, groups[group].attrs, groups["/"].attrs if "/" in groups else {}):
        stated = _crs_of_attributes(attributes, where)
        if stated is not None:
            return stated, ()
    if given is not None:
        return _parse_crs(given, f"--crs {given}"), ()
    units = [getattr(_coordinate(groups, group, axes[axis]), "attrs", {}).get("units", "") for axis in ("x", "y")]
    if all(str(unit).lower().startswith(DEGREE_UNITS[axis]) for axis, unit in zip("xy", units, strict=True)):
        note = "states no CRS: its longitudes and latitudes are taken for EPSG:4326; --crs names another"
        return CRS.from_epsg(4326), (note,)
    raise ValueError(
        f"{where}: has no CRS (no grid_mapping, spatial_ref or crs_wkt), expected a coordinate reference system; give "
        "the one it was made in, --crs EPSG:..., or write it into the file (rioxarray: dataset.rio.write_crs)"
    )


def _crs_of_attributes(attributes: Mapping[str, Any], where: str) -> CRS | None:
    for key in ("crs_wkt", "spatial_ref", "crs", "proj4", "proj4text", "epsg_code"):
        text = attributes.get(key)
        if isinstance(text, str) and text.strip():
            return _parse_crs(text, f"{where}: attribute {key} '{text[:60]}'")
    if "grid_mapping_name" in attributes:
        try:
            return CRS.from_wkt(pyproj.CRS.from_cf(dict(attributes)).to_wkt())
        except (PyprojCRSError, CRSError, KeyError) as error:
            raise ValueError(
                f"{where}: grid mapping '{attributes['grid_mapping_name']}' cannot be understood ({error}); add its "
                "crs_wkt"
            ) from error
    return None


def _parse_crs(text: str, where: str) -> CRS:
    try:
        return CRS.from_user_input(text)
    except (CRSError, ValueError) as error:
        raise ValueError(f"{where}: not a CRS ({error}); expected EPSG:..., WKT or a PROJ string") from error
