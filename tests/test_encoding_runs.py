"""Training and inference with layers of every kind in one model: what a run logs, keeps and writes."""

import numpy as np
import pytest
import rasterio

import main_finetune
from scripts import describe_grids
from tests import small_main, small_maps
from tests.rasters import write_grid
from tests.surveys import checkpoint, log, same_bits

FLAGS = (
    "--input_size 8 --patch_size 4 --batch_size 8 --tiles_per_epoch 24 --warmup_epochs 0 --epochs 2 --val_fraction 0.1 "
    "--val_buffer 0 --val_tiles 8 --num_workers 0 --log_every 1 --device cpu --no_progress"
).split()
KINDS = ["continuous", "circular", "categorical"]


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A field with a long tail, its direction, and classes cut out of it, with holes; 160 x 160 pixels of 100 m."""
    folder = tmp_path_factory.mktemp("mixed")
    y, x = (np.mgrid[:160, :160] + 0.5) / 10
    field = np.sin(1.7 * x) * np.cos(1.3 * y) + 0.3 * np.sin(2.9 * y + x)
    classes = np.select([field > 0.5, field > 0, field > -0.5], [3, 17, 205], 40).astype("uint8")
    classes[:20, :30] = 0
    write_grid(folder / "lithology.tif", classes, nodata=0)
    write_grid(folder / "magnetics.tif", (np.sinh(3 * field) * 100).astype("float32"))
    write_grid(folder / "azimuth.tif", np.where(classes == 0, np.nan, (field * 300) % 360).astype("float32"))
    (folder / "layers.csv").write_text(
        "path,kind,transform,group,units\nmagnetics.tif,continuous,asinh,a,nT\nazimuth.tif,circular,,a,\n"
        "lithology.tif,categorical,,b,\n"
    )
    return folder


@pytest.fixture(scope="module")
def trained(survey, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    assert train(survey, output, pictures=True) == 0
    return output


def train(survey, output, *flags, pictures=False):
    arguments = ["--train_path", str(survey / "layers.csv"), "--output_dir", str(output), *FLAGS, *flags]
    return small_main.main(arguments, pictures=pictures)


def test_scores_are_in_units_that_mean_something(trained):
    scores = log(trained, "epoch")[-1]["val"]
    assert set(scores["magnetics"]["1x"]) == {"rmse", "rmse_mean", "rmse_interpolation", "skill"}
    assert 100 < scores["magnetics"]["4x"]["rmse"] < 2000  # nT, not units of the transform
    assert 30 < scores["azimuth"]["1x"]["rmse"] < 180  # degrees; of random directions 104
    classes = scores["lithology"]["1x"]
    assert set(classes) == {
        *("cross_entropy", "cross_entropy_majority", "cross_entropy_nearest", "skill"),
        *("accuracy", "accuracy_majority", "accuracy_nearest"),
    }
    assert all(0 <= classes[key] <= 1 for key in classes if key.startswith("accuracy"))
    best = min(classes["cross_entropy_majority"], classes["cross_entropy_nearest"])
    assert classes["skill"] == pytest.approx(1 - classes["cross_entropy"] / best)
    losses = log(trained)[0]["train_layers"]
    assert list(losses) == ["magnetics", "azimuth", "lithology"]
    assert all(0.3 < losses[name]["1x"] < 3 for name in losses)  # balanced from the first step on


def test_the_checkpoint_says_how_channels_come_about(trained):
    state = checkpoint(trained)
    assert [plain["kind"] for plain in state["encodings"]] == KINDS
    assert state["encodings"][2]["codes"] == [3, 17, 40, 205]
    assert state["encodings"][0]["transform"]["kind"] == "asinh"
    assert [row["channels"] for row in state["model_config"]["layers"]] == [1, 2, 4]
    assert [row["form"] for row in state["model_config"]["layers"]] == ["values", "angle", "fractions"]
    assert all("form" not in row for row in state["facts"]["model"]["layers"])  # older runs are resumed without it
    assert (trained / "reconstruction-last.png").stat().st_size > 10_000


def test_a_stopped_run_goes_on_bit_for_bit(survey, trained, tmp_path):
    """Also with masks of several shapes and layers left out."""
    shaped = "--mask_shape random=0.3 block=0.2 lines=0.2 noise=0.1 layer=0.2 --layer_dropout 0.3".split()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(survey, whole, *shaped) == 0
    assert not same_bits(checkpoint(whole)["model"], checkpoint(trained)["model"])
    assert train(survey, parts, *shaped, "--num_workers", "2") == 0
    (parts / "checkpoint-last.pth").unlink()
    (parts / "checkpoint-2.pth").unlink()
    assert train(survey, parts, *shaped, "--resume", "auto") == 0
    assert same_bits(checkpoint(whole)["model"], checkpoint(parts)["model"])


def test_other_classes_do_not_continue_a_run(survey, trained, tmp_path, capsys):
    (tmp_path / "lithology.csv").write_text("code,name\n3,a\n17,b\n40,c\n205,d\n206,e\n")
    table = (survey / "layers.csv").read_text().replace("units\n", "units,classes\n")
    table = table.replace("categorical,,b,", f"categorical,,b,,{tmp_path}/lithology.csv")
    (survey / "more.csv").write_text(table)
    assert train(survey, tmp_path / "run", "--train_path", str(survey / "more.csv")) == 0
    assert checkpoint(tmp_path / "run")["model_config"]["in_chans"] == 8
    status = train(survey, tmp_path / "run", "--resume", "auto")
    assert status == 2 and "classes[4]: checkpoint 206.0, now '(absent)'" in capsys.readouterr().err


def infer(trained, output, what, *flags):
    return small_maps.infer(
        ["--checkpoint", str(trained / "checkpoint-last.pth"), "--output", what, "--output_dir", str(output)]
        + ["--device", "cpu", "--no_progress", "--block_size", "24", *flags]
    )


def test_reconstructions_are_written_in_their_own_units(survey, trained, tmp_path):
    assert infer(trained, tmp_path, "reconstruction") == 0
    with rasterio.open(tmp_path / "reconstruction_lithology_4x.tif") as file:
        assert file.descriptions == ("lithology class", "lithology probability", "lithology error")
        codes, probability, wrong = file.read()
        known = np.isfinite(codes)
        assert set(np.unique(codes[known])) <= {3, 17, 40, 205}
        assert (probability[known] > 1 / 4).all() and (probability[known] <= 1).all()
        truth = rasterio.open(survey / "lithology.tif").read(1)
        assert (known == (truth > 0)).all()
        np.testing.assert_array_equal(wrong[known], (codes != truth)[known])
        assert file.tags()["kind"] == "categorical"
    with rasterio.open(tmp_path / "reconstruction_azimuth_4x.tif") as file:
        degrees, spread, error = file.read()
        truth = rasterio.open(survey / "azimuth.tif").read(1)
        known = np.isfinite(degrees)
        assert (degrees[known] >= 0).all() and (degrees[known] < 360).all() and (spread[known] >= 0).all()
        off = (degrees + error - truth)[known] % 360
        assert np.minimum(off, 360 - off).max() < 0.05 and np.abs(error[known]).max() <= 180
        assert file.units == ("degrees",) * 3
    with rasterio.open(tmp_path / "reconstruction_magnetics_4x.tif") as file:
        values, spread, error = file.read()
        truth = rasterio.open(survey / "magnetics.tif").read(1)
        np.testing.assert_allclose(values + error, truth, rtol=1e-3, atol=0.1)
        assert (spread >= 0).all() and file.units == ("nT",) * 3


def test_embeddings_take_every_kind(trained, tmp_path):
    assert infer(trained, tmp_path, "embeddings") == 0
    assert (tmp_path / "embeddings.tif").exists()


def test_only_measurements_are_filled_or_refined(survey, trained, tmp_path, capsys):
    """A gap in the magnetics is filled; of the others is said why they are not."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("azimuth", "lithology", "magnetics"):
        with rasterio.open(survey / f"{name}.tif") as file:
            values = file.read(1)
            if name == "magnetics":
                values[60:64, 60:64] = np.nan
            write_grid(data / f"{name}.tif", values, nodata=file.nodata)
    assert infer(trained, tmp_path / "out", "gapfill", "--data_dir", str(data), "--max_gap", "800") == 0
    said = capsys.readouterr().err
    assert "'azimuth' (circular), 'lithology' (categorical) cannot be filled: a spline needs measurements" in said
    assert [path.name for path in (tmp_path / "out").glob("*.tif")] == ["gapfill_magnetics.tif"]
    with rasterio.open(tmp_path / "out" / "gapfill_magnetics.tif") as file:
        filled = file.read(1)
    truth = rasterio.open(survey / "magnetics.tif").read(1)
    outside = np.ones_like(truth, dtype=bool)
    outside[60:64, 60:64] = False
    np.testing.assert_array_equal(filled[outside], truth[outside])
    assert np.abs(filled - truth)[~outside].mean() < 0.3 * truth.std()


def test_a_model_of_classes_alone_fills_nothing(survey, tmp_path, capsys):
    (survey / "classes.csv").write_text("path,kind\nlithology.tif,categorical\n")
    assert train(survey, tmp_path / "run", "--train_path", str(survey / "classes.csv"), "--epochs", "1") == 0
    for what, reason in (("gapfill", "filled: a spline needs"), ("superresolution", "refined: only interpolation")):
        assert infer(tmp_path / "run", tmp_path / "out", what) == 2
        assert f"no continuous layer: 'lithology' (categorical) cannot be {reason}" in capsys.readouterr().err


def test_fine_tuning_takes_every_kind(survey, trained, tmp_path):
    """The encoder and its channels move over; what is fitted says how channels come about."""
    with rasterio.open(survey / "magnetics.tif") as file:
        labels = write_grid(tmp_path / "labels.tif", (1 + (file.read(1) > 0)).astype("uint8"), nodata=0)
    flags = "--input_size 8 --batch_size 4 --epochs 1 --tiles_per_epoch 12 --warmup_epochs 0 --folds 2 --val_buffer 4"
    paths = ["--finetune", str(trained / "checkpoint-last.pth"), "--labels", str(labels)]
    output = ["--output_dir", str(tmp_path / "run"), "--num_workers", "0", "--device", "cpu", "--no_progress"]
    assert main_finetune.main([*paths, *flags.split(), *output]) == 0
    state = checkpoint(tmp_path / "run")
    assert state["encodings"] == checkpoint(trained)["encodings"] and state["model_config"]["in_chans"] == 7


def test_describe_grids_says_the_kinds(survey, capsys):
    assert describe_grids.main(["--train_path", str(survey / "layers.csv"), *FLAGS[:4], "--val_fraction", "0"]) == 0
    said = capsys.readouterr().out
    assert "4 classes" in said and "circular" in said and "transform asinh" in said
