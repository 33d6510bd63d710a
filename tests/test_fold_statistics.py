"""Statistics from scratch come from the training ground of each fold: what its test ground holds changes nothing."""

import json

import numpy as np
import pytest

from datasets.finetuning.finetune_data import LabelOptions, SplitOptions, TargetOptions, open_targets
from datasets.finetuning.layers import LayerOptions, open_layers
from tests import labelled, surveys
from tests.rasters import write_grid

SIDE, RATIO = 40, 4
"""Base pixels along the ground's edge, and native pixels of 100 m along the edge of one."""
EXTREME = {"values": 1e4, "logs": 1e4, "azimuth": 359.0, "rock": 2.0}
LAYERS = """name,path,kind,transform,classes
values,values.tif,,,
logs,logs.tif,,log,
azimuth,azimuth.tif,circular,,
rock,rock.tif,categorical,,
"""


def native(ground):
    """Base pixels as native ones."""
    return np.kron(ground, np.ones((RATIO, RATIO), bool))


def write_layers(folder, extreme=None, **replaced):
    """A layer of every kind, in pixels of 100 m, some replaced; with extreme values on base pixels, (40, 40) bool."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    shape = (SIDE * RATIO, SIDE * RATIO)
    layers = {
        "values": rng.normal(50, 3, shape),
        "logs": np.exp(rng.normal(0, 1, shape)),
        "azimuth": rng.uniform(20, 60, shape),
        "rock": rng.integers(1, 3, shape),
    } | replaced
    for name, values in layers.items():
        if extreme is not None:
            values[native(extreme)] = EXTREME[name]
        write_grid(folder / f"{name}.tif", values.astype(np.uint8 if name == "rock" else np.float32))
    (folder / "layers.csv").write_text(LAYERS, encoding="utf-8")
    return folder


def opened(folder, labels, *, split="blocks", early_stopping=False):
    """The layers from scratch, and folds of their ground."""
    options = LayerOptions(native=True, layers_table=str(folder / "layers.csv"), input_size=8, scales=(1, 2, 4))
    layers = open_layers(None, options, local_ranks=1)
    data = open_targets(
        layers.grids,
        str(labels),
        labels=LabelOptions(),
        targets=TargetOptions(True, True, 1, 0.5, 0.5, 3.0, 2.0, 1),
        split=SplitOptions(split, 3, 1, 4, 1.0, early_stopping, 0, 0),
    )
    return layers, data.folds


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return labelled.write_classes(tmp_path_factory.mktemp("labels"))


@pytest.mark.parametrize("early_stopping", [False, True])
def test_extreme_values_outside_training_ground_change_nothing(labels, tmp_path, early_stopping):
    layers, folds = opened(write_layers(tmp_path / "plain"), labels, early_stopping=early_stopping)
    usable = folds.training(0, 0, 0, SIDE, SIDE, all_labels=True)
    assert 0.05 < usable.mean() < 0.9
    assert not early_stopping or not (folds.validating(0, 0, 0, SIDE, SIDE) & usable).any()
    changed, _ = opened(write_layers(tmp_path / "planted", ~usable), labels, early_stopping=early_stopping)
    before, after = (which.on_fold(folds, 0) for which in (layers, changed))
    assert before.statistics == after.statistics and before.encodings == after.encodings
    assert after.survey.encodings[0].plain() == after.encodings[0]
    for number in range(4):  # the last fit sees all ground
        assert after.encodings[number] != changed.encodings[number]
    if not early_stopping:
        assert changed.on_fold(folds, 1).statistics != after.statistics  # another fold trains on that ground
    assert changed.on_fold(folds, None) is changed


@pytest.fixture(scope="module")
def folds(labels, tmp_path_factory):
    """Folds of the ground, which labels alone decide."""
    return opened(write_layers(tmp_path_factory.mktemp("folds") / "survey"), labels)[1]


def test_statistics_written_out(folds, labels, tmp_path):
    """A layer that is 1 or 3 on training ground in equal parts: centre 2, spread 1."""
    usable = native(folds.training(0, 0, 0, SIDE, SIDE))
    values = np.where(usable, 1.0 + 2 * (np.arange(SIDE * RATIO) % 2), 1000.0)
    layers, _ = opened(write_layers(tmp_path / "survey", values=values), labels)
    found = layers.on_fold(folds, 0)
    assert (found.statistics[0]["location"], found.statistics[0]["spread"]) == (2.0, 1.0)
    assert found.statistics[0]["count"] == usable.sum()
    assert layers.statistics[0]["location"] > 300


def test_the_leaking_control_sees_all_ground(labels, tmp_path):
    layers, folds = opened(write_layers(tmp_path / "survey"), labels, split="leaking")
    assert layers.on_fold(folds, 0).encodings == layers.encodings


@pytest.mark.parametrize(
    ("elsewhere", "problem"),
    [(np.nan, "no valid pixel on training ground"), (7.0, r"constant \(7\) on training ground, expected values")],
)
def test_a_layer_that_varies_on_test_ground_alone_is_refused(folds, labels, tmp_path, elsewhere, problem):
    tested = native(folds.testing(0, 0, 0, SIDE, SIDE))
    values = np.where(tested, np.arange(SIDE * RATIO), elsewhere)
    layers, _ = opened(write_layers(tmp_path / "survey", values=values), labels)
    message = rf"fold 0: layer 'values' \(.*\): {problem}.*buffer of 4 base pixels: .*--masked_bands 0"
    with pytest.raises(ValueError, match=message):
        layers.on_fold(folds, 0)


def test_classes_stay_where_a_fold_lacks_them(folds, labels, tmp_path):
    tested = native(folds.testing(0, 0, 0, SIDE, SIDE))
    layers, _ = opened(write_layers(tmp_path / "survey", rock=np.where(tested, 2, 1)), labels)
    found = layers.on_fold(folds, 0)
    assert found.encodings[3]["codes"] == layers.encodings[3]["codes"] == [1, 2]
    assert found.encodings[3]["frequencies"] == [0.5, 0.5]


# The program


def planted(folder, ground):
    """The small survey with extreme values on some base pixels, (40, 40) bool."""
    survey = surveys.write_survey(folder)
    for name, resolution in surveys.RESOLUTIONS.items():
        count = round(400 / resolution)
        part = np.kron(ground, np.ones((count, count), bool))
        rows, cols = (np.mgrid[: part.shape[0], : part.shape[1]] + 0.5) * resolution / 1000.0
        values = 40 * np.sin(1.7 * cols) * np.cos(1.3 * rows)
        values = np.where(part, 1e4, values).astype(np.float32)
        write_grid(survey / f"{name}.tif", values, resolution=resolution)
    return survey


def test_no_loss_and_no_weight_of_a_fold_knows_its_test_ground(labels, tmp_path):
    """The buffer is a window, so that no window with a training label reaches a tested pixel."""
    flags = "--val_buffer 8 --fold_block 1 --no_final".split()
    plain = planted(tmp_path / "plain", np.zeros((SIDE, SIDE), bool))
    assert labelled.finetune(plain, tmp_path / "before", *flags, labels=labels) == 0
    with np.load(tmp_path / "before/fits/scratch-fold0/scores.npz") as arrays:
        tested = np.isfinite(arrays["map"])
    assert tested.shape == (SIDE, SIDE) and 0.2 < tested.mean() < 0.7
    other = planted(tmp_path / "planted", tested)
    assert labelled.finetune(other, tmp_path / "after", *flags, labels=labels) == 0
    before, after = (labelled.fit(tmp_path / name, "scratch", 0) for name in ("before", "after"))
    for key in ("model", "statistics", "encodings", "seen"):
        assert surveys.same_bits(before[key], after[key]), key
    losses = [
        [line["loss"] for line in surveys.log(tmp_path / name, "epoch") if line["fold"] == 0]
        for name in ("before", "after")
    ]
    assert losses[0] == losses[1]
    ours, theirs = (labelled.fit(tmp_path / name, "scratch", 1) for name in ("before", "after"))
    assert ours["statistics"] != theirs["statistics"]


def test_each_checkpoint_has_the_statistics_it_was_trained_with(labels, tmp_path):
    survey = surveys.write_survey(tmp_path / "survey")
    assert labelled.finetune(survey, tmp_path / "output", labels=labels) == 0
    states = [labelled.fit(tmp_path / "output", "scratch", fold) for fold in (0, 1, None)]
    centres = [state["encodings"][0]["locations"][0] for state in states]
    assert len(set(centres)) == 3
    assert [state["statistics"][0]["location"] for state in states] == centres
    counts = [state["statistics"][1]["count"] for state in states]
    assert max(counts[:2]) < counts[2]
    for fold in (0, 1):
        name = f"fits/scratch-fold{fold}/checkpoint-last.pth"
        assert labelled.score(tmp_path / "output" / name, tmp_path / "eval") == 0
        found = json.loads((tmp_path / "eval/evaluation.json").read_text(encoding="utf-8"))
        assert found["test"] == labelled.scores(tmp_path / "output", "scratch", fold)["test"]


def test_with_a_checkpoint_statistics_stay_its_own(labels, tmp_path):
    survey = surveys.write_survey(tmp_path / "survey")
    assert surveys.train(survey, tmp_path / "pretrained", "--epochs", "1", *surveys.HELD_OUT) == 0
    first = tmp_path / "pretrained/checkpoint-last.pth"
    flags = ["--finetune", str(first), "--baselines", "scratch", "--no_final"]
    assert labelled.finetune(survey, tmp_path / "output", *flags, labels=labels) == 0
    stored = surveys.checkpoint(tmp_path / "pretrained")
    for arm in ("pretrained", "scratch"):
        for fold in (0, 1):
            state = labelled.fit(tmp_path / "output", arm, fold)
            assert state["statistics"] == stored["statistics"] and state["encodings"] == stored["encodings"]
