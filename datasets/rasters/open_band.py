"""Opens a band of a raster as a layer and checks that it can be used.

Reading by window is in `datasets/rasters/band.py`, the pass over all pixels in `datasets/rasters/scan.py`, polygons in
`datasets/ground/area_of_interest.py`, nodata rules in `datasets/rasters/nodata.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform
from rasterio.warp import transform as transform_points

from datasets.ground.area_of_interest import AreaOfInterest
from datasets.ground.grid import GDAL_ERRORS, Grid, crs_agree
from datasets.layers.hdf5 import require_whole_hdf5
from datasets.layers.kinds import CLASSES, check_layer_kind, kind_of
from datasets.layers.layer import Layer
from datasets.layers.paths import file_of, is_plain_path, parse_array_path, sheet_paths
from datasets.rasters.band import BandSource, RasterBand
from datasets.rasters.cf_attributes import limits_rule
from datasets.rasters.complete_files import require_complete_files
from datasets.rasters.coordinates import check_coordinates, source_bounds
from datasets.rasters.gdal_netcdf import read_netcdf_variable
from datasets.rasters.gxf_values import require_all_values
from datasets.rasters.handles import open_raster
from datasets.rasters.ignored_headers import check_rotation_and_sense, gxf_scale_offset, sidecar_crs
from datasets.rasters.legend import has_category_names
from datasets.rasters.missing_ground import missing_ground
from datasets.rasters.nodata import HUGE, in_dtype, listed, stored_values
from datasets.rasters.sheet_mosaic import OpenedSource, open_sheets, require_agreement
from datasets.rasters.xarray_band import open_xarray_source

# Rotation or shear that displaces no pixel by more than this fraction of a pixel is rounding.
_SHEAR = 1e-3
# CRS units. Pixels below it are memory that was never written, which formats without a geotransform may show.
_LEAST_PIXEL = 1e-300
_MOST_COARSER = 3.0
"""Times that pixels may grow where a layer is brought to another CRS."""


def open_band(layer: Layer, *, reproject_to: CRS | None = None, aoi: AreaOfInterest | None = None) -> RasterBand:
    """Open a layer's file, check that the band can be used, and close the file again.

    Args:
        layer: which band of which file.
        reproject_to: CRS in which the band is wanted: if its own differs, or its grid is rotated, it is
            warped as it is read (bilinear). None: as it is.
        aoi: polygons outside which pixels are invalid, in the CRS of the resulting grid.

    Returns:
        The band; south-up files are presented north up.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be opened or used; the message says why and what to do.
    """
    if parse_array_path(layer.path) is not None:
        return _open_array(layer, reproject_to, aoi)
    if len(sheet_paths(layer.path)) > 1:
        source, stated, rule, notes = open_sheets(layer, _open_source)
        grid, warped = _grid_of(source, reproject_to, lambda target: _reprojected_grid(source, None, target))
        return _band_of(source, grid, warped=warped, aoi=aoi, stated=stated, rule=rule, notes=notes)
    with rasterio.Env(), _opened(layer) as dataset:  # the Env logs GDAL's remarks
        source, stated, rule, notes = _read_source(layer, dataset)
        grid, warped = _grid_of(source, reproject_to, lambda target: _reprojected_grid(source, dataset, target))
    return _band_of(source, grid, warped=warped, aoi=aoi, stated=stated, rule=rule, notes=notes)


def check_sheets(layers: Sequence[Layer]) -> None:
    """Check that sheets which a directory holds agree where they overlap.

    Raises:
        ValueError: they do not; the message has both readings and how to choose. Or a sheet cannot be used.
    """
    for layer in layers:
        if len(sheet_paths(layer.path)) > 1:
            require_agreement(open_sheets(layer, _open_source)[0])


def _open_source(layer: Layer) -> OpenedSource:
    with rasterio.Env(), _opened(layer) as dataset:
        return _read_source(layer, dataset)


def _read_source(layer: Layer, dataset: rasterio.DatasetReader) -> OpenedSource:
    """Check that a band can be used.

    Returns:
        The source; the stored values stated as no data; what is invalid, in words; notes.
    """
    _check_band(layer, dataset)
    require_complete_files(layer, dataset)
    layer, signs = _recognise_classes(layer, dataset)
    netcdf = read_netcdf_variable(layer, dataset) if dataset.driver == "netCDF" else None
    crs = _checked_crs(layer, dataset)
    stated, rule, notes = _nodata(layer, dataset, more=netcdf.fill_values(layer) if netcdf else ())
    nodata = stored_values(stated, dataset.dtypes[layer.band - 1])
    source = _make_source(layer, dataset, crs=crs, nodata=nodata)
    if netcdf is not None:
        source, remarks = netcdf.corrected(source)
        rule += limits_rule(source.limits)
        notes += remarks
    notes += check_coordinates(source)
    notes += signs + missing_ground(layer, dataset)
    return source, stated, rule, notes


def _open_array(layer: Layer, reproject_to: CRS | None, aoi: AreaOfInterest | None) -> RasterBand:
    """The band of a variable that xarray opens."""
    source, stated, rule, notes = open_xarray_source(layer)
    check_layer_kind(source.layer)
    source = replace(source, nodata=stored_values(stated, source.dtype))
    notes += check_coordinates(source)
    grid, warped = _grid_of(source, reproject_to, lambda crs: _reprojected_grid(source, None, crs))
    return _band_of(source, grid, warped=warped, aoi=aoi, stated=stated, rule=rule, notes=notes)


def _grid_of(source: BandSource, reproject_to: CRS | None, propose: Callable[[CRS], Grid]) -> tuple[Grid, bool]:
    """The grid that a band is read on, and whether it is warped to that grid.

    Raises:
        ValueError: the file's grid is rotated, and nothing asks for warping.
    """
    grid, layer = _native_grid(source), source.layer
    if grid is None and reproject_to is None:
        raise ValueError(
            f"{layer.where}: its grid is rotated or sheared (transform "
            f"{listed(tuple(source.transform)[:6])}), expected rows that run east-west; add --reproject "
            "to warp it while reading, or run gdalwarp on it first"
        )
    if grid is not None and reproject_to is not None and crs_agree(grid, reproject_to):
        grid = replace(grid, crs=reproject_to)
    warped = grid is None or (reproject_to is not None and grid.crs != reproject_to)
    if grid is None or (reproject_to is not None and warped):
        assert reproject_to is not None
        grid = propose(reproject_to)
    return grid, warped


def _band_of(
    source: BandSource,
    grid: Grid,
    *,
    warped: bool,
    aoi: AreaOfInterest | None,
    stated: Sequence[float],
    rule: list[str],
    notes: list[str],
) -> RasterBand:
    rule += ["mask band"] * source.has_mask + ["alpha band"] * bool(source.alpha)
    if np.dtype(source.dtype).kind == "f":
        rule += ["not finite", f"|value| >= {HUGE:g}"]
    return RasterBand(
        layer=source.layer,
        grid=grid,
        dtype=source.dtype,
        nodata=source.nodata,
        nodata_rule="; ".join(rule) or "every pixel is valid",
        scale=source.scale,
        offset=source.offset,
        notes=notes,
        source=source,
        warped=warped,
        aoi=aoi,
        stated=tuple(stated),
    )


def layer_crs(layer: Layer) -> CRS:
    """Return the CRS of a layer's file, also where its grid is rotated.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be opened, or has no CRS or no geotransform.
    """
    if parse_array_path(layer.path) is not None:
        return open_xarray_source(layer)[0].crs
    layer = replace(layer, path=sheet_paths(layer.path)[0])
    with _opened(layer) as dataset:
        return _checked_crs(layer, dataset)


def _opened(layer: Layer) -> rasterio.DatasetReader:
    if is_plain_path(layer.path) and not Path(layer.path).exists():
        raise FileNotFoundError(f"{layer.where}: no such file; check the path (current folder: {Path.cwd()})")
    try:
        require_whole_hdf5(file_of(layer.path))
        return open_raster(layer.path)
    except GDAL_ERRORS as error:
        raise ValueError(
            f"{layer.where}: cannot be opened as a raster ({error}); it may be damaged, incomplete or of a "
            "format unknown to GDAL: restore it from a good copy, or leave it out"
        ) from error


def _check_band(layer: Layer, dataset: rasterio.DatasetReader) -> None:
    if not 1 <= layer.band <= dataset.count:
        held = f"{dataset.count} band(s)"
        if dataset.subdatasets:
            held += f" of its own, but the subdatasets {', '.join(dataset.subdatasets)}"
        raise ValueError(f"{layer.where}: there is no band {layer.band}, the file has {held}; correct 'band' or 'path'")
    dtype = dataset.dtypes[layer.band - 1]
    if "complex" in dtype:
        raise ValueError(
            f"{layer.where}: complex numbers ({dtype}), expected real ones; write their amplitude or phase "
            "to a file of its own"
        )
    if dataset.width < 1 or dataset.height < 1:
        raise ValueError(
            f"{layer.where}: {dataset.height} rows x {dataset.width} columns, expected at least one pixel; leave it out"
        )
    if dataset.colorinterp[layer.band - 1] == ColorInterp.alpha:
        raise ValueError(f"{layer.where}: an alpha band, which is a mask, expected measurements; choose another band")
    scale, offset = dataset.scales[layer.band - 1], dataset.offsets[layer.band - 1]
    if not (math.isfinite(scale) and math.isfinite(offset)) or scale == 0:
        raise ValueError(
            f"{layer.where}: scale {scale:g} and offset {offset:g}, expected finite numbers and a scale "
            "other than 0; correct its metadata (gdal_edit.py -scale -offset)"
        )


def _recognise_classes(layer: Layer, dataset: rasterio.DatasetReader) -> tuple[Layer, list[str]]:
    """The layer, made categorical if the file declares classes and no kind is stated; and a note about that.

    Raises:
        ValueError: class codes have a scale or offset, or the table's settings do not suit the kind.
    """
    sign = _sign_of_classes(layer, dataset) if layer.has_default_kind else ""
    if sign:
        layer = replace(layer, kind=CLASSES)
    check_layer_kind(layer)
    scale, offset = dataset.scales[layer.band - 1], dataset.offsets[layer.band - 1]
    if kind_of(layer).is_classes and (scale, offset) != (1.0, 0.0):
        raise ValueError(
            f"{layer.where}: scale {scale:g} and offset {offset:g}, expected none on class codes (kind categorical); "
            "remove them, or set kind=continuous in layers.csv if these are measurements"
        )
    if not sign:
        return layer, []
    return layer, [
        f"the band has {sign}: taken for a layer of kind categorical; set kind=continuous in layers.csv if its numbers "
        "are measurements"
    ]


def _sign_of_classes(layer: Layer, dataset: rasterio.DatasetReader) -> str:
    """What in a file shows that its numbers are classes; empty if nothing does."""
    try:
        dataset.colormap(layer.band)
        return "a colour table"
    except ValueError:  # rasterio raises it if there is none
        if dataset.tags(layer.band).get("LAYER_TYPE", "") == "thematic":
            return "the layer type 'thematic'"
        whole = np.dtype(dataset.dtypes[layer.band - 1]).kind in "iu"
        return "category names" if whole and has_category_names(dataset, layer.band) else ""


def _checked_crs(layer: Layer, dataset: rasterio.DatasetReader) -> CRS:
    check_rotation_and_sense(layer, dataset)
    require_all_values(layer, dataset)
    if dataset.transform.is_identity or not _is_geotransform(dataset.transform):
        remedy = "set it (gdal_edit.py -a_ullr or rio edit-info --transform), or leave the file out"
        if dataset.gcps[0] or dataset.rpcs:
            remedy = "it has control points: run gdalwarp on it"
        elif dataset.tags(ns="GEOLOCATION"):
            remedy = "its coordinates are two-dimensional (curvilinear): run gdalwarp -geoloc on it"
        elif dataset.driver == "netCDF":  # GDAL needs their attributes, xarray does not
            file, variable = file_of(layer.path), dataset.tags(layer.band).get("NETCDF_VARNAME", "")
            remedy = (
                "give its coordinates the attributes standard_name and units, or read it through xarray: "
                f"--dataset_type xarray --data_path {file}#{variable} (xarray:{file}#{variable} in a table of layers)"
            )
        raise ValueError(f"{layer.where}: has no geotransform, expected pixels with a place on the ground; {remedy}")
    crs = dataset.crs or (sidecar_crs(layer.path) if is_plain_path(layer.path) else None)
    if not crs:
        raise ValueError(
            f"{layer.where}: has no CRS, expected a coordinate reference system; set the one it was made in "
            "(gdal_edit.py -a_srs EPSG:... FILE, or rio edit-info --crs EPSG:... FILE), or put a .prj beside the file"
        )
    return crs


def _is_geotransform(transform: Affine) -> bool:
    """False for numbers that are not finite or give pixels no size, as a format without a transform may show."""
    a, b, c, d, e, f = tuple(transform)[:6]
    finite = all(math.isfinite(number) for number in (a, b, c, d, e, f))
    return finite and min(max(abs(a), abs(d)), max(abs(b), abs(e))) > _LEAST_PIXEL


def _nodata(
    layer: Layer, dataset: rasterio.DatasetReader, *, more: Sequence[float] = ()
) -> tuple[list[float], list[str], list[str]]:
    """The values stated as nodata, the same in words, and notes; `more` are declared besides GDAL's own value."""
    dtype = dataset.dtypes[layer.band - 1]
    values: list[float] = []
    rule: list[str] = []
    notes: list[str] = []
    for declared in (dataset.nodatavals[layer.band - 1], *(value for value in more if not math.isnan(value))):
        if declared is None or in_dtype(declared, dtype) in [in_dtype(value, dtype) for value in values]:
            continue
        if in_dtype(declared, dtype) is None:
            notes.append(f"declares nodata {declared:.9g}, which no pixel of type {dtype} can hold: it matches nothing")
        else:
            values.append(declared)
            rule.append(f"declared {declared:.9g}")
    if layer.nodata is not None:
        if in_dtype(layer.nodata, dtype) is None:
            raise ValueError(
                f"{layer.where}: given nodata {layer.nodata:.9g}, expected a value that a pixel of type "
                f"{dtype} can hold (stored value, before scale and offset); correct or remove it"
            )
        values.append(layer.nodata)
        rule.append(f"given {layer.nodata:.9g}")
    return values, rule, notes


def _make_source(layer: Layer, dataset: rasterio.DatasetReader, *, crs: CRS, nodata: tuple[float, ...]) -> BandSource:
    index = layer.band - 1
    flags = set(dataset.mask_flag_enums[index])
    colours = dataset.colorinterp
    scale, offset = gxf_scale_offset(dataset)
    return BandSource(
        layer=layer,
        crs=crs,
        transform=dataset.transform,
        rows=dataset.height,
        cols=dataset.width,
        dtype=dataset.dtypes[index],
        scale=dataset.scales[index] * scale,
        offset=dataset.offsets[index] + dataset.scales[index] * offset,
        nodata=nodata,
        # The alpha band is read explicitly: GDAL ignores it where nodata is declared as well. Declared nodata that
        # rasterio does not report, as the largest numbers of 64 bits, is known to GDAL's own mask.
        has_mask=not (
            (flags == {MaskFlags.nodata} and dataset.nodatavals[index] is not None)
            or flags & {MaskFlags.all_valid, MaskFlags.alpha}
        ),
        alpha=colours.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in colours else 0,
        block=dataset.block_shapes[index],
    )


def _native_grid(source: BandSource) -> Grid | None:
    """The file's own grid, north up; None if its rows do not run east-west."""
    transform = source.transform
    shift_x, shift_y = abs(transform.b) * source.rows, abs(transform.d) * source.cols
    if transform.a == 0 or transform.e == 0:
        return None
    if shift_x > _SHEAR * abs(transform.a) or shift_y > _SHEAR * abs(transform.e):
        return None
    return Grid(
        crs=source.crs,
        left=min(transform.c, transform.c + source.cols * transform.a),
        top=max(transform.f, transform.f + source.rows * transform.e),
        resolution_x=abs(transform.a),
        resolution_y=abs(transform.e),
        rows=source.rows,
        cols=source.cols,
    )


def _reprojected_grid(source: BandSource, dataset: rasterio.DatasetReader | None, crs: CRS) -> Grid:
    """The grid that GDAL proposes in another CRS.

    Raises:
        ValueError: its pixels are far larger than the file's own are there, as the proposal has to reach places that
            the CRS cannot show, such as the other pole.
    """
    grid = _proposed_grid(source, crs) if dataset is None else _warped_grid(source, dataset, crs)
    a, b, c, d, e, f = tuple(source.transform)[:6]
    middle, corners = (source.cols / 2, source.rows / 2), ((0, 0), (1, 0), (0, 1))  # of the pixel there
    places = [(middle[0] + right, middle[1] + down) for right, down in corners]
    places = [(a * col + b * row + c, d * col + e * row + f) for col, row in places]
    x, y = transform_points(source.crs, crs, *zip(*places, strict=True))
    own = max(math.hypot(x[k] - x[0], y[k] - y[0]) for k in (1, 2))
    if math.isfinite(own) and own > 0 and grid.resolution_x > _MOST_COARSER * own:
        raise ValueError(
            f"{source.layer.where}: in {crs.to_string()[:60]} its pixels would be {grid.resolution_x:.6g} instead of "
            f"some {own:.6g}, as it reaches far beyond the area of that CRS; cut it to the survey first (gdalwarp -te "
            "WEST SOUTH EAST NORTH -te_srs EPSG:4326, or rio clip)"
        )
    return grid


def _warped_grid(source: BandSource, dataset: rasterio.DatasetReader, crs: CRS) -> Grid:
    """The grid that GDAL proposes for a dataset in another CRS: about as many pixels, square, north up."""
    if source.transform != dataset.transform:
        return _proposed_grid(source, crs)
    try:
        with WarpedVRT(dataset, src_crs=source.crs, crs=crs) as vrt:
            transform, rows, cols = vrt.transform, vrt.height, vrt.width
    except GDAL_ERRORS as error:
        raise ValueError(
            f"{source.layer.where}: cannot be brought from {source.crs.to_string()[:60]} to {crs.to_string()[:60]} "
            f"({error}); check that its CRS is right, or reproject it first"
        ) from error
    return Grid(crs, transform.c, transform.f, transform.a, -transform.e, rows, cols)


def _proposed_grid(source: BandSource, crs: CRS) -> Grid:
    """The grid that GDAL proposes for a source that has no file GDAL could open."""
    left, bottom, right, top = source_bounds(source)
    try:
        transform, cols, rows = calculate_default_transform(
            source.crs, crs, source.cols, source.rows, left=left, bottom=bottom, right=right, top=top
        )
    except GDAL_ERRORS as error:
        raise ValueError(
            f"{source.layer.where}: cannot be brought from {source.crs.to_string()[:60]} to {crs.to_string()[:60]} "
            f"({error}); check that its CRS is right, or reproject it first"
        ) from error
    return Grid(crs, transform.c, transform.f, transform.a, -transform.e, rows, cols)
