"""netCDF variables that GDAL reads: what GDAL drops or guesses is read beside it and checked.

GDAL keeps one fill value, believes the order of dimensions, samples the spacing of coordinates, may ignore their units
and applies valid limits to stored numbers alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from scipy.io import netcdf_file

from datasets.ground.grid import GDAL_ERRORS
from datasets.layers.layer import Layer
from datasets.layers.paths import file_of, variable_of
from datasets.rasters.band import BandSource
from datasets.rasters.cf_attributes import actual_dtype, fill_values, number, valid_limits
from datasets.rasters.coordinate_variables import (
    AXIS_NAMES,
    axis_by_attributes,
    coordinate_values,
    evenly_spaced,
    unit_factor,
)
from datasets.rasters.handles import open_raster

_KEYS = frozenset("_FillValue missing_value valid_range valid_min valid_max scale_factor add_offset _Unsigned".split())


@dataclass(frozen=True)
class _Coordinate:
    """One axis: its variable's name, pixel centres in its own units, and units."""

    name: str
    centres: np.ndarray
    units: str

    def lies_along(self, first: float, last: float) -> bool:
        """Whether the centres run from one to another, in either direction, to half a pixel."""
        ends = sorted((self.centres[0], self.centres[-1]))
        step = abs(self.centres[-1] - self.centres[0]) / (len(self.centres) - 1)
        return bool(np.allclose(ends, sorted((first, last)), rtol=0, atol=step / 2))


@dataclass(frozen=True)
class NetcdfVariable:
    """What a variable's attributes and coordinates state.

    Attributes:
        attributes: those of `_KEYS` that it has.
        stored: type that the file declares, before `_Unsigned`.
        axes: coordinates of `x` and `y`; empty if they are not found.
    """

    attributes: Mapping[str, Any]
    stored: np.dtype
    axes: Mapping[str, _Coordinate]

    def fill_values(self, layer: Layer) -> list[float]:
        """All values declared as no data."""
        return fill_values(self.attributes, self.stored, layer.where)

    def corrected(self, source: BandSource) -> tuple[BandSource, list[str]]:
        """The source with its valid limits, and its transform in units of the CRS; and warnings.

        Raises:
            ValueError: limits that are no numbers, or units that do not suit the CRS.
        """
        where = source.layer.where
        limits, notes = valid_limits(self.attributes, self.stored, where)
        factors = {}
        for axis, coordinate in self.axes.items():
            factors[axis], unknown = unit_factor(coordinate.units, source.crs, coordinate.name, where)
            notes += unknown
        a, b, c, d, e, f = tuple(source.transform)[:6]
        if self.axes and (b, d) == (0, 0):  # GDAL scales units itself in some files: only where it did not
            if _lies_along_columns(self.axes["x"], source):
                a, c = a * factors["x"], c * factors["x"]
            if _lies_along_rows(self.axes["y"], source):
                e, f = e * factors["y"], f * factors["y"]
        return replace(source, limits=limits, transform=Affine(a, b, c, d, e, f)), notes


def read_netcdf_variable(layer: Layer, dataset: rasterio.DatasetReader) -> NetcdfVariable:
    """Reads attributes and coordinates of a layer's variable.

    Raises:
        ValueError: attributes are not one number, coordinates are not evenly spaced, dimensions are in an order, or
            stored numbers of a type, that GDAL does not read rightly.
    """
    name = variable_of(layer.path) or dataset.tags(layer.band).get("NETCDF_VARNAME", "")
    file = file_of(layer.path)
    through_xarray = (
        f"or read it through xarray: --dataset_type xarray --data_path {file}#{name} (xarray:{file}#{name} in a table "
        "of layers or as labels)"
    )
    attributes = _attributes(file, name, dataset.tags(layer.band))
    for key in ("scale_factor", "add_offset"):
        number(attributes, key, 0.0, layer.where)
    dtype = np.dtype(dataset.dtypes[layer.band - 1])
    if actual_dtype(attributes, dtype) != dtype:
        raise ValueError(
            f"{layer.where}: attribute _Unsigned is {attributes['_Unsigned']}, but GDAL reads {dtype}, expected "
            f"{actual_dtype(attributes, dtype)}; write it as that type, {through_xarray}"
        )
    unsigned = str(attributes.get("_Unsigned", "")).lower() == "true" and dtype.kind == "u"
    if unsigned and dtype.itemsize == 1 and not _is_classic(file):
        raise ValueError(
            f"{layer.where}: signed bytes with _Unsigned in netCDF-4, of which GDAL cannot read values above 127; "
            f"write them as unsigned bytes, {through_xarray}"
        )
    axes = _axes(layer, dataset, file, name)
    if axes and _is_transposed(axes, dataset):
        x, y = axes["x"].name, axes["y"].name
        raise ValueError(
            f"{layer.where}: its dimensions are in the order ({x}, {y}), which GDAL takes for rows and columns; "
            f"expected ({y}, {x}); reorder them (ncpdq -a {y},{x} or dataset.transpose(..., '{y}', '{x}')), "
            f"{through_xarray}"
        )
    return NetcdfVariable(attributes, np.dtype(f"i{dtype.itemsize}") if unsigned else dtype, axes)


def _attributes(file: str, name: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """Attributes with their types, or as GDAL's texts where the file cannot be read otherwise."""
    try:
        found = _typed_attributes(file, name)
    except Exception:  # h5py is not installed, a kind of netCDF that scipy does not know, a file in an archive, ...
        found = {key: text.strip("{}").split(",") if text.startswith("{") else text for key, text in tags.items()}
    found = {key: value for key, value in found.items() if key in _KEYS}
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in found.items()}


def _is_classic(file: str) -> bool:
    """Whether a file is netCDF of before version 4; False also where it is none on a local disk."""
    try:
        with open(file, "rb") as stream:
            return stream.read(3) == b"CDF"
    except OSError:
        return False


def _typed_attributes(file: str, name: str) -> dict[str, Any]:
    if _is_classic(file):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of maps that close with their last array
            with netcdf_file(file, mmap=True) as opened:
                return dict(opened.variables[name]._attributes)
    import h5py

    with h5py.File(file) as opened:
        attributes = opened[name].attrs
        return {key: attributes[key] for key in attributes if key in _KEYS}


def _axes(layer: Layer, dataset: rasterio.DatasetReader, file: str, variable: str) -> dict[str, _Coordinate]:
    """Coordinates of x and y, checked for even spacing; empty unless both are found.

    Raises:
        ValueError: they are not numbers or not evenly spaced.
    """
    names: dict[str, dict[str, str]] = {}
    for tag, text in dataset.tags().items():
        name, mark, key = tag.partition("#")
        if mark and name not in ("NC_GLOBAL", variable):
            names.setdefault(name, {})[key] = text
    found: dict[str, _Coordinate] = {}
    for axis, known in AXIS_NAMES.items():
        likely = [name for name, attributes in names.items() if axis_by_attributes(attributes) == axis]
        likely += [name for name in names if name.rpartition("/")[2].lower() in known]
        for name in dict.fromkeys([*likely, *(() if likely else sorted(known))]):
            coordinate = _coordinate(layer, file, name, sizes=(dataset.width, dataset.height))
            if coordinate is not None:
                found[axis] = coordinate
                break
    return found if len(found) == 2 else {}


def _coordinate(layer: Layer, file: str, name: str, *, sizes: tuple[int, int]) -> _Coordinate | None:
    """A one-dimensional variable as long as the raster is wide or high; None if it is none."""
    try:
        with open_raster(f'NETCDF:"{file}":{name}') as dataset:
            if dataset.height != 1 or dataset.count != 1 or dataset.width not in sizes or dataset.width < 2:
                return None
            raw, attributes = dataset.read(1).ravel(), dataset.tags(1)
    except GDAL_ERRORS:
        return None
    centres = coordinate_values(raw, attributes, name, layer.where)
    # GDAL takes coordinates for even that are rounded to a few decimals.
    evenly_spaced(centres, name, layer.where, rounding=np.inf)
    return _Coordinate(name, centres, attributes.get("units", ""))


def _lies_along_columns(coordinate: _Coordinate, raster: Any) -> bool:
    a, c = raster.transform.a, raster.transform.c
    return coordinate.lies_along(c + a / 2, c + a * (len(coordinate.centres) - 0.5))


def _lies_along_rows(coordinate: _Coordinate, raster: Any) -> bool:
    e, f = raster.transform.e, raster.transform.f
    return coordinate.lies_along(f + e / 2, f + e * (len(coordinate.centres) - 0.5))


def _is_transposed(axes: Mapping[str, _Coordinate], dataset: rasterio.DatasetReader) -> bool:
    x, y = axes["x"], axes["y"]
    if (len(y.centres), len(x.centres)) != (dataset.width, dataset.height):
        return False
    if _lies_along_columns(x, dataset) and _lies_along_rows(y, dataset):
        return False
    return len(x.centres) != len(y.centres) or (_lies_along_columns(y, dataset) and _lies_along_rows(x, dataset))
