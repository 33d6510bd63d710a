"""Files that are shorter than their headers say are refused by name and size; whole ones are read."""

import os

import numpy as np
import pytest
import rasterio.shutil
import xarray as xr

from datasets.layers.layer import Layer
from datasets.rasters.netcdf_classic import is_classic_netcdf, length_of_classic_netcdf
from datasets.rasters.open_band import open_band
from tests.rasters import write_grid

ROWS, COLS = 24, 20
VALUES = np.random.default_rng(0).integers(1, 200, size=(ROWS, COLS))


def copied(folder, driver, name, dtype):
    """A raster in degrees, as GDAL writes it in a format; and the file of its pixels."""
    source = write_grid(
        folder / "source.tif", VALUES.astype(dtype), crs="EPSG:4326", left=140.0, top=-30.0, resolution=0.01
    )
    (folder / "grid").mkdir()
    path = folder / "grid" / name
    rasterio.shutil.copy(str(source), str(path), driver=driver)
    return path


FORMATS = {
    "MFF": ("a.hdr", "a.r00", "float32"),
    "MFF2": ("a", "a/image_data", "float32"),
    "ISIS2": ("a.cub", "a.cub", "float32"),
    "ISIS3": ("a.cub", "a.cub", "float32"),
    "PDS4": ("a.xml", "a.img", "int16"),
    "VICAR": ("a.vic", "a.vic", "float32"),
    "LAN": ("a.lan", "a.lan", "int16"),
    "PCRaster": ("a.map", "a.map", "float32"),
    "GTX": ("a.gtx", "a.gtx", "float32"),
    "BT": ("a.bt", "a.bt", "int16"),
    "ILWIS": ("a.mpr", "a.mp#", "int16"),
    "netCDF": ("a.nc", "a.nc", "float32"),
    "ENVI": ("a.img", "a.img", "float32"),
    "PNG": ("a.png", "a.png", "uint8"),
    "HFA": ("a.img", "a.img", "uint8"),
}


@pytest.mark.parametrize(("driver", "name", "data", "dtype"), [(each, *FORMATS[each]) for each in FORMATS], ids=FORMATS)
def test_one_byte_too_few_is_refused(tmp_path, driver, name, data, dtype):
    path = copied(tmp_path, driver, name, dtype)
    whole = open_band(Layer("a", str(path))).read(0, 0, ROWS, COLS)
    assert np.isfinite(whole).sum() > ROWS * COLS / 2
    if driver != "PCRaster":  # it has missing values of its own
        np.testing.assert_array_equal(whole[np.isfinite(whole)], VALUES[np.isfinite(whole)])
    data = tmp_path / "grid" / data
    size = 65536 + whole.nbytes if driver == "ISIS3" else data.stat().st_size  # a history lies behind its pixels
    for kept in (size - 1 - 3 * (driver == "netCDF"), int(0.9 * size)):  # netCDF-3 may end with a padding of 3 bytes
        os.truncate(data, kept)
        with pytest.raises(ValueError, match=rf"a\S* has {kept} bytes, expected at least \d+ .*get it again|cannot be"):
            open_band(Layer("a", str(path))).read(0, 0, ROWS, COLS)


@pytest.mark.parametrize(("name", "data"), [("a.ers", "a"), ("a.img", "a.img"), ("a.grd", "a.gri")])
def test_a_file_shorter_than_its_header_is_named(tmp_path, name, data):
    driver = {"a.ers": "ERS", "a.img": "ENVI", "a.grd": "RRASTER"}[name]
    path = copied(tmp_path, driver, name, "float32")
    os.truncate(path.with_name(data), 100)
    with pytest.raises(
        ValueError, match=rf"incomplete: \S*{data} has 100 bytes, expected at least {ROWS * COLS * 4} for"
    ):
        open_band(Layer("a", str(path)))


@pytest.mark.parametrize("form", ["NETCDF3_CLASSIC", "NETCDF3_64BIT"])
@pytest.mark.parametrize("records", [0, 1, 3])
def test_length_of_netcdf_3(tmp_path, form, records):
    """The header's sum is the length of the file, up to the padding of its last variable."""
    values = np.arange(records * 5 * 3, dtype=np.int16).reshape(records, 5, 3)
    dataset = xr.Dataset(
        {
            "bytes": (("t", "y", "x"), values.astype(np.int8)),
            "shorts": (("t", "y", "x"), values),
            "fixed": (("y", "x"), np.ones((5, 3))),
        },
        coords={"x": [1.0, 2.0, 3.0], "y": np.arange(5.0)},
        attrs={"title": "five letters", "numbers": [1.0, 2.0, 3.0]},
    )
    dataset.to_netcdf(tmp_path / "a.nc", format=form, engine="scipy", unlimited_dims=["t"])
    assert is_classic_netcdf(tmp_path / "a.nc")
    length, size = length_of_classic_netcdf(tmp_path / "a.nc"), (tmp_path / "a.nc").stat().st_size
    assert size - 3 <= length <= size


def test_a_single_record_variable_is_not_padded(tmp_path):
    """Three records of 3 bytes: 9 bytes at the end, where padded records would take 12."""
    dataset = xr.Dataset({"v": (("t", "x"), np.ones((3, 3), np.int8))})
    dataset.to_netcdf(tmp_path / "a.nc", format="NETCDF3_CLASSIC", engine="scipy", unlimited_dims=["t"])
    assert length_of_classic_netcdf(tmp_path / "a.nc") <= (tmp_path / "a.nc").stat().st_size


@pytest.mark.parametrize("kept", [5, 40, 100])
def test_a_header_that_is_cut_short(tmp_path, kept):
    xr.Dataset({"v": (("y", "x"), np.ones((3, 3)))}).to_netcdf(
        tmp_path / "a.nc", format="NETCDF3_CLASSIC", engine="scipy"
    )
    os.truncate(tmp_path / "a.nc", kept)
    assert length_of_classic_netcdf(tmp_path / "a.nc") > kept


def test_hdf5_is_no_netcdf_3(tmp_path):
    xr.Dataset({"v": (("y", "x"), np.ones((3, 3)))}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert not is_classic_netcdf(tmp_path / "a.nc")
