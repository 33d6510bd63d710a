"""Sheets of one layer: recognised by name and place, read as one raster, refused where that is not certain."""

import logging
import pickle

import numpy as np
import pytest
import rasterio

from datasets.layers.layer import Layer
from datasets.layers.sheets import name_of
from datasets.layers.table import layers_from_directory, read_layers_table, write_layers_table
from datasets.rasters.legend import read_legend
from datasets.rasters.open_band import check_sheets, open_band
from datasets.rasters.scan import scan, with_undeclared_nodata
from datasets.survey.inference_survey import stored_layers
from datasets.survey.open_layers import choose_layers
from scripts import describe_grids
from tests import surveys
from tests.rasters import ramp, write_grid

NAN = np.nan


def write_sheet(folder, name, values, row, col, **options):
    """A part of a 100 m grid whose corner is at 500000, 6000000: the one that begins at a row and a column."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_grid(folder / name, values, left=500_000.0 + 100 * col, top=6_000_000.0 - 100 * row, **options)


def cut(folder, whole, *, rows, cols, overlap=0, name="tmi_{}{}.tif", **options):
    """Writes an array in sheets of so many rows and columns, overlapping those in the south and east."""
    for i, row in enumerate(range(0, whole.shape[0], rows)):
        for j, col in enumerate(range(0, whole.shape[1], cols)):
            part = whole[row : row + rows + overlap, col : col + cols + overlap]
            write_sheet(folder, name.format(i, j), part, row, col, **options)
    return folder


def band_of(folder):
    """The only layer of a directory, opened."""
    (layer,) = choose_layers(str(folder), None, ())
    return open_band(layer)


def whole_of(band):
    return band.read(0, 0, band.grid.rows, band.grid.cols)


def table(folder, *rows):
    (folder / "layers.csv").write_text("\n".join(["path", *rows]) + "\n")
    return folder / "layers.csv"


# ------------------------------------------------------------------------------------------------------ what is read


def test_seams_and_gaps_on_paper(tmp_path):
    write_sheet(tmp_path, "tmi_1.tif", [[1.0, 2.0], [3.0, -9.0]], 0, 0, nodata=-9.0)
    write_sheet(tmp_path, "tmi_2.tif", [[5.0, 6.0], [7.0, 8.0]], 0, 2, nodata=-9.0)
    write_sheet(tmp_path, "tmi_3.tif", [[9.0, 10.0, 11.0]], 2, 0, nodata=-9.0)
    band = band_of(tmp_path)
    expected = [[1, 2, 5, 6], [3, NAN, 7, 8], [9, 10, 11, NAN]]
    np.testing.assert_array_equal(whole_of(band), expected)
    np.testing.assert_array_equal(band.read(1, 1, 3, 2), [[NAN, 7], [10, 11], [NAN, NAN]])
    assert band.grid.bounds == (500_000.0, 5_999_700.0, 500_400.0, 6_000_000.0)
    assert band.layer.name == "tmi" and band.nodata == (-9.0,)
    assert band.nodata_rule == "declared -9; outside its sheets; not finite; |value| >= 1e+30"
    assert scan(band).valid_fraction == 10 / 12


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"south_up": True}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_sheets_equal_the_raster_that_they_were_cut_from(tmp_path, overlap, options):
    rng = np.random.default_rng(3)
    whole = rng.normal(size=(60, 90)).astype("float32")
    whole[rng.random(whole.shape) < 0.1] = -9999.0
    whole[5, 7] = NAN
    one = open_band(Layer("tmi", str(write_sheet(tmp_path, "whole.tif", whole, 0, 0, nodata=-9999.0))))
    band = band_of(cut(tmp_path / "sheets", whole, rows=20, cols=30, overlap=overlap, nodata=-9999.0, **options))
    assert band.grid == one.grid
    for _ in range(30):
        row, col = rng.integers(-5, 60), rng.integers(-5, 80)
        window = (int(row), int(col), *(int(n) for n in rng.integers(1, 50, 2)))
        np.testing.assert_array_equal(band.read(*window), one.read(*window))
    found, expected = scan(band), scan(one)
    assert (found.valid_fraction, found.minimum, found.maximum) == pytest.approx(
        (expected.valid_fraction, expected.minimum, expected.maximum), abs=0
    )


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_packed_numbers_masks_and_several_bands(tmp_path, dtype):
    whole = np.stack([ramp(12, 20, dtype), ramp(12, 20, dtype)[::-1]])
    mask = np.arange(240).reshape(12, 20) % 7 > 0
    for number, col in enumerate((0, 10)):
        columns = slice(col, col + 10)
        options = {"scale": 0.5, "offset": 3.0, "mask": mask[:, columns], "band_names": ["k", "th"]}
        write_sheet(tmp_path / "d", f"rad_{number}.tif", whole[:, :, columns], 0, col, **options)
    k, th = (open_band(layer) for layer in choose_layers(str(tmp_path / "d"), None, ()))
    assert (k.layer.name, th.layer.name) == ("rad_k", "rad_th")
    for band, values in zip((k, th), whole, strict=True):
        np.testing.assert_array_equal(whole_of(band), np.where(mask, values * 0.5 + 3.0, NAN).astype("float32"))


def test_each_sheet_has_its_own_nodata(tmp_path):
    write_sheet(tmp_path, "tmi_1.tif", [[0.0, 1.0]], 0, 0, nodata=-1.0)
    write_sheet(tmp_path, "tmi_2.tif", [[-1.0, 0.0]], 0, 2, nodata=0.0)
    np.testing.assert_array_equal(whole_of(band_of(tmp_path)), [[0, 1, -1, NAN]])


def test_where_one_sheet_has_no_data_the_other_counts(tmp_path):
    write_sheet(tmp_path, "tmi_1.tif", [[1.0, 2.0, 3.0, 4.0, -9.0]], 0, 0, nodata=-9.0)
    write_sheet(tmp_path, "tmi_2.tif", [[5.0, 6.0, 7.0, 8.0, 9.0]], 0, 4, nodata=-9.0)
    np.testing.assert_array_equal(whole_of(band_of(tmp_path)), [[1, 2, 3, 4, 5, 6, 7, 8, 9]])


def test_a_band_of_sheets_can_be_sent_to_another_process(tmp_path):
    band = band_of(cut(tmp_path, ramp(8, 8), rows=4, cols=4))
    np.testing.assert_array_equal(whole_of(pickle.loads(pickle.dumps(band))), ramp(8, 8))


def test_training_on_sheets_equals_training_on_the_whole_raster(tmp_path):
    whole = surveys.write_survey(tmp_path / "whole")
    with rasterio.open(whole / "magnetics.tif") as file:
        cut(tmp_path / "cut", file.read(1), rows=64, cols=96, name="magnetics_{}{}.tif", nodata=file.nodata)
    (tmp_path / "cut" / "gravity.tif").write_bytes((whole / "gravity.tif").read_bytes())
    for survey in ("whole", "cut"):
        assert surveys.train(tmp_path / survey, tmp_path / f"of_{survey}", "--cache", "none", "--epochs", "1") == 0
    first, second = surveys.checkpoint(tmp_path / "of_whole"), surveys.checkpoint(tmp_path / "of_cut")
    assert surveys.same_bits(first["model"], second["model"])
    assert surveys.losses(tmp_path / "of_whole") == surveys.losses(tmp_path / "of_cut")
    _, magnetics = stored_layers(second["layers"])
    assert magnetics.path.count("|") == 5
    assert read_layers_table(tmp_path / "of_cut" / "layers.csv")[1].path == magnetics.path
    np.testing.assert_array_equal(
        whole_of(open_band(magnetics)), whole_of(open_band(Layer("m", str(whole / "magnetics.tif"))))
    )


def test_reprojected_sheets(tmp_path):
    whole = ramp(40, 40)
    one = write_sheet(tmp_path, "whole.tif", whole, 0, 0)
    (layer,) = choose_layers(str(cut(tmp_path / "sheets", whole, rows=20, cols=20)), None, ())
    target = rasterio.crs.CRS.from_epsg(28355)
    bands = [open_band(each, reproject_to=target) for each in (layer, Layer("tmi", str(one)))]
    assert bands[0].warped and bands[0].grid == bands[1].grid
    np.testing.assert_array_equal(whole_of(bands[0]), whole_of(bands[1]))


def test_the_log_and_describe_grids_say_so(tmp_path, caplog, capsys):
    folder = cut(tmp_path, np.random.default_rng(0).normal(size=(200, 200)).astype("float32"), rows=100, cols=100)
    with caplog.at_level(logging.INFO):
        layers_from_directory(folder)
    assert "tmi: 4 files are sheets of one layer: tmi_00.tif, tmi_01.tif, tmi_10.tif, tmi_11.tif" in caplog.text
    assert describe_grids.main(["--data_dir", str(folder), "--input_size", "8", "--patch_size", "4"]) == 0
    assert f"layer 0  tmi  (4 sheets, {folder / 'tmi_00.tif'} to tmi_11.tif, band 1, " in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------- what is a sheet


@pytest.mark.parametrize(
    ("stems", "name"),
    [
        (["tmi_00", "tmi_01"], "tmi"),
        (["TMI_north", "TMI_south"], "TMI"),
        (["N10E020_dem", "N11E020_dem"], "dem"),
        (["SG5601", "SG5602"], "SG"),
        (["5601", "5602"], "sheets"),
        (["sheet-a tmi", "sheet-b tmi"], "sheet_tmi"),
        (["survey_old", "survey_new"], "survey"),
        (["alpha", "beta"], "alpha"),
    ],
)
def test_the_name_is_what_the_sheets_share(stems, name):
    assert name_of("|".join(f"/d/{stem}.tif" for stem in stems)) == name


def test_sheets_in_subfolders_and_two_layers(tmp_path):
    for layer in ("mag", "grav"):
        for number in (1, 2):
            write_sheet(tmp_path / f"sheet{number}", f"{layer}.tif", ramp(4, 4), 0, 4 * number)
    layers = layers_from_directory(tmp_path)
    assert [layer.name for layer in layers] == ["grav", "mag"]
    assert layers[1].path == f"{tmp_path}/sheet1/mag.tif|{tmp_path}/sheet2/mag.tif"


@pytest.mark.parametrize(
    ("first", "second", "col"),
    [
        ("ndvi_2019", "ndvi_2020", 0),  # the same ground
        ("ndvi_2019", "ndvi_2020", 7),  # much of it
        ("ndvi_2019", "ndvi_2020", 30),  # far apart
        ("magnetics", "gravity", 10),  # side by side, but of other names
        ("survey_magnetics", "survey_gravity", 10),
        ("k", "u", 10),
    ],
)
def test_layers_of_their_own(tmp_path, first, second, col):
    write_sheet(tmp_path, f"{first}.tif", ramp(10, 10), 0, 0)
    write_sheet(tmp_path, f"{second}.tif", ramp(10, 10), 0, col)
    assert sorted(layer.name for layer in layers_from_directory(tmp_path)) == sorted([first, second])


AMBIGUOUS = [
    ({"values": ramp(10, 10, "int16")}, "their types differ (float32 and int16)"),
    ({"resolution": 50.0}, "their pixels differ (100 x 100 and 50 x 50)"),
    ({"col": 10.5}, "their pixels are not aligned"),
    ({"scale": 2.0}, "their scales and offsets differ"),
]


@pytest.mark.parametrize(("change", "why"), AMBIGUOUS, ids=[why[:22] for _, why in AMBIGUOUS])
def test_what_is_almost_a_sheet_is_refused_with_both_readings(tmp_path, change, why):
    options = {"values": ramp(10, 10), "row": 0, "col": 10, **change}
    write_sheet(tmp_path, "tmi_1.tif", ramp(10, 10), 0, 0)
    write_sheet(tmp_path, "tmi_2.tif", **options)
    with pytest.raises(ValueError) as error:
        layers_from_directory(tmp_path)
    said = str(error.value)
    assert (
        f"tmi_1.tif, tmi_2.tif look like sheets of one layer (their names are alike, and "
        f"some lie side by side), but {why}" in said
    )
    assert "If they are one layer, bring them to one type and pixel grid (gdal_translate -ot, gdalwarp" in said
    assert "if each is a layer of its own, give each a row. Then --train_path layers.csv instead of --data_dir" in said
    assert len(read_layers_table(table(tmp_path, "tmi_1.tif", "tmi_2.tif"))) == 2


def test_sheets_of_several_dates_are_refused_until_a_table_names_them(tmp_path):
    for year in (2019, 2020):
        cut(tmp_path, ramp(10, 20) * year, rows=10, cols=10, name=f"ndvi_{year}_{{}}{{}}.tif")
    with pytest.raises(
        ValueError, match=r"ndvi_2019_00.tif and ndvi_2020_00.tif cover the same ground.*ndvi_20\*\.tif"
    ):
        layers_from_directory(tmp_path)
    first, second = read_layers_table(table(tmp_path, "ndvi_2019_*.tif", "ndvi_2020_*.tif"))
    np.testing.assert_array_equal(whole_of(open_band(second)), ramp(10, 20) * 2020)
    assert (first.name, second.name) == ("ndvi_2019", "ndvi_2020")


def test_a_sheet_far_from_the_others_is_refused(tmp_path):
    cut(tmp_path, ramp(10, 20), rows=10, cols=10)
    write_sheet(tmp_path, "tmi_9.tif", ramp(10, 10), 0, 50)
    with pytest.raises(ValueError, match=r"but some lie far from the others\. If they are one layer, name its files"):
        layers_from_directory(tmp_path)
    (layer,) = read_layers_table(table(tmp_path, "tmi_*.tif"))
    assert open_band(layer).grid.cols == 60


def test_sheets_that_differ_where_they_overlap(tmp_path):
    write_sheet(tmp_path, "tmi_1.tif", [[1.0, 2.0, 3.0, 4.0, 5.0]], 0, 0)
    write_sheet(tmp_path, "tmi_2.tif", [[7.0, 6.0, 7.0, 8.0, 9.0]], 0, 4)
    with pytest.raises(
        ValueError, match="but 1 pixels differ where they overlap, by up to 2. If they are one layer, name"
    ):
        choose_layers(str(tmp_path), None, ())
    for cell, seam in (("tmi_1.tif|tmi_2.tif", 5.0), ("tmi_2.tif | tmi_1.tif", 7.0)):  # both ways to choose
        (layer,) = choose_layers(None, str(table(tmp_path, cell)), ())
        band = open_band(layer)
        assert whole_of(band)[0].tolist() == [1, 2, 3, 4, seam, 6, 7, 8, 9]
        assert band.notes == [
            "1 pixels differ where its sheets overlap, by up to 2: the sheet that is named first counts"
        ]
    assert len(choose_layers(None, str(table(tmp_path, "tmi_1.tif", "tmi_2.tif")), ())) == 2


def test_undeclared_nodata_of_a_sheet_leaves_the_others_pixel(tmp_path):
    first, second = np.arange(1.0, 41.0).reshape(4, 10), np.arange(101.0, 141.0).reshape(4, 10)
    first[:, 8:] = -9999.0
    write_sheet(tmp_path, "tmi_1.tif", first, 0, 0)
    write_sheet(tmp_path, "tmi_2.tif", second, 0, 8)
    (layer,) = choose_layers(None, str(table(tmp_path, "tmi_1.tif|tmi_2.tif")), ())
    band = open_band(layer)
    band = with_undeclared_nodata(band, scan(band).dummies)
    np.testing.assert_array_equal(whole_of(band), np.hstack([first[:, :8], second]))


# ----------------------------------------------------------------------------------------------------- layers.csv


def test_a_row_may_name_a_pattern_or_several_files(tmp_path):
    cut(tmp_path / "sheets", ramp(4, 8), rows=4, cols=4)
    (tmp_path / "sheets" / "tmi_00.tif.aux.xml").write_text("<PAMDataset/>")
    paths = f"{tmp_path}/sheets/tmi_00.tif|{tmp_path}/sheets/tmi_01.tif"
    for cell in ("sheets/*", "sheets/tmi_*.tif", "sheets/tmi_00.tif|sheets/tmi_01.tif", "sheets/tmi_00.tif|sheets/*"):
        (layer,) = read_layers_table(table(tmp_path, cell))
        assert (layer.path, layer.name) == (paths, "tmi")
    (single,) = read_layers_table(table(tmp_path, "sheets/*1.tif"))
    assert (single.path, single.name) == (f"{tmp_path}/sheets/tmi_01.tif", "tmi_01")


def test_tables_of_sheets_are_read_back_from_any_folder(tmp_path):
    layers = layers_from_directory(cut(tmp_path / "sheets", ramp(4, 8), rows=4, cols=4))
    (tmp_path / "elsewhere").mkdir()
    write_layers_table(tmp_path / "elsewhere" / "layers.csv", layers)
    assert read_layers_table(tmp_path / "elsewhere" / "layers.csv") == layers


def test_a_file_whose_name_has_the_signs_of_patterns_is_one_file(tmp_path):
    for name in ("a|b.tif", "c[1].tif"):
        write_sheet(tmp_path, name, ramp(4, 4), 0, 0)
        (layer,) = read_layers_table(table(tmp_path, name))
        assert layer.path == str(tmp_path / name)
        assert open_band(layer).grid.rows == 4


@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        ("sheets/x*.tif", FileNotFoundError, r"row 2, column 'path': sheets/x\*.tif: no such file \(looked for "),
        ("sheets/tmi_00.tif|gone.tif", FileNotFoundError, "gone.tif: no such file"),
        ("sheets/tmi_00.tif|xarray:a.zarr#v", ValueError, "a variable of a store, expected raster files as sheets"),
    ],
)
def test_cells_that_are_refused(tmp_path, cell, error, message):
    cut(tmp_path / "sheets", ramp(4, 8), rows=4, cols=4)
    with pytest.raises(error, match=message):
        read_layers_table(table(tmp_path, cell))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": ramp(10, 10, "int16")}, "b.tif has type int16, expected float32 as in a.tif"),
        ({"resolution": 50.0}, "b.tif has pixel size 50 x -50, expected 100 x -100 as in a.tif"),
        ({"south_up": True}, "b.tif has pixel size 100 x 100, expected 100 x -100 as in a.tif"),
        ({"col": 10.25}, "b.tif has alignment shifted by 0.25 of a pixel, expected whole pixels as in a.tif"),
        ({"offset": 1.0}, "b.tif has offset 1.0, expected 0.0 as in a.tif"),
        ({"crs": "EPSG:28355"}, "b.tif has CRS EPSG:28355, expected EPSG:28354 as in a.tif"),
    ],
)
def test_files_named_as_sheets_that_do_not_fit(tmp_path, change, message):
    write_sheet(tmp_path, "a.tif", ramp(10, 10), 0, 0)
    write_sheet(tmp_path, "b.tif", **{"values": ramp(10, 10), "row": 0, "col": 10, **change})
    (layer,) = read_layers_table(table(tmp_path, "a.tif|b.tif"))
    with pytest.raises(ValueError, match=f"{message}: sheets of one layer share type, kind and pixel grid"):
        open_band(layer)


def test_a_sheet_that_has_gone_or_cannot_be_read_is_named(tmp_path):
    (layer,) = layers_from_directory(cut(tmp_path, ramp(4, 8), rows=4, cols=4))
    (tmp_path / "tmi_01.tif").unlink()
    with pytest.raises(FileNotFoundError, match=r"layer 'tmi' \(.*tmi_01.tif, band 1\): no such file"):
        open_band(layer)


def test_classes_of_sheets(tmp_path):
    codes, colours = np.array([[1, 2], [2, 1]], "uint8"), {1: (255, 0, 0), 2: (0, 255, 0)}
    for number, names in enumerate((["granite", "basalt"], ["granite", "basalt"], ["granite", "gabbro"])):
        path = write_sheet(tmp_path, f"geology_{number}.tif", codes, 0, 2 * number, colormap=colours)
        with rasterio.open(path, "r+") as file:
            file.update_tags(1, **{f"class_{code}": name for code, name in enumerate(names, 1)})
    paths = [str(tmp_path / f"geology_{number}.tif") for number in range(3)]
    (layer,) = layers_from_directory(tmp_path)
    assert open_band(layer).layer.kind == "categorical"
    assert read_legend("|".join(paths[:2]), 1).names == {1: "granite", 2: "basalt"}
    with pytest.raises(ValueError, match=r"geology_2.tif: names class 2 'gabbro', expected 'basalt' as in .*geology_0"):
        read_legend(layer.path, 1)
    check_sheets([layer])
