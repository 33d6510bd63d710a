"""Variables of zarr stores, netCDF files and whatever else xarray opens, as layers: read by window, as stored.

`XarrayBandSource` stands in for the `BandSource` of a raster file: orientation, warping, polygons, nodata and the scan
are shared with rasters, and the same survey gives identical pixels.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PureWindowsPath
from typing import Any

import numpy as np

from datasets.layers.kinds import CLASSES, kind_of
from datasets.layers.layer import Layer
from datasets.layers.paths import ArrayPath, clean_label, is_remote, parse_array_path
from datasets.rasters.band import BandSource
from datasets.rasters.cf_attributes import actual_dtype, fill_values, limits_rule, number, valid_limits
from datasets.rasters.chunk_cache import CHUNKS
from datasets.rasters.nodata import in_dtype, invalid_pixels, listed, stored_values
from datasets.rasters.retry import with_retries
from datasets.rasters.xarray_georeference import VariableGeoreference, other_dims, variable_georeference
from datasets.rasters.xarray_store import missing_chunks, open_groups

logger = logging.getLogger(__name__)

_NOT_DATA = ("bounds", "climatology", "grid_mapping", "ancillary_variables", "cell_measures")


@dataclass(frozen=True)
class XarrayBandSource(BandSource):
    """One variable in its own pixel frame, as stored. Picklable, holds no handle.

    Attributes:
        y_dim: dimension of rows.
        x_dim: dimension of columns.
        layer_dim: third dimension, along which the layer's band counts from 1; None if there is none.
        missing: (row, col, rows, cols) of chunks that the store lacks, whose pixels are invalid.
    """

    y_dim: str = ""
    x_dim: str = ""
    layer_dim: str | None = None
    missing: tuple[tuple[int, int, int, int], ...] = ()

    def read_stored(self, row: int, col: int, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the variable.

        Returns:
            (rows, cols) in its type, and a boolean array of invalid pixels, or None if none can be invalid.

        Raises:
            OSError: the window cannot be read, after as many attempts as `retry` makes; names layer, store and window.
        """
        what = f"{self.layer.where}: rows {row} to {row + rows - 1}, columns {col} to {col + cols - 1} of the variable"
        path = self.layer.path
        named = parse_array_path(path)
        assert named is not None
        try:
            raw = CHUNKS.read(
                (path, self.layer.band),
                (row, col, rows, cols),
                chunk=self.block,
                shape=(self.rows, self.cols),
                dtype=self.dtype,
                read=lambda *block: with_retries(lambda: self._values(named, *block), path=path, what=what),
            )
        except Exception as error:  # every backend and codec has its own
            remedy = "check the network and its server" if is_remote(path) else "restore it from a good copy"
            raise OSError(
                f"{what} cannot be read ({type(error).__name__}: {error}); a chunk may be damaged or missing: {remedy}"
            ) from error
        invalid = self.invalid_stored(raw)
        for top, left, height, width in self.missing:
            if top < row + rows and row < top + height and left < col + cols and col < left + width:
                invalid = np.zeros(raw.shape, dtype=bool) if invalid is None else invalid
                first_row, first_col = max(top - row, 0), max(left - col, 0)
                invalid[first_row : top + height - row, first_col : left + width - col] = True
        return raw, invalid

    def _values(self, named: ArrayPath, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        variable = open_groups(named.store)[named.group].variables[named.name]
        window: dict[Any, Any] = {dim: 0 for dim in variable.dims}
        window |= {self.y_dim: slice(row, row + rows), self.x_dim: slice(col, col + cols)}
        if self.layer_dim is not None:
            window[self.layer_dim] = self.layer.band - 1
        raw = np.asarray(variable[window].transpose(self.y_dim, self.x_dim).values)
        if raw.dtype.kind == "b":
            return raw.astype(np.uint8)
        raw = raw.astype(raw.dtype.newbyteorder("="), copy=False)
        return raw.view(self.dtype)


def open_xarray_source(layer: Layer) -> tuple[XarrayBandSource, list[float], list[str], list[str]]:
    """Open a variable as a layer: read its coordinates and attributes, but no values.

    Returns:
        The source; the stored values declared as no data; what is invalid, in words; warnings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the store cannot be opened, or the variable not used; the message says why and what to do.
    """
    named = parse_array_path(layer.path)
    assert named is not None
    groups = open_groups(named.store)
    if named.group not in groups or named.name not in groups[named.group].variables:
        have = ", ".join(_variables(groups)) or "none"
        raise ValueError(f"{layer.where}: there is no variable '{named.variable}', the store has: {have}; correct it")
    variable = groups[named.group].variables[named.name]
    _check_type(variable, layer.where)
    place = variable_georeference(groups, named.group, named.name, crs=named.crs, where=layer.where)
    layer_dim = _layer_dim(layer, place, groups[named.group].sizes)
    attributes = variable.attrs
    dtype = "uint8" if variable.dtype.kind == "b" else actual_dtype(attributes, variable.dtype).name
    stated, rule, notes = _nodata(layer, attributes, dtype, variable.dtype)
    if "flag_values" in attributes and layer.has_default_kind:
        layer = replace(layer, kind=CLASSES)
        notes.append(
            "the variable has flag_values: taken for a layer of kind categorical; set kind=continuous in layers.csv if "
            "its numbers are measurements"
        )
    missing, more = _missing_chunks(layer, named, variable, place, stored_values(stated, dtype))
    notes += more
    if missing:
        rule.append("in chunks that are missing from the store")
    scale, offset = _scale_and_offset(layer, attributes)
    limits, warnings_of_limits = valid_limits(attributes, variable.dtype, layer.where)
    notes += warnings_of_limits
    rule += limits_rule(limits)
    source = XarrayBandSource(
        layer=layer,
        crs=place.crs,
        transform=place.transform,
        rows=place.rows,
        cols=place.cols,
        dtype=dtype,
        scale=scale,
        offset=offset,
        nodata=(),
        has_mask=False,
        alpha=0,
        block=_chunk(variable, place),
        y_dim=place.y_dim,
        x_dim=place.x_dim,
        layer_dim=layer_dim,
        missing=missing,
        limits=limits,
    )
    return source, stated, rule, [*notes, *place.notes]


def _scale_and_offset(layer: Layer, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Scale and offset of stored numbers.

    Raises:
        ValueError: they are not finite, the scale is 0, or class codes have any.
    """
    scale = number(attributes, "scale_factor", 1.0, layer.where)
    offset = number(attributes, "add_offset", 0.0, layer.where)
    if not (math.isfinite(scale) and math.isfinite(offset)) or scale == 0:
        raise ValueError(
            f"{layer.where}: scale_factor {scale:g} and add_offset {offset:g}, expected finite numbers and a scale "
            "other than 0; correct its attributes"
        )
    if kind_of(layer).is_classes and (scale, offset) != (1.0, 0.0):
        raise ValueError(
            f"{layer.where}: scale_factor {scale:g} and add_offset {offset:g}, expected none on class codes (kind "
            "categorical); remove them, or set kind=continuous in layers.csv if these are measurements"
        )
    return scale, offset


def layers_of_stores(paths: Sequence[str], *, layer_dim: str | None = None, crs: str | None = None) -> list[Layer]:
    """A layer for every variable with rows and columns, or for every element along a third dimension.

    Args:
        paths: stores, each a file, folder or URL that xarray opens; `STORE#VARIABLE` takes one variable of it.
        layer_dim: the third dimension whose elements are layers.
        crs: CRS to use where a store states none.

    Returns:
        The layers in the order of the stores; within one, sorted by group and name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a store cannot be opened, holds nothing that can be used, or names do not tell layers apart.
    """
    layers: list[Layer] = []
    dims: set[str] = set()
    for path in paths:
        named = parse_array_path(path if path.startswith("xarray:") else f"xarray:{path}")
        assert named is not None
        groups = open_groups(named.store)
        wanted = [named.variable] if named.variable else _variables(groups)
        found = []
        for variable in wanted:
            each = replace(named, variable=variable, crs=named.crs or crs)
            found += _layers_of_variable(groups, each, layer_dim, explicit=bool(named.variable))
        if not found:
            raise ValueError(
                f"{named.store}: no variable with rows and columns among {', '.join(wanted) or 'nothing'}; expected at "
                "least one with coordinates such as x and y, or lon and lat"
            )
        layers += found
        dims |= {str(dim) for group in groups.values() for dim in group.dims}
    if layer_dim is not None and layer_dim not in dims:
        raise ValueError(f"--layer_dim {layer_dim}: no such dimension; there are {', '.join(sorted(dims))}")
    return _named_apart(layers)


def _variables(groups: Mapping[str, Any]) -> list[str]:
    """Paths of all data variables, sorted by group and name; those that only describe others are left out."""
    names = []
    for path, dataset in sorted(groups.items()):
        described = {
            word.rstrip(":")
            for variable in dataset.variables.values()
            for key in _NOT_DATA
            for word in str(variable.attrs.get(key, variable.encoding.get(key, ""))).split()
        }
        names += [f"{path.strip('/')}/{name}".strip("/") for name in sorted(dataset.data_vars) if name not in described]
    return names


def _layers_of_variable(
    groups: Mapping[str, Any], named: ArrayPath, layer_dim: str | None, *, explicit: bool
) -> list[Layer]:
    layer = Layer(name=clean_label(named.name), path=str(named))
    if named.group not in groups or named.name not in groups[named.group].variables:
        open_xarray_source(layer)  # says what there is
    variable = groups[named.group].variables[named.name]
    others = other_dims(groups, named.group, named.name)
    if others is None:
        if explicit:
            variable_georeference(groups, named.group, named.name, crs=named.crs, where=layer.where)
        dims = ", ".join(map(str, variable.dims)) or "none"
        logger.info("%s: no rows and columns (dimensions %s), not used", layer.where, dims)
        return []
    _check_type(variable, layer.where)
    layer = replace(layer, units=str(variable.attrs.get("units", "")))
    if not others:
        return [layer]
    if others != (layer_dim,):
        sizes = ", ".join(f"'{dim}' of {groups[named.group].sizes[dim]}" for dim in others)
        remedy = f"add --layer_dim {others[0]} for a layer each" if len(others) == 1 else "choose elements of it first"
        raise ValueError(
            f"{layer.where}: besides rows and columns it has the dimension {sizes}, expected none"
            f"{f' or {layer_dim}' if layer_dim else ''}; {remedy}"
        )
    labels = _labels(groups[named.group], others[0])
    return [replace(layer, name=f"{layer.name}_{label}", band=number) for number, label in enumerate(labels, start=1)]


def _labels(dataset: Any, dim: str) -> list[str]:
    """Names of the elements along a dimension: its coordinate if that is text or whole numbers, else b1, b2, ..."""
    count = dataset.sizes[dim]
    if dim in dataset.variables:
        values = np.asarray(dataset.variables[dim].values)
        labels = [clean_label(str(value)) for value in values] if values.dtype.kind in "iuUOTS" else []
        if len(set(labels)) == count and all(labels):
            return labels
    return [f"b{number}" for number in range(1, count + 1)]


def _named_apart(layers: list[Layer]) -> list[Layer]:
    """Put the group, then the store before the names of layers that share one."""
    for level in ("group", "store"):
        counts = Counter(layer.name for layer in layers)
        for k, layer in enumerate(layers):
            named = parse_array_path(layer.path)
            assert named is not None
            store = PureWindowsPath(named.store).name.partition(".")[0]  # it knows slashes, too
            prefix = named.group if level == "group" else store
            if counts[layer.name] > 1 and prefix.strip("/"):
                layers[k] = replace(layer, name=f"{clean_label(prefix.strip('/').replace('/', '_'))}_{layer.name}")
    for name, count in Counter(layer.name for layer in layers).items():
        if count > 1:
            paths = ", ".join(layer.path for layer in layers if layer.name == name)
            raise ValueError(f"--data_path: {count} layers are named '{name}' ({paths}); name each once, or rename one")
    return layers


def _check_type(variable: Any, where: str) -> None:
    if variable.dtype.kind not in "iufb":
        kinds = {**dict.fromkeys("USOT", "text"), "M": "times", "m": "durations", "c": "complex numbers"}
        raise ValueError(
            f"{where}: holds {kinds.get(variable.dtype.kind, 'no numbers')} (type {variable.dtype}), expected real "
            "numbers; name the variables to use, --data_path STORE#VARIABLE ..., or write it as numbers"
        )


def _layer_dim(layer: Layer, place: VariableGeoreference, sizes: Mapping[Any, int]) -> str | None:
    if len(place.others) > 1:
        raise ValueError(
            f"{layer.where}: besides rows and columns it has the dimensions {', '.join(place.others)}, expected at "
            "most one; choose elements of the others first"
        )
    if not place.others:
        if layer.band != 1:
            raise ValueError(f"{layer.where}: there is no band {layer.band}, it has rows and columns only; correct it")
        return None
    if not 1 <= layer.band <= sizes[place.others[0]]:
        count = sizes[place.others[0]]
        raise ValueError(
            f"{layer.where}: there is no band {layer.band}, dimension '{place.others[0]}' has {count}; correct it"
        )
    return place.others[0]


def _nodata(
    layer: Layer, attributes: Mapping[str, Any], dtype: str, stored: np.dtype
) -> tuple[list[float], list[str], list[str]]:
    """The values stated to mean no data, the same in words, and warnings."""
    declared = fill_values(attributes, stored, layer.where)
    fits = [value for value in declared if in_dtype(value, dtype) is not None]
    notes = [
        f"declares nodata {value:.9g}, which no pixel of type {dtype} can hold: it matches nothing"
        for value in declared
        if value not in fits and not math.isnan(value)
    ]
    rule = [f"declared {listed(fits)}"] if fits else []
    if layer.nodata is not None:
        if in_dtype(layer.nodata, dtype) is None:
            raise ValueError(
                f"{layer.where}: given nodata {layer.nodata:.9g}, expected a value that a pixel of type {dtype} can "
                "hold (stored value, before scale and offset); correct or remove it"
            )
        fits.append(layer.nodata)
        rule.append(f"given {layer.nodata:.9g}")
    return fits, rule, notes


def _missing_chunks(
    layer: Layer, named: ArrayPath, variable: Any, place: VariableGeoreference, nodata: Sequence[float]
) -> tuple[tuple[tuple[int, int, int, int], ...], list[str]]:
    """(row, col, rows, cols) of chunks that a zarr store lacks and whose pixels are to be invalid; and a warning.

    Class codes keep the fill value there: chunks of one class alone are common, and zarr leaves out those that hold
    nothing but the fill value.
    """
    dims = list(variable.dims)
    row_axis, col_axis = dims.index(place.y_dim), dims.index(place.x_dim)
    chunks = variable.encoding.get("shards") or variable.encoding.get("chunks")
    if chunks is None:
        return (), []
    index = {
        k: (layer.band - 1) // chunks[k] if dim in place.others else 0
        for k, dim in enumerate(dims)
        if k not in (row_axis, col_axis)
    }
    found = missing_chunks(named.store, named.variable, index=index)
    if found is None or not found.places:
        return (), []
    fill = np.atleast_1d(np.asarray(0 if found.fill_value is None else found.fill_value))
    if invalid_pixels(fill, nodata) is not None:
        return (), []  # they read as nodata anyway
    remark = (
        f"{len(found.places)} of {found.checked} chunks are missing from the store: copying it was cut short, or "
        f"they held nothing but the fill value {fill[0]}, which zarr leaves out; "
    )
    if kind_of(layer).is_classes:
        return (), [remark + f"class {fill[0]} is read there; copy the store again if it should be complete"]
    height, width = found.shape[row_axis], found.shape[col_axis]
    blocks = tuple((at[row_axis] * height, at[col_axis] * width, height, width) for at in found.places)
    return blocks, [
        remark + "their pixels are invalid; copy the store again, or, if the fill value is data there, write it with "
        "write_empty_chunks=True (an argument of to_zarr)"
    ]


def _chunk(variable: Any, place: VariableGeoreference) -> tuple[int, int]:
    """(rows, cols) of a chunk; of the whole variable if it is stored in one piece."""
    chunks = variable.encoding.get("preferred_chunks") or {}
    return int(chunks.get(place.y_dim, place.rows)), int(chunks.get(place.x_dim, place.cols))
