"""Every remedy leads to a run: a message is provoked, what it advises is done to the letter, and the program runs.

Where a message names a flag, its pattern holds it as a group, and the command that follows uses what the message said.
Advice on archives, stores and point tables in a folder is in `tests/test_passed_over.py`, that on sheets with both
readings in `tests/test_sheets.py`, that on damaged checkpoints in `tests/test_run_checkpoints.py`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
import xarray as xr
from rasterio.rio.main import main_group as rio

import main_finetune
import main_inference
import main_pretrain
from datasets.rasters.handles import close_datasets
from datasets.rasters.xarray_store import forget_all
from datasets.survey.open_survey import SurveySettings, open_survey
from scripts import describe_grids
from tests import labelled, small_main, surveys
from tests.arrays import dataset_of
from tests.bad_inputs import SMALL, good_layer, values, with_classes, with_second, with_table
from tests.rasters import write_grid
from util.options.common import survey_options

Argv = list[str]
Make = Callable[[Path], Argv]
Follow = Callable[[Path, Argv, re.Match[str]], Argv]


def survey(argv: Argv) -> int:
    """Opens and scans layers as every program does, and prints what `describe_grids` would warn of."""
    args = describe_grids.get_args_parser().parse_args(argv)
    try:
        opened = open_survey(SurveySettings(**survey_options(args)))
    except (ValueError, OSError) as error:
        print(error)
        return 2
    print(*opened.training_warnings(args.patch_size), sep="\n")
    return 0


def run(capsys, program: Callable[[Argv], int], argv: Argv) -> tuple[int, str]:
    """Exit status of a program, and all that it wrote."""
    close_datasets()  # the programs are called in one process here
    forget_all()
    capsys.readouterr()
    try:
        status = program(argv)
    except SystemExit as end:  # argparse ends the program itself
        status = int(end.code or 0)
    written = capsys.readouterr()
    return status, written.out + written.err


def follows(capsys, folder: Path, program, *, make: Make, pattern: str, follow: Follow, status: int = 2) -> str:
    """Provokes a message, does what it says, and runs again: the run succeeds without that message.

    Args:
        status: with which the program ends at first: 2 refused, 0 for a warning.

    Returns:
        What the second run wrote.
    """
    argv = make(folder)
    found, text = run(capsys, program, argv)
    match = re.search(pattern, text, re.DOTALL)
    assert found == status and match is not None, text
    found, after = run(capsys, program, follow(folder, argv, match))
    assert found == 0 and re.search(pattern, after, re.DOTALL) is None, after
    return after


def add(*given: str) -> Follow:
    """The same command with the flag that the message names (its first group), and a value."""
    return lambda folder, argv, match: [*argv, match[1], *given]


def add_all_said(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    """The same command with flag and value as the message names them (its first group)."""
    return [*argv, *shlex.split(match[1])]


def edit(name: str, **placeholders: str) -> Follow:
    """Runs the rio command of the message (its first group) on a file, with its placeholders filled in."""

    def follow(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
        close_datasets()
        words = [placeholders.get(word, word) for word in shlex.split(match[1])]
        assert words[0] == "rio"
        rio([str(folder / name) if word in ("FILE", name) else word for word in words[1:]], standalone_mode=False)
        return argv

    return follow


def table(text: str) -> Follow:
    """Writes layers.csv, and takes it in place of the folder."""

    def follow(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
        (folder / "layers.csv").write_text(text.replace("{}", match[1] if match.groups() else ""), encoding="utf-8")
        return ["--train_path", str(folder / "layers.csv"), *SMALL]

    return follow


def rewritten(name: str, write: Callable[[Path], object]) -> Follow:
    """Writes a file of the folder anew, and runs the same command."""

    def follow(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
        close_datasets()
        write(folder / name)
        return argv

    return follow


# ------------------------------------------------------------------------------------------------ layers as rasters


def b_of(array: np.ndarray, *flags: str, **options) -> Make:
    return with_second(*flags, array=array, **options)


def many_classes() -> np.ndarray:
    return (np.arange(1600).reshape(40, 40) // 100 % 3 + 1).astype(np.uint8)


def with_zeros() -> np.ndarray:
    array = values(seed=1)
    array[:20] = 0
    return array


def near_dummies() -> np.ndarray:
    array = values(seed=1) * 100
    array[:4] = 9999.0
    return array


def bare(folder: Path) -> Argv:
    good_layer(folder)
    write_grid(folder / "b.tif", values(seed=1), crs=None)
    return ["--data_dir", str(folder), *SMALL]


def esri_prj(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    (folder / f"b{match[1]}").write_text(rasterio.crs.CRS.from_epsg(28354).to_wkt(version="WKT1_ESRI"))
    return argv


def as_folder(flag: str) -> Make:
    def make(folder: Path) -> Argv:
        good_layer(folder)
        (folder / "layers.csv").write_text("path\na.tif\n")
        given = {"--data_dir": folder / "layers.csv", "--train_path": folder, "raster": folder / "a.tif"}[flag]
        return ["--train_path" if flag == "raster" else flag, str(given), *SMALL]

    return make


def instead(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    """The flag and value that the message names, in place of the first of the command."""
    return [*shlex.split(match[1]), *argv[2:]]


def moved_away(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    (folder / "b.tif").rename(folder.parent / "b.tif")
    return argv


def damaged(folder: Path) -> Argv:
    argv = with_second()(folder)
    (folder / "b.tif").write_bytes(b"not a raster")
    return argv


def doubled(folder: Path) -> Argv:
    good_layer(folder)
    (folder / "layers.csv").write_text("name,path\na,a.tif\na,a.tif\n")
    return ["--train_path", str(folder / "layers.csv"), *SMALL]


def small_survey(*flags: str) -> Make:
    """Two layers of 40 x 40 pixels of 100 m."""
    return with_second(*flags)


def sparse(folder: Path) -> Argv:
    array = np.full((40, 40), np.nan, np.float32)
    array[::2] = values()[::2]
    write_grid(folder / "a.tif", array)
    return ["--data_dir", str(folder), *SMALL, "--min_valid", "0.9"]


def lower_min_valid(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    return [*argv, match[2], match[1]]


def in_the_next_zone(folder: Path) -> Argv:
    good_layer(folder)
    (left,), (top,) = rasterio.warp.transform("EPSG:28354", "EPSG:28355", [500_000.0], [6_000_000.0])
    write_grid(folder / "b.tif", values(seed=1), crs="EPSG:28355", left=left, top=top)
    return ["--data_dir", str(folder), *SMALL]


def a_chain(folder: Path) -> Argv:
    """Three layers, of which the first and the last share no ground."""
    good_layer(folder)
    write_grid(folder / "b.tif", values(seed=1), left=502_000.0)
    write_grid(folder / "c.tif", values(seed=2), left=505_000.0)
    return ["--data_dir", str(folder), *SMALL, "--extent", "intersection"]


def impossible_nodata(folder: Path) -> Argv:
    write_grid(folder / "a.tif", values().astype(np.int16))
    (folder / "layers.csv").write_text("path,nodata\na.tif,99999\n")
    return ["--train_path", str(folder / "layers.csv"), *SMALL]


LAYERS: list[tuple[str, Make, str, Follow]] = [
    ("CRS by rio", bare, r"or (rio edit-info --crs EPSG:\.\.\. FILE)", edit("b.tif", **{"EPSG:...": "EPSG:28354"})),
    ("CRS by .prj", bare, r"or put a (\.prj) beside the file", esri_prj),
    (
        "two CRSs",
        in_the_next_zone,
        r"all layers must share one CRS: add (--reproject)",
        add(),
    ),
    ("rotated", with_second(rotation=15.0), r"rotated or sheared.*add (--reproject) to warp it", add()),
    (
        "no common ground",
        a_chain,
        r"share no ground.*use (--extent union)",
        add_all_said,
    ),
    (
        "sheets far apart",
        with_second(left=504_200.0),
        r"if they are sheets of one layer, name them in one row of layers.csv \((a\.tif\|b\.tif)\)",
        table("path\n{}\n"),
    ),
    (
        "nothing but nodata",
        b_of(np.full((40, 40), -5.0, np.float32), nodata=-5.0),
        r"all nodata: none of 1600 pixels is valid.*or leave the layer out",
        lambda folder, argv, match: [*argv, "--dropped_bands", "1"],
    ),
    (
        "constant",
        b_of(np.full((40, 40), 7.5, np.float32)),
        r"constant: .*; leave the layer out",
        lambda folder, argv, match: [*argv, "--dropped_bands", "1"],
    ),
    (
        "measurements as classes",
        with_table("path,kind\na.tif,categorical\n"),
        r"set (kind=continuous in layers\.csv) if these are measurements",
        table("path,kind\na.tif,continuous\n"),
    ),
    (
        "a class that the table lacks",
        with_classes("code,name\n1,one\n2,two\n"),
        r"class code (3) is not among.*add it to the table",
        lambda folder, argv, match: [
            (folder / "b.csv").write_text(f"code,name\n1,one\n2,two\n{match[1]},three\n") and argv[0],
            *argv[1:],
        ],
    ),
    (
        "logarithm of what has none",
        with_second("--transform", "b=log", array=values() - 100),
        r"for transform log; choose transform (asinh)",
        lambda folder, argv, match: [*argv, "--transform", f"b={match[1]}"],
    ),
    (
        "logarithm of zero",
        with_second("--transform", "b=log", array=with_zeros()),
        r"smallest value (0), .*or declare such values as (nodata)",
        lambda folder, argv, match: [
            *table(f"path,{match[2]},transform\na.tif,,\nb.tif,{match[1]},log\n")(folder, argv, match)
        ],
    ),
    (
        "scale of nothing",
        b_of(values(seed=1).astype(np.int16), scale=0.0),
        r"scale 0 and offset 0, expected .*correct its (metadata)",
        rewritten("b.tif", lambda path: write_grid(path, values(seed=1).astype(np.int16), scale=0.5)),
    ),
    (
        "nodata that no pixel can hold",
        impossible_nodata,
        r"given nodata 99999, expected a value that a pixel of type int16 can hold .*; correct or remove it",
        table("path\na.tif\n"),
    ),
    ("a table as --data_dir", as_folder("--data_dir"), r"give a table of layers by (--train_path \S+)", instead),
    ("a folder as --train_path", as_folder("--train_path"), r"give a folder of rasters by (--data_dir \S+)", instead),
    (
        "a raster as --train_path",
        as_folder("raster"),
        r"it is a raster: give its folder by (--data_dir [^\s,]+)",
        instead,
    ),
    ("a damaged file", damaged, r"cannot be opened as a raster.*or (move it away)", moved_away),
    (
        "an unknown column",
        with_table("path,unit\na.tif,mGal\n"),
        r"unknown column 'unit', expected some of: .*\b(units)\b.*rename or remove it",
        table("path,{}\na.tif,mGal\n"),
    ),
    (
        "a cell with a comma",
        with_table("path,units\na.tif,mGal, total\n"),
        r"(quote) cells with commas",
        table('path,units\na.tif,"mGal, total"\n'),
    ),
    ("one name twice", doubled, r"give each a '(name)' of its own", table("{},path\na,a.tif\nb,a.tif\n")),
    (
        "tile larger than the survey: input_size",
        small_survey("--input_size", "12"),
        r"a tile covers 48 x 48 .* only 40 x 40; choose a smaller (--input_size)",
        add("10"),
    ),
    (
        "tile larger than the survey: scales",
        small_survey("--input_size", "12"),
        r"a tile covers 48 x 48 .*fewer (--scales)",
        add("1", "2"),
    ),
    (
        "tile larger than the survey: base_resolution",
        small_survey("--input_size", "12"),
        r"a tile covers 48 x 48 .*or a finer (--base_resolution)",
        add("200"),
    ),
    *(
        (
            f"nothing can be held out: {flag}",
            small_survey("--val_fraction", "0.1", "--val_buffer", "4", "--base_resolution", "400"),
            rf"no block of 16 x 16 .*choose .*({flag})",
            add(*given),
        )
        for flag, given in {
            "--input_size": ["2"],
            "--val_buffer": ["0"],
            "--base_resolution": ["100"],
            "--val_fraction": ["0"],
        }.items()
    ),
    ("few valid pixels", sparse, r"the best of \d+ has (0\.\d+) valid ground; lower (--min_valid)", lower_min_valid),
    (
        "groups that leave layers out",
        small_survey("--grouped_bands", "0"),
        r"(--grouped_bands) \[\[0\]\] is not a partition .*missing \[1\].*name every layer number once",
        lambda folder, argv, match: [*argv, match[1], "1"],
    ),
    (
        "input_size that patches do not fill",
        small_survey("--input_size", "5"),
        r"(--input_size) 5 is not a multiple of --patch_size 2; 4 or (\d+) would be",
        lambda folder, argv, match: [*argv, match[1], match[2]],
    ),
    (
        "base_resolution too fine",
        small_survey("--base_resolution", "25"),
        r"(--base_resolution) 25 is finer than every layer .*; choose at least (\d+)",
        lambda folder, argv, match: [*argv, match[1], match[2]],
    ),
    (
        "tile of part pixels",
        small_survey("--base_resolution", "110"),
        r"4\.4 reference pixels of 100.*such as (--base_resolution \d+)",
        add_all_said,
    ),
    (
        "dropped_bands leaves none",
        small_survey("--dropped_bands", "0", "1"),
        r"(--dropped_bands) leaves none .*keep at least one",
        add("1"),
    ),
    (
        "a layer that is not there",
        small_survey("--masked_bands", "5"),
        r"(--masked_bands) names layer 5, expected 0\.\.(1)",
        lambda folder, argv, match: [*argv, match[1], match[2]],
    ),
    (
        "weights of nothing",
        with_table("path,loss_weight\na.tif,0\n"),
        r"raise a (loss_weight)",
        table("path,{}\na.tif,1\n"),
    ),
    (
        "an unknown transform",
        small_survey("--transform", "b=sqrt"),
        r"--transform b=sqrt: expected one of none, log, (asinh), quantile",
        lambda folder, argv, match: [*argv, "--transform", f"b={match[1]}"],
    ),
]


@pytest.mark.parametrize(("make", "pattern", "follow"), [case[1:] for case in LAYERS], ids=[case[0] for case in LAYERS])
def test_layers(tmp_path, capsys, make, pattern, follow):
    follows(capsys, tmp_path, survey, make=make, pattern=pattern, follow=follow)


def kind_column(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    column, value = match[1].split("=")
    return table(f"path,{column}\na.tif,\nb.tif,{value}\n")(folder, argv, match)


def nodata_column(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    return table(f"path,nodata\na.tif,\nb.tif,{match[1]}\n")(folder, argv, match)


WARNINGS: list[tuple[str, Make, str, Follow]] = [
    (
        "few whole numbers",
        b_of(many_classes()),
        r"looks like classes: .*set (kind=categorical) in layers\.csv",
        kind_column,
    ),
    ("many zeros", b_of(with_zeros()), r"hold exactly 0, .*set nodata to (0) in layers\.csv", nodata_column),
    (
        "a dummy among data",
        b_of(near_dummies()),
        r"hold (9999), often a dummy.*set nodata in layers\.csv",
        nodata_column,
    ),
    (
        "numbers too large for float32",
        b_of(values(seed=1).astype(np.float64) / 1e3 + 1e6),
        r"values near 1000000.* apart in float32.*: (subtract a constant)",
        rewritten("b.tif", lambda path: write_grid(path, values(seed=1).astype(np.float64) / 1e3)),
    ),
]


@pytest.mark.parametrize(
    ("make", "pattern", "follow"), [case[1:] for case in WARNINGS], ids=[case[0] for case in WARNINGS]
)
def test_warnings_of_layers(tmp_path, capsys, make, pattern, follow):
    follows(capsys, tmp_path, survey, make=make, pattern=pattern, follow=follow, status=0)


# ------------------------------------------------------------------------------------- headers, netCDF, zarr, polygons


ERS = """DatasetHeader Begin
	Version		= "6.0"
	DataSetType	= ERStorage
	DataType	= Raster
	ByteOrder	= LSBFirst
	CoordinateSpace Begin
		Datum		= "GDA94"
		Projection	= "SUTM54"
		CoordinateType	= EN
		Rotation	= 20:0:0.0
	CoordinateSpace End
	RasterInfo Begin
		CellType	= IEEE4ByteReal
		CellInfo Begin
			Xdimension	= 100
			Ydimension	= 100
		CellInfo End
		NrOfLines	= 40
		NrOfCellsPerLine	= 40
		RegistrationCoord Begin
			Eastings	= 500000
			Northings	= 6000000
		RegistrationCoord End
		NrOfBands	= 1
	RasterInfo End
DatasetHeader End
"""


def rotated_ers(folder: Path) -> Argv:
    (folder / "b.ers").write_text(ERS)
    values(seed=1).tofile(folder / "b")
    return ["--data_dir", str(folder), *SMALL]


def corrected_ers(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    header = folder / "b.ers"
    header.write_text(header.read_text().replace("Rotation	= 20:0:0.0", match[1]))
    return argv


def gxf_of_another_sense(folder: Path, *, sense: int = 5) -> Argv:
    rows = values(seed=1)[::-1] if sense == 1 else values(seed=1)
    text = f"#POINTS\n40\n#ROWS\n40\n#PTSEPARATION\n100\n#RWSEPARATION\n100\n#SENSE\n{sense}\n"
    text += "#XORIGIN\n500000\n#YORIGIN\n5996000\n#MAP_PROJECTION\n"
    text += '"WGS 84 / UTM zone 54S"\n"WGS 84",6378137,0.0818191908,0\n'
    text += '"Transverse Mercator",0,141,0.9996,500000,10000000\n#GRID\n'
    lines = "\n".join(" ".join(f"{value:.3f}" for value in row) for row in rows)
    (folder / "b.gxf").write_text(text + lines + "\n")
    return ["--data_dir", str(folder), *SMALL]


def swapped_degrees(folder: Path) -> Argv:
    write_grid(folder / "a.tif", values(), crs="EPSG:4326", left=-30.0, top=141.0, resolution=0.01)
    return ["--data_dir", str(folder), *SMALL]


def corners_turned(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    """gdal_edit.py -a_ullr WEST NORTH EAST SOUTH: other corners, the same pixels."""
    close_datasets()
    order = dict(zip(match[1].split(), (140.6, -29.6, 141.0, -30.0), strict=True))
    with rasterio.open(folder / "a.tif", "r+") as file:
        bounds = (order["WEST"], order["SOUTH"], order["EAST"], order["NORTH"])
        file.transform = rasterio.transform.from_bounds(*bounds, file.width, file.height)
    return argv


def metres_under_degrees(folder: Path) -> Argv:
    write_grid(folder / "a.tif", values(), crs="EPSG:4326")
    return ["--data_dir", str(folder), *SMALL]


def netcdf(folder: Path, change: Callable[[xr.Dataset], xr.Dataset] = lambda dataset: dataset) -> xr.Dataset:
    plain = write_grid(folder.parent / "g.tif", values())
    dataset = change(dataset_of(plain))
    dataset.to_netcdf(folder / "a.nc", engine="h5netcdf")
    return dataset


def store(change: Callable[[xr.Dataset], xr.Dataset], *flags: str) -> Make:
    """A netCDF file that xarray reads."""

    def make(folder: Path) -> Argv:
        netcdf(folder, change)
        return ["--dataset_type", "xarray", "--data_path", str(folder / "a.nc"), *SMALL, *flags]

    return make


def stored(change: Callable[[xr.Dataset], xr.Dataset]) -> Follow:
    """What the message says to do with the dataset, done before it is written again."""

    def follow(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
        with xr.open_dataset(folder / "a.nc", engine="h5netcdf", mask_and_scale=False) as dataset:
            changed = change(dataset.load())
        (folder / "a.nc").unlink()
        changed.to_netcdf(folder / "a.nc", engine="h5netcdf")
        return argv

    return follow


def gdal_netcdf(change: Callable[[xr.Dataset], xr.Dataset]) -> Make:
    """The same file, read through GDAL."""

    def make(folder: Path) -> Argv:
        netcdf(folder, change)
        return ["--data_dir", str(folder), *SMALL]

    return make


def without_crs(dataset: xr.Dataset) -> xr.Dataset:
    dataset = dataset.drop_vars("spatial_ref")
    dataset["g"].attrs.pop("grid_mapping")
    return dataset


def with_attributes(**attributes: object) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(dataset: xr.Dataset) -> xr.Dataset:
        dataset["g"].attrs.update(attributes)
        for axis in "xy":
            dataset[axis].attrs |= {"standard_name": f"projection_{axis}_coordinate", "units": "m"}
        return dataset

    return change


def in_kilometres_under_degrees(dataset: xr.Dataset) -> xr.Dataset:
    dataset["x"].attrs["units"] = "degrees_east"
    return dataset


def shifted(dataset: xr.Dataset) -> xr.Dataset:
    """The last coordinates lie apart."""
    x = dataset["x"].to_numpy().copy()
    x[30:] += 500.0
    return dataset.assign_coords(x=x)


def regridded(dataset: xr.Dataset) -> xr.Dataset:
    x = dataset["x"].to_numpy()
    return dataset.interp(x=np.arange(x[0], x[-1] + 1, 100.0))


def months(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign(g=dataset["g"].expand_dims(time=[1, 2]).copy())


def without(key: str) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(dataset: xr.Dataset) -> xr.Dataset:
        del dataset["g"].attrs[key]
        return dataset

    return change


def polygons(folder: Path, *, crs: str | None) -> Argv:
    good_layer(folder)
    shape = shapely.box(500_000, 5_996_000, 503_000, 6_000_000)
    geopandas.GeoDataFrame({"name": ["area"]}, geometry=[shape], crs=crs).to_file(folder / "area.shp")
    return ["--data_dir", str(folder), *SMALL, "--aoi", str(folder / "area.shp")]


def polygons_with_crs(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    polygons(folder, crs="EPSG:28354")
    return argv


def in_a_table(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    return table("path\n{}\n")(folder, argv, match)


OTHER_FORMATS: list[tuple[str, Make, str, Follow]] = [
    ("a rotated ERS", rotated_ers, r"if it is not rotated, correct the header to (Rotation = 0:0:0\.0)", corrected_ers),
    (
        "sense of a GXF",
        gxf_of_another_sense,
        r"#SENSE 5, .*export it again with sense (1)",
        lambda folder, argv, match: gxf_of_another_sense(folder, sense=int(match[1])),
    ),
    (
        "x and y exchanged",
        swapped_degrees,
        r"if only its corners are swapped: gdal_edit\.py -a_ullr (.*) FILE",
        corners_turned,
    ),
    (
        "metres under degrees",
        metres_under_degrees,
        r"check the CRS: .*or (rio edit-info --crs EPSG:\.\.\. FILE)",
        edit("a.tif", **{"EPSG:...": "EPSG:28354"}),
    ),
    (
        "netCDF without attributes of coordinates",
        gdal_netcdf(lambda dataset: dataset),
        r"has no geotransform.*through xarray: (--dataset_type xarray --data_path \S+)",
        lambda folder, argv, match: [*shlex.split(match[1]), *SMALL],
    ),
    (
        "the same in a table of layers",
        gdal_netcdf(lambda dataset: dataset),
        r"has no geotransform.*\((xarray:\S+) in a table of layers",
        in_a_table,
    ),
    (
        "an attribute that is no number",
        gdal_netcdf(with_attributes(scale_factor="ten")),
        r"attribute scale_factor is .*or remove the attribute",
        stored(without("scale_factor")),
    ),
    (
        "limits in the wrong order",
        gdal_netcdf(with_attributes(valid_min=np.float32(500.0), valid_max=np.float32(1.0))),
        r"valid numbers from 500 to 1 .*correct or remove these attributes",
        stored(lambda dataset: without("valid_min")(without("valid_max")(dataset))),
    ),
    (
        "a store without CRS",
        store(without_crs),
        r"give the one it was made in, (--crs) EPSG:\.\.\.,",
        add("EPSG:28354"),
    ),
    (
        "units that do not suit the CRS",
        store(in_kilometres_under_degrees),
        r"coordinate 'x' has units 'degrees_east' under the CRS .*(correct the units)",
        stored(lambda dataset: dataset.assign_coords(x=dataset["x"].assign_attrs(units="m"))),
    ),
    ("coordinates with a gap", store(shifted), r"is irregular: .*regrid it \(dataset\.interp\)", stored(regridded)),
    (
        "coordinates out of order",
        store(lambda dataset: dataset.isel(x=[1, 0, *range(2, 40)])),
        r"coordinate 'x' is not sorted: .*sort it \(dataset\.sortby\('x'\)\)",
        stored(lambda dataset: dataset.sortby("x")),
    ),
    (
        "a third dimension",
        store(months),
        r"has the dimension 'time' of 2, expected none; add (--layer_dim time)",
        add_all_said,
    ),
    (
        "a variable that is not there",
        lambda folder: [*store(lambda dataset: dataset)(folder)[:3], f"{folder}/a.nc#h", *SMALL],
        r"there is no variable 'h', the store has: (g)",
        lambda folder, argv, match: [*argv[:3], f"{folder}/a.nc#{match[1]}", *SMALL],
    ),
    (
        "polygons without CRS",
        lambda folder: polygons(folder, crs=None),
        r"has no CRS, expected one; (set it)",
        polygons_with_crs,
    ),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "pattern", "follow"), [case[1:] for case in OTHER_FORMATS], ids=[case[0] for case in OTHER_FORMATS]
)
def test_other_formats(tmp_path, capsys, make, pattern, follow):
    (tmp_path / "data").mkdir()
    follows(capsys, tmp_path / "data", survey, make=make, pattern=pattern, follow=follow)


# --------------------------------------------------------------------------------------------------------- fine-tuning


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with survey/, labels, and checkpoints of pre-training and fine-tuning; nothing in it is changed."""
    folder = tmp_path_factory.mktemp("place")
    made = surveys.write_survey(folder / "survey")
    labels = labelled.write_classes(folder)
    labelled.write_values(folder)
    labelled.write_points(folder)
    (folder / "one_layer").mkdir()
    (folder / "one_layer/gravity.tif").write_bytes((made / "gravity.tif").read_bytes())
    assert surveys.train(made, folder / "pretrained", "--epochs", "1", "--tiles_per_epoch", "8") == 0
    assert labelled.finetune(made, folder / "finetuned", "--only_folds", "0", "--epochs", "1", labels=labels) == 0
    return folder


def prepared(argv: Argv) -> int:
    """main_finetune up to the first batch: weights, layers, labels, folds and networks are ready."""
    with mock.patch.object(main_finetune, "compare", lambda run, stop: 0):
        return labelled.run(argv)


def command(place: Path, folder: Path, *flags: str, labels: str = "classes.tif") -> Argv:
    path = folder / labels if (folder / labels).exists() else place / labels
    words = [word.replace("{}", str(place)) for word in flags]
    return labelled.arguments(place / "survey", folder / "output", *words, labels=path)


def replaced(flag: str, *given: str) -> Follow:
    """The flag that the message names, with other values; argparse takes the last."""

    def follow(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
        assert match[1] == flag
        return [*argv, flag, *given]

    return follow


def left_out(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    """The command without the flag that the message names, and without its values."""
    begin = len(argv) - 1 - argv[::-1].index(match[1])
    end = next((k for k in range(begin + 1, len(argv)) if argv[k].startswith("--")), len(argv))
    return argv[:begin] + argv[end:]


PRETRAINED = ("--finetune", "{}/pretrained/checkpoint-last.pth")

OPTIONS: list[tuple[Sequence[str], str, Follow]] = [
    (["--folds", "30"], r"choose fewer (--folds)", add("2")),
    (["--folds", "30"], r"a smaller (--fold_block)", lambda *given: [*add("2")(*given), "--folds", "6"]),
    (["--folds", "1"], r"(--folds) 1: expected at least (2)", lambda f, argv, m: [*argv, m[1], m[2]]),
    (["--val_buffer", "39"], r"no label is left to train on.*choose a smaller (--val_buffer)", add("4")),
    (["--label_fraction", "1e-9"], r"choose a larger (fraction)", lambda f, argv, m: [*argv, f"--label_{m[1]}", "0.5"]),
    (
        ["--label_blocks", "40"],
        r"(--label_blocks) 40: fold 0 has (\d+) .*ask for fewer",
        lambda f, a, m: [*a, m[1], "1"],
    ),
    (["--label_blocks", "2", "--label_fraction", "0.5"], r"(--label_blocks) 2 with .*give one", left_out),
    (["--label_blocks", "2", "--split", "random"], r"with --split random: expected (--split blocks)", add_all_said),
    (
        ["--only_folds", "7"],
        r"(--only_folds) 7: there are 2 folds, expected 0 to (1)",
        lambda f, a, m: [*a, m[1], m[2]],
    ),
    (["--masked_bands", "0", "1"], r"show at least one \((--masked_bands)\)", add("1")),
    (["--no_network"], r"--no_network without (--baselines): .* such as (trees)", lambda f, a, m: [*a, m[1], m[2]]),
    (["--baselines", "probe"], r"without (--finetune): a probe needs a pre-trained encoder", add(PRETRAINED[1])),
    (["--split", "from_checkpoint", *PRETRAINED], r"held out no ground.*use (--split blocks)", add_all_said),
    ([*PRETRAINED, "--data_dir", "{}/one_layer"], r"run without them: (--missing_layers allow)", add_all_said),
    ([*PRETRAINED, "--patch_size", "2"], r"(--patch_size) 2: .* was trained with 4; leave it out", left_out),
    (["--input_size", "10"], r"(--input_size) 10 is not a multiple .*; (8) or 12", lambda f, a, m: [*a, m[1], m[2]]),
    (["--mixup", "0.5"], r"(--mixup) 0\.5 does nothing for --task segmentation", left_out),
    (
        ["--resume", "{}/finetuned/checkpoint-last.pth"],
        r"expected (auto), to go on with what --output_dir holds",
        lambda f, a, m: [*a, "--resume", m[1]],
    ),
    (["--effective_batch", "6"], r"are not a multiple of --batch_size 4; use (--batch_size \d+)", add_all_said),
    (["--effective_batch", "8", "--accum_iter", "2"], r"with (--accum_iter) 2: .* leave one of them out", left_out),
    (["--device", "cuda:9"], r"--device cuda:9: .*or use (--device cpu)", add_all_said),
    (["--label_band", "2"], r"there is no band 2, the file has (1) band", lambda f, a, m: [*a, "--label_band", m[1]]),
]


@pytest.mark.parametrize(("flags", "pattern", "follow"), OPTIONS, ids=[f"{case[1]}"[:50] for case in OPTIONS])
def test_options_of_fine_tuning(place, tmp_path, capsys, flags, pattern, follow):
    def answer(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
        return [word.replace("{}", str(place)) for word in follow(folder, argv, match)]

    make = partial(command, place, tmp_path, *flags)
    follows(capsys, tmp_path, prepared, make=lambda folder: make(), pattern=pattern, follow=answer)


LEFT, TOP = 500_000.0, 6_000_000.0
RNG_PLACES = np.random.default_rng(3).uniform(500, 15_500, size=(24, 2))
"""Metres east and south of the survey's corner."""


def rows_of(columns: dict[str, Sequence[object]], separator: str = ",") -> str:
    lines = [separator.join(columns), *(separator.join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    return "\n".join(lines) + "\n"


def eastings() -> list[str]:
    return [f"{LEFT + east:.1f}" for east in RNG_PLACES[:, 0]]


def northings() -> list[str]:
    return [f"{TOP - south:.1f}" for south in RNG_PLACES[:, 1]]


def degrees() -> list[list[float]]:
    x, y = [float(text) for text in eastings()], [float(text) for text in northings()]
    return list(rasterio.warp.transform("EPSG:28354", "EPSG:4326", x, y))


ROCKS = ["basalt", "granite", "shale"] * 8
COPPER = [round(5 + 0.3 * k, 2) for k in range(24)]


def points(text: str, *flags: str) -> Make:
    """Points that regression or classification learns from, in points.csv."""

    def make(folder: Path) -> Argv:
        (folder / "points.csv").write_text(text, encoding="utf-8")
        return list(flags)

    return make


def as_text(write: Callable[[re.Match[str]], str]) -> Follow:
    """Writes the table as the message says."""

    def follow(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
        (folder / "points.csv").write_text(write(match), encoding="utf-8")
        return argv

    return follow


def shapes(folder: Path, *flags: str, crs: str | None, degrees: bool = False) -> Argv:
    """Two classes of polygons, in areas.shp."""
    west, east = (
        shapely.box(500_500, 5_985_000, 507_000, 5_999_000),
        shapely.box(509_000, 5_985_000, 515_000, 5_999_000),
    )
    frame = geopandas.GeoDataFrame(
        {"rock": ["basalt", "shale"], "age": [1, 2]}, geometry=[west, east], crs="EPSG:28354"
    )
    if degrees:
        frame = frame.to_crs(4326)
    frame.set_crs(crs, allow_override=True).to_file(folder / "areas.shp")
    return list(flags)


CLASSIFY = ("--task", "classification", "--label_column", "rock")
XY = {"x": eastings(), "y": northings()}
COMMAS = [text.replace(".", ",") for text in eastings()]

LABELS: list[tuple[str, str, Make, str, Follow]] = [
    (
        "decimal commas between commas",
        "points.csv",
        points(rows_of({"x": COMMAS, "y": northings(), "rock": ROCKS}), *CLASSIFY),
        r"separate columns by (semicolons)",
        as_text(lambda match: rows_of({"x": COMMAS, "y": northings(), "rock": ROCKS}, ";")),
    ),
    (
        "columns of other names",
        "points.csv",
        points(rows_of({"ost": eastings(), "nord": northings(), "rock": ROCKS}), *CLASSIFY),
        r"name them by (--x_column) and (--y_column)",
        lambda folder, argv, match: [*argv, match[1], "ost", match[2], "nord"],
    ),
    (
        "another zone",
        "points.csv",
        points(rows_of({**XY, "zone": [55] * 24, "lon": degrees()[0], "lat": degrees()[1], "rock": ROCKS}), *CLASSIFY),
        r"holds zone 55.*use (--x_column lon --y_column lat), or",
        add_all_said,
    ),
    (
        "a column that is no zone",
        "points.csv",
        points(rows_of({**XY, "zone": [55] * 24, "rock": ROCKS}), *CLASSIFY),
        r"is no zone of a projection, say so by (--x_column x --y_column y)",
        add_all_said,
    ),
    (
        "a column that is not there",
        "points.csv",
        points(rows_of({**XY, "rock": ROCKS}), "--task", "classification", "--label_column", "stone"),
        r"no column 'stone'; expected one of: (rock)",
        lambda folder, argv, match: [*argv, "--label_column", match[1]],
    ),
    (
        "presences alone",
        "points.csv",
        points(rows_of({**XY, "rock": ["gold"] * 24}), *CLASSIFY),
        r"one class only .*for presence-only points leave out (--label_column)",
        left_out,
    ),
    (
        "names as values",
        "points.csv",
        points(rows_of({**XY, "rock": ROCKS}), "--task", "regression", "--label_column", "rock"),
        r"expected numbers; .*or for classes use (--task segmentation)",
        add_all_said,
    ),
    (
        "measurements as classes",
        "points.csv",
        points(rows_of({**XY, "copper": COPPER}), "--label_column", "copper"),
        r"holds 5.*, which is no class code, .*use (--task regression)",
        add_all_said,
    ),
    (
        "no column chosen",
        "areas.shp",
        lambda folder: shapes(folder, crs="EPSG:28354"),
        r"no (--label_column) is given; expected one of: (rock)",
        lambda folder, argv, match: [*argv, match[1], match[2]],
    ),
    (
        "polygons without CRS",
        "areas.shp",
        lambda folder: shapes(folder, "--label_column", "rock", crs=None),
        r"has no CRS, expected one; give it by (--label_crs) EPSG",
        add("EPSG:28354"),
    ),
    (
        "degrees taken for metres",
        "points.csv",
        points(rows_of({"x": degrees()[0], "y": degrees()[1], "rock": ROCKS}), *CLASSIFY),
        r"its coordinates look like degrees; .*(--label_crs EPSG:4326)",
        add_all_said,
    ),
    (
        "x and y exchanged",
        "points.csv",
        points(rows_of({"x": northings(), "y": eastings(), "rock": ROCKS}), *CLASSIFY),
        r"x and y seem to be swapped: .*by (--x_column) and (--y_column)",
        lambda folder, argv, match: [*argv, match[1], "y", match[2], "x"],
    ),
    (
        "coordinates in degrees and minutes",
        "points.csv",
        points(rows_of({"lon": ["141 05 30"] * 24, "lat": ["-36 10 00"] * 24, "rock": ROCKS}), *CLASSIFY),
        r"write decimal (degrees): degrees \+ minutes / 60 \+ seconds / 3600",
        as_text(lambda match: rows_of({"lon": degrees()[0], "lat": degrees()[1], "rock": ROCKS})),
    ),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("labels", "make", "pattern", "follow"), [case[1:] for case in LABELS], ids=[case[0] for case in LABELS]
)
def test_labels(place, tmp_path, capsys, labels, make, pattern, follow):
    def whole(folder: Path) -> Argv:
        flags = make(folder)
        return command(place, folder, *flags, labels=labels)

    follows(capsys, tmp_path, prepared, make=whole, pattern=pattern, follow=follow)


def test_one_block_of_labels_is_not_told_to_choose_fewer_folds(place, tmp_path, capsys):
    """There are at least two folds, so that a message about one block must not ask for fewer than two."""

    def make(folder: Path) -> Argv:
        west, east = (shapely.box(x, 5_996_500, x + 1000, 5_999_000) for x in (500_500, 502_000))
        frame = geopandas.GeoDataFrame({"rock": ["a", "b"]}, geometry=[west, east], crs="EPSG:28354")
        frame.to_file(folder / "areas.shp")
        return command(place, folder, "--fold_block", "20", "--val_buffer", "0", labels="areas.shp")

    def follow(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
        return [*argv, match[1], "1", "--input_size", "4"]

    pattern = r"--folds 2: only 1 .* hold a label, expected at least one for each fold; choose a smaller (--fold_block)"
    follows(capsys, tmp_path, prepared, make=make, pattern=pattern, follow=follow)


# ------------------------------------------------------------------------------------------------- maps, pre-training


def mapped(argv: Argv) -> int:
    """main_inference up to the first block."""
    with mock.patch.object(main_inference, "work", lambda run, stop: 0):
        return main_inference.main(argv)


def mapping(place: Path, folder: Path, output: str, *flags: str, run: str = "pretrained") -> Argv:
    argv = ["--checkpoint", f"{place}/{run}/checkpoint-last.pth", "--output", output, "--output_dir", f"{folder}/maps"]
    return [*argv, "--device", "cpu", "--no_progress", *(word.replace("{}", str(place)) for word in flags)]


def flag_and_value(folder: Path, argv: Argv, match: re.Match[str]) -> Argv:
    """The same command with the flag that the message names, and the value that it names (its first two groups)."""
    return [*argv, match[1], match[2]]


MAPS: list[tuple[str, str, Sequence[str], str, Follow]] = [
    ("pretrained", "embeddings", ["--stride", "3"], r"(--stride) 3: expected a divisor .* (4) base", flag_and_value),
    ("pretrained", "embeddings", ["--block_size", "10"], r"(--block_size) 10: .* the patch, (4)", flag_and_value),
    ("pretrained", "embeddings", ["--clusters", "300"], r"(--clusters) 300: expected 2 to (255)", flag_and_value),
    ("pretrained", "embeddings", ["--draws", "9"], r"(--draws) 9 does nothing for --output embeddings", left_out),
    ("pretrained", "embeddings", ["--data_dir", "{}/one_layer"], r"them: (--missing_layers allow)", add_all_said),
    ("pretrained", "reconstruction", ["--draws", "1"], r"(--draws) 1: .* it takes (\d+) views", flag_and_value),
    ("pretrained", "gapfill", ["--max_gap", "1e6"], r"(--max_gap) 1e\+06 is wider .*at most (\d+)", flag_and_value),
    ("finetuned", "reconstruction", [], r"or one of (--output) .*(prediction)", flag_and_value),
    ("finetuned", "prediction", ["--stride", "2"], r"(--stride) 2 does nothing for .*; leave it out", left_out),
]


@pytest.mark.parametrize(("trained", "output", "flags", "pattern", "follow"), MAPS, ids=[case[3][:50] for case in MAPS])
def test_maps(place, tmp_path, capsys, trained, output, flags, pattern, follow):
    make = partial(mapping, place, tmp_path, output, *flags, run=trained)
    follows(capsys, tmp_path, mapped, make=lambda _: make(), pattern=pattern, follow=follow)


def test_labels_are_learnt_by_the_command_that_the_message_gives(place, tmp_path, capsys):
    status, text = run(capsys, mapped, mapping(place, tmp_path, "prediction"))
    match = re.search(r"fine-tune it first: python -m main_finetune (--finetune \S+ --labels) LABELS", text)
    assert status == 2 and match is not None, text
    given = [*shlex.split(match[1]), str(place / "classes.tif")]
    status, text = run(capsys, prepared, [*labelled.arguments(place / "survey", tmp_path / "fits"), *given])
    assert status == 0, text


def test_maps_that_are_there_already(place, tmp_path, capsys):
    def make(folder: Path) -> Argv:
        (folder / "maps").mkdir()
        (folder / "maps/embeddings.tif").write_bytes(b"an earlier map")
        return mapping(place, folder, "embeddings")

    follows(capsys, tmp_path, mapped, make=make, pattern=r"exists; give (--overwrite) to replace it", follow=add())


def test_parts_of_other_maps(place, tmp_path, capsys):
    assert run(capsys, mapped, mapping(place, tmp_path, "embeddings"))[0] == 0
    make = partial(mapping, place, tmp_path, "embeddings", "--stride", "2", "--resume")
    pattern = r"holds parts of another job: .*or leave (--resume) out to begin again"
    follows(capsys, tmp_path, mapped, make=lambda _: make(), pattern=pattern, follow=left_out)


PRETRAINING: list[tuple[int, str, str, Follow]] = [
    (2, "--base_loss_weight 0 --scale_loss_weight 0", r"(--base_loss_weight) 0 .*raise one of them", add("1")),
    (
        2,
        "--mask_ratio 0.25 --mask_shape layer",
        r"(--mask_ratio) 0\.25 of 2 groups .*expected at least (0\.5)",
        flag_and_value,
    ),
    (2, "--effective_batch 12 --batch_size 8", r"use (--batch_size \d+)", add_all_said),
    (2, "--fsdp", r"(--fsdp) splits the weights .* or leave it out", left_out),
    (0, "--warmup_epochs 40", r"a tenth of the epochs, (--warmup_epochs [\d.]+)", add_all_said),
]


@pytest.mark.parametrize(("status", "flags", "pattern", "follow"), PRETRAINING, ids=[case[1] for case in PRETRAINING])
def test_pretraining(place, tmp_path, capsys, status, flags, pattern, follow):
    argv = surveys.arguments(place / "survey", tmp_path / "output", *flags.split())
    with mock.patch.object(main_pretrain, "train", lambda run, stop: 0):
        how = {"make": lambda _: argv, "pattern": pattern, "follow": follow, "status": status}
        follows(capsys, tmp_path, small_main.main, **how)


def test_a_run_is_continued_with_the_values_that_the_message_gives(place, tmp_path, capsys):
    """Other options with --resume: the values of the checkpoint, or another folder."""
    options = ["--resume", "auto", "--epochs", "1", "--tiles_per_epoch", "8"]
    argv = surveys.arguments(place / "survey", place / "pretrained", *options)
    with mock.patch.object(main_pretrain, "train", lambda run, stop: 0):
        status, text = run(capsys, small_main.main, [*argv, "--lr", "0.5"])
        match = re.search(r"lr: checkpoint ([\d.]+), now 0\.5.*start afresh (without --resume) in another", text)
        assert status == 2 and match is not None, text
        assert run(capsys, small_main.main, [*argv, "--lr", match[1]])[0] == 0
        fresh = surveys.arguments(place / "survey", tmp_path / "other", "--lr", "0.5")
        assert run(capsys, small_main.main, fresh)[0] == 0
