"""The area of interest of pre-training in fine-tuning: ground outside is neither shown nor trained on."""

import logging
from dataclasses import asdict
from unittest import mock

import geopandas
import numpy as np
import pytest
import shapely
import torch

from datasets.finetuning.layers import LayerOptions, open_layers
from datasets.labels.label_map import seen_ground
from datasets.survey.open_survey import SurveySettings, open_survey
from tests import labelled, surveys
from tests.rasters import write_grid
from util.finetuning import evaluation

WEST = shapely.box(500_000, 5_996_000, 502_000, 6_000_000)
EAST = shapely.box(502_000, 5_996_000, 504_000, 6_000_000)
SMALL = {"input_size": 4, "scales": (1,), "base_resolution": 100.0, "val_fraction": 0.0}


def write_polygons(path, *polygons, crs="EPSG:28354"):
    geopandas.GeoDataFrame(geometry=list(polygons), crs="EPSG:28354").to_crs(crs).to_file(path)
    return str(path)


@pytest.fixture
def stored(tmp_path):
    """What a checkpoint holds after pre-training on the western half of 40 x 40 pixels; its polygons are gone."""
    (tmp_path / "data").mkdir()
    values = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    write_grid(tmp_path / "data" / "a.tif", values)
    aoi = write_polygons(tmp_path / "west.gpkg", WEST)
    survey = open_survey(SurveySettings(data_dir=str(tmp_path / "data"), aoi=aoi, **SMALL))
    (tmp_path / "west.gpkg").unlink()
    return {
        "layers": [asdict(layer) for layer in survey.layers],
        "statistics": [item.as_dict() for item in survey.statistics],
        "encodings": [encoding.plain() for encoding in survey.encodings],
        "model_config": {"img_size": 4},
        "options": {"scales": [1], "aoi": aoi},
        **survey.record(),
    }


def seen(stored, **options):
    """Which columns of 40 are shown."""
    opened = open_layers(stored, LayerOptions(base_resolution=100.0, **options), local_ranks=1)
    return seen_ground(opened.survey).any(axis=0), opened


def test_the_area_of_the_checkpoint_holds(stored, caplog):
    caplog.set_level(logging.INFO)
    columns, opened = seen(stored)
    assert columns[:20].all() and not columns[20:].any()
    assert opened.aoi == stored["aoi"]
    assert "west.gpkg of the checkpoint: ground outside it is invalid (--aoi none shows it)" in caplog.text


def test_what_is_given_wins(stored, tmp_path):
    east = write_polygons(tmp_path / "east.geojson", EAST, crs="EPSG:4326")
    columns, opened = seen(stored, aoi=east)
    assert not columns[:19].any() and columns[21:].all()
    columns, opened = seen(stored, aoi="none")
    assert columns.all() and opened.aoi is None


def test_a_checkpoint_that_stores_the_path_alone(stored, tmp_path):
    del stored["aoi"]
    with pytest.raises(FileNotFoundError, match=r"west\.gpkg: no such file; --aoi takes a vector file"):
        seen(stored)
    write_polygons(tmp_path / "west.gpkg", WEST)
    assert not seen(stored)[0][20:].any()
    del stored["options"]["aoi"]
    assert seen(stored)[0].all()


def test_other_ground_is_not_limited_by_an_area_elsewhere(stored, tmp_path):
    (tmp_path / "far").mkdir()
    values = np.random.default_rng(1).normal(size=(40, 40)).astype(np.float32)
    write_grid(tmp_path / "far" / "a.tif", values, left=700_000.0)
    columns, opened = seen(stored, data_dir=str(tmp_path / "far"))
    assert columns.all() and opened.aoi is None
    assert any("area of interest" in text and "lies elsewhere" in text for text in opened.survey.warnings)


def test_from_scratch(stored, tmp_path):
    east = write_polygons(tmp_path / "east.gpkg", EAST)
    options = LayerOptions(data_dir=str(tmp_path / "data"), base_resolution=100.0, input_size=4, aoi=east)
    opened = open_layers(None, options, local_ranks=1)
    columns = seen_ground(opened.survey).any(axis=0)
    assert not columns[:20].any() and columns[20:].all()


def test_through_the_programs(tmp_path, capsys):
    """Neither is a label outside the area trained on or tested, nor does scoring see more."""
    survey = surveys.write_survey(tmp_path / "survey")
    labels = labelled.write_classes(tmp_path)
    east = shapely.box(505_000, 5_984_000, 516_000, 6_000_000)
    flags = ["--aoi", write_polygons(tmp_path / "east.gpkg", east), "--epochs", "1", "--tiles_per_epoch", "8"]
    assert surveys.train(survey, tmp_path / "pretrained", *flags) == 0
    (tmp_path / "east.gpkg").unlink()
    start = ["--finetune", str(tmp_path / "pretrained" / "checkpoint-last.pth"), "--epochs", "1", "--no_final"]
    start += ["--overlap", "0.25"]
    assert labelled.finetune(survey, tmp_path / "out", *start, labels=labels) == 0
    fit = tmp_path / "out" / "fits" / "pretrained-fold0" / "checkpoint-last.pth"
    state = torch.load(fit, weights_only=True)
    assert state["aoi"]["path"].endswith("east.gpkg")
    assert 500 < sum(state["folds"]["tested"]) <= 28 * 39  # base pixels of 400 m inside, but for the unlabelled rim
    with mock.patch.object(evaluation, "network_predictor", wraps=evaluation.network_predictor) as predictor:
        assert labelled.score(fit, tmp_path / "scored") == 0
        assert labelled.score(fit, tmp_path / "overlapping", "--overlap", "0.5") == 0
    # 0.5 is the default, but given: it wins over the 0.25 of the checkpoint
    assert [call.args[0].prediction.overlap for call in predictor.call_args_list] == [0.25, 0.5]
    scored = labelled.read_strict(tmp_path / "scored" / "evaluation.json")["test"]
    assert scored["mean_iou"] == pytest.approx(labelled.scores(tmp_path / "out", "pretrained")["test"]["mean_iou"])
    capsys.readouterr()
    assert labelled.finetune(survey, tmp_path / "none", *start, "--aoi", "nowhere.gpkg", labels=labels) == 2
    assert "area of interest nowhere.gpkg: no such file" in capsys.readouterr().err
