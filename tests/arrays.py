"""The rasters of a survey as xarray datasets, on disk as zarr or netCDF: the same numbers, stored the same way."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr


def dataset_of(path: Path, *, ascending: bool = False) -> xr.Dataset:
    """One raster as a dataset of stored numbers with CF attributes; `ascending` stores it from south to north."""
    with rasterio.open(path) as file:
        values, transform = file.read(1), file.transform
        attributes: dict[str, Any] = {"grid_mapping": "spatial_ref"}
        if file.nodata is not None:
            attributes["_FillValue"] = values.dtype.type(file.nodata)
        if file.scales[0] != 1.0 or file.offsets[0] != 0.0:
            attributes |= {"scale_factor": file.scales[0], "add_offset": file.offsets[0]}
        if file.units[0]:
            attributes["units"] = file.units[0]
        wkt = file.crs.to_wkt()
    y = transform.f + (np.arange(values.shape[0]) + 0.5) * transform.e
    x = transform.c + (np.arange(values.shape[1]) + 0.5) * transform.a
    dataset = xr.Dataset({path.stem: (("y", "x"), values, attributes)}, coords={"y": y, "x": x})
    dataset = dataset.assign_coords(spatial_ref=((), 0, {"crs_wkt": wkt}))
    return dataset.isel(y=slice(None, None, -1)) if ascending else dataset


def write_store(path: Path, groups: dict[str, xr.Dataset], *, chunk: int = 32, **options: Any) -> Path:
    """Writes datasets as groups (`/` is the root) of a zarr store or a netCDF file, by the path's ending."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata is no part of zarr's third format yet
        for number, (group, dataset) in enumerate(groups.items()):
            chunks = {
                name: {"chunks": tuple(min(chunk, size) for size in variable.shape)}
                for name, variable in dataset.data_vars.items()
                if variable.ndim >= 2
            }
            mode = "w" if not number else "a"
            if path.suffix == ".zarr":
                dataset.to_zarr(path, group=group.strip("/") or None, mode=mode, encoding=chunks, **options)
            else:
                encoding = {name: {"chunksizes": c["chunks"]} for name, c in chunks.items()}
                dataset.to_netcdf(
                    path, group=group.strip("/") or None, mode=mode, engine="h5netcdf", encoding=encoding, **options
                )
        if path.suffix == ".zarr":
            import zarr

            zarr.consolidate_metadata(path)
    return path


def store_of(folder: Path, path: Path, *, names: Sequence[str] | None = None, **options: Any) -> Path:
    """Writes the rasters of a folder into one store, a group each."""
    rasters = sorted(folder.glob("*.tif"))
    chosen = [raster for raster in rasters if names is None or raster.stem in names]
    return write_store(path, {f"/{raster.stem}": dataset_of(raster) for raster in chosen}, **options)
