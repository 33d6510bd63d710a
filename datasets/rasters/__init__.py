"""One raster band: opening, reading windows, nodata, legends; GDAL and xarray sources."""
