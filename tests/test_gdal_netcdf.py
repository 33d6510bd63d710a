"""netCDF by GDAL: attributes and coordinates that GDAL drops or guesses give what xarray reads from the same file."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import rasterio
import xarray as xr

from datasets.layers.hdf5 import require_whole_hdf5
from datasets.layers.layer import Layer
from datasets.rasters.open_band import open_band
from datasets.rasters.xarray_band import layers_of_stores
from tests.rasters import ramp

BOUNDS = (500_000.0, 5_999_400.0, 500_800.0, 6_000_000.0)


def write(path, values=None, *, x=None, y=None, units="m", crs="EPSG:28354", classic=False, **attributes):
    """A variable g of 6 x 8 pixels of 100 m."""
    values = ramp(6, 8) if values is None else values
    x = 500_000.0 + 100.0 * (np.arange(values.shape[1]) + 0.5) if x is None else x
    y = 6_000_000.0 - 100.0 * (np.arange(values.shape[0]) + 0.5) if y is None else y
    degrees = units == "degrees"
    dims = ("lat", "lon") if degrees else ("y", "x")
    dataset = xr.Dataset(
        {"g": (dims, values, {"grid_mapping": "crs", **attributes})}, coords={dims[0]: y, dims[1]: x}
    ).assign(crs=((), 0, {"crs_wkt": rasterio.crs.CRS.from_string(crs).to_wkt()}))
    for dim, name, end in zip(dims, ("y", "x"), ("north", "east"), strict=True):
        dataset[dim].attrs["units"] = f"degrees_{end}" if degrees else units
        if not degrees:
            dataset[dim].attrs["standard_name"] = f"projection_{name}_coordinate"
    store(dataset, path, classic=classic)
    return path


def store(dataset, path, *, classic=False):
    if classic:
        dataset.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")
    else:
        dataset.to_netcdf(path, engine="h5netcdf")


def opened(path, **options):
    return open_band(Layer("g", str(path)), **options)


@pytest.fixture(params=["h5netcdf", "scipy"])
def classic(request):
    return request.param == "scipy"


class TestAttributes:
    @pytest.mark.parametrize(
        "values, attributes, expected",
        [
            (np.array([[-9, 2], [-7, 4]], "f4"), {"_FillValue": np.float32(-9), "missing_value": np.float32(-7)},
             [[np.nan, 2], [np.nan, 4]]),
            (np.array([[1, -9.9], [3, 8]], "f4"), {"missing_value": np.array([-9.9, 8], "f4")},
             [[1, np.nan], [3, np.nan]]),
            (np.array([[-500, 2500], [5000, 5001]], "i2"), {"scale_factor": np.float32(0.1),
             "valid_min": np.float32(-500), "valid_max": np.float32(500)}, [[-50, 250], [500, np.nan]]),
            (np.array([[1, 2], [3, 4]], "i2"), {"scale_factor": 0.5, "valid_range": np.array([2, 3], "i2")},
             [[np.nan, 1], [1.5, np.nan]]),
            (np.array([[1, 2], [3, -1]], "i2"), {"_Unsigned": "true", "valid_range": np.array([2, -2], "i2")},
             [[np.nan, 2], [3, np.nan]]),
            (np.array([[1, 2], [3, 40]], "f4"), {"valid_max": np.float32(3)}, [[1, 2], [3, np.nan]]),
        ],
    )  # fmt: skip
    def test_fill_values_and_limits(self, tmp_path, values, attributes, expected, classic):
        path = write(tmp_path / "a.nc", values, classic=classic, **attributes)
        by_gdal = opened(path).read(0, 0, 2, 2)
        np.testing.assert_array_equal(by_gdal, np.float32(expected))
        (layer,) = layers_of_stores([str(path)])
        np.testing.assert_array_equal(open_band(layer).read(0, 0, 2, 2), by_gdal)

    def test_without_h5py(self, tmp_path, monkeypatch):
        """Types of attributes are unknown then: whole numbers are those of the stored type."""
        real = builtins.__import__

        def without(name, *arguments, **options):
            if name == "h5py":
                raise ImportError(name)
            return real(name, *arguments, **options)

        values = np.array([[1, 2], [3, 4]], "i2")
        attributes = {"missing_value": np.array([1, 2], "i2"), "scale_factor": 0.5, "valid_max": np.int16(3)}
        path = write(tmp_path / "a.nc", values, **attributes)
        monkeypatch.setattr(builtins, "__import__", without)
        np.testing.assert_array_equal(opened(path).read(0, 0, 2, 2), [[np.nan, np.nan], [1.5, np.nan]])

    @pytest.mark.parametrize(
        "attributes, message",
        [
            ({"scale_factor": np.array([0.5, 0.5])}, r"scale_factor is \[0.5, 0.5\], expected one number"),
            ({"valid_min": "none"}, "valid_min is none, expected a number; correct or remove"),
            ({"missing_value": "n/a"}, "missing_value is n/a, expected a number"),
            ({"_Unsigned": "true"}, r"_Unsigned is true, but GDAL reads int32, expected uint32.*--data_path .*a.nc#g"),
        ],
    )
    def test_refused(self, tmp_path, attributes, message):
        values = ramp(6, 8, "i4") if "_Unsigned" in attributes else None
        with pytest.raises(ValueError, match=rf"layer 'g' .*{message}"):
            opened(write(tmp_path / "a.nc", values, **attributes))


class TestCoordinates:
    @pytest.mark.parametrize("crs, factor", [("EPSG:28354", 1e-3), ("+proj=utm +zone=54 +south +units=km", 1.0)])
    def test_kilometres(self, tmp_path, classic, crs, factor):
        x, y = 500_000.0 + 100.0 * (np.arange(8) + 0.5), 6_000_000.0 - 100.0 * (np.arange(6) + 0.5)
        path = write(tmp_path / "a.nc", x=x * factor, y=y * factor, units="km", crs=crs, classic=classic)
        band = opened(path)
        assert band.grid.bounds == pytest.approx(BOUNDS, rel=1e-9)
        np.testing.assert_array_equal(band.read(0, 0, 6, 8), ramp(6, 8))

    def test_kilometres_from_a_grid_mapping_that_gdal_scales_itself(self, tmp_path):
        x, y = 500.0 + 0.1 * (np.arange(8) + 0.5), 6000.0 + 0.1 * (np.arange(6) + 0.5)
        path = write(tmp_path / "a.nc", x=x, y=y, units="km")
        dataset = xr.open_dataset(path, engine="h5netcdf", mask_and_scale=False).load()
        dataset.close()
        dataset["crs"] = ((), 0, {
            "grid_mapping_name": "transverse_mercator", "longitude_of_central_meridian": 141.0,
            "latitude_of_projection_origin": 0.0, "scale_factor_at_central_meridian": 0.9996,
            "false_easting": 500_000.0, "false_northing": 10_000_000.0, "semi_major_axis": 6378137.0,
            "inverse_flattening": 298.257222101,
        })  # fmt: skip
        store(dataset, tmp_path / "b.nc")
        grid = opened(tmp_path / "b.nc").grid
        scale = grid.crs.linear_units_factor[1]
        assert (grid.resolution_x * scale, grid.left * scale) == pytest.approx((100.0, 500_000.0))

    def test_kilometres_are_scaled_before_warping(self, tmp_path):
        x, y = 500.0 + 0.1 * (np.arange(8) + 0.5), 6000.0 - 0.1 * (np.arange(6) + 0.5)
        lonlat = rasterio.crs.CRS.from_epsg(4326)
        grids = [
            opened(write(tmp_path / name, **change), reproject_to=lonlat).grid
            for name, change in (("a.nc", {"x": x, "y": y, "units": "km"}), ("b.nc", {}))
        ]
        assert grids[0].bounds == pytest.approx(grids[1].bounds)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"x": 500_000 + 100.0 * np.array([0, 1, 2, 3, 4, 6, 7, 8])}, "'x' is irregular: steps from 100 to 200"),
            ({"y": 6_000_000 - 100.0 * np.array([0, 1, 2, 3.4, 4, 5])}, "'y' is irregular"),
            ({"units": "degrees_east"}, "'x' has units 'degrees_east' under the CRS EPSG:28354.*expected a length"),
        ],
    )
    def test_refused(self, tmp_path, change, message, classic):
        with pytest.raises(ValueError, match=rf"layer 'g' .*{message}"):
            opened(write(tmp_path / "a.nc", classic=classic, **change))

    def test_bytes_that_gdal_cannot_read_and_the_remedy(self, tmp_path):
        values = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
        path = write(tmp_path / "a.nc", values.view(np.int8), _Unsigned="true")
        with pytest.raises(ValueError, match=r"signed bytes with _Unsigned.*read it through xarray") as error:
            opened(path)
        band = opened(str(error.value).split("(")[-1].split(" in a table")[0])
        np.testing.assert_array_equal(band.read(0, 0, 6, 8), values)
        classic = opened(write(tmp_path / "b.nc", values.view(np.int8), _Unsigned="true", classic=True))
        np.testing.assert_array_equal(classic.read(0, 0, 6, 8), values)

    def test_curvilinear_coordinates(self, tmp_path):
        row, col = np.mgrid[:6, :8]
        attributes = {"lat": {"units": "degrees_north"}, "lon": {"units": "degrees_east"}}
        places = {"lat": -30 - 0.01 * row + 0.002 * col, "lon": 140 + 0.01 * col + 0.003 * row}
        coords = {name: (("j", "i"), places[name], attributes[name]) for name in places}
        store(xr.Dataset({"g": (("j", "i"), ramp(6, 8), {"coordinates": "lat lon"})}, coords=coords), tmp_path / "a.nc")
        with pytest.raises(ValueError, match=r"two-dimensional \(curvilinear\): run gdalwarp -geoloc on it"):
            open_band(Layer("g", f"netcdf:{tmp_path / 'a.nc'}:g"))

    def test_coordinates_without_attributes_and_the_remedy(self, tmp_path):
        """GDAL does not take them for coordinates; xarray, which the message names, does."""
        dataset = xr.open_dataset(write(tmp_path / "with.nc"), engine="h5netcdf")
        for axis in "xy":
            dataset[axis].attrs = {}
        store(dataset, tmp_path / "a.nc")
        with pytest.raises(ValueError, match=r"has no geotransform.*read it through xarray: --dataset_type") as error:
            opened(tmp_path / "a.nc")
        band = opened(str(error.value).split("(")[-1].split(" in a table")[0])
        assert band.grid.bounds == BOUNDS
        np.testing.assert_array_equal(band.read(0, 0, 6, 8), ramp(6, 8))

    def test_damaged_metadata_is_noticed_before_gdal(self, tmp_path):
        """An attribute that cannot be decoded: GDAL's library can crash on such metadata."""
        path = write(tmp_path / "a.nc", long_name="magnetic anomaly of the survey")
        require_whole_hdf5(str(path))
        data = bytearray(path.read_bytes())
        place = data.index(b"magnetic anomaly of the survey")
        data[place - 400 : place + 400] = bytes(800)
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"cannot be opened as a raster.*its HDF5 metadata cannot be read"):
            opened(path)

    def test_a_gap_far_from_where_gdal_samples(self, tmp_path):
        steps = np.delete(np.arange(401.0), 123)
        path = write(tmp_path / "a.nc", ramp(6, 400), x=500_000 + 100 * steps)
        with pytest.raises(ValueError, match="'x' is irregular.*regrid"):
            opened(path)

    def test_coordinates_rounded_to_decimals_are_read(self, tmp_path):
        lon, lat = np.round(140 + (np.arange(8) + 0.5) / 120, 4), np.round(-30 - (np.arange(6) + 0.5) / 120, 4)
        band = opened(write(tmp_path / "a.nc", x=lon, y=lat, units="degrees", crs="EPSG:4326"))
        assert band.grid.resolution_x == pytest.approx(1 / 120, rel=0.01)

    @pytest.mark.parametrize("cols", [8, 6])
    def test_longitudes_as_rows_are_refused_and_the_remedies_lead_to_a_run(self, tmp_path, cols, classic):
        values = ramp(6, cols)
        path = write(tmp_path / "a.nc", values, x=140 + np.arange(1.0 * cols), y=-30 - np.arange(6.0), units="degrees",
                     crs="EPSG:4326", classic=classic)  # fmt: skip
        expected = opened(path)
        with xr.open_dataset(path, mask_and_scale=False) as dataset:
            store(dataset.transpose("lon", "lat"), tmp_path / "b.nc", classic=classic)
        with pytest.raises(ValueError, match=r"order \(lon, lat\).*expected \(lat, lon\); reorder.*xarray:.*b.nc#g"):
            opened(tmp_path / "b.nc")
        through = opened(f"xarray:{tmp_path}/b.nc#g")
        assert through.grid == expected.grid
        np.testing.assert_array_equal(through.read(0, 0, 6, cols), values)
