"""Layers from directories and from tables."""

import csv
import logging
import shutil

import numpy as np
import pytest
import rasterio.shutil
from rasterio.enums import ColorInterp

from datasets.layers.layer import Layer
from datasets.layers.table import layers_from_directory, read_layers_table, write_layers_table
from tests.rasters import ramp, write_grid


def write_table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def names(layers):
    return [layer.name for layer in layers]


class TestDirectory:
    def test_every_raster_in_sorted_order_and_nothing_else(self, tmp_path):
        write_grid(tmp_path / "b_mag.tif", ramp(3, 4))
        write_grid(tmp_path / "a_grav.ers", ramp(3, 4), driver="ERS")  # with its data file 'a_grav'
        write_grid(tmp_path / "c_dem.bil", ramp(3, 4), driver="EHdr")  # with .hdr, .prj, .aux.xml
        (tmp_path / "layers.csv").write_text("path\nb_mag.tif\n")
        (tmp_path / "notes.md").write_text("notes")
        (tmp_path / "README").write_text("no ending, no raster")
        (tmp_path / ".hidden.tif").write_text("no raster")
        layers = layers_from_directory(tmp_path)
        assert names(layers) == ["a_grav", "b_mag", "c_dem"]
        assert [layer.path for layer in layers][1] == str(tmp_path / "b_mag.tif")
        assert layers[1] == Layer("b_mag", str(tmp_path / "b_mag.tif"))

    def test_subfolders_only_when_the_directory_holds_none(self, tmp_path):
        for folder in ("400m", "200m"):
            (tmp_path / folder).mkdir()
            write_grid(tmp_path / folder / "mag.tif", ramp(3, 4))
        write_grid(tmp_path / "200m" / "dem.tif", ramp(3, 4))
        assert names(layers_from_directory(tmp_path)) == ["dem", "200m_mag", "400m_mag"]
        write_grid(tmp_path / "own.tif", ramp(3, 4))
        assert names(layers_from_directory(tmp_path)) == ["own"]

    def test_same_stem_is_told_apart_by_ending(self, tmp_path):
        write_grid(tmp_path / "mag.tif", ramp(3, 4))
        write_grid(tmp_path / "mag.img", ramp(3, 4), driver="HFA")
        assert names(layers_from_directory(tmp_path)) == ["mag_img", "mag_tif"]

    def test_bands_become_layers_and_alpha_does_not(self, tmp_path):
        path = write_grid(tmp_path / "k.tif", np.ones((3, 3, 4), "uint8"), band_names=["K (ppm)", "Th"])
        layers = layers_from_directory(tmp_path)
        assert names(layers) == ["k_K_ppm", "k_Th", "k_b3"]
        assert [layer.band for layer in layers] == [1, 2, 3]
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha]
        assert names(layers_from_directory(tmp_path)) == ["k_K_ppm", "k_Th"]

    def test_single_band_with_alpha_keeps_its_stem(self, tmp_path):
        path = write_grid(tmp_path / "dem.tif", np.ones((2, 3, 4), "uint8"))
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
        assert names(layers_from_directory(tmp_path)) == ["dem"]

    def test_equal_band_names_fall_back_to_numbers(self, tmp_path):
        write_grid(tmp_path / "x.tif", np.ones((2, 3, 4), "float32"), band_names=["same", "same"])
        assert names(layers_from_directory(tmp_path)) == ["x_b1", "x_b2"]

    def test_parts_of_a_vrt_are_not_layers_again(self, tmp_path):
        source = write_grid(tmp_path / "mag.tif", ramp(3, 4))
        rasterio.shutil.copy(str(source), str(tmp_path / "z.vrt"), driver="VRT")
        assert names(layers_from_directory(tmp_path)) == ["z"]

    def test_external_masks_and_overviews_are_not_layers(self, tmp_path):
        path = write_grid(tmp_path / "mag.tif", ramp(64, 64))
        files_of_their_own = {"TIFF_USE_OVR": True, "GDAL_TIFF_INTERNAL_MASK": False}
        with rasterio.Env(**files_of_their_own), rasterio.open(path, "r+") as file:
            file.build_overviews([2])
            file.write_mask(np.ones((64, 64), bool))
        assert {p.name for p in tmp_path.iterdir()} >= {"mag.tif", "mag.tif.ovr", "mag.tif.msk"}
        assert names(layers_from_directory(tmp_path)) == ["mag"]

    def test_picture_without_crs_is_passed_over_with_a_warning(self, tmp_path, caplog):
        write_grid(tmp_path / "mag.tif", ramp(3, 4))
        write_grid(tmp_path / "quicklook.png", ramp(3, 4, "uint8"), driver="PNG", crs=None)
        (tmp_path / "quicklook.png.aux.xml").unlink(missing_ok=True)
        with caplog.at_level(logging.WARNING):
            assert names(layers_from_directory(tmp_path)) == ["mag"]
        assert "quicklook.png: a picture without CRS" in caplog.text

    def test_only_pictures_is_no_rasters(self, tmp_path):
        write_grid(tmp_path / "quicklook.png", ramp(3, 4, "uint8"), driver="PNG", crs=None)
        (tmp_path / "quicklook.png.aux.xml").unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError, match="no rasters in it or in its subfolders; looked for"):
            layers_from_directory(tmp_path)

    def test_missing_or_empty_directory(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such directory"):
            layers_from_directory(tmp_path / "none")
        with pytest.raises(FileNotFoundError, match="no rasters"):
            layers_from_directory(tmp_path)

    @pytest.mark.parametrize("name", ["bad.tif", "bad.ers", "bad.gxf", "bad.grd", "bad.nc", "bad.vrt", "bad.asc"])
    def test_raster_that_cannot_be_opened_is_refused(self, tmp_path, name):
        write_grid(tmp_path / "good.tif", ramp(3, 4))
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{name}: cannot be opened as a raster"):
            layers_from_directory(tmp_path)

    def test_dangling_link_is_refused(self, tmp_path):
        (tmp_path / "gone.tif").symlink_to(tmp_path / "elsewhere.tif")
        with pytest.raises(ValueError, match="gone.tif: cannot be opened as a raster"):
            layers_from_directory(tmp_path)

    def test_netcdf_variables_are_layers(self, tmp_path):
        netcdf = pytest.importorskip("scipy.io").netcdf_file(tmp_path / "both.nc", "w")
        for name, size, start in (("y", 3, 5_999_950.0), ("x", 4, 500_050.0)):
            netcdf.createDimension(name, size)
            axis = netcdf.createVariable(name, "d", (name,))
            axis[:] = start + (100.0 if name == "x" else -100.0) * np.arange(size)
        for name in ("gravity", "magnetics"):
            netcdf.createVariable(name, "f", ("y", "x"))[:] = ramp(3, 4)
        netcdf.close()
        layers = layers_from_directory(tmp_path)
        assert names(layers) == ["both_gravity", "both_magnetics"]
        assert layers[0].path.lower().startswith("netcdf:")
        table = tmp_path / "layers.csv"
        write_layers_table(table, layers)
        assert read_layers_table(table) == layers
        write_table(table, "path\nnetcdf:both.nc:magnetics\n")  # relative to the table
        (layer,) = read_layers_table(table)
        assert layer.path == f"netcdf:{tmp_path / 'both.nc'}:magnetics" and layer.name == "both_magnetics"


class TestTable:
    def test_path_alone_is_enough(self, tmp_path):
        write_grid(tmp_path / "mag.tif", ramp(3, 4))
        assert read_layers_table(write_table(tmp_path / "t.csv", "path\nmag.tif\n")) == [
            Layer("mag", str(tmp_path / "mag.tif"))
        ]

    def test_every_column(self, tmp_path):
        write_grid(tmp_path / "mag.tif", np.ones((2, 3, 4), "float32"))
        text = (
            "path,name,band,kind,group,nodata,units,normalize,loss_weight\n"
            'mag.tif,"TMI, RTP",2,continuous,fine,-99999,nT,robust,0.5\n'
        )
        (layer,) = read_layers_table(write_table(tmp_path / "t.csv", text))
        assert layer == Layer(
            name="TMI, RTP",
            path=str(tmp_path / "mag.tif"),
            band=2,
            group="fine",
            nodata=-99999.0,
            units="nT",
            normalize="robust",
            loss_weight=0.5,
            kind_stated=True,
        )

    def test_spreadsheet_habits(self, tmp_path):
        write_grid(tmp_path / "mag.tif", ramp(3, 4))
        text = "\ufeffPath , Name\r\n mag.tif , TMI \r\n,\r\n"  # byte order mark, spaces, blank row
        (layer,) = read_layers_table(write_table(tmp_path / "t.csv", text))
        assert layer.name == "TMI" and layer.path == str(tmp_path / "mag.tif")

    def test_row_without_band_gives_a_layer_a_band(self, tmp_path):
        write_grid(tmp_path / "k.tif", np.ones((2, 3, 4), "float32"), band_names=["K", "Th"])
        text = "path,name,band,group\nk.tif,rad,,r\nk.tif,one,2,\n"
        layers = read_layers_table(write_table(tmp_path / "t.csv", text))
        assert names(layers) == ["rad_K", "rad_Th", "one"]
        assert [(layer.band, layer.group) for layer in layers] == [(1, "r"), (2, "r"), (2, None)]

    def test_derived_names_are_made_unique_by_folder(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            write_grid(tmp_path / folder / "mag.tif", ramp(3, 4))
        layers = read_layers_table(write_table(tmp_path / "t.csv", "path\na/mag.tif\nb/mag.tif\n"))
        assert names(layers) == ["a_mag", "b_mag"]

    def test_round_trip_from_any_folder(self, tmp_path, monkeypatch):
        write_grid(tmp_path / "mag.tif", np.ones((2, 3, 4), "float32"))
        layers = [
            Layer("x", str(tmp_path / "mag.tif"), band=2, nodata=0.1, group="g", units="nT", loss_weight=1 / 3),
            Layer("y, z", str(tmp_path / "mag.tif"), kind_stated=True, normalize="none"),
            Layer("v", "/vsigzip/somewhere/else.tif.gz"),
        ]
        write_layers_table(tmp_path / "t.csv", layers)
        (tmp_path / "sub").mkdir()
        shutil.move(tmp_path / "t.csv", tmp_path / "sub" / "t.csv")
        assert read_layers_table(tmp_path / "sub" / "t.csv") == layers
        monkeypatch.chdir(tmp_path)
        write_layers_table("t.csv", [Layer("x", "mag.tif")])
        with open("t.csv", newline="") as stream:
            assert next(csv.DictReader(stream))["path"] == str(tmp_path / "mag.tif")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no column 'path'"),
            ("path\n", "no rows, expected one a layer"),
            ("file\nmag.tif\n", r"no column 'path' in its first row \(file\)"),
            ("path;name\nmag.tif;x\n", "expected a comma-separated header"),
            ("path,colour\nmag.tif,red\n", "unknown column 'colour', expected some of: path, name"),
            ("path,name,name\nmag.tif,a,b\n", "column 'name' appears twice"),
            ("path,name\n,x\n", "row 2, column 'path': empty"),
            ("path\nmag.tif\nmag.tif,extra\n", "row 3: 2 cells, expected at most 1"),
            (
                "path,kind\nmag.tif,float\n",
                "row 2, column 'kind': 'float', expected one of continuous, categorical",
            ),
            (
                "path,normalize\nmag.tif,minmax\n",
                "column 'normalize': 'minmax', expected one of standard, robust",
            ),
            ("path,nodata\nmag.tif,none\n", "row 2, column 'nodata': 'none', expected a finite number"),
            ("path,nodata\nmag.tif,inf\n", "column 'nodata': 'inf', expected a finite number"),
            ("path,band\nmag.tif,one\n", "column 'band': 'one', expected a whole number from 1"),
            ("path,band\nmag.tif,0\n", "column 'band': '0', expected a whole number from 1"),
            ("path,band\nmag.tif,inf\n", "column 'band': 'inf', expected a whole number from 1"),
            ("path,loss_weight\nmag.tif,-1\n", "column 'loss_weight': '-1', expected a number >= 0"),
            ("path,loss_weight\nmag.tif,nan\n", "column 'loss_weight': 'nan', expected a number >= 0"),
            ("path,name\nmag.tif,x\nmag.tif,x\n", "2 layers are named 'x'"),
            ("path\nmag.tif\nmag.tif\n", "2 layers are named 'mag_tif'"),
            ("path\nempty.tif\n", "row 2: .*empty.tif: cannot be opened as a raster"),
            ('path\n"mag.tif\n', "not a CSV text file"),
        ],
    )
    def test_refusals(self, tmp_path, text, message):
        write_grid(tmp_path / "mag.tif", ramp(3, 4))
        (tmp_path / "empty.tif").write_bytes(b"")
        with pytest.raises(ValueError, match=message):
            read_layers_table(write_table(tmp_path / "t.csv", text))

    def test_not_text(self, tmp_path):
        (tmp_path / "t.csv").write_bytes(b"PK\x03\x04\xff\xfe\x00")
        with pytest.raises(ValueError, match="not a CSV text file"):
            read_layers_table(tmp_path / "t.csv")

    def test_missing_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file; --train_path takes a CSV"):
            read_layers_table(tmp_path / "none.csv")
        table = write_table(tmp_path / "t.csv", "path\nnone.tif\n")
        with pytest.raises(FileNotFoundError, match="row 2, column 'path': none.tif: no such file"):
            read_layers_table(table)

    def test_nan_nodata_adds_nothing(self, tmp_path):
        write_grid(tmp_path / "mag.tif", ramp(3, 4))
        (layer,) = read_layers_table(write_table(tmp_path / "t.csv", "path,nodata\nmag.tif,nan\n"))
        assert layer.nodata is None

    def test_vsi_paths_are_taken_as_they_are(self, tmp_path):
        write_grid(tmp_path / "mag.tif", ramp(3, 4))
        shutil.make_archive(str(tmp_path / "grids"), "zip", tmp_path, "mag.tif")
        path = f"/vsizip/{tmp_path}/grids.zip/mag.tif"
        (layer,) = read_layers_table(write_table(tmp_path / "t.csv", f"path\n{path}\n"))
        assert layer == Layer("mag", path)
