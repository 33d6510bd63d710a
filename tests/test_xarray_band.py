"""Stores that xarray opens as layers: the same pixels as rasters, to the bit, and what is refused by name."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr

import models_mae_group_channels as models
from datasets.labels.open_labels import TargetGrid, open_labels
from datasets.layers.layer import Layer
from datasets.layers.paths import ArrayPath, absolute_path, file_of, is_remote, parse_array_path, stem_of
from datasets.layers.table import read_layers_table, write_layers_table
from datasets.rasters.handles import close_datasets
from datasets.rasters.open_band import layer_crs, open_band
from datasets.rasters.scan import scan
from datasets.rasters.xarray_band import layers_of_stores
from datasets.rasters.xarray_store import forget, open_groups
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.tile_reader import TileReader
from scripts import describe_grids
from scripts.benchmarks.xbatcher_tiles import bundle_dataset, epoch_batches
from tests import small_main, small_maps
from tests.arrays import dataset_of, store_of, write_store
from tests.rasters import ramp, write_grid
from tests.surveys import FLAGS, losses, train, write_survey

SMALL = {"input_size": 16, "scales": (1, 2, 4), "cache": "none", "val_fraction": 0.1, "val_buffer": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A survey of two resolutions with holes, as GeoTIFF, zarr, netCDF, and netCDF files of their own."""
    root = tmp_path_factory.mktemp("stores")
    survey = write_survey(root / "survey")
    store_of(survey, root / "both.zarr")
    store_of(survey, root / "both.nc")
    for name in ("gravity", "magnetics"):
        write_store(root / f"{name}.nc", {"/": dataset_of(survey / f"{name}.tif", ascending=name == "gravity")})
    return root


def stores(folder):
    return {
        "zarr": [str(folder / "both.zarr")],
        "netcdf": [str(folder / "both.nc")],
        "south-up files": [str(folder / "gravity.nc"), str(folder / "magnetics.nc")],
        "rasters through rioxarray": [str(folder / "survey" / f"{n}.tif#band_data") for n in ("gravity", "magnetics")],
    }


def batches(survey, *, size=8):
    origins = survey.tiles.epoch(seed=0, epoch=0)
    reader = TileReader(survey.stack, survey.bundles)
    return [reader.read(origins[k : k + size]) for k in range(0, len(origins), size)]


def same(first, second):
    """Whether two lists of batches agree to the bit, NaN included."""
    pairs = zip(first, second, strict=True)
    return len(first) == len(second) and all(
        a.numpy().tobytes() == b.numpy().tobytes() and a.shape == b.shape
        for one, other in pairs
        for a, b in zip(one.arrays, other.arrays, strict=True)
    )


def one(tmp_path, dataset, *, ending="zarr", name="a"):
    return write_store(tmp_path / f"{name}.{ending}", {"/": dataset})


def grid_dataset(values=None, *, x=None, y=None, crs="EPSG:28354", dims=("y", "x"), **attributes):
    """A variable g of 6 x 8 pixels of 100 m."""
    values = ramp(6, 8) if values is None else np.asarray(values)
    y = 6_000_000.0 - 100.0 * (np.arange(values.shape[-2]) + 0.5) if y is None else y
    x = 500_000.0 + 100.0 * (np.arange(values.shape[-1]) + 0.5) if x is None else x
    dataset = xr.Dataset({"g": (dims, values, attributes)}, coords={dims[-2]: y, dims[-1]: x})
    if crs is None:
        return dataset
    dataset.g.attrs["grid_mapping"] = "spatial_ref"
    return dataset.assign_coords(spatial_ref=((), 0, {"crs_wkt": rasterio.crs.CRS.from_string(crs).to_wkt()}))


def opened(path, **options):
    (layer,) = layers_of_stores([str(path)], **options)
    return open_band(layer)


class TestSame:
    def test_batches_and_loss_are_those_of_rasters(self, folder):
        """GeoTIFF, zarr, netCDF, south-up netCDF, rasterio through xarray, and all of them through xbatcher."""
        plain = open_survey(SurveySettings(data_dir=str(folder / "survey"), **SMALL))
        expected = batches(plain)
        torch.manual_seed(0)
        with mock.patch.dict(models.MODEL_SIZES, tiny=small_main.SMALL):
            network = models.build_model("tiny", img_size=16, patch_size=4, **plain.channel_options()).eval()

        def loss(survey, batch):
            sample = survey.pyramid()(*batch.parts)
            noise = torch.from_numpy(np.random.default_rng(0).random((len(sample.imgs), 32), dtype=np.float32))
            with torch.no_grad():
                out = network(sample.imgs, sample.imgs_up, valid=sample.valid, valid_up=sample.valid_up, noise=noise)
            return [float(out[0]), float(out[1])]

        wanted = loss(plain, expected[0])
        for kind, paths in stores(folder).items():
            survey = open_survey(SurveySettings(data_path=paths, **SMALL))
            found = batches(survey)
            assert same(expected, found), kind
            assert [(s.centre, s.scale) for s in survey.statistics] == [
                (s.centre, s.scale) for s in plain.statistics
            ], kind
            assert loss(survey, found[0]) == wanted, kind
            datasets = [bundle_dataset(survey, bundle) for bundle in survey.bundles]
            through = list(epoch_batches(survey, datasets, seed=0, epoch=0, batch_size=8))
            assert same(expected, through), kind
        assert loss(survey, through[0]) == wanted

    def test_a_training_run_is_the_same_to_the_bit(self, folder, tmp_path):
        """Also from a table that mixes a raster and a variable; what the run leaves behind names them."""
        outputs = {name: tmp_path / name for name in ("tif", "zarr", "mixed")}
        assert train(folder / "survey", outputs["tif"]) == 0
        table = tmp_path / "layers.csv"
        table.write_text(
            f"path,units\n{folder}/survey/gravity.tif,mGal\nxarray:{folder}/both.zarr#magnetics/magnetics,nT\n"
        )
        chosen = {
            "zarr": ["--dataset_type", "xarray", "--data_path", str(folder / "both.zarr")],
            "mixed": ["--train_path", str(table)],
        }
        for name, flags in chosen.items():
            assert small_main.main([*flags, "--output_dir", str(outputs[name]), *FLAGS]) == 0
            assert losses(outputs[name]) == losses(outputs["tif"])
            first, second = (
                torch.load(outputs[n] / "checkpoint-last.pth", weights_only=True)["model"] for n in ("tif", name)
            )
            assert all(torch.equal(first[key], second[key]) for key in first)
        for name in ("tif", "zarr"):  # inference finds the layers where training had them
            into = ["--output", "embeddings", "--output_dir", str(tmp_path / f"made_{name}"), "--device", "cpu"]
            weights = str(outputs[name] / "checkpoint-last.pth")
            assert small_maps.infer([*into, "--checkpoint", weights, "--no_progress"]) == 0
        made = [rasterio.open(tmp_path / f"made_{name}" / "embeddings.tif") for name in ("tif", "zarr")]
        np.testing.assert_array_equal(*(file.read() for file in made))
        written = read_layers_table(outputs["zarr"] / "layers.csv")
        assert [layer.path for layer in written] == [
            f"xarray:{folder}/both.zarr#{name}/{name}" for name in ("gravity", "magnetics")
        ]

    def test_forked_processes_and_pickled_bands_read_the_same(self, folder):
        layer, _ = layers_of_stores([str(folder / "both.zarr")])
        band = open_band(layer)
        expected = band.read(0, 0, 80, 80)
        again = pickle.loads(pickle.dumps(band))
        forget(str(folder / "both.zarr"))
        np.testing.assert_array_equal(again.read(0, 0, 80, 80), expected)

    def test_describe_grids_reads_stores(self, folder, capsys):
        arguments = ["--dataset_type", "xarray", "--data_path", str(folder / "both.nc"), "--json"]
        assert describe_grids.main([*arguments, "--input_size", "16", "--patch_size", "4"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert [layer["name"] for layer in facts["layers"]] == ["gravity", "magnetics"]
        assert facts["layers"][0]["nodata"] == -99999.0


class TestPaths:
    @pytest.mark.parametrize(
        "text, expected",
        [
            ("xarray:/d/a.zarr#g", ArrayPath("/d/a.zarr", "g")),
            ("xarray:https://h/a.zarr#fine/g", ArrayPath("https://h/a.zarr", "fine/g")),
            ("xarray:a.nc#g;crs=EPSG:28354", ArrayPath("a.nc", "g", "EPSG:28354")),
            ("xarray:a.nc", ArrayPath("a.nc")),
            ("a.nc", None),
        ],
    )
    def test_parse(self, text, expected):
        found = parse_array_path(text)
        assert found == expected
        if expected is not None and expected.variable:
            assert str(found) == text

    def test_groups_and_names(self):
        assert (ArrayPath("a", "x/y/g").group, ArrayPath("a", "x/y/g").name) == ("/x/y", "g")
        assert (ArrayPath("a", "g").group, ArrayPath("a", "g").name) == ("/", "g")

    def test_files_are_made_absolute_and_urls_stay(self):
        assert absolute_path("xarray:a.zarr#g", Path("/d")) == "xarray:/d/a.zarr#g"
        assert absolute_path("xarray:s3://b/a.zarr#g", Path("/d")) == "xarray:s3://b/a.zarr#g"
        assert file_of("xarray:/d/a.zarr#g/h") == "/d/a.zarr" and stem_of("xarray:/d/a.zarr#g/h") == "g_h"

    @pytest.mark.parametrize(
        "path, remote",
        [("a.tif", False), ("/vsicurl/http://h/a.tif", True), ("/vsizip/a.zip", False), ("xarray:http://h/a#g", True)],
    )
    def test_remote(self, path, remote):
        assert is_remote(path) == remote

    def test_tables_are_read_back(self, tmp_path):
        store = one(tmp_path, grid_dataset())
        layers = layers_of_stores([str(store)])
        write_layers_table(tmp_path / "layers.csv", layers)
        assert read_layers_table(tmp_path / "layers.csv") == layers


class TestLayers:
    def test_variables_of_groups_and_their_names(self, tmp_path):
        coarse = grid_dataset(ramp(3, 4)).rename(g="mag")
        both = write_store(tmp_path / "a.zarr", {"/": grid_dataset(), "/deep/coarse": coarse, "/more": grid_dataset()})
        found = [(layer.name, layer.path.partition("#")[2]) for layer in layers_of_stores([str(both)])]
        assert found == [("g", "g"), ("mag", "deep/coarse/mag"), ("more_g", "more/g")]
        second = one(tmp_path, grid_dataset(), name="b", ending="nc")
        names = [layer.name for layer in layers_of_stores([str(second), f"{both}#g", f"{both}#more/g"])]
        assert names == ["b_g", "a_g", "more_g"]

    @pytest.mark.parametrize(
        "labels, expected", [(["k", "th"], ["g_k", "g_th"]), ([3, 9], ["g_3", "g_9"]), (None, ["g_b1", "g_b2"])]
    )
    def test_elements_of_a_third_dimension(self, tmp_path, labels, expected):
        dataset = grid_dataset(np.stack([ramp(6, 8), 100 + ramp(6, 8)]), dims=("time", "y", "x"), units="ppm")
        dataset = dataset if labels is None else dataset.assign_coords(time=labels)
        layers = layers_of_stores([str(one(tmp_path, dataset))], layer_dim="time")
        assert [layer.name for layer in layers] == expected and [layer.units for layer in layers] == ["ppm"] * 2
        np.testing.assert_array_equal(open_band(layers[1]).read(0, 0, 6, 8), 100 + ramp(6, 8))

    def test_a_third_dimension_of_one_element_is_none(self, tmp_path):
        store = one(tmp_path, grid_dataset(ramp(6, 8)[None], dims=("time", "y", "x")))
        np.testing.assert_array_equal(opened(store).read(0, 0, 6, 8), ramp(6, 8))

    def test_what_describes_others_is_no_layer(self, tmp_path):
        dataset = grid_dataset()
        dataset["x_edges"] = (("x", "two"), np.zeros((8, 2)))
        dataset["flags"] = (("y", "x"), np.zeros((6, 8)))
        dataset["station"] = (("station",), np.zeros(3))
        dataset.x.attrs["bounds"] = "x_edges"
        dataset.g.attrs["ancillary_variables"] = "flags"
        assert [layer.name for layer in layers_of_stores([str(one(tmp_path, dataset))])] == ["g"]

    def test_dims_in_any_order_and_by_attributes(self, tmp_path):
        dataset = grid_dataset().transpose("x", "y").rename(x="across", y="down")
        dataset.across.attrs["axis"], dataset.down.attrs["standard_name"] = "X", "projection_y_coordinate"
        band = opened(one(tmp_path, dataset))
        np.testing.assert_array_equal(band.read(1, 2, 3, 4), ramp(6, 8)[1:4, 2:6])
        assert (band.grid.left, band.grid.top, band.grid.resolution_x) == (500_000.0, 6_000_000.0, 100.0)

    @pytest.mark.parametrize("flip", [{"y": -1}, {"x": -1}, {"x": -1, "y": -1}])
    def test_ascending_and_descending_coordinates(self, tmp_path, flip):
        dataset = grid_dataset().isel({dim: slice(None, None, step) for dim, step in flip.items()})
        band = opened(one(tmp_path, dataset, ending="nc"))
        np.testing.assert_array_equal(band.read(1, 2, 3, 4), ramp(6, 8)[1:4, 2:6])
        assert band.grid.bounds == (500_000.0, 5_999_400.0, 500_800.0, 6_000_000.0)


class TestAttributes:
    @pytest.mark.parametrize(
        "values, attributes, expected",
        [
            (np.array([[1, -9], [3, 4]], "i2"), {"_FillValue": np.int16(-9)}, [[1, np.nan], [3, 4]]),
            (np.array([[1, -9], [3, 8]], "i2"), {"missing_value": np.array([-9, 8], "i2")}, [[1, np.nan], [3, np.nan]]),
            (np.array([[1, 2], [3, 40]], "i2"), {"valid_range": np.array([0, 9], "i2")}, [[1, 2], [3, np.nan]]),
            (np.array([[1, 2], [3, 40]], "f4"), {"valid_min": 2.0}, [[np.nan, 2], [3, 40]]),
            (np.array([[1, 2], [3, 40]], "f4"), {"valid_max": 3.0}, [[1, 2], [3, np.nan]]),
            (np.array([[0, 10], [20, 30]], "i2"), {"scale_factor": 0.5, "add_offset": 2.0}, [[2, 7], [12, 17]]),
            (np.array([[0, -2], [20, 30]], "i1"), {"_Unsigned": "true"}, [[0, 254], [20, 30]]),
            (
                np.array([[0, -1], [20, 30]], "i1"),
                {"_Unsigned": "true", "_FillValue": np.int8(-1)},
                [[0, np.nan], [20, 30]],
            ),
            (np.array([[True, False], [False, True]]), {}, [[1, 0], [0, 1]]),
            (np.array([[1, 2], [3, np.nan]], ">f8"), {}, [[1, 2], [3, np.nan]]),
        ],
    )
    @pytest.mark.parametrize("ending", ["zarr", "nc"])
    def test_nodata_scale_and_range(self, tmp_path, values, attributes, expected, ending):
        if values.dtype.kind == "b" and ending == "nc":
            values = values.astype("u1")
        band = opened(one(tmp_path, grid_dataset(values, **attributes), ending=ending))
        np.testing.assert_array_equal(band.read(0, 0, 2, 2), np.array(expected, dtype=np.float32))
        assert scan(band).valid_fraction == np.isfinite(expected).mean()

    def test_a_given_nodata_counts_besides(self, tmp_path):
        (layer,) = layers_of_stores([str(one(tmp_path, grid_dataset()))])
        assert np.isnan(open_band(replace(layer, nodata=11.0)).read(1, 1, 1, 1)).all()
        with pytest.raises(
            ValueError, match=r"layer 'g' .*given nodata 0.5, expected a value that a pixel of type int16"
        ):
            open_band(
                replace(layers_of_stores([str(one(tmp_path, grid_dataset(ramp(6, 8, "i2")), name="b"))])[0], nodata=0.5)
            )

    def test_a_fill_value_that_does_not_fit_is_told(self, tmp_path):
        band = opened(one(tmp_path, grid_dataset(ramp(6, 8, "i2"), missing_value=1e20), ending="nc"))
        assert band.notes == ["declares nodata 1e+20, which no pixel of type int16 can hold: it matches nothing"]

    @pytest.mark.parametrize("where", ["grid_mapping", "spatial_ref", "dataset", "cf", "given"])
    def test_crs(self, tmp_path, where):
        dataset, options = grid_dataset(), {}
        if where == "spatial_ref":
            del dataset.g.attrs["grid_mapping"]
        elif where != "grid_mapping":
            dataset = grid_dataset(crs=None)
            if where == "dataset":
                dataset.attrs["crs"] = "EPSG:28354"
            elif where == "given":
                options["crs"] = "EPSG:28354"
            else:
                dataset.g.attrs["grid_mapping"] = "utm"
                dataset["utm"] = ((), 0, {
                    "grid_mapping_name": "transverse_mercator", "longitude_of_central_meridian": 141.0,
                    "latitude_of_projection_origin": 0.0, "scale_factor_at_central_meridian": 0.9996,
                    "false_easting": 500_000.0, "false_northing": 10_000_000.0, "semi_major_axis": 6378137.0,
                    "inverse_flattening": 298.257222101,
                })  # fmt: skip
        band = opened(one(tmp_path, dataset), **options)
        assert band.grid.crs.is_projected and layer_crs(band.layer) == band.grid.crs
        assert (band.grid.crs.to_epsg() == 28354) == (where != "cf")

    def test_longitudes_without_crs_are_taken_for_wgs84_and_told(self, tmp_path):
        dataset = grid_dataset(crs=None, dims=("lat", "lon"), x=10.0 + np.arange(8.0), y=5.0 - np.arange(6.0))
        dataset.lon.attrs["units"], dataset.lat.attrs["units"] = "degrees_east", "degrees_north"
        band = opened(one(tmp_path, dataset))
        assert band.grid.crs.to_epsg() == 4326 and "taken for EPSG:4326" in band.notes[0]
        assert opened(tmp_path / "a.zarr", crs="EPSG:4283").grid.crs.to_epsg() == 4283

    def test_a_transform_instead_of_coordinates(self, tmp_path):
        dataset = grid_dataset().drop_vars(["x", "y"])
        dataset.spatial_ref.attrs["GeoTransform"] = "500000 100 0 6000000 0 -100"
        assert opened(one(tmp_path, dataset)).grid.bounds == (500_000.0, 5_999_400.0, 500_800.0, 6_000_000.0)

    def test_warped_as_it_is_read(self, tmp_path):
        store = one(tmp_path, grid_dataset(ramp(60, 80)))
        path = write_grid(tmp_path / "a.tif", ramp(60, 80))
        lonlat = rasterio.crs.CRS.from_epsg(4326)
        bands = [
            open_band(layer, reproject_to=lonlat) for layer in (*layers_of_stores([str(store)]), Layer("g", str(path)))
        ]
        assert bands[0].grid == bands[1].grid
        np.testing.assert_array_equal(*(band.read(0, 0, band.grid.rows, band.grid.cols) for band in bands))
        close_datasets()


class TestCoordinates:
    """Coordinates of 100 m pixels of EPSG:28354 in other units and packings: the same bounds; or refused."""

    BOUNDS = (500_000.0, 5_999_400.0, 500_800.0, 6_000_000.0)

    @pytest.mark.parametrize(
        "units, factor, crs",
        [("km", 1e-3, "EPSG:28354"), ("1000 m", 1e-3, "EPSG:28354"), ("Meter", 1.0, "EPSG:28354"),
         ("", 1.0, "EPSG:28354"), ("km", 1.0, "+proj=utm +zone=54 +south +units=km"),
         ("US_survey_foot", 3937 / 1200, "EPSG:28354")],
    )  # fmt: skip
    @pytest.mark.parametrize("ending", ["zarr", "nc"])
    def test_units(self, tmp_path, units, factor, crs, ending):
        plain = grid_dataset()
        dataset = grid_dataset(x=plain.x.values * factor, y=plain.y.values * factor, crs=crs)
        for dim in "xy":
            dataset[dim].attrs["units"] = units
        band = opened(one(tmp_path, dataset, ending=ending))
        assert band.grid.bounds == pytest.approx(self.BOUNDS, rel=1e-9) and band.notes == []

    def test_unknown_units_are_named(self, tmp_path):
        dataset = grid_dataset()
        dataset.x.attrs["units"] = "furlong"
        assert opened(one(tmp_path, dataset)).notes == [
            "coordinate 'x' has unknown units 'furlong': taken for the units of the CRS"
        ]

    def test_radians_and_a_geostationary_view(self, tmp_path):
        view = "+proj=geos +h=35786023 +lon_0=-75 +sweep=x +ellps=GRS80 +units=m"
        dataset = grid_dataset(x=0.001 * np.arange(8.0), y=-0.001 * np.arange(6.0), crs=view)
        dataset.x.attrs["units"] = dataset.y.attrs["units"] = "rad"
        assert opened(one(tmp_path, dataset)).grid.resolution_x == pytest.approx(35786.023)
        turned = grid_dataset(x=np.radians(np.arange(8.0)), y=-np.radians(np.arange(6.0)), crs="EPSG:4326")
        turned.x.attrs["units"] = turned.y.attrs["units"] = "radian"
        assert opened(one(tmp_path, turned, name="b")).grid.resolution_x == pytest.approx(1.0)

    @pytest.mark.parametrize("crs, units", [("EPSG:4326", "m"), ("EPSG:28354", "degrees_east")])
    def test_units_of_another_kind_than_the_crs(self, tmp_path, crs, units):
        dataset = grid_dataset(crs=crs)
        dataset.x.attrs["units"] = units
        with pytest.raises(ValueError, match=rf"layer 'g' .*'x' has units '{units}' under the CRS {crs}.*correct"):
            opened(one(tmp_path, dataset))

    @pytest.mark.parametrize("ending", ["zarr", "nc"])
    def test_packed(self, tmp_path, ending):
        store = tmp_path / f"a.{ending}"
        packing = {
            "x": {"dtype": "int16", "scale_factor": 100.0, "add_offset": 500_050.0},
            "y": {"dtype": "int16", "scale_factor": -100.0, "add_offset": 5_999_950.0},
        }
        if ending == "zarr":
            grid_dataset().to_zarr(store, encoding=packing)
        else:
            grid_dataset().to_netcdf(store, engine="h5netcdf", encoding=packing)
        assert opened(store).grid.bounds == self.BOUNDS

    def test_single_precision_is_no_unequal_spacing(self, tmp_path):
        x = (140 + np.arange(8) / 3600).astype(np.float32)
        dataset = grid_dataset(x=x, y=-30 - np.arange(6) / 3600, crs="EPSG:4326")
        assert opened(one(tmp_path, dataset)).grid.resolution_x == pytest.approx(1 / 3600, rel=0.02)

    def test_a_missing_coordinate(self, tmp_path):
        dataset = grid_dataset()
        dataset.x.attrs["missing_value"] = dataset.x.values[3]
        with pytest.raises(ValueError, match="'x' holds values that are not finite"):
            opened(one(tmp_path, dataset))


class TestValidNumbers:
    @pytest.mark.parametrize(
        "values, attributes, expected, warned",
        [
            # limits of the type of the unpacked values limit those
            (np.array([[-500, 2500], [5000, 5001]], "i2"), {"scale_factor": np.float32(0.1),
             "valid_min": np.float32(-500), "valid_max": np.float32(500)}, [[-50, 250], [500, np.nan]], True),
            (np.array([[1, 2], [3, 4]], "i2"), {"scale_factor": -0.5, "add_offset": 1.0,
             "valid_range": np.array([-0.5, 0.0])}, [[np.nan, 0], [-0.5, np.nan]], True),
            (np.array([[1, 2], [3, 4]], "f4"), {"scale_factor": 0.5, "valid_max": 1.5},
             [[0.5, 1], [1.5, np.nan]], True),
            # of the stored type, stored numbers
            (np.array([[1, 2], [3, 4]], "i2"), {"scale_factor": 0.5, "valid_max": np.int16(3)},
             [[0.5, 1], [1.5, np.nan]], False),
            (np.array([[1, 2], [3, 4]], "f4"), {"scale_factor": np.float32(0.5), "valid_max": np.float32(3)},
             [[0.5, 1], [1.5, np.nan]], False),
            (np.array([[1, 2], [3, -1]], "i1"), {"_Unsigned": "true", "valid_range": np.array([2, -2], "i1")},
             [[np.nan, 2], [3, np.nan]], False),
            (np.array([[1, 2], [3, 255]], "u1"), {"_Unsigned": "false"}, [[1, 2], [3, -1]], False),
            (np.array([[1, 2], [3, 4]], "i2"), {"_FillValue": np.int16(1), "missing_value": np.array([3, 4], "i2")},
             [[np.nan, 2], [np.nan, np.nan]], False),
            (np.array([[1, 2], [3, 4]], "i2"), {"scale_factor": "0.5", "missing_value": "4"},
             [[0.5, 1], [1.5, np.nan]], False),
        ],
    )  # fmt: skip
    def test_limits_and_fill_values(self, tmp_path, values, attributes, expected, warned):
        band = opened(one(tmp_path, grid_dataset(values, **attributes), ending="nc"))
        np.testing.assert_array_equal(band.read(0, 0, 2, 2), np.float32(expected))
        assert any("taken for limits of the physical values" in note for note in band.notes) == warned

    @pytest.mark.parametrize(
        "attributes, message",
        [
            ({"scale_factor": np.array([0.5, 0.5])}, r"scale_factor is \[0.5, 0.5\], expected one number; correct it"),
            ({"add_offset": "none"}, "add_offset is none, expected a number; correct or remove"),
            ({"valid_min": "none"}, "valid_min is none, expected a number; correct or remove"),
            ({"valid_max": np.array([1.0, 2.0])}, r"valid_max is \[1.0, 2.0\], expected one number"),
            ({"valid_range": 3.0}, "valid_range is 3.0, expected two numbers.*correct or remove"),
            ({"valid_range": "0 to 5"}, "valid_range is 0 to 5, expected a number"),
            ({"valid_range": np.array([5.0, 1.0])}, "valid numbers from 5 to 1 .*smallest first; correct or remove"),
            ({"missing_value": "n/a"}, "missing_value is n/a, expected a number"),
        ],
    )
    @pytest.mark.parametrize("ending", ["zarr", "nc"])
    def test_attributes_that_are_no_number(self, tmp_path, attributes, message, ending):
        if ending == "zarr":  # whose attributes are JSON
            attributes = {key: np.asarray(value).tolist() for key, value in attributes.items()}
        store = one(tmp_path, grid_dataset(**attributes), ending=ending)
        with pytest.raises(ValueError, match=rf"layer 'g' .*a\.{ending}.*{message}"):
            opened(store)


class TestMissingChunks:
    """A zarr store of 60 x 80 heights in chunks of 32 from which chunk (0, 1), columns 32 to 63, is missing."""

    def cut(self, tmp_path, version, dataset, name="a"):
        store = write_store(tmp_path / f"{name}.zarr", {"/": dataset}, zarr_format=version)
        chunk = store / "g" / ("c/0/1" if version == 3 else "0.1")
        chunk.unlink()
        return store

    @pytest.mark.parametrize("version", [2, 3])
    def test_are_named_and_invalid(self, tmp_path, version):
        values = ramp(60, 80, "i2") + np.int16(200)
        band = opened(self.cut(tmp_path, version, grid_dataset(values)))
        expected = values.astype(np.float32)
        expected[:32, 32:64] = np.nan
        np.testing.assert_array_equal(band.read(0, 0, 60, 80), expected)
        np.testing.assert_array_equal(band.read(20, 30, 30, 40), expected[20:50, 30:70])
        assert scan(band).minimum == 200
        assert "1 of 6 chunks are missing from the store" in band.notes[0]
        assert "in chunks that are missing" in band.nodata_rule

    def test_south_up_and_columns_first(self, tmp_path):
        values = ramp(60, 80, "i2") + np.int16(200)
        dataset = grid_dataset(values).isel(y=slice(None, None, -1)).transpose("x", "y")
        band = opened(self.cut(tmp_path, 3, dataset))
        expected = values.astype(np.float32)
        expected[:28, :32] = np.nan  # the second chunk of the rows that are stored from south to north
        np.testing.assert_array_equal(band.read(0, 0, 60, 80), expected)

    def test_of_nodata_need_no_warning_and_classes_stay(self, tmp_path):
        filled = ramp(60, 80, "i2") + np.int16(200)
        band = opened(self.cut(tmp_path, 2, grid_dataset(filled, _FillValue=np.int16(-9))))
        assert band.notes == [] and np.isnan(band.read(0, 32, 32, 32)).all()
        codes = (ramp(60, 80, "i2") % 3).astype("i2")
        band = opened(self.cut(tmp_path, 2, grid_dataset(codes, flag_values=np.array([0, 1, 2], "i2")), name="b"))
        assert any("class 0 is read there" in note for note in band.notes)
        assert (band.read(0, 32, 32, 32) == 0).all()

    def test_the_advice_leads_to_a_complete_store(self, tmp_path):
        values = ramp(60, 80, "i2")
        values[:32, 32:64] = 0
        plain = opened(write_store(tmp_path / "a.zarr", {"/": grid_dataset(values)}))
        assert np.isnan(plain.read(0, 32, 32, 32)).all()
        whole = opened(write_store(tmp_path / "b.zarr", {"/": grid_dataset(values)}, write_empty_chunks=True))
        assert whole.notes == [] and (whole.read(0, 32, 32, 32) == 0).all()


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestPickles:
    @pytest.mark.parametrize("name", ["x", "g"])
    def test_a_codec_of_pickles_is_refused_and_not_run(self, tmp_path, name):
        store = write_store(tmp_path / "a.zarr", {"/": grid_dataset()}, zarr_format=2)
        (store / ".zmetadata").unlink()
        settings = json.loads((store / name / ".zarray").read_text())
        settings |= {
            "dtype": "|O",
            "filters": [{"id": "pickle", "protocol": 5}],
            "compressor": None,
            "fill_value": None,
        }
        (store / name / ".zarray").write_text(json.dumps(settings))
        for chunk in [path for path in (store / name).iterdir() if not path.name.startswith(".")]:
            chunk.write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
        with pytest.raises(ValueError, match="a.zarr"):
            opened(store)
        assert not (tmp_path / "ran").exists()


class TestPackages:
    def test_of_a_file_system_are_asked_for_at_once(self, monkeypatch):
        import importlib

        real = importlib.import_module
        monkeypatch.setattr(
            importlib, "import_module", lambda name, *a: real("no_such_package" if name == "s3fs" else name, *a)
        )
        with mock.patch("time.sleep", side_effect=AssertionError("waited")):
            with pytest.raises(ValueError, match=r"s3://b/a.zarr: .* needs the package s3fs.*pip install s3fs"):
                open_groups("s3://b/a.zarr")

    def test_of_no_file_system(self):
        with pytest.raises(ValueError, match=r"abc://b/a.zarr: .*abc.*expected a scheme such as https"):
            open_groups("abc://b/a.zarr")


class TestRefused:
    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda d: d.assign(g=d.g.astype(str)), "layer 'g' .*holds text .*expected real numbers; name the var"),
            (
                lambda d: d.assign_coords(x=d.x.values[[0, 1, 3, 2, 4, 5, 6, 7]]),
                "'x' is not sorted: 500350 is followed by 500250 at index 3; sort",
            ),
            (lambda d: d.assign_coords(y=d.y.values[[0, 1, 2, 2, 4, 5]]), r"'y' is not sorted"),
            (
                lambda d: d.assign_coords(x=d.x.values + [0, 0, 0, 30, 0, 0, 0, 0]),
                "'x' is irregular: steps from 70 to 130.*index 3; regrid",
            ),
            (
                lambda d: d.assign_coords(y=np.where(d.y == d.y[2], np.nan, d.y)),
                r"'y' holds values that are not finite",
            ),
            (lambda d: d.isel(y=slice(0, 1)), r"dimension 'y' has 1 coordinate, expected at least 2"),
            (lambda d: d.drop_vars("x"), r"dimension 'x' has no coordinates"),
            (lambda d: d.drop_vars("spatial_ref"), r"has no CRS .*give the one it was made in, --crs EPSG"),
            (lambda d: d.assign_attrs(crs="EPSG:bad").drop_vars("spatial_ref"), r"attribute crs 'EPSG:bad': not a CRS"),
            (
                lambda d: d.expand_dims(time=3),
                "besides rows and columns .* 'time' of 3.*add --layer_dim time for a layer each",
            ),
            (
                lambda d: d.assign(g=d.g.assign_attrs(scale_factor=0.0)),
                r"scale_factor 0 and add_offset 0, expected finite",
            ),
            (lambda d: d.rename(x="a", y="b"), r"no variable with rows and columns among g"),
        ],
    )
    def test_by_name_and_with_a_remedy(self, tmp_path, change, message):
        store = one(tmp_path, change(grid_dataset()))
        with pytest.raises(ValueError, match=message):
            opened(store)

    def test_curvilinear_coordinates(self, tmp_path):
        dataset = xr.Dataset({"g": (("j", "i"), ramp(6, 8))}).assign_coords(
            lon=(("j", "i"), ramp(6, 8), {"units": "degrees_east"}),
            lat=(("j", "i"), ramp(6, 8), {"units": "degrees_north"}),
        )
        with pytest.raises(
            ValueError, match=r"no dimension that is y or x among its dimensions \(j, i\).*curvilinear.*regrid"
        ):
            layers_of_stores([f"{one(tmp_path, dataset)}#g"])

    def test_names(self, tmp_path):
        store = one(tmp_path, grid_dataset())
        with pytest.raises(ValueError, match=r"no variable 'h', the store has: g; correct it"):
            layers_of_stores([f"{store}#h"])
        with pytest.raises(ValueError, match=r"--layer_dim time: no such dimension; there are x, y"):
            layers_of_stores([str(store)], layer_dim="time")
        with pytest.raises(ValueError, match=r"2 layers are named 'a_g'"):
            layers_of_stores([str(store), str(store)])
        (layer,) = layers_of_stores([str(store)])
        with pytest.raises(ValueError, match=r"there is no band 2, it has rows and columns only"):
            open_band(replace(layer, band=2))
        deep = one(tmp_path, grid_dataset(np.zeros((2, 6, 8)), dims=("time", "y", "x")), name="b")
        with pytest.raises(ValueError, match=r"there is no band 3, dimension 'time' has 2"):
            open_band(replace(layers_of_stores([str(deep)], layer_dim="time")[0], band=3))
        more = one(tmp_path, grid_dataset(np.zeros((2, 2, 6, 8)), dims=("t", "z", "y", "x")), name="c")
        with pytest.raises(
            ValueError, match=r"dimension 't' of 2, 'z' of 2, expected none; choose elements of it first"
        ):
            layers_of_stores([str(more)])
        with pytest.raises(ValueError, match=r"has the dimensions t, z, expected at most one"):
            open_band(Layer("g", f"xarray:{more}#g"))

    def test_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"gone\.zarr: no such file or folder"):
            layers_of_stores([str(tmp_path / "gone.zarr")])
        (tmp_path / "a.nc").write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=r"a\.nc: cannot be opened .*it may be damaged or incomplete"):
            layers_of_stores([str(tmp_path / "a.nc")])
        (tmp_path / "empty.zarr").mkdir()
        with pytest.raises(ValueError, match=r"empty\.zarr: cannot be opened"):
            layers_of_stores([str(tmp_path / "empty.zarr")])

    def test_a_chunk_that_fails_to_decode(self, tmp_path):
        store = one(tmp_path, grid_dataset())
        (chunk,) = (store / "g" / "c").rglob("0/0") if (store / "g" / "c").exists() else [store / "g" / "0.0"]
        chunk.write_bytes(b"\x00" * 20)
        with pytest.raises(
            ValueError,
            match=r"layer 'g' .*rows 0 to 5, columns 0 to 7 of the variable cannot be read .*a chunk may be damaged",
        ):
            scan(opened(store))

    def test_packages_that_are_missing(self, tmp_path, monkeypatch):
        import importlib

        real = importlib.import_module

        def without(name, *arguments):
            if name == "zarr":
                raise ImportError("No module named 'zarr'")
            return real(name, *arguments)

        store = one(tmp_path, grid_dataset())
        monkeypatch.setattr(importlib, "import_module", without)
        with pytest.raises(
            ValueError, match=r"reading zarr needs the package zarr.*pip install -r requirements-xarray\.txt"
        ):
            open_groups(str(store))

    def test_netcdf_3_is_read(self, tmp_path):
        grid_dataset().to_netcdf(tmp_path / "a.nc", engine="scipy")
        np.testing.assert_array_equal(opened(tmp_path / "a.nc").read(0, 0, 6, 8), ramp(6, 8))

    def test_flags_that_do_not_fit(self, capsys):
        assert describe_grids.main(["--dataset_type", "xarray"]) == 2
        assert "--dataset_type xarray: no --data_path; give a zarr store" in capsys.readouterr().err
        assert describe_grids.main(["--data_path", "a.zarr"]) == 2
        assert "--data_path is for --dataset_type xarray, not grid; add it" in capsys.readouterr().err


class TestKinds:
    def test_flag_values_mean_classes(self, tmp_path):
        codes = np.array([[1, 2], [7, 1]], "i2")
        dataset = grid_dataset(codes, flag_values=np.array([1, 2, 7], "i2"), flag_meanings="a b c")
        band = opened(one(tmp_path, dataset))
        assert band.layer.kind == "categorical" and "flag_values" in band.notes[0]
        np.testing.assert_array_equal(band.read(0, 0, 2, 2), codes)
        stated = replace(band.layer, kind="continuous", kind_stated=True)
        assert open_band(stated).layer.kind == "continuous"
        scaled = one(tmp_path, grid_dataset(codes, flag_values=codes[0], scale_factor=0.1), name="b")
        with pytest.raises(ValueError, match="scale_factor 0.1 and add_offset 0, expected none on class codes"):
            opened(scaled)


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_labels_in_a_store_are_those_of_a_raster(tmp_path, kind):
    codes = np.arange(20 * 30).reshape(20, 30) % 5
    raster = write_grid(tmp_path / "rock.tif", codes.astype(np.int16), nodata=0)
    store = store_of(tmp_path, tmp_path / "rock.zarr")
    grid = TargetGrid(rasterio.open(raster).crs, 500_000.0, 6_000_000.0, 200.0, 10, 15)
    first, second = (open_labels(path, kind=kind, grid=grid) for path in (str(raster), f"xarray:{store}#rock/rock"))
    assert first.classes == second.classes
    np.testing.assert_array_equal(*(labels.read(0, 0, 10, 15) for labels in (first, second)))
