"""GeoTIFFs in parts: what is written is read back, files are cloud-optimised, and nothing half-written has a name."""

import importlib.util
import math
import os
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioIOError

from util.geotiff import cog_writer as geotiff
from util.geotiff.cog_writer import join, read_reduced
from util.geotiff.parts import Parts
from util.geotiff.raster_spec import RasterSpec, check_nodata

needs_rio_cogeo = pytest.mark.skipif(
    importlib.util.find_spec("rio_cogeo") is None, reason="rio-cogeo is not installed (requirements-dev.txt)"
)
CODES = [["1", "basalt", "200", "30", "30"], ["2", "granite & co", "30", "30", "200"]]
CLASSES = {1: ("basalt", (200, 30, 30)), 2: ("granite & co", (30, 30, 200))}


def info(rows=300, cols=700, **changes):
    facts = {
        "crs": "EPSG:28354",
        "left": 500_000.0,
        "top": 6_000_000.0,
        "resolution_x": 50.0,
        "resolution_y": 100.0,
        "rows": rows,
        "cols": cols,
        "dtype": "float32",
        "nodata": math.nan,
        "names": ("value", "spread"),
        "units": ("nT", ""),
        "tags": {"checkpoint": 'a <b> & "c"', "layers": "gravity, magnetics"},
    }
    return RasterSpec(**(facts | changes))


def classes(rows=300, cols=700):
    return info(rows, cols, dtype="uint8", nodata=0, names=("class",), units=("",), classes=CLASSES)


def write(folder, raster, pixels, *, edge=256, name="r"):
    """Writes pixels in squares and joins them; returns the file's path."""
    parts = Parts(folder / "parts")
    parts.open({"job": 1}, resume=False)
    for row in range(0, raster.rows, edge):
        for col in range(0, raster.cols, edge):
            part = pixels[:, row : row + edge, col : col + edge]
            parts.write(row, col, {name: (raster, part, row, col)})
    join(folder / f"{name}.tif", raster, parts.of(name))
    return folder / f"{name}.tif"


def names_beside(path):
    """Names by code and rows of the attribute table, where GDAL and QGIS look for them."""
    tree = ElementTree.parse(f"{path}.aux.xml")
    rows = [[cell.text for cell in row.iter("F")] for row in tree.iter("Row")]
    return [entry.text or "" for entry in tree.iter("Category")], rows


def noise(raster):
    rng = np.random.default_rng(0)
    return rng.normal(size=(len(raster.names), raster.rows, raster.cols)).astype(np.float32)


class TestReadBack:
    def test_float(self, tmp_path):
        raster = info()
        pixels = noise(raster)
        pixels[:, :256, :256] = np.nan  # a square without valid pixel: no part
        pixels[1, 280:, 600:] = np.nan
        path = write(tmp_path, raster, pixels)
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(), pixels)
            assert file.crs.to_epsg() == 28354 and math.isnan(file.nodata)
            assert tuple(file.transform)[:6] == (50.0, 0.0, 500_000.0, 0.0, -100.0, 6_000_000.0)
            assert file.xy(10, 20) == (500_000 + 20.5 * 50, 6_000_000 - 10.5 * 100)
            assert file.descriptions == ("value", "spread") and file.units[0] == "nT"
            assert file.tags()["checkpoint"] == 'a <b> & "c"' and file.tags()["layers"] == "gravity, magnetics"
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and file.profile["compress"] == "deflate"
            assert file.profile["tiled"] and file.overviews(1)
        assert len(list((tmp_path / "parts").glob("r-*.tif"))) == 5 and not list(tmp_path.glob(".r*"))

    def test_half_floats(self, tmp_path):
        raster = info(dtype="float16")
        pixels = noise(raster)
        with rasterio.open(write(tmp_path, raster, pixels)) as file:
            np.testing.assert_array_equal(file.read(), pixels.astype(np.float16).astype(np.float32))
            assert file.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "16"

    def test_classes(self, tmp_path):
        raster = classes()
        pixels = np.random.default_rng(1).integers(0, 3, (1, 300, 700)).astype(np.uint8)
        with rasterio.open(write(tmp_path, raster, pixels)) as file:
            assert np.array_equal(file.read(), pixels) and file.nodata == 0 and file.dtypes == ("uint8",)
            table = file.colormap(1)
            assert table[1] == (200, 30, 30, 255) and table[2] == (30, 30, 200, 255)
            assert file.tags(1) == {"class_1": "basalt", "class_2": "granite & co"}
        assert names_beside(tmp_path / "r.tif") == (["", "basalt", "granite & co"], CODES)

    def test_classes_of_large_codes(self, tmp_path):
        table = {1: ("basalt", (200, 30, 30)), 40_000: ("granite & co", (30, 30, 200))}
        raster = info(dtype="uint16", nodata=65_535, names=("class",), units=("",), classes=table)
        pixels = np.random.default_rng(1).choice([1, 40_000, 65_535], (1, 300, 700)).astype(np.uint16)
        with rasterio.open(write(tmp_path, raster, pixels)) as file:
            assert np.array_equal(file.read(), pixels) and file.nodata == 65_535 and file.dtypes == ("uint16",)
            assert file.tags(1)["class_40000"] == "granite & co" and file.colorinterp[0].name == "gray"
        rows = [row if row[0] == "1" else ["40000", *row[1:]] for row in CODES]
        assert names_beside(tmp_path / "r.tif") == ([], rows)

    def test_names_do_not_outlive_their_raster(self, tmp_path):
        write(tmp_path, classes(), np.ones((1, 300, 700), np.uint8))
        assert (tmp_path / "r.tif.aux.xml").exists()
        write(tmp_path, info(), noise(info()))
        assert not (tmp_path / "r.tif.aux.xml").exists()

    def test_colours(self, tmp_path):
        raster = info(dtype="uint8", nodata=0, names=("a", "b", "c"), units=("",) * 3, is_picture=True)
        pixels = np.random.default_rng(1).integers(0, 255, (3, 300, 700)).astype(np.uint8)
        with rasterio.open(write(tmp_path, raster, pixels)) as file:
            assert [c.name for c in file.colorinterp] == ["red", "green", "blue"]
            assert np.array_equal(file.read(), pixels)

    @needs_rio_cogeo
    @pytest.mark.parametrize("raster", [info(1300, 1100), info(40, 30), info(700, 600, dtype="float16"), classes()])
    def test_cloud_optimised(self, tmp_path, raster):
        from rio_cogeo.cogeo import cog_validate

        pixels = noise(raster) if raster.classes is None else np.ones((1, raster.rows, raster.cols), np.uint8)
        valid, errors, warnings = cog_validate(write(tmp_path, raster, pixels))
        assert valid and not errors and not warnings

    def test_parts_that_fit_no_block(self, tmp_path, monkeypatch):
        """Blocks are put together out of several parts, a few columns at a time; gaps between parts stay nodata."""
        monkeypatch.setattr(geotiff, "CHUNK_BYTES", 1)
        raster = info(700, 900)
        pixels = noise(raster)
        pixels[:, 100:200, 300:500] = np.nan
        with rasterio.open(write(tmp_path, raster, pixels, edge=100)) as file:
            np.testing.assert_array_equal(file.read(), pixels)

    def test_temporary_files_stay_in_their_folder_and_are_compressed(self, tmp_path, monkeypatch):
        seen, copy = [], geotiff.rasterio.shutil.copy

        def copy_and_look(source, target, **options):
            seen.extend(path for path in (tmp_path / "parts").iterdir() if path.name.startswith(".r."))
            seen.append((tmp_path / "parts" / f".r.{os.getpid()}.tmp.tif.whole").stat().st_size)
            copy(source, target, **options)

        monkeypatch.setattr(geotiff.rasterio.shutil, "copy", copy_and_look)
        raster, parts = info(600, 600), Parts(tmp_path / "parts")
        parts.open({}, resume=False)
        parts.write(0, 0, {"r": (raster, np.ones((2, 600, 600), np.float32), 0, 0)})
        join(tmp_path / "r.tif", raster, parts.of("r"), workspace=parts.folder)
        assert len(seen) == 3 and seen[-1] < 600 * 600 * 2 * 4 / 10
        assert not [path for path in parts.folder.iterdir() if path.name.startswith(".r.")]

    def test_what_a_killed_run_left_is_removed(self, tmp_path):
        parts = Parts(tmp_path / "parts")
        parts.open({}, resume=False)
        (parts.folder / ".r.77.tmp.tif.whole").write_text("half")
        parts.open({}, resume=True)
        assert [path.name for path in parts.folder.iterdir()] == ["job.json"]

    def test_reduced(self, tmp_path):
        raster = classes()
        pixels = np.zeros((1, 300, 700), np.uint8)
        pixels[0, :, 350:] = 2
        image, width = read_reduced(write(tmp_path, raster, pixels), bands=[1], most=70)
        assert image.shape == (1, 30, 70) and width == 500.0
        assert np.isnan(image[0, :, :34]).all() and (image[0, :, 36:] == 2).all()


class TestChecks:
    @pytest.mark.parametrize(
        ("nodata", "dtype"), [(-1.0, "uint8"), (256, "uint8"), (math.nan, "uint8"), (0.1, "float16"), (1e6, "float16")]
    )
    def test_nodata_that_does_not_fit(self, nodata, dtype):
        with pytest.raises(ValueError, match=f"does not fit pixels of type {dtype}"):
            check_nodata(nodata, dtype)

    @pytest.mark.parametrize(
        ("nodata", "dtype"),
        [(0, "uint8"), (255, "uint8"), (65_535, "uint16"), (math.nan, "float16"), (-9999, "float32")],
    )
    def test_nodata_that_fits(self, nodata, dtype):
        check_nodata(nodata, dtype)

    def test_unknown_type(self):
        with pytest.raises(ValueError, match="data type 'int64': expected one of float32, float16, uint8, uint16"):
            check_nodata(0, "int64")

    def test_units_for_every_band(self):
        with pytest.raises(ValueError, match="2 band names and 1 units"):
            info(units=("nT",))

    def test_half_floats_that_overflow(self, tmp_path):
        raster = info(20, 20, dtype="float16")
        with pytest.raises(OSError, match="1e\\+06 is beyond float16's range; use --dtype float32"):
            write(tmp_path, raster, np.full((2, 20, 20), 1e6, np.float32))


class TestParts:
    def test_resume_keeps_and_another_job_is_refused(self, tmp_path):
        raster, parts = info(20, 20), Parts(tmp_path / "parts")
        parts.open({"seed": 1, "path": "a"}, resume=True)
        parts.write(0, 0, {"r": (raster, noise(raster), 0, 0)})
        parts.write(3, 1, {})
        parts.open({"seed": 1, "path": "a"}, resume=True)
        assert parts.is_done(0, 0) and parts.is_done(3, 1) and not parts.is_done(0, 1)
        with pytest.raises(
            ValueError, match="parts of another job: seed was 1, now 2; give the same options, or leave"
        ):
            parts.open({"seed": 2, "path": "a"}, resume=True)
        parts.open({"seed": 2, "path": "a"}, resume=False)
        assert not parts.is_done(0, 0) and not parts.of("r")
        parts.remove()
        assert not parts.folder.exists()

    def test_damaged_part_leaves_no_file(self, tmp_path):
        raster, parts = info(20, 20), Parts(tmp_path / "parts")
        parts.open({}, resume=False)
        parts.write(0, 0, {"r": (raster, noise(raster), 0, 0)})
        part = parts.of("r")[0][0]
        part.write_bytes(part.read_bytes()[:400])
        with pytest.raises(OSError, match=r"r\.tif: cannot be written"):
            join(tmp_path / "r.tif", raster, parts.of("r"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["parts"]

    def test_a_tile_lost_on_the_way_is_noticed(self, tmp_path, monkeypatch):
        raster, parts = info(20, 20), Parts(tmp_path / "parts")
        parts.open({}, resume=False)
        parts.write(0, 0, {"r": (raster, noise(raster), 0, 0)})
        put = geotiff._write_whole
        monkeypatch.setattr(geotiff, "_write_whole", lambda path, info, _, **more: put(path, info, [], **more))
        with pytest.raises(OSError, match="rows 0 to 19, columns 0 to 19 read back with other values"):
            join(tmp_path / "r.tif", raster, parts.of("r"))
        assert not (tmp_path / "r.tif").exists()

    def test_an_existing_file_stays_until_the_new_one_is_whole(self, tmp_path, monkeypatch):
        (tmp_path / "r.tif").write_text("old")

        def fail(*_, **__):
            raise RasterioIOError("no space left")

        monkeypatch.setattr(geotiff.rasterio.shutil, "copy", fail)
        with pytest.raises(OSError, match="cannot be written \\(no space left\\)"):
            join(tmp_path / "r.tif", info(), [])
        assert (tmp_path / "r.tif").read_text() == "old" and os.listdir(tmp_path) == ["r.tif"]
