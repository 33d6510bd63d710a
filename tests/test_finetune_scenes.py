"""Fine-tuning on scene data sets: the classes of images, top-1 and top-5."""

import json

import numpy as np
import pytest
import torch

from datasets.finetuning.finetune_data import open_scene_data
from datasets.finetuning.layers import open_scene_layers
from tests import labelled, scene_files, small_main
from tests.scene_files import CATEGORIES

FLAGS = (
    "--task classification --input_size 8 --patch_size 4 --scales 1 2 --batch_size 8 --epochs 2 --warmup_epochs 0 "
    "--lr 0.003 --drop_path 0 --num_workers 0 --device cpu --no_progress"
).split()
OPTIONS = {
    "dataset_type": "sentinel",
    "dropped_bands": None,
    "masked_bands": (),
    "grouped_bands": None,
    "one_group": False,
    "input_size": 8,
    "scales": (1, 2),
    "val_fraction": 0.25,
    "seed": 0,
}


@pytest.fixture(scope="module")
def fmow(tmp_path_factory):
    """A small fMoW-Sentinel with a table to train on and one to test on."""
    folder = tmp_path_factory.mktemp("fmow")
    scene_files.write_sentinel(folder, split="val", locations=2, first=1000)
    return scene_files.write_sentinel(folder)


@pytest.fixture(scope="module")
def pretrained(fmow, tmp_path_factory):
    """A checkpoint of pre-training on it."""
    output = tmp_path_factory.mktemp("pretrained")
    flags = (
        "--dataset_type sentinel --input_size 8 --patch_size 4 --scales 1 2 --batch_size 8 --epochs 1 "
        "--warmup_epochs 1 --num_workers 0 --device cpu --no_progress --val_fraction 0"
    )
    assert small_main.main([*flags.split(), "--train_path", str(fmow), "--output_dir", str(output)]) == 0
    return output / "checkpoint-last.pth"


def finetune(table, output, *flags, kind="sentinel", pictures=False):
    given = ["--dataset_type", kind, "--train_path", str(table), "--output_dir", str(output), *FLAGS]
    return labelled.run([*given, *flags], pictures=pictures)


def scores_of(output, arm="scratch"):
    return json.loads((output / "metrics.json").read_text())["arms"][arm]


@pytest.fixture(scope="module")
def finished(fmow, pretrained, tmp_path_factory):
    """A run from the checkpoint, tested on the table for it, with baselines."""
    output = tmp_path_factory.mktemp("finished")
    flags = ["--finetune", str(pretrained), "--test_path", str(fmow.parent / "val.csv")]
    assert finetune(fmow, output, *flags, "--baselines", "scratch", "probe", "unet", "constant", pictures=True) == 0
    return output


def test_what_a_run_says(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["task"] == "classification" and metrics["split"]["split"] == "test table"
    assert list(metrics["arms"]) == ["pretrained", "scratch", "probe", "unet", "constant"]
    test = metrics["arms"]["pretrained"]["folds"]["0"]["test"]
    assert test["count"] == 12 and 0 <= test["top1"] <= 1
    assert set(test["recall"]) == set(CATEGORIES)
    constant = metrics["arms"]["constant"]["folds"]["0"]["test"]
    assert constant["top1"] == pytest.approx(1 / 3)
    assert {"scores.png", "confusion.png", "confusion.csv"} <= {path.name for path in finished.iterdir()}
    state = torch.load(finished / "fits" / "pretrained-fold0" / "checkpoint-last.pth", weights_only=True)
    assert state["task"]["names"] == list(CATEGORIES) and state["base_resolution"] is None
    assert len(state["layers"]) == 10
    unet = torch.load(finished / "fits" / "unet-fold0" / "checkpoint-last.pth", weights_only=True)
    assert unet["model_config"]["zoom"] == 2  # images are read at the finest scale


def test_a_probe_leaves_the_encoder_alone(finished, pretrained):
    before = torch.load(pretrained, weights_only=True)["model"]
    after = torch.load(finished / "fits" / "probe-fold0" / "checkpoint-last.pth", weights_only=True)["model"]
    same = [name for name in after if name.startswith(("blocks.", "patch_embed.")) and name in before]
    assert same and all(torch.equal(before[name], after[name]) for name in same)


def test_scored_again_alone(finished, fmow, tmp_path):
    checkpoint = finished / "fits" / "pretrained-fold0" / "checkpoint-last.pth"
    assert labelled.run(["--eval", "--resume", str(checkpoint), "--output_dir", str(tmp_path), "--no_progress"]) == 0
    again = json.loads(next(tmp_path.glob("*.json")).read_text())["test"]
    assert again == scores_of(finished, "pretrained")["folds"]["0"]["test"]


def test_held_out_by_location(fmow, tmp_path):
    assert finetune(fmow, tmp_path, "--val_fraction", "0.25") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["split"]["split"] == "locations"
    assert metrics["split"]["tested"] + metrics["split"]["trained"] == 24 and metrics["split"]["tested"] == 6


@pytest.mark.parametrize(("kind", "write"), [("rgb", scene_files.write_rgb), ("euro_sat", scene_files.write_euro_sat)])
def test_the_other_data_sets(tmp_path, kind, write):
    source = write(tmp_path / "data")
    assert finetune(source, tmp_path / "out", "--val_fraction", "0.3", kind=kind) == 0
    assert scores_of(tmp_path / "out")["folds"]["0"]["test"]["count"] > 0


def test_top_five_where_there_are_classes_enough(tmp_path):
    folder = tmp_path / "data"
    for kind in range(7):
        for image in range(2):
            values = scene_files.texture(10 * kind + image, shape=(16, 16), kind=kind)
            scene_files.write_image(folder / f"class{kind}" / f"class{kind}_{image}.tif", values)
    assert finetune(folder, tmp_path / "out", "--val_fraction", "0.4", kind="euro_sat") == 0
    test = scores_of(tmp_path / "out")["folds"]["0"]["test"]
    assert test["top1"] <= test["top5"] <= 1


def test_resumed_after_the_first_epoch_it_ends_the_same(fmow, tmp_path):
    flags = ["--val_fraction", "0.25", "--drop_path", "0.2", "--mixup", "0.8"]
    assert finetune(fmow, tmp_path / "whole", *flags) == 0
    whole = torch.load(tmp_path / "whole" / "fits" / "scratch-fold0" / "checkpoint-last.pth", weights_only=True)
    (tmp_path / "part").mkdir()
    folder = tmp_path / "whole" / "fits" / "scratch-fold0"
    (folder / "checkpoint-last.pth").unlink()
    (folder / "scores.json").unlink()
    assert finetune(fmow, tmp_path / "whole", *flags, "--resume", "auto") == 0
    again = torch.load(folder / "checkpoint-last.pth", weights_only=True)
    assert all(torch.equal(whole["model"][name], again["model"][name]) for name in whole["model"])


def open_data(table, *, label_fraction=1.0, test_path=None):
    opened = open_scene_layers(None, train_path=str(table), **OPTIONS)
    return opened, open_scene_data(opened.survey, test_path, label_fraction=label_fraction, seed=0)


def test_training_and_tested_images_share_no_location(fmow):
    opened, data = open_data(fmow)
    places = np.array(opened.survey.scenes.images.table.locations)
    assert not set(places[data.targets.chosen]) & set(places[data.targets.tested])


def test_a_share_of_the_images_is_nested(fmow):
    chosen = [set(open_data(fmow, label_fraction=share)[1].targets.chosen.tolist()) for share in (0.2, 0.5, 1.0)]
    assert chosen[0] < chosen[1] < chosen[2] and len(chosen[2]) == 18


def test_epochs_crop_anew_and_tests_take_the_centre(fmow):
    _, data = open_data(fmow)
    fold = data.targets.fold(0)
    jobs = fold.epoch(seed=1, epoch=0, tiles=18, augment=True)
    assert sorted(jobs[:, 0]) == data.targets.chosen.tolist()
    first, again = fold.read(jobs[:2]).tiles.arrays[0], fold.read(jobs[:2]).tiles.arrays[0]
    other = fold.epoch(seed=1, epoch=1, tiles=18, augment=True)
    same_image = other[other[:, 0] == jobs[0, 0]]
    assert torch.equal(first, again)
    assert not torch.equal(first[:1].nan_to_num(), fold.read(same_image).tiles.arrays[0].nan_to_num())
    batch = data.targets.read(np.array([0]))
    assert batch.target.tolist() == data.targets.examples.classes[:1].tolist()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--task", "segmentation"], "expected --task classification"),
        (["--labels", "a.tif"], "--labels does not go with --dataset_type sentinel"),
        (["--split", "random"], "--split random does not go with"),
        (["--folds", "3"], "--folds does not go with"),
        (["--label_column", "rock"], "--label_column does not go with"),
        (["--baselines", "trees"], "expected some of scratch, probe, unet, constant"),
        (["--val_fraction", "0"], "no image is left to test: give --test_path"),
    ],
)
def test_bad_options_end_with_a_message(fmow, tmp_path, capsys, flags, said):
    assert finetune(fmow, tmp_path, *flags) == 2
    assert said in capsys.readouterr().err


def test_a_test_table_for_rasters(tmp_path, capsys):
    assert labelled.run(["--test_path", "a.csv", "--output_dir", str(tmp_path), "--device", "cpu"]) == 2
    assert "rasters are tested on folds" in capsys.readouterr().err
    assert labelled.run(["--val_fraction", "0.3", "--output_dir", str(tmp_path), "--device", "cpu"]) == 2
    assert "--val_fraction goes with scene data sets" in capsys.readouterr().err


def test_a_checkpoint_of_other_bands_or_of_rasters(fmow, pretrained, tmp_path, capsys):
    assert labelled.run(["--finetune", str(pretrained), "--output_dir", str(tmp_path), "--device", "cpu"]) == 2
    assert "was trained with sentinel; give --dataset_type sentinel" in capsys.readouterr().err
