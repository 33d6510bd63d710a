"""The page and the JSON object that say what would be read, and what is refused."""

import json
import math
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from rasterio.crs import CRS

import models_mae_group_channels as models
from datasets.ground.grid import crs_name
from scripts import describe_grids
from tests import small_main
from tests.bad_inputs import BAD_INPUTS, SMALL, damaged, values, with_second, with_table
from tests.rasters import write_grid

FLAGS = [*SMALL, "--json"]


def describe(argv, *, size=small_main.SMALL):
    """Runs the program in this process; counting the cost of a small network takes less."""
    with mock.patch.dict(models.MODEL_SIZES, tiny=size):
        return describe_grids.main(argv)


def described(capsys, *argv, **options):
    """The object that is printed, read as strict JSON; nothing else is on standard output."""

    def refuse(text):
        pytest.fail(f"{text} is not JSON")

    assert describe(list(argv), **options) == 0
    return json.loads(capsys.readouterr().out, parse_constant=refuse)


def two_layers(folder):
    """a: 40 x 48 pixels of 100 m with a hole of 80; b: 15 x 24 of 200 m, int16 with scale, offset and a hole of 6."""
    fine = np.arange(40.0 * 48).reshape(40, 48).astype(np.float32) + 0.5
    fine[10:18, 10:20] = -99999.0
    coarse = np.arange(15 * 24, dtype=np.int16).reshape(15, 24) + 100
    coarse[0, :6] = -32768
    write_grid(folder / "a.tif", fine, nodata=-99999.0)
    write_grid(folder / "b.tif", coarse, resolution=200.0, nodata=-32768, scale=0.5, offset=10.0)
    return fine, coarse


class TestJson:
    def test_object_has_the_agreed_keys(self, tmp_path, capsys):
        two_layers(tmp_path)
        found = described(capsys, "--data_dir", str(tmp_path), *FLAGS)
        top = "layers reference base_resolution scales scored tiles estimate warnings"
        layer = "name path band kind crs resolution shape nodata valid_fraction min max mean group"
        assert set(top.split()) <= set(found)
        assert all(set(layer.split()) <= set(item) for item in found["layers"])
        assert {"crs", "resolution", "shape", "bounds"} <= set(found["reference"])
        assert set(found["tiles"]) == {"train", "val"}

    def test_values_of_layers(self, tmp_path, capsys):
        fine, coarse = two_layers(tmp_path)
        first, second = described(capsys, "--data_dir", str(tmp_path), *FLAGS)["layers"]
        valid = fine[fine >= 0]
        assert (first["name"], first["path"], first["band"]) == ("a", str(tmp_path / "a.tif"), 1)
        assert (first["kind"], first["crs"], first["group"]) == ("continuous", "EPSG:28354", 0)
        assert (first["resolution"], first["shape"], first["nodata"]) == ([100, 100], [40, 48], -99999)
        assert first["valid_fraction"] == pytest.approx(1 - 80 / 1920)
        assert (first["min"], first["max"]) == (0.5, 1919.5)
        assert first["mean"] == pytest.approx(valid.mean(), rel=1e-6)
        assert first["std"] == pytest.approx(valid.std(), rel=1e-6)
        physical = coarse[coarse > 0] * 0.5 + 10
        assert (second["resolution"], second["shape"], second["nodata"]) == ([200, 200], [15, 24], -32768)
        assert (second["group"], second["dtype"]) == (1, "int16")
        assert second["valid_fraction"] == pytest.approx(1 - 6 / 360)
        assert (second["min"], second["max"]) == (physical.min(), physical.max()) == (63, 239.5)
        assert second["mean"] == pytest.approx(physical.mean(), rel=1e-6)

    def test_reference_scales_and_tiles(self, tmp_path, capsys):
        """b covers 3000 of a's 4000 m; tiles of 16 pixels every 4 fit 7 x 9 times, two thirds covered at the worst."""
        two_layers(tmp_path)
        found = described(capsys, "--data_dir", str(tmp_path), *FLAGS)
        assert found["reference"] == {
            "crs": "EPSG:28354",
            "resolution": [100, 100],
            "shape": [40, 48],
            "unit": "m",
            "bounds": [500_000, 5_996_000, 504_800, 6_000_000],
        }
        assert found["base_resolution"] == 400
        assert found["scales"] == [1, 2, 4]
        assert found["scored"] == {"a": [1, 2, 4], "b": [1, 2]}
        assert found["tiles"] == {"train": 63, "val": 0}
        assert found["warnings"] == [text for text in found["warnings"] if "is smooth" in text]

    def test_intersection(self, tmp_path, capsys):
        two_layers(tmp_path)
        found = described(capsys, "--data_dir", str(tmp_path), "--extent", "intersection", *FLAGS)
        assert found["reference"]["bounds"] == [500_000, 5_997_000, 504_800, 6_000_000]
        assert found["layers"][0]["shape"] == [40, 48]

    def test_several_values_mean_nodata(self, tmp_path, capsys):
        array = values()
        array[:4, :4], array[8:12, :4] = -99999.0, -9999.0
        write_grid(tmp_path / "a.tif", array, nodata=-99999.0)
        found = described(capsys, "--data_dir", str(tmp_path), *FLAGS)
        assert found["layers"][0]["nodata"] == [-99999, -9999]
        assert found["layers"][0]["valid_fraction"] == pytest.approx(1 - 32 / 1600)
        assert any("layer 'a': -9999 is not declared as nodata" in text for text in found["warnings"])

    @pytest.mark.parametrize(
        "nodata, dtype, shown",
        [
            (None, "float32", None),
            (math.nan, "float32", "nan"),
            (-3.4028234663852886e38, "float32", -3.4028234663852886e38),
            (1e30, "float64", 1e30),
            (-99999.9, "float64", -99999.9),
        ],
    )
    def test_nodata_is_shown_as_it_was_declared(self, tmp_path, capsys, nodata, dtype, shown):
        array = values().astype(dtype)
        array[:8, :8] = math.nan if nodata is None else nodata
        write_grid(tmp_path / "a.tif", array, nodata=nodata)
        layer = described(capsys, "--data_dir", str(tmp_path), *FLAGS)["layers"][0]
        assert layer["nodata"] == shown
        assert layer["valid_fraction"] == pytest.approx(0.96)

    def test_held_out_tiles_are_counted(self, tmp_path, capsys):
        write_grid(tmp_path / "a.tif", values(120, 120))
        flags = [*FLAGS, "--val_fraction", "0.2", "--val_buffer", "2", "--val_block", "2"]
        found = described(capsys, "--data_dir", str(tmp_path), *flags)
        assert found["tiles"]["train"] > 0
        assert found["tiles"]["val"] % 9 == 0 and found["tiles"]["val"] > 0  # 3 x 3 in each block, half a tile apart

    def test_tiles_of_a_test_survey_are_counted(self, tmp_path, capsys):
        command = with_second("--json")(tmp_path)
        (tmp_path / "test.csv").write_text("path\na.tif\nb.tif\n")
        found = described(capsys, *command, "--test_path", str(tmp_path / "test.csv"))
        assert found["tiles"]["val"] == 16  # every 8 pixels, 4 x 4 times
        assert any("100 % of its ground lies within the bounds of the training survey" in t for t in found["warnings"])

    @pytest.mark.parametrize(
        "flags, message",
        [
            ("--mask_ratio 0", "--mask_ratio 0 hides no token, and visible tokens see their own finer pixels"),
            ("--mask_ratio 0.99", "--mask_ratio 0.99 leaves none of the"),
            ("--mask_shape layer --model_type vanilla", "--mask_shape layer: there is one group of layers"),
        ],
    )
    def test_masks_that_training_refuses_are_refused(self, tmp_path, capsys, flags, message):
        two_layers(tmp_path)
        assert describe(["--data_dir", str(tmp_path), *FLAGS, *flags.split()]) == 2
        assert message in capsys.readouterr().err

    def test_groups(self, tmp_path, capsys):
        two_layers(tmp_path)
        flags = ["--data_dir", str(tmp_path), *FLAGS]
        given = described(capsys, *flags, "--grouped_bands", "1", "--grouped_bands", "0")
        assert [layer["group"] for layer in given["layers"]] == [1, 0]
        assert given["groups"] == [["b"], ["a"]]
        vanilla = described(capsys, *flags, "--model_type", "vanilla")
        assert [layer["group"] for layer in vanilla["layers"]] == [0, 0]

    def test_units_and_names_come_from_the_table(self, tmp_path, capsys):
        found = described(capsys, *with_table("path,name,units\na.tif,gravity,mGal\n", "--json")(tmp_path))
        assert [(layer["name"], layer["units"]) for layer in found["layers"]] == [("gravity", "mGal")]
        assert list(found["scored"]) == ["gravity"]

    def test_estimate(self, tmp_path, capsys):
        two_layers(tmp_path)
        flags, size = ["--data_dir", str(tmp_path), *FLAGS], {"size": models.ModelSize(192, 2, 3, 32, 128, 1, 2, 32)}
        small = described(capsys, *flags, **size)["estimate"]
        large = described(capsys, *flags, "--batch_size", "4", **size)["estimate"]
        assert small["layers_bytes"] == 4 * (40 * 48 + 15 * 24)
        assert large["flops_per_step"] == 2 * small["flops_per_step"] > 0
        assert large["parameters"] == small["parameters"] > 1e6
        assert large["memory_bytes"] > small["memory_bytes"] > 16 * small["parameters"]
        assert 0 <= small["head_share"] <= 0.15

    def test_warnings_about_smooth_layers(self, tmp_path, capsys):
        y, x = np.mgrid[:80, :80] / 80
        write_grid(tmp_path / "smooth.tif", (x + y).astype(np.float32))
        write_grid(tmp_path / "rough.tif", values(80, 80))
        found = described(capsys, "--data_dir", str(tmp_path), *FLAGS)["warnings"]
        assert len(found) == 1 and found[0].startswith(
            "layer 'smooth' is smooth: its autocorrelation length, over a third"
        )
        assert "interpolation will be hard to beat" in found[0]

    def test_no_number_is_infinite_or_missing(self, tmp_path, capsys):
        """A hidden layer has no autocorrelation, and a tiny one too short a reach to find it: null in both places."""
        write_grid(tmp_path / "a.tif", values(16, 16))
        write_grid(tmp_path / "b.tif", np.arange(256, dtype=np.float32).reshape(16, 16))
        found = described(capsys, "--data_dir", str(tmp_path), *FLAGS, "--masked_bands", "0")
        assert [layer["correlation_length"] for layer in found["layers"]] == [None, None]


def test_page(tmp_path, capsys):
    two_layers(tmp_path)
    assert describe(["--data_dir", str(tmp_path), *SMALL]) == 0
    page = capsys.readouterr().out
    assert re.search(r"layer 0  a  \(.*a\.tif, band 1, continuous, float32\)", page)
    assert re.search(r"48 x 40 pixels of 100 x 100 m, EPSG:28354", page)
    assert re.search(r"95\.8 % valid; declared -99999", page)
    assert re.search(r"63 to 239\.5, mean ", page)
    assert re.search(r"group 1, scored at 1x 2x\n", page)
    assert re.search(r"tiles +63 for training, 0 held out", page)


def test_strange_but_good_files_are_described_without_a_word_on_standard_error(tmp_path, capfd):
    """South-up, several bands, a mask, shifted by half a pixel, 250 m beside 100 m."""
    mask = np.ones((40, 40), dtype=bool)
    mask[:8] = False
    write_grid(tmp_path / "a.tif", np.stack([values(), values(seed=1)]), band_names=["north", "south"], mask=mask)
    write_grid(tmp_path / "b.tif", values(seed=2), south_up=True)
    write_grid(tmp_path / "c.tif", values(16, 16, seed=3), resolution=250.0, left=500_050.0)
    assert describe(["--data_dir", str(tmp_path), *FLAGS]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert [layer["name"] for layer in found["layers"]] == ["a_north", "a_south", "b", "c"]
    assert [layer["valid_fraction"] for layer in found["layers"]] == [0.8, 0.8, 1, 1]
    assert found["scored"]["c"] == [1]
    assert err == ""


@pytest.mark.parametrize("arguments, pattern", [pytest.param(*case[1:], id=case[0]) for case in BAD_INPUTS])
def test_bad_input_is_refused_with_status_2_and_one_message(arguments, pattern, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    status: int | str | None
    try:
        status = describe(arguments(folder))
    except SystemExit as stop:  # how argparse refuses
        status = stop.code
    out, err = capfd.readouterr()
    assert status == 2 and out == ""
    messages = [line for line in err.splitlines() if "describe_grids: error:" in line]
    assert len(messages) == 1 and re.search(pattern, messages[0]), err
    other = [line for line in err.splitlines() if line not in messages]
    assert all(line.startswith(("usage:", " ")) for line in other), err  # argparse shows the usage as well


def test_as_a_program(tmp_path):
    """`python -m scripts.describe_grids` of a truncated file: status 2, one line, no traceback."""
    command = [sys.executable, "-m", "scripts.describe_grids", *damaged(keep=0.6)(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("describe_grids: error: layer 'b'")


def test_lengths_and_reference_systems_can_be_read():
    """No 1.42e+04 m, and of a CRS without a code its name instead of the beginning of its WKT."""
    assert [describe_grids._length(length, "m") for length in (14_240.0, 999.0)] == ["14.24 km", "999 m"]
    assert [describe_grids._length(length, unit) for length, unit in ((1500.0, "degrees"), (2.5, ""))] == [
        "1500 degrees",
        "2.5",
    ]
    wkt = CRS.from_string("+proj=tmerc +lat_0=1 +lon_0=2 +datum=NAD27").to_wkt().replace("unknown", "Local grid", 1)
    mars = CRS.from_string("+proj=longlat +R=3396190")
    assert [crs_name(crs) for crs in (CRS.from_wkt(wkt), CRS.from_epsg(2957), mars)] == [
        "Local grid",
        "EPSG:2957",
        "CRS without a name, equatorial radius 3,396,190 m",
    ]
