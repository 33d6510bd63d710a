"""The whole program on small data sets of images: what it leaves behind, and what may not change its numbers."""

import logging
import math
import shutil

import pytest
import torch

import models_mae_group_channels as models
from tests import scene_files, small_main, small_maps, surveys
from tests.rasters import write_grid
from tests.scene_files import CATEGORIES, write_image
from tests.test_resume import assert_same_end, stop_at

FLAGS = (
    "--input_size 8 --patch_size 4 --scales 1 2 --batch_size 8 --lr 0.001 --warmup_epochs 1 --epochs 2 --num_workers 0 "
    "--log_every 1 --device cpu --no_progress --val_tiles 4 --val_fraction 0"
).split()
"""Quick to train: 3 updates an epoch on the 24 images of `fmow`."""


@pytest.fixture(scope="module")
def fmow(tmp_path_factory):
    """A small fMoW-Sentinel with a table to train on and one to test on."""
    folder = tmp_path_factory.mktemp("fmow")
    scene_files.write_sentinel(folder, split="val", locations=1, first=1000)
    return scene_files.write_sentinel(folder)


@pytest.fixture(scope="module")
def plain(fmow, tmp_path_factory):
    """The output of a run with `FLAGS` alone."""
    output = tmp_path_factory.mktemp("plain")
    assert train(fmow, output) == 0
    return output


def arguments(table, output, *flags, kind="sentinel"):
    """The command line that trains on a table."""
    return ["--dataset_type", kind, "--train_path", str(table), "--output_dir", str(output), *FLAGS, *flags]


def train(table, output, *flags, kind="sentinel", pictures=False):
    """Trains the small model; returns the exit status."""
    return small_main.main(arguments(table, output, *flags, kind=kind), pictures=pictures)


def test_what_a_run_leaves_behind(fmow, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    flags = [
        "--test_path",
        str(fmow.parent / "val.csv"),
        "--grouped_bands",
        "0",
        "1",
        "--dropped_bands",
        *"0145678",
        "9",
    ]
    assert train(fmow, tmp_path, *flags, *("10", "11", "12"), pictures=True) == 0
    assert "fMoW-Sentinel" in caplog.text and "24 training images of 12 locations, 0 held-out" in caplog.text
    names = {path.name for path in tmp_path.iterdir() if "tfevents" not in path.name}
    assert {"categories.csv", "statistics.json", "log.txt", "checkpoint-2.pth", "reconstruction-2.png"} <= names
    assert "layers.csv" not in names
    state = surveys.checkpoint(tmp_path)
    assert state["categories"] == list(CATEGORIES) and state["step"] == 6
    assert [layer["name"] for layer in state["layers"]] == ["B3", "B4"]
    models.MaskedAutoencoderGroupChannelViT(**state["model_config"]).load_state_dict(state["model"])
    for line in surveys.log(tmp_path, "epoch"):
        assert line["val_tiles"] == 4 and math.isfinite(line["val_loss"])
        assert {name: list(scales) for name, scales in line["val"].items()} == {n: ["1x", "2x"] for n in ("B3", "B4")}
        assert all(math.isfinite(x) for scales in line["val"].values() for v in scales.values() for x in v.values())


@pytest.mark.parametrize("kind", ["rgb", "euro_sat"])
def test_the_other_data_sets(tmp_path, kind):
    write = {"rgb": scene_files.write_rgb, "euro_sat": scene_files.write_euro_sat}[kind]
    table = write(tmp_path / "data")
    assert train(table, tmp_path / "output", "--epochs", "1", "--val_fraction", "0.2", kind=kind) == 0
    (epoch,) = surveys.log(tmp_path / "output", "epoch")
    assert epoch["val_tiles"] == 2 and epoch["step"] == 1 and math.isfinite(epoch["val_loss"])


@pytest.mark.parametrize("flags", ["", "--num_workers 3", "--save_minutes 0.000001"])
def test_the_same_seed_gives_the_same_bits(fmow, plain, tmp_path, flags):
    assert train(fmow, tmp_path, *flags.split()) == 0
    assert_same_end(tmp_path, plain)


def test_other_seeds_and_epochs_give_other_crops(fmow, plain, tmp_path):
    assert train(fmow, tmp_path, "--seed", "1", "--epochs", "1") == 0
    assert surveys.losses(tmp_path)[0] != surveys.losses(plain)[0]


def test_images_may_be_visited_again_in_an_epoch(fmow, tmp_path):
    assert train(fmow, tmp_path, "--epochs", "1", "--tiles_per_epoch", "60") == 0
    assert surveys.checkpoint(tmp_path)["step"] == 8


@pytest.mark.parametrize(("step", "stopped"), [(3, 3), (4, 5)])
def test_a_run_that_is_stopped_and_resumed_ends_the_same(fmow, plain, tmp_path, step, stopped):
    """Between two epochs, and within one."""
    with stop_at(step):
        assert train(fmow, tmp_path) == 0
    assert surveys.checkpoint(tmp_path)["step"] == stopped
    assert train(fmow, tmp_path, "--resume", "auto", "--num_workers", "2") == 0
    assert_same_end(tmp_path, plain)


def test_two_processes_learn_the_same(fmow, plain, tmp_path):
    results = surveys.run_ranks(arguments(fmow, tmp_path / "output", "--batch_size", "4"), tmp_path)
    assert [status for status, _ in results] == [0, 0], results
    assert surveys.largest_loss_difference(plain, tmp_path / "output") < 1e-5
    surveys.assert_weights_agree(surveys.checkpoint(tmp_path / "output")["model"], surveys.checkpoint(plain)["model"])


def test_windows_paths_train_the_same(fmow, plain, tmp_path):
    shutil.copytree(fmow.parent, tmp_path / "fmow")
    lines = ["image_path,category"]
    for category in CATEGORIES:
        for place in range(4):
            folder = rf"C:\Users\me\fmow\train\{category}\{category}_{place}"
            lines += [rf"{folder}\{category}_{place}_{image}.tif,{category}" for image in range(2)]
    table = scene_files.write_lines(tmp_path / "fmow" / "windows.csv", lines)
    assert train(table, tmp_path / "output") == 0
    assert surveys.losses(tmp_path / "output") == surveys.losses(plain)


def test_images_without_a_valid_pixel_do_not_stop_training(tmp_path):
    """Half of the images are empty: whole batches of one image are."""
    table = scene_files.write_sentinel(tmp_path, locations=1)
    for category in CATEGORIES:
        path = tmp_path / "train" / category / f"{category}_0" / f"{category}_0_1.tif"
        write_image(path, scene_files.texture(0) * 0 + 7, nodata=7)
    assert train(table, tmp_path / "output", "--epochs", "1", "--batch_size", "1") == 0
    assert all(torch.isfinite(weight).all() for weight in surveys.checkpoint(tmp_path / "output")["model"].values())


# What is refused


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--aoi a.gpkg", "--aoi does not go with --dataset_type sentinel"),
        ("--dropped_bands 13", "--dropped_bands names layer 13, expected 0..12"),
        ("--test_path nowhere.csv", "nowhere.csv: no such file; expected a CSV that lists images"),
    ],
)
def test_bad_options_end_with_a_message(fmow, tmp_path, capsys, flags, said):
    assert train(fmow, tmp_path, *flags.split()) == 2
    assert f"main_pretrain: error: {said}" in capsys.readouterr().err


def test_a_category_that_was_not_trained_on(fmow, tmp_path, capsys):
    table = scene_files.write_lines(tmp_path / "few.csv", ["category,image_path", "pier,a.tif"])
    write_image(tmp_path / "a.tif", scene_files.texture(0))
    assert train(fmow, tmp_path / "output", "--test_path", str(table)) == 2
    said = (
        f"{table}, row 2: image {tmp_path / 'a.tif'} is of category 'pier', expected one of the 3 trained on: airport"
    )
    assert said in capsys.readouterr().err


def test_images_that_are_missing_end_before_training(tmp_path, capsys):
    table = scene_files.write_sentinel(tmp_path, locations=1)
    path = tmp_path / "train/zoo/zoo_0/zoo_0_1.tif"
    path.unlink()
    assert train(table, tmp_path / "output") == 2
    assert f"train.csv, row 7: image not there, looked for {path}; put it there" in capsys.readouterr().err
    assert not (tmp_path / "output" / "log.txt").exists()


def test_images_that_break_during_training_are_named(fmow, tmp_path, capsys, monkeypatch):
    """Not skipped: the run ends, and says which image it was."""
    shutil.copytree(fmow.parent, tmp_path / "fmow")
    path = tmp_path / "fmow/train/dam/dam_2/dam_2_1.tif"
    broken = path.read_bytes()[:300]
    # The last that happens between opening the data and training:
    monkeypatch.setattr("datasets.scenes.scenes.Scenes.write_tables", lambda *_: path.write_bytes(broken))
    assert train(tmp_path / "fmow" / "train.csv", tmp_path / "output") == 1
    assert f"train.csv, row 15: image {path} cannot be read (" in capsys.readouterr().err


def test_inference_on_rasters_named_as_the_bands(plain, tmp_path):
    (tmp_path / "data").mkdir()
    for number, layer in enumerate(surveys.checkpoint(plain)["layers"]):
        values = scene_files.texture(number, bands=1, shape=(32, 32))[0].astype("float32")
        write_grid(tmp_path / "data" / f"{layer['name']}.tif", values, resolution=10)
    flags = "--output embeddings --device cpu --no_progress --base_resolution 20".split()
    places = ["--checkpoint", str(plain / "checkpoint-last.pth"), "--data_dir", str(tmp_path / "data")]
    assert small_maps.infer([*places, *flags, "--output_dir", str(tmp_path / "output")]) == 0
    assert list((tmp_path / "output").glob("*.tif"))


def test_inference_asks_for_ground(fmow, plain, tmp_path, capsys):
    flags = [
        "--output",
        "embeddings",
        "--checkpoint",
        str(plain / "checkpoint-last.pth"),
        "--output_dir",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    assert small_maps.infer(flags) == 2
    said = "trained on images (--dataset_type sentinel), not on ground; give rasters named as its bands (B2, B3, B4, "
    assert said in capsys.readouterr().err
