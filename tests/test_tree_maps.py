"""Maps of trees: known answers on all ground, unlabelled ground too, in the rasters of main_inference."""

import numpy as np
import pytest
import rasterio

from tests import labelled
from tests.rasters import write_grid
from util.processes.signals import Stop

SIZE = 160
"""Pixels of 100 m along the edge of the ground, of which 4 are a base pixel."""
ALONE = "--no_network --baselines trees forest constant".split()


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A layer of 1 and 5 in squares, with a hole, and labels of its western half that follow from it."""
    folder = tmp_path_factory.mktemp("ground")
    row, col = np.mgrid[:SIZE, :SIZE]
    high = (row // 16 + col // 16) % 2 == 1
    values = np.where(high, 5.0, 1.0).astype(np.float32)
    values[:16, 144:] = np.nan
    (folder / "layers").mkdir()
    write_grid(folder / "layers/a.tif", values, resolution=100.0, nodata=np.nan)
    west = col < SIZE // 2
    write_grid(folder / "codes.tif", np.where(west, np.where(high, 9, 4), 0).astype(np.uint8), nodata=0)
    write_grid(folder / "density.tif", np.where(west, values / 10 + 2.5, np.nan).astype(np.float32), nodata=np.nan)
    return folder, high, np.isfinite(values)


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.tags(), file.descriptions, file.units, file.transform


def test_classes_of_all_ground(ground, tmp_path):
    folder, high, known = ground
    flags = [*ALONE, "--label_scale", "2"]
    assert labelled.finetune(folder / "layers", tmp_path, *flags, labels=folder / "codes.tif") == 0
    maps = tmp_path / "baseline_maps"
    assert {path.name for path in maps.iterdir()} == {"trees", "forest"}  # the constant needs no map
    for method in ("trees", "forest"):
        (codes,), tags, *_, transform = read(maps / method / "prediction_classes.tif")
        right = codes == np.where(known, np.where(high, 9, 4), 0)[::2, ::2]
        assert right.all() if method == "trees" else right.mean() > 0.99  # a forest leaves features out
        assert transform.a == 200 and tags["arm"] == method and tags["fitted_on"] == "all labels"
        assert tags["score"].startswith("mean_iou ") and tags["score"].endswith(" on held-out blocks, 2 fold(s)")
        shares, _, names, *_ = read(maps / method / "prediction_probabilities.tif")
        assert names == ("4", "9") and np.nansum(shares, axis=0)[known[::2, ::2]] == pytest.approx(1)
        assert (maps / method / "maps.qgs").exists() and (maps / method / "prediction_classes.qml").exists()
        assert not list((maps / method).glob(".*"))
    assert not (tmp_path / "checkpoint-last.pth").exists()


def test_values_in_their_units(ground, tmp_path):
    folder, high, known = ground
    flags = ["--no_network", "--baselines", "trees", "--task", "regression"]
    assert labelled.finetune(folder / "layers", tmp_path, *flags, labels=folder / "density.tif", pictures=True) == 0
    values, _, names, *_ = read(tmp_path / "baseline_maps/trees/prediction_values.tif")
    assert names == ("prediction",)
    np.testing.assert_allclose(values[0], np.where(known, np.where(high, 3.0, 2.6), np.nan)[::4, ::4], atol=1e-3)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "baseline_maps/trees/maps.qgs in QGIS" in page and "trees, fitted on all labels: prediction_values" in page


def test_only_where_all_labels_may_be_used_and_trees_come_first(ground, tmp_path):
    folder, *_ = ground
    for number, flags in enumerate(("--no_final", "--label_fraction 0.5", "--baselines constant trees")):
        out = tmp_path / str(number)
        given = [*ALONE, *flags.split()]
        assert labelled.finetune(folder / "layers", out, *given, labels=folder / "codes.tif") == 0
        assert (out / "metrics.json").exists() and not (out / "baseline_maps").exists()


def test_an_earlier_runs_maps_are_moved_aside_and_a_stopped_run_makes_them_later(ground, tmp_path, monkeypatch):
    folder, *_ = ground
    flags, labels = ["--no_network", "--baselines", "trees"], folder / "codes.tif"
    assert labelled.finetune(folder / "layers", tmp_path, *flags, labels=labels) == 0
    first = (tmp_path / "baseline_maps/trees/prediction_classes.tif").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "signal", property(lambda _: 15, lambda *_: None), raising=False)
        assert labelled.finetune(folder / "layers", tmp_path, *flags, labels=labels) == 0
    assert (tmp_path / "earlier-1/baseline_maps/trees/prediction_classes.tif").read_bytes() == first
    assert not (tmp_path / "baseline_maps").exists()
    assert labelled.finetune(folder / "layers", tmp_path, *flags, "--resume", "auto", labels=labels) == 0
    assert (tmp_path / "baseline_maps/trees/prediction_classes.tif").read_bytes() == first
