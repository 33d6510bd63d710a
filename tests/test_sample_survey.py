"""The sample survey: what lies on disk, that its parts agree, and that nothing foreign is touched."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from scipy import ndimage

from datasets.synthetic import geology, sample_survey
from datasets.synthetic.geology import UNITS
from datasets.synthetic.sample_survey import write_sample_survey
from scripts.make_sample_survey import main, write_styles

ROWS, COLS = 160, 192
FILES = {
    *("gravity.tif", "magnetics.tif", "layers.csv", "README.md", "survey.json", "labels/lithology.tif"),
    *(
        "labels/lithology.gpkg",
        "labels/lithology_classes.csv",
        "labels/deposits.gpkg",
        "labels/quicklook.png",
    ),
}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_survey(tmp_path_factory.mktemp("survey") / "deep" / "survey", rows=ROWS, cols=COLS)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a survey of the smallest size, without the picture, which is what takes the time."""
    monkeypatch.setattr(sample_survey, "_write_quicklook", lambda path, survey: path.write_bytes(b"picture"))

    def write(directory: Path, *, seed: int = 0, rows: int = 64, cols: int = 64, overwrite: bool = False) -> Path:
        return write_sample_survey(directory, seed=seed, rows=rows, cols=cols, overwrite=overwrite)

    return write


def read(path: Path) -> NDArray[np.float64]:
    with rasterio.open(path) as source:
        return source.read(1, masked=True).astype(np.float64).filled(np.nan)


def test_leaves_the_files_it_promises_and_nothing_beside(survey: Path) -> None:
    assert {p.relative_to(survey).as_posix() for p in survey.rglob("*") if p.is_file()} == FILES
    assert [p.name for p in survey.parent.iterdir()] == ["survey"]
    record = json.loads((survey / "survey.json").read_text())
    assert (record["seed"], record["rows"], record["cols"]) == (0, ROWS, COLS)
    assert set(record["files"]) == FILES - {"survey.json"}
    readme = (survey / "README.md").read_text()
    assert "--seed 0 --rows 160 --cols 192" in readme and "mGal" in readme and "synthetic" in readme


def test_grids_cover_the_same_ground_at_their_own_resolution(survey: Path) -> None:
    layers = (("gravity.tif", 2, "mGal"), ("magnetics.tif", 1, "nT"), ("labels/lithology.tif", 1, None))
    for name, factor, units in layers:
        with rasterio.open(survey / name) as source:
            assert source.crs.to_epsg() == 28354
            assert source.shape == (ROWS // factor, COLS // factor)
            assert source.res == (100.0 * factor, 100.0 * factor)
            assert tuple(source.bounds) == (400_000, 6_600_000 - ROWS * 100, 400_000 + COLS * 100, 6_600_000)
            assert source.units == (units,)
            assert source.descriptions == (Path(name).stem,)
            assert source.profile["tiled"] and source.profile["compress"] == "deflate"


def test_layers_table_lists_the_two_layers(survey: Path) -> None:
    with (survey / "layers.csv").open(newline="") as source:
        rows = list(csv.DictReader(source))
    assert rows == [
        {"path": "gravity.tif", "name": "gravity", "kind": "continuous", "units": "mGal"},
        {"path": "magnetics.tif", "name": "magnetics", "kind": "continuous", "units": "nT"},
    ]


def test_nodata_is_declared_in_each_layers_own_way_and_shares_are_modest(survey: Path) -> None:
    with (
        rasterio.open(survey / "gravity.tif") as gravity,
        rasterio.open(survey / "magnetics.tif") as magnetics,
    ):
        assert gravity.nodata == np.float32(1.70141e38) and magnetics.nodata == -99999
        raw = magnetics.read(1)
        assert np.isfinite(gravity.read(1)).all() and np.isfinite(raw).all()
    missing = {name: np.isnan(read(survey / name)) for name in ("gravity.tif", "magnetics.tif")}
    assert (raw[missing["magnetics.tif"]] == -99999).all() and (raw[~missing["magnetics.tif"]] > -5000).all()
    for share in missing.values():
        assert 0.10 <= share.mean() <= 0.18
    coarse = missing["magnetics.tif"].reshape(ROWS // 2, 2, COLS // 2, 2).all(axis=(1, 3))
    assert (coarse != missing["gravity.tif"]).mean() > 0.005  # the gaps of the two differ
    outside = read(survey / "labels/lithology.tif")
    assert missing["magnetics.tif"][np.isnan(outside)].all()


def test_lithology_has_names_colours_and_more_than_five_classes(survey: Path) -> None:
    with rasterio.open(survey / "labels/lithology.tif") as source:
        codes, tags, colours = source.read(1), source.tags(1), source.colormap(1)
        assert source.dtypes == ("uint8",) and source.nodata == 0
    present = set(np.unique(codes).tolist()) - {0}
    assert len(present) > 5 and present <= {unit.code for unit in geology.UNITS}
    with (survey / "labels/lithology_classes.csv").open(newline="") as source:
        rows = {int(row["code"]): row for row in csv.DictReader(source)}
    for unit in geology.UNITS:
        assert tags[f"class_{unit.code}"] == unit.name == rows[unit.code]["name"]
        assert colours[unit.code] == (*unit.colour, 255)
        assert rows[unit.code]["colour"] == "#{:02x}{:02x}{:02x}".format(*unit.colour)
        assert float(rows[unit.code]["density"]) == unit.density
        assert float(rows[unit.code]["susceptibility"]) == unit.susceptibility


def test_polygons_are_the_raster(survey: Path) -> None:
    polygons = gpd.read_file(survey / "labels/lithology.gpkg")
    with rasterio.open(survey / "labels/lithology.tif") as source:
        codes = source.read(1)
    assert polygons.crs.to_epsg() == 28354 and polygons.is_valid.all()
    areas = polygons.dissolve("code").area / 100.0**2
    counted = {int(code): int((codes == code).sum()) for code in np.unique(codes) if code}
    assert {int(code): round(area, 6) for code, area in areas.items()} == counted
    names = {unit.code: unit.name for unit in geology.UNITS}
    assert (polygons["name"] == polygons["code"].map(names)).all()


def test_deposits_lie_in_basalt_or_iron_formation_inside_the_survey(survey: Path) -> None:
    deposits = gpd.read_file(survey / "labels/deposits.gpkg")
    assert deposits.crs.to_epsg() == 28354 and len(deposits) >= 1
    assert set(deposits["commodity"]) <= {"Au", "Cu-Au"} and set(deposits["type"]) <= {"orogenic", "skarn"}
    with rasterio.open(survey / "labels/lithology.tif") as source:
        codes = [int(v[0]) for v in source.sample([(p.x, p.y) for p in deposits.geometry])]
    names = {unit.code: unit.name for unit in geology.UNITS}
    assert [names[code] for code in codes] == list(deposits["host"])
    assert set(codes) <= {geology.BASALT, geology.IRON}
    apart = [a.distance(b) for i, a in enumerate(deposits.geometry) for b in deposits.geometry[:i]]
    assert min(apart, default=1e9) >= 1200


def test_both_fields_see_the_same_rocks(survey: Path) -> None:
    """Dense rocks are the magnetic ones: local highs go together, and lie over the mafic rocks of the map."""
    magnetics = read(survey / "magnetics.tif").reshape(ROWS // 2, 2, COLS // 2, 2).mean(axis=(1, 3))
    gravity = read(survey / "gravity.tif")
    with rasterio.open(survey / "labels/lithology.tif") as source:
        mafic = np.isin(source.read(1)[::2, ::2], (geology.BASALT, geology.IRON, geology.GABBRO))
    valid = np.isfinite(magnetics) & np.isfinite(gravity)

    def local(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Without what varies over more than about 4 km."""
        filled, weight = np.where(valid, values, 0.0), ndimage.gaussian_filter(valid.astype(float), 8)
        return (values - ndimage.gaussian_filter(filled, 8) / weight)[valid]

    # The field dips by 64 degrees and magnetics is one derivative of gravity: related, not the same.
    assert np.corrcoef(local(gravity), local(magnetics))[0, 1] > 0.3
    for field in (gravity, magnetics):
        values, over = local(field), mafic[valid]
        assert values[over].mean() - values[~over].mean() > 0.25 * values.std()


def test_same_seed_gives_the_same_values_and_another_seed_others(quick: Callable[..., Path], tmp_path: Path) -> None:
    first, again = quick(tmp_path / "first", seed=3), quick(tmp_path / "again", seed=3)
    other = quick(tmp_path / "other", seed=4)
    for name in ("gravity.tif", "magnetics.tif", "labels/lithology.tif"):
        with (
            rasterio.open(first / name) as a,
            rasterio.open(again / name) as b,
            rasterio.open(other / name) as c,
        ):
            assert a.read().tobytes() == b.read().tobytes() != c.read().tobytes()
    tables = [gpd.read_file(path / "labels/deposits.gpkg") for path in (first, again)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 62}, "rows is 62, expected an even number of at least 64 .* for example 64"),
        ({"cols": 101}, "cols is 101, expected an even number of at least 64 .* for example 102"),
        ({"rows": -4}, "rows is -4"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
    ],
)
def test_sizes_and_seeds_out_of_range_are_refused(
    quick: Callable[..., Path], tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quick(tmp_path / "survey", **options)
    assert not any(tmp_path.iterdir())


def test_a_survey_that_is_there_is_kept(quick: Callable[..., Path], tmp_path: Path) -> None:
    first = quick(tmp_path / "survey")
    (first / "notes.txt").write_text("mine")
    changed = (first / "magnetics.tif").stat().st_mtime_ns
    assert quick(tmp_path / "survey") == first
    assert (first / "magnetics.tif").stat().st_mtime_ns == changed and (first / "notes.txt").exists()


def test_another_survey_is_replaced_only_when_asked(quick: Callable[..., Path], tmp_path: Path) -> None:
    quick(tmp_path / "survey")
    with pytest.raises(ValueError, match=r"holds a survey of .*'seed': 0.*expected .*'seed': 1.*--overwrite"):
        quick(tmp_path / "survey", seed=1)
    quick(tmp_path / "survey", seed=1, overwrite=True)
    assert json.loads((tmp_path / "survey" / "survey.json").read_text())["seed"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["survey"]


def test_a_damaged_survey_is_refused_and_can_be_overwritten(quick: Callable[..., Path], tmp_path: Path) -> None:
    survey = quick(tmp_path / "survey")
    (survey / "gravity.tif").write_bytes(b"II*")
    (survey / "labels/deposits.gpkg").unlink()
    with pytest.raises(ValueError, match=r"deposits.gpkg, gravity.tif are missing .*--overwrite|gravity.tif, .*"):
        quick(tmp_path / "survey")
    quick(tmp_path / "survey", overwrite=True)
    assert read(survey / "gravity.tif").shape == (32, 32)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_something_else_is_never_touched(
    quick: Callable[..., Path], tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no sample survey .* choose another directory"):
        quick(tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ValueError, match="is a file, expected a directory"):
        quick(tmp_path / "mine" / "thesis.txt", overwrite=overwrite)


def test_an_empty_directory_is_filled(quick: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (quick(tmp_path / "empty") / "survey.json").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("commit failed"), OSError(28, "No space")])
def test_an_interrupted_write_leaves_nothing_and_keeps_what_was_there(
    quick: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: type[BaseException] | Exception,
) -> None:
    quick(tmp_path / "old")

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(sample_survey, "_write_vectors", fail)
    with pytest.raises((KeyboardInterrupt, OSError), match=r"^$|writing .* failed .*free some space"):
        quick(tmp_path / "new")
    with pytest.raises((KeyboardInterrupt, OSError)):
        quick(tmp_path / "old", seed=1, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert json.loads((tmp_path / "old" / "survey.json").read_text())["seed"] == 0


def test_a_lost_tile_is_noticed(quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(np, "array_equal", lambda a, b: False)
    with pytest.raises(OSError, match="gravity.tif reads back with other values"):
        quick(tmp_path / "survey")


def test_whoever_finishes_second_takes_the_survey_of_the_first(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two ranks on one machine may both find no survey, and both write one."""
    same, other = quick(tmp_path / "same"), quick(tmp_path / "other", seed=9)
    write_files = sample_survey._write_files

    def overtaken_by(first: Path, target: Path) -> None:
        def overtaken(folder: Path, survey: sample_survey.Survey, identity: dict[str, int]) -> None:
            write_files(folder, survey, identity)
            shutil.copytree(first, target)

        monkeypatch.setattr(sample_survey, "_write_files", overtaken)

    overtaken_by(same, tmp_path / "a")
    assert quick(tmp_path / "a") == tmp_path / "a"
    overtaken_by(other, tmp_path / "b")
    with pytest.raises(OSError, match="writing .*b failed"):
        quick(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "other", "same"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], quick: Callable[..., Path]) -> None:
    arguments = ["--output_dir", str(tmp_path / "s"), "--rows", "64", "--cols", "64"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "MB  magnetics.tif" in shown
    project, next_line = tmp_path / "s" / "maps.qgs", shown.splitlines()[-1]
    assert next_line.startswith(f"next: open {project} in QGIS") and "main_pretrain --train_path" in next_line
    assert main([*arguments, "--seed", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--seed", "1", "--overwrite"]) == 0


def test_qgis_shows_each_rock_by_name_over_the_fields(tmp_path: Path, quick: Callable[..., Path]) -> None:
    directory = quick(tmp_path / "s")
    root = ET.parse(write_styles(directory)).getroot()
    found = [(layer.findtext("layername"), layer.findtext("datasource")) for layer in root.iter("maplayer")]
    expected = [("lithology", "labels/lithology"), ("gravity", "gravity"), ("magnetics", "magnetics")]
    assert found == [(name, f"./{path}.tif") for name, path in expected]
    labels = [e.get("label") for e in ET.parse(directory / "labels/lithology.qml").iter("paletteEntry")]
    assert labels == [unit.name for unit in UNITS]
    items = [item.get("label", "") for item in ET.parse(directory / "gravity.qml").iter("item")]
    assert len(items) == 9 and all(item.endswith(" mGal") for item in items)
    write_styles(directory)  # again: nothing is listed twice
    assert len(list(ET.parse(directory / "maps.qgs").iter("maplayer"))) == 3


def test_importing_the_module_does_not_wait_for_what_only_writing_needs() -> None:
    code = "import sys, datasets.synthetic.sample_survey; sys.exit('geopandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
