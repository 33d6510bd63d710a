"""Data and flags that a run refuses before it starts: each names file or flag, value, expectation and remedy.

`BAD_INPUTS` holds (name, function that writes the data and returns the command line, pattern of the one message).
Every program that takes the data, tile and model options must refuse each of them with exit status 2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.rasters import write_grid

SMALL = "--input_size 4 --patch_size 2 --scales 1 2 4 --val_fraction 0 --batch_size 2".split()
"""Tiles of 16 x 16 pixels of the 100 m layer."""

Arguments = Callable[[Path], list[str]]


def values(rows: int = 40, cols: int = 40, seed: int = 0) -> np.ndarray:
    """(rows, cols) float32 of a field that varies."""
    return np.random.default_rng(seed).normal(100.0, 10.0, size=(rows, cols)).astype(np.float32)


def good_layer(folder: Path) -> None:
    """a.tif: 40 x 40 pixels of 100 m that nothing is wrong with."""
    write_grid(folder / "a.tif", values())


def with_second(*flags: str, array: np.ndarray | None = None, **options) -> Arguments:
    """A good layer a.tif, and b.tif as given."""

    def arguments(folder: Path) -> list[str]:
        good_layer(folder)
        write_grid(folder / "b.tif", values(seed=1) if array is None else array, **options)
        return ["--data_dir", str(folder), *SMALL, *flags]

    return arguments


def with_flags(*flags: str) -> Arguments:
    """Two good layers, and flags that do not fit them."""
    return with_second(*flags)


def with_classes(table: str | None) -> Arguments:
    """A good layer a.tif and one of classes 1 to 3, b.tif, that the table b.csv declares."""

    def arguments(folder: Path) -> list[str]:
        good_layer(folder)
        write_grid(folder / "b.tif", (np.arange(1600).reshape(40, 40) // 100 % 3 + 1).astype(np.uint8))
        if table is not None:
            (folder / "b.csv").write_text(table)
        (folder / "layers.csv").write_text("path,kind,classes\na.tif,,\nb.tif,categorical,b.csv\n")
        return ["--train_path", str(folder / "layers.csv"), *SMALL]

    return arguments


def with_table(text: str, *flags: str) -> Arguments:
    """A good layer a.tif and a table of this text."""

    def arguments(folder: Path) -> list[str]:
        good_layer(folder)
        (folder / "layers.csv").write_text(text, encoding="utf-8")
        return ["--train_path", str(folder / "layers.csv"), *SMALL, *flags]

    return arguments


def no_rasters(folder: Path) -> list[str]:
    (folder / "notes.txt").write_text("gridded in 1998")
    return ["--data_dir", str(folder), *SMALL]


def no_such_folder(folder: Path) -> list[str]:
    return ["--data_dir", str(folder / "grids"), *SMALL]


def damaged(*, keep: float | None) -> Arguments:
    """b.tif cut to a share of its bytes; None: a text of that name."""

    def arguments(folder: Path) -> list[str]:
        command = with_second()(folder)
        path = folder / "b.tif"
        path.write_bytes(b"not a raster" if keep is None else path.read_bytes()[: int(path.stat().st_size * keep)])
        return command

    return arguments


def flat(value: float) -> np.ndarray:
    return np.full((40, 40), value, dtype=np.float32)


def mostly_nodata(folder: Path) -> list[str]:
    array = flat(np.nan)
    array[::5, ::5] = values()[::5, ::5]
    write_grid(folder / "a.tif", array)
    return ["--data_dir", str(folder), *SMALL, "--min_valid", "0.5"]


def in_kilometres(folder: Path) -> list[str]:
    """One layer in kilometres."""
    good_layer(folder)
    write_grid(folder / "b.tif", values(), left=500.0, top=6000.0, resolution=0.1)
    return ["--data_dir", str(folder), *SMALL]


def no_such_table(folder: Path) -> list[str]:
    return ["--train_path", str(folder / "x.csv"), *SMALL]


def table_and_directory(folder: Path) -> list[str]:
    return [*with_table("path\na.tif\n")(folder), "--data_dir", str(folder)]


def other_survey(text: str) -> Arguments:
    """Good training data, and a --test_path of this text."""

    def arguments(folder: Path) -> list[str]:
        (folder / "test.csv").write_text(text, encoding="utf-8")
        return [*with_second()(folder), "--test_path", str(folder / "test.csv")]

    return arguments


BAD_INPUTS: list[tuple[str, Arguments, str]] = [
    ("no rasters", no_rasters, r"data directory .*: no rasters in it.*looked for files that GDAL opens"),
    ("no such folder", no_such_folder, r"data directory .*grids: no such directory; --data_dir takes a folder"),
    ("not a raster", damaged(keep=None), r"b\.tif: cannot be opened as a raster.*expected.*copy it again or move it"),
    ("truncated file", damaged(keep=0.6), r"layer 'b' \(.*b\.tif, band 1\): rows .*cannot be read.*restore it"),
    ("truncated header", damaged(keep=0.01), r"b\.tif: cannot be opened as a raster.*expected.*copy it again"),
    ("CRS missing", with_second(crs=None), r"layer 'b' \(.*b\.tif.*: has no CRS, expected .*gdal_edit.py -a_srs"),
    (
        "CRS differing",
        with_second(crs="EPSG:28355"),
        r"layer 'b' \(.*b\.tif\): CRS EPSG:28355, expected EPSG:28354 of layer 'a'.*add --reproject",
    ),
    ("no overlap", with_second(left=900_000.0), r"layer 'b' \(.*b\.tif\) does not overlap 'a'; expected.*check its"),
    ("kilometres", in_kilometres, r"layer 'b' \(.*b\.tif, band 1\): .*found km; write its corners in metres"),
    ("rotated grid", with_second(rotation=15.0), r"layer 'b' \(.*b\.tif.*rotated.*expected rows.*--reproject"),
    (
        "all nodata",
        with_second(array=flat(-99999.0), nodata=-99999.0),
        r"layer 'b' \(.*b\.tif.*: all nodata: none of 1600 pixels is valid.*-99999.*expected data; correct",
    ),
    ("all NaN", with_second(array=flat(np.nan)), r"layer 'b' \(.*b\.tif.*: all nodata: none of 1600 pixels"),
    (
        "constant",
        with_second(array=flat(7.5)),
        r"layer 'b' \(.*b\.tif.*: constant: .*is 7\.5.*expected.*leave the",
    ),
    (
        "measurements as classes",
        with_table("path,kind\na.tif,categorical\n"),
        r"layer 'a' \(.*a\.tif.*class code .*, expected whole numbers up to 16777216; set kind=continuous",
    ),
    (
        "a loss that the kind has no use for",
        with_table("path,loss\na.tif,cross_entropy\n"),
        r"layer 'a' \(.*a\.tif.*loss is 'cross_entropy', expected one of mse, l1, huber .* kind continuous; correct",
    ),
    (
        "an unknown loss",
        with_table("path,loss\na.tif,dice\n"),
        r"layer 'a' \(.*a\.tif.*loss is 'dice', expected one of mse, l1, huber .* kind continuous; correct",
    ),
    (
        "a transform that the kind has no use for",
        with_table("path,kind,transform\na.tif,circular,log\n"),
        r"layer 'a' \(.*a\.tif.*transform is 'log', expected none for a layer of kind circular; only continuous",
    ),
    (
        "angles in radians",
        with_table("path,kind,units\na.tif,circular,radians\n"),
        r"layer 'a' \(.*a\.tif.*units are 'radians', expected degrees .*; convert it",
    ),
    (
        "logarithm of what has none",
        with_second("--transform", "b=log", array=values() - 100),
        r"layer 'b' \(.*b\.tif.*smallest value -.*, expected values above 0 for transform log; choose transform asinh",
    ),
    (
        "transform of an unknown layer",
        with_second("--transform", "c=log"),
        r"--transform c=log: no layer of that name, expected one of a, b",
    ),
    (
        "unknown transform",
        with_second("--transform", "b=sqrt"),
        r"--transform b=sqrt: expected one of none, log, asinh, quantile",
    ),
    ("transform of no layer", with_second("--transform", "log"), r"--transform: log: expected a name and a value"),
    (
        "class codes never declared",
        with_classes("code,name\n1,one\n2,two\n"),
        r"layer 'b' \(.*b\.tif.*class code 3 is not among the classes of .*b\.csv \(1, 2\); .*add it to the table",
    ),
    (
        "class table with texts",
        with_classes("code,name\n1,one\nb,two\n"),
        r"layer 'b' \(.*b\.tif.*class table .*b\.csv: could not convert .*'b'; expected whole numbers as codes",
    ),
    (
        "class table with one class twice",
        with_classes("code,name\n1,one\n1,two\n"),
        r"layer 'b' \(.*b\.tif.*class table .*b\.csv: codes 1, 1, expected at least two and each once; correct it",
    ),
    (
        "no class table",
        with_classes(None),
        r"layer 'b' \(.*b\.tif.*class table .*b\.csv: no such file",
    ),
    (
        "tile larger than the survey",
        with_flags("--input_size", "12"),
        r"a tile covers 48 x 48 reference pixels but the survey has only 40 x 40; choose a smaller --input_size",
    ),
    (
        "nothing can be held out",
        with_flags("--val_fraction", "0.1", "--val_buffer", "8"),
        r"no block of 16 x 16 .* can be held out.*survey is 40 x 40; choose a smaller --input_size, --val_buffer or",
    ),
    ("min_valid out of reach", mostly_nodata, r"no tile reaches --min_valid 0\.5: the best .* 0\.\d+ valid.*lower"),
    (
        "groups incomplete",
        with_flags("--grouped_bands", "0"),
        r"--grouped_bands \[\[0\]\] is not a partition of the 2 layers \(0 = a, 1 = b\): missing \[1\].*name every",
    ),
    (
        "groups overlap",
        with_flags("--grouped_bands", "0", "1", "--grouped_bands", "1"),
        r"--grouped_bands .* is not a partition .*twice \[1\]",
    ),
    (
        "group of a layer that is not there",
        with_flags("--grouped_bands", "0", "1", "--grouped_bands", "2"),
        r"--grouped_bands .* is not a partition .*unknown \[2\]",
    ),
    (
        "input_size not a multiple of patch_size",
        with_flags("--input_size", "5"),
        r"--input_size 5 is not a multiple of --patch_size 2; 4 or 6 would be",
    ),
    ("scales without 1", with_flags("--scales", "2", "4"), r"--scales 2 4: expected distinct whole numbers with 1"),
    (
        "base_resolution too fine",
        with_flags("--base_resolution", "25"),
        r"--base_resolution 25 is finer than every layer \(the finest has pixels of 100\); choose at least 100",
    ),
    (
        "tile of part pixels",
        with_flags("--base_resolution", "110"),
        r"--input_size 4 x --base_resolution 110 is 4\.4 reference pixels of 100, expected a whole number; choose",
    ),
    (
        "dropped_bands out of range",
        with_flags("--dropped_bands", "2"),
        r"--dropped_bands names layer 2, expected 0\.\.1",
    ),
    (
        "dropped_bands leaves none",
        with_flags("--dropped_bands", "0", "1"),
        r"--dropped_bands leaves none.*keep at least",
    ),
    ("masked_bands out of range", with_flags("--masked_bands", "5"), r"--masked_bands names layer 5, expected 0\.\.1"),
    (
        "masked_bands hides all",
        with_flags("--masked_bands", "0", "1"),
        r"--masked_bands hides every.*leave at least one",
    ),
    ("two sources", table_and_directory, r"give one of --data_dir .* and --train_path"),
    (
        "no such table",
        with_flags("--data_dir", "", "--train_path", "x.csv"),
        r"give one of|layers table x\.csv: no such",
    ),
    ("table without path", with_table("file\na.tif\n"), r"layers table .*layers\.csv: no column 'path'.*expected"),
    (
        "table names a missing file",
        with_table("path\nc.tif\n"),
        r"layers table .*layers\.csv, row 2, column 'path': c\.tif: no such file.*relative to the table",
    ),
    ("no such polygons", with_flags("--aoi", "area.gpkg"), r"area of interest area\.gpkg: no such file; --aoi takes"),
    ("test survey missing", with_flags("--test_path", "test.csv"), r"layers table test\.csv: no such file"),
    (
        "test survey of other layers",
        other_survey("path\na.tif\n"),
        r"--test_path .*test\.csv: layers .*a.*[,;] expected .*a.*b.* as in training",
    ),
    ("unknown extent", with_flags("--extent", "everything"), r"argument --extent: .*'everything'.*choose from .*union"),
    ("unknown cache", with_flags("--cache", "disk"), r"argument --cache: .*'disk'.*choose from .*ram"),
    ("unknown model", with_flags("--model", "mae_vit_huge_patch14"), r"argument --model: .*choose from .*tiny"),
    ("unknown heads", with_flags("--scale_heads", "heavy"), r"argument --scale_heads: .*choose from .*subpixel"),
    ("unknown model type", with_flags("--model_type", "temporal"), r"argument --model_type: .*choose from .*group_c"),
    (
        "mask_ratio too large",
        with_flags("--mask_ratio", "1.5"),
        r"argument --mask_ratio: 1\.5: expected a number from 0 to below 1",
    ),
    (
        "min_valid too large",
        with_flags("--min_valid", "50"),
        r"argument --min_valid: 50: expected a number from 0 to 1",
    ),
    (
        "patch_size of nothing",
        with_flags("--patch_size", "0"),
        r"argument --patch_size: 0: expected a whole number of at least 1",
    ),
    (
        "number that is none",
        with_flags("--input_size", "large"),
        r"argument --input_size: large: expected a whole number of at least 1",
    ),
    ("unknown flag", with_flags("--tile_size", "9"), r"unrecognized arguments: --tile_size 9"),
]
