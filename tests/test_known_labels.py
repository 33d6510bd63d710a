"""Labels that a fold may know: written as a map, pre-trained on, and looked for on test ground afterwards."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from scipy import ndimage

import main_finetune
from datasets.finetuning.known_targets import known_tests
from datasets.ground.grid import Grid
from datasets.layers.layer import Layer
from scripts import known_labels
from tests import labelled, small_main, surveys
from tests.rasters import write_grid
from util.options import finetune_checks as checks
from util.processes.distributed import Ranks

FOLDS = ["--folds", "3", "--label_scale", "2", "--fold_seed", "5"]
BASE, BUFFER = 400.0, 1


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Classes and values."""
    folder = tmp_path_factory.mktemp("labels")
    labelled.write_values(folder)
    return labelled.write_classes(folder).parent


def known(survey, output, path, *flags, fold=0, more=()):
    """Writes the labels that a fold may know; returns the exit status."""
    finetuning = labelled.arguments(survey, output.parent / "unused", *FOLDS, *flags, labels=path)
    return known_labels.main(["--fold", str(fold), "--output", str(output), *more, "--finetuning", *finetuning])


def read(path):
    """The pixels of a raster, NaN where there are none."""
    with rasterio.open(path) as file:
        assert file.res == (BASE / 2, BASE / 2)
        return file.read(1, masked=True).astype(float).filled(np.nan), file.tags(), file.nodata


@pytest.mark.parametrize(("name", "fold"), [("classes", 0), ("values", 2)])
def test_no_label_of_test_or_validation_ground_or_their_buffer_is_in_the_file(survey, labels, tmp_path, name, fold):
    task = ["--patience", "2", "--val_buffer", str(BUFFER), *(["--task", "regression"] if name == "values" else [])]
    path = labels / f"{name}.tif"
    assert known(survey, tmp_path / "known.tif", path, *task, fold=fold) == 0
    found, tags, nodata = read(tmp_path / "known.tif")
    # What main_finetune makes of the same flags.
    argv = labelled.arguments(survey, tmp_path / "out", *FOLDS, *task, labels=path)
    args = main_finetune.get_args_parser().parse_args(argv)
    data = main_finetune.open_inputs(checks.with_length(args), Ranks())[0].data
    window = (0, 0, *found.shape)
    closed = data.folds.testing(fold, *window, scale=2) | data.folds.validating(fold, *window, scale=2)
    assert data.folds.testing(fold, *window, scale=2).any() and data.folds.validating(fold, *window, scale=2).any()
    near = ndimage.binary_dilation(closed, structure=np.ones((3, 3)), iterations=2 * BUFFER)
    assert np.isnan(found[near]).all() and np.isfinite(found).sum() > 100
    # Outside of all that the file holds the labels themselves.
    every = data.ground.labels.values
    own = np.where(every < 0, np.nan, np.array(labelled.CODES)[every]) if name == "classes" else every
    np.testing.assert_array_equal(found, np.where(near, np.nan, own))
    assert json.loads(tags["folds"])["seed"] == 5 and tags["fold"] == str(fold)
    assert nodata == 0 if name == "classes" else np.isnan(nodata)


def test_labels_left_out_of_training_are_left_out_of_the_file(survey, labels, tmp_path):
    for name, flags in (("all", ()), ("half", ("--label_fraction", "0.5"))):
        assert known(survey, tmp_path / f"{name}.tif", labels / "classes.tif", *flags) == 0
    whole, half = (np.isfinite(read(tmp_path / f"{name}.tif")[0]) for name in ("all", "half"))
    assert 0 < half.sum() < 0.7 * whole.sum() and not (half & ~whole).any()


def test_a_fold_pretrained_on_what_it_may_know_is_not_warned_of(survey, labels, tmp_path, caplog):
    assert known(survey, tmp_path / "geology.tif", labels / "classes.tif", "--folds", "2", fold=1) == 0
    places = (("geology", tmp_path), ("gravity", survey), ("magnetics", survey))
    rows = [f"{name},{folder}/{name}.tif" for name, folder in places]
    (tmp_path / "layers.csv").write_text("\n".join(["name,path", *rows]), encoding="utf-8")
    flags = ["--target_layers", "geology", "--epochs", "1", "--base_resolution", str(BASE), "--scales", "1", "2"]
    table = ["--train_path", str(tmp_path / "layers.csv"), "--output_dir", str(tmp_path / "trained")]
    assert small_main.main([*table, *surveys.FLAGS, *flags]) == 0
    flags = ["--finetune", str(tmp_path / "trained/checkpoint-last.pth"), *FOLDS, "--folds", "2"]
    flags += ["--only_folds", "1", "--no_final", "--epochs", "1"]
    caplog.clear()
    assert labelled.finetune(survey, tmp_path / "out", *flags, labels=labels / "classes.tif") == 0
    assert "has values on ground that is tested in fold 0: if" in caplog.text
    caplog.clear()
    (tmp_path / "geology.tif").unlink()
    assert labelled.finetune(survey, tmp_path / "again", *flags, labels=labels / "classes.tif") == 0
    assert "layer 'geology', a target of pre-training (--target_layers), cannot be read" in caplog.text


def test_a_target_of_other_ground_is_not_warned_of(tmp_path):
    """Beside the ground and on it: the left half of 8 x 8 pixels is tested in fold 0, the right one in fold 1."""
    ground = Grid(CRS.from_epsg(28354), 500_000.0, 6_000_000.0, 100.0, 100.0, 8, 8)
    folds = SimpleNamespace(count=2, testing=lambda fold, *window: (np.arange(8) // 4 == fold)[None].repeat(8, axis=0))
    values = np.full((8, 8), np.nan)
    values[2, 6] = 1.0
    places = {"beside": 500_800.0, "inside": 500_000.0}
    targets = [
        Layer(name, str(write_grid(tmp_path / f"{name}.tif", values, left=left))) for name, left in places.items()
    ]
    (warning,) = known_tests(ground, folds, targets)
    assert "layer 'inside'" in warning and "tested in fold 1:" in warning


@pytest.mark.parametrize(
    "flags, fold, said",
    [
        ((), 3, "--fold 3: expected 0 to 2, as --folds says"),
        (
            ("--task", "classification", "--label_scale", "1"),
            0,
            "--task classification, --dataset_type grid: expected a",
        ),
        (("--folds", "1"), 0, "--folds 1"),
    ],
)
def test_bad_input_is_refused(survey, labels, tmp_path, capsys, flags, fold, said):
    assert known(survey, tmp_path / "known.tif", labels / "classes.tif", *flags, fold=fold) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "known.tif").exists()


@pytest.mark.parametrize("name", ["labels", "layer"])
def test_what_is_read_is_never_replaced(survey, labels, tmp_path, capsys, name):
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in (survey, labels)]
    path = copies[1] / "classes.tif"
    output = path if name == "labels" else copies[0] / "gravity.tif"
    before = output.read_bytes()
    assert known(copies[0], output, path, more=["--overwrite"]) == 2
    assert "is one of the rasters that are read" in capsys.readouterr().err and output.read_bytes() == before


def test_a_file_is_replaced_only_if_asked_for(survey, labels, tmp_path, capsys):
    (tmp_path / "known.tif").write_text("mine", encoding="utf-8")
    assert known(survey, tmp_path / "known.tif", labels / "classes.tif") == 2
    assert "exists; give another name, or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "known.tif").read_text(encoding="utf-8") == "mine"
    assert known(survey, tmp_path / "known.tif", labels / "classes.tif", more=["--overwrite"]) == 0
    assert np.isfinite(read(tmp_path / "known.tif")[0]).any()
