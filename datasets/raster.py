"""Rasters as layers: opening a band and checking that it can be used.

Reading by window is in `datasets/band.py`, the pass over all pixels in `datasets/scan.py`, polygons in
`datasets/aoi.py`, nodata rules in `datasets/validity.py`; their public names are offered here too.
"""

from __future__ import annotations

import math
import uuid
import warnings
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from datasets.aoi import Aoi, load_aoi
from datasets.band import Grid, RasterBand, Source, close_datasets
from datasets.layers import Layer
from datasets.scan import SCAN_PIXELS, BandSummary, scan, with_dummies
from datasets.validity import HUGE, in_dtype, listed, stored_values

__all__ = [
    "SCAN_PIXELS",
    "Aoi",
    "BandSummary",
    "Grid",
    "RasterBand",
    "close_datasets",
    "crs_agree",
    "layer_crs",
    "load_aoi",
    "open_band",
    "scan",
    "with_dummies",
]

# Rotation or shear that displaces no pixel by more than this share of a pixel is rounding.
_SHEAR = 1e-3
# A dataset whose places in two CRS differ by less than this share of a pixel is in both.
_CRS_SHARE = 0.01
# Formats whose size follows from the header: a shorter file is incomplete, though GDAL reads zeros for what
# is missing.
_RAW_DRIVERS = (
    "ENVI",
    "EHdr",
    "ERS",
    "GSBG",
    "GS7BG",
    "RST",
    "netCDF",
    "BT",
    "PAux",
    "GTX",
    "ISCE",
    "ROI_PAC",
    "RRASTER",
)
_COMPRESSED = (b"\x1f\x8b", b"\x89HDF")


def open_band(layer: Layer, *, reproject_to: CRS | None = None, aoi: Aoi | None = None) -> RasterBand:
    """Open a layer's file, check that it can be used, and close it again.

    Args:
        layer: which band of which file.
        reproject_to: CRS in which the band is wanted: if its own differs, or its grid is rotated, it is
            warped as it is read. None: as it is.
        aoi: polygons outside which pixels are invalid, in the CRS of the resulting grid.

    Returns:
        The band; south-up files are presented north up.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be opened, or is of a kind that cannot be used: the message says why and what to
            do.
    """
    _check_kind(layer)
    with _opened(layer) as dataset:
        notes: list[str] = []
        source, rule = _make_source(layer, dataset, notes)
        own_grid = _native_grid(source)
        if own_grid is not None and reproject_to is not None and crs_agree(own_grid, reproject_to):
            own_grid = replace(own_grid, crs=reproject_to)
        warped = own_grid is None or (reproject_to is not None and own_grid.crs != reproject_to)
        if own_grid is None and reproject_to is None:
            raise ValueError(
                f"{layer.where}: its grid is rotated or sheared (transform "
                f"{listed(tuple(source.transform)[:6])}), expected rows that run "
                "east-west; add --reproject to turn it while reading, or run gdalwarp on it first"
            )
        grid = _warped_grid(layer, dataset, reproject_to) if warped and reproject_to is not None else own_grid
    assert grid is not None
    return RasterBand(
        layer=layer,
        grid=grid,
        dtype=source.dtype,
        nodata=source.nodata,
        nodata_rule=rule,
        scale=source.scale,
        offset=source.offset,
        notes=notes,
        source=source,
        warped=warped,
        aoi=aoi,
    )


def layer_crs(layer: Layer) -> CRS:
    """Return the CRS of a layer's file, also where its grid is rotated.

    Raises:
        FileNotFoundError, ValueError: as `open_band`.
    """
    with _opened(layer) as dataset:
        return _checked_crs(layer, dataset)


def crs_agree(grid: Grid, crs: CRS) -> bool:
    """Return whether a grid lies at the same place when its coordinates are taken to be in ``crs``.

    The same CRS is often spelled differently by different formats; what counts is that no point of the grid's
    outline moves by more than a hundredth of a pixel.
    """
    if grid.crs == crs:
        return True
    if grid.crs.is_geographic != crs.is_geographic:
        return False
    left, bottom, right, top = grid.bounds
    xs = [left, (left + right) / 2, right] * 3
    ys = [bottom] * 3 + [(bottom + top) / 2] * 3 + [top] * 3
    try:
        there_x, there_y = transform_points(grid.crs, crs, xs, ys)
    except RasterioError:
        return False
    moved_x = np.abs(np.subtract(there_x, xs)) / grid.resolution_x
    moved_y = np.abs(np.subtract(there_y, ys)) / grid.resolution_y
    return bool(np.all(np.maximum(moved_x, moved_y) < _CRS_SHARE))


def _check_kind(layer: Layer) -> None:
    if layer.kind == "continuous":
        return
    if layer.kind in ("categorical", "circular"):
        raise ValueError(
            f"{layer.where}: kind is {layer.kind}, which is not supported yet (continuous only); leave the "
            f"layer out, or set "
            "kind=continuous in layers.csv if its numbers are measurements"
        )
    raise ValueError(f"{layer.where}: kind is '{layer.kind}', expected continuous, categorical or circular")


def _opened(layer: Layer) -> rasterio.DatasetReader:
    if not layer.path.startswith("/vsi") and ":" not in layer.path and not Path(layer.path).exists():
        raise FileNotFoundError(
            f"{layer.where}: no such file; check the path (the current folder is {Path.cwd()})"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(layer.path)
    except (RasterioError, OSError) as error:
        raise ValueError(
            f"{layer.where}: cannot be opened as a raster ({error}); it may be damaged, incomplete or of a "
            f"format unknown to GDAL: "
            "restore it from a good copy, or leave it out"
        ) from error


def _make_source(layer: Layer, dataset: rasterio.DatasetReader, notes: list[str]) -> tuple[Source, str]:
    where = layer.where
    if not 1 <= layer.band <= dataset.count:
        held = (
            f"{dataset.count} band(s)"
            if dataset.count
            else f"no bands of its own but subdatasets: {', '.join(dataset.subdatasets)}"
        )
        raise ValueError(
            f"{where}: there is no band {layer.band}, the file has {held}; correct 'band' or 'path'"
        )
    index = layer.band - 1
    dtype = dataset.dtypes[index]
    if "complex" in dtype:
        raise ValueError(
            f"{where}: complex numbers ({dtype}), expected real ones; write amplitude or phase to a file of "
            f"its own"
        )
    if dataset.width < 1 or dataset.height < 1:
        raise ValueError(
            f"{where}: {dataset.height} rows x {dataset.width} columns, expected at least one pixel"
        )
    interpretations = dataset.colorinterp
    if interpretations[index] == ColorInterp.alpha:
        raise ValueError(
            f"{where}: band {layer.band} is the alpha band, a mask, expected measurements; choose another "
            f"band"
        )
    _check_size(layer, dataset)
    _check_classes(layer, dataset)
    crs = _checked_crs(layer, dataset)
    scale, offset = dataset.scales[index], dataset.offsets[index]
    if not (math.isfinite(scale) and math.isfinite(offset)) or scale == 0:
        raise ValueError(
            f"{where}: scale {scale:g} and offset {offset:g}, expected finite numbers and a scale other than "
            f"0; correct its metadata"
        )
    nodata, rule = _nodata(layer, dataset, notes)
    flags = set(dataset.mask_flag_enums[index])
    alpha = interpretations.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in interpretations else 0
    has_mask = not (flags == {MaskFlags.nodata} or MaskFlags.all_valid in flags or MaskFlags.alpha in flags)
    rule += ["mask band"] * has_mask + ["alpha band"] * bool(alpha)
    if np.dtype(dtype).kind == "f":
        rule += ["not finite", f"|value| >= {HUGE:g}"]
    source = Source(
        layer=layer,
        crs=crs,
        transform=dataset.transform,
        rows=dataset.height,
        cols=dataset.width,
        dtype=dtype,
        scale=scale,
        offset=offset,
        nodata=nodata,
        has_mask=has_mask,
        alpha=alpha,
        block=dataset.block_shapes[index],
    )
    return source, "; ".join(rule) or "every pixel is valid"


def _nodata(
    layer: Layer, dataset: rasterio.DatasetReader, notes: list[str]
) -> tuple[tuple[float, ...], list[str]]:
    dtype = dataset.dtypes[layer.band - 1]
    declared = dataset.nodatavals[layer.band - 1]
    values, rule = [], []
    if declared is not None:
        if in_dtype(declared, dtype) is None:
            notes.append(
                f"declares nodata {declared:.9g}, which a pixel of type {dtype} cannot hold: no pixel "
                f"matches it"
            )
        else:
            values.append(declared)
            rule.append(f"declared {declared:.9g}")
    if layer.nodata is not None:
        if in_dtype(layer.nodata, dtype) is None:
            raise ValueError(
                f"{layer.where}: given nodata {layer.nodata:.9g}, which a pixel of type {dtype} cannot hold; "
                f"correct or remove it"
            )
        values.append(layer.nodata)
        rule.append(f"given {layer.nodata:.9g}")
    return stored_values(values, dtype), rule


def _checked_crs(layer: Layer, dataset: rasterio.DatasetReader) -> CRS:
    if dataset.transform.is_identity:
        remedy = (
            "run gdalwarp on it, it has control points"
            if dataset.gcps[0] or dataset.rpcs
            else "set it (gdal_edit.py -a_ullr), or leave the file out"
        )
        raise ValueError(
            f"{layer.where}: has no geotransform: its pixels have no place on the ground; {remedy}"
        )
    if not dataset.crs:
        raise ValueError(
            f"{layer.where}: has no CRS, expected a coordinate reference system; set the one it was made in "
            "(gdal_edit.py -a_srs EPSG:..., or a .prj file beside it)"
        )
    return dataset.crs


def _check_size(layer: Layer, dataset: rasterio.DatasetReader) -> None:
    """Refuse a raw file shorter than its pixels: GDAL takes what is missing for zeros in some formats."""
    if dataset.driver not in _RAW_DRIVERS:
        return
    files = [Path(name) for name in dataset.files if Path(name).is_file()]
    size = max((file.stat().st_size for file in files), default=0)
    expected = dataset.width * dataset.height * sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    if not files or size >= expected:
        return
    largest = max(files, key=lambda file: file.stat().st_size)
    with open(largest, "rb") as stream:
        if stream.read(4).startswith(_COMPRESSED):
            return
    raise ValueError(
        f"{layer.where}: incomplete: {largest} has {size} bytes, expected at least {expected} for "
        f"{dataset.height} rows x {dataset.width} columns; "
        "restore it from a good copy"
    )


def _check_classes(layer: Layer, dataset: rasterio.DatasetReader) -> None:
    if layer.kind_stated:
        return
    sign = ""
    try:
        dataset.colormap(layer.band)
        sign = "a colour table"
    except ValueError:  # rasterio's way to say that there is none
        if dataset.tags(layer.band).get("LAYER_TYPE", "") == "thematic":
            sign = "the layer type 'thematic'"
        elif np.dtype(dataset.dtypes[layer.band - 1]).kind in "iu" and _has_category_names(
            dataset, layer.band
        ):
            sign = "category names"
    if sign:
        raise ValueError(
            f"{layer.where}: the band has {sign}, so its numbers are classes (kind categorical), which is "
            f"not supported yet (continuous only); "
            "leave it out, or set kind=continuous in layers.csv if the numbers are measurements"
        )


def _has_category_names(dataset: rasterio.DatasetReader, band: int) -> bool:
    """Whether GDAL knows names for the band's values: rasterio does not say, a VRT of the dataset does."""
    name = f"/vsimem/{uuid.uuid4().hex}.vrt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            rasterio.shutil.copy(dataset, name, driver="VRT")
            with rasterio.open(name) as vrt:
                text = vrt.tags(ns="xml:VRT").get("xml:VRT", "")
            rasterio.shutil.delete(name)
        except RasterioError:
            return False
    categories = (
        ElementTree.fromstring(text).findall(f"VRTRasterBand[@band='{band}']/CategoryNames/Category")
        if text
        else []
    )
    return any((category.text or "").strip() for category in categories)


def _native_grid(source: Source) -> Grid | None:
    """The file's own grid, north up; None if its rows do not run east-west."""
    transform = source.transform
    if transform.a == 0 or transform.e == 0:
        return None
    if abs(transform.b) * source.rows > _SHEAR * abs(transform.a) or abs(
        transform.d
    ) * source.cols > _SHEAR * abs(transform.e):
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


def _warped_grid(layer: Layer, dataset: rasterio.DatasetReader, crs: CRS) -> Grid:
    try:
        with WarpedVRT(dataset, crs=crs) as vrt:
            transform, rows, cols = vrt.transform, vrt.height, vrt.width
    except (RasterioError, OSError) as error:
        raise ValueError(
            f"{layer.where}: cannot be brought from {dataset.crs.to_string()[:60]} to {crs.to_string()[:60]} "
            f"({error}); "
            "check that its CRS is right, or reproject it first"
        ) from error
    return Grid(crs, transform.c, transform.f, transform.a, -transform.e, rows, cols)
