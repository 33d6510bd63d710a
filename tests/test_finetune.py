"""main_finetune as a whole, on a small survey: what a run leaves behind, its arms and splits, what it learns."""

import csv
import logging
import math
from pathlib import Path
from unittest import mock

import matplotlib.text
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_finetune
from datasets.folds.folds import CONTROL_WARNING, LEAK_WARNING
from tests import labelled, surveys
from tests.rasters import write_grid
from util.records.finetune_records import FinetuneFiles
from util.training.engine import Updater

ARMS = ("pretrained", "scratch", "probe", "trees", "forest", "constant")
USERS_KEYS = {"model", "model_config", "layers", "statistics", "options", "base_resolution", "task", "training", "fold"}


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A folder of labels: classes.tif, values.tif, points.csv (presence alone) and kinds.csv."""
    folder = tmp_path_factory.mktemp("labels")
    labelled.write_classes(folder)
    labelled.write_values(folder)
    labelled.write_points(folder)
    labelled.write_points(folder, kinds=("basalt", "granite"), name="kinds.csv")
    return folder


@pytest.fixture(scope="module")
def pretrained(survey, tmp_path_factory):
    """The checkpoint of a short pre-training that held out some ground."""
    output = tmp_path_factory.mktemp("pretrained")
    assert surveys.train(survey, output, "--epochs", "1", *surveys.HELD_OUT) == 0
    return output / "checkpoint-last.pth"


@pytest.fixture(scope="module")
def compared(survey, labels, pretrained, tmp_path_factory):
    """The output of a comparison of all arms, with pictures: classes at twice the base scale."""
    output = tmp_path_factory.mktemp("compared")
    flags = f"--finetune {pretrained} --label_scale 2 --tree_samples 60 --baselines scratch probe trees forest constant"
    assert labelled.finetune(survey, output, *flags.split(), labels=labels / "classes.tif", pictures=True) == 0
    return output


@pytest.fixture(scope="module")
def alone(survey, labels, tmp_path_factory):
    """The output of a run from scratch, on classes at the base scale."""
    output = tmp_path_factory.mktemp("alone")
    assert labelled.finetune(survey, output, labels=labels / "classes.tif") == 0
    return output


def same_weights(first: Path, second: Path, arm: str = "scratch") -> bool:
    """Whether all fits of two runs of two folds have the same weights, bit for bit."""
    return all(
        surveys.same_bits(labelled.fit(first, arm, fold)["model"], labelled.fit(second, arm, fold)["model"])
        for fold in (0, 1, None)
    )


def drawn(titles: dict[str, str]):
    """Instead of writing pictures, which takes long, keeps all that is written in them, by name."""

    def read(files, name, figure, step=0):
        texts = " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))
        titles[name] = " ".join(texts.split())
        return files.output_dir / name

    return mock.patch.object(FinetuneFiles, "draw", read)


# What a run leaves behind


def test_everything_is_there(compared):
    names = {path.name for path in compared.iterdir()}
    assert names - {name for name in names if name.startswith("events.")} == {
        "checkpoint-last.pth",
        "checkpoint-previous.pth",
        "confusion.csv",
        "confusion.png",
        "curves",
        "fits",
        "log.txt",
        "map.png",
        "metrics.json",
        "report.html",
        "report.json",
        "run.json",
        "scores.png",
    }
    assert {path.name for path in (compared / "fits").iterdir()} == {f"{a}-fold{k}" for a in ARMS for k in (0, 1)}
    for name in ("confusion.png", "map.png", "scores.png"):
        assert (compared / name).read_bytes().startswith(b"\x89PNG")


def test_each_epoch_stands_once_in_the_log(compared):
    lines = [(line["arm"], line["fold"], line["epoch"], line["step"]) for line in surveys.log(compared, "epoch")]
    folds = [(arm, fold, epoch, 3 * epoch) for arm in ARMS[:3] for fold in (0, 1) for epoch in (1, 2)]
    assert lines == folds + [("pretrained", None, 1, 3), ("pretrained", None, 2, 6)]
    assert [(line["arm"], line["fold"]) for line in surveys.log(compared, "score")] == [
        (arm, fold) for arm in ARMS for fold in (0, 1)
    ]
    for line in surveys.log(compared, "epoch"):
        assert np.isfinite(line["loss"]) and line["lr"] > 0 and line["tiles_per_s"] > 0


def test_tensorboard_has_curves_scores_and_pictures(compared):
    """Each fit is a run of its own, and all runs have the same tags, so that their curves lie over each other."""
    runs = {path.name: EventAccumulator(str(path)).Reload() for path in (compared / "curves").iterdir()}
    assert set(runs) == {f"{arm}-fold{fold}" for arm in ARMS for fold in (0, 1)} | {"pretrained-all"}
    curves = {"2_loss/training", "5_optimiser/lr", "5_optimiser/grad_norm", "6_speed/tiles_per_s", "7_memory/peak_mb"}
    for name, run in runs.items():
        tags = set(run.Tags()["scalars"])
        is_network = name.split("-")[0] not in ("trees", "forest", "constant")
        assert is_network == (curves <= tags) and ("1_score/mean_iou" in tags) == (name != "pretrained-all")
        assert all(name.partition("/")[0][:2] in ("1_", "2_", "5_", "6_", "7_", "fi") for name in tags)
    point = runs["pretrained-fold0"].SummaryMetadata("2_loss/training")
    assert "model units" in point.summary_description
    assert "_hparams_/session_start_info" in runs["trees-fold1"].PluginTagToContent("hparams")
    events = EventAccumulator(str(compared)).Reload()
    tags = events.Tags()
    assert tags["scalars"] == []
    assert set(tags["images"]) == {"scores", "confusion", "map"}
    assert {"options/text_summary", "environment/text_summary", "folds/text_summary"} <= set(tags["tensors"])
    metrics = labelled.read_strict(compared / "metrics.json")
    for fold in (0, 1):
        (point,) = runs[f"pretrained-fold{fold}"].Scalars("1_score/mean_iou")
        (final,) = runs[f"pretrained-fold{fold}"].Scalars("final/mean_iou")
        expected = metrics["arms"]["pretrained"]["folds"][str(fold)]["test"]["mean_iou"]
        assert point.value == final.value == pytest.approx(expected)


def test_metrics_hold_every_arm_and_fold(compared):
    metrics = labelled.read_strict(compared / "metrics.json")
    assert tuple(metrics["arms"]) == ARMS and metrics["task"] == "segmentation" and metrics["warning"] is None
    tested = metrics["split"]["tested"]
    for arm, of in metrics["arms"].items():
        counts = [of["folds"][str(fold)]["test"]["count"] for fold in (0, 1)]
        assert counts == tested, arm  # the same folds for every arm
        scores = [of["folds"][str(fold)]["test"]["mean_iou"] for fold in (0, 1)]
        summary = of["summary"]["mean_iou"]
        assert summary["mean"] == pytest.approx(np.mean(scores)) and summary["n"] == 2
        assert summary["std"] == pytest.approx(np.std(scores, ddof=1))
        assert np.sum(of["all_folds"]["confusion"]) == sum(tested)
        assert of["folds"]["0"]["test"] == labelled.scores(compared, arm)["test"]
    assert {of["folds"]["0"]["train_labels"] for of in metrics["arms"].values()} == {
        metrics["arms"]["constant"]["folds"]["0"]["train_labels"]
    }
    with open(compared / "confusion.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert np.array(rows[1:])[:, 1:4].astype(int).tolist() == metrics["arms"]["pretrained"]["all_folds"]["confusion"]


def test_the_last_fit_is_on_all_labels(compared, survey):
    state = labelled.fit(compared, "pretrained", None)
    assert USERS_KEYS <= set(state) and state["fold"] is None and state["arm"] == "pretrained"
    assert state["task"]["kind"] == "segmentation" and state["task"]["codes"] == list(labelled.CODES)
    assert state["task"]["scale"] == 2 and state["base_resolution"] == 400.0
    assert [layer["name"] for layer in state["layers"]] == ["gravity", "magnetics"]
    assert state["training"]["labels"] == sum(labelled.read_strict(compared / "run.json")["folds"]["tested"])
    assert state["scores"]["arms"]["pretrained"]["summary"]["mean_iou"]["mean"] is not None
    assert state["epoch"] == 2 and state["model_config"]["img_size"] == 8


def test_what_the_map_shows_was_predicted_by_the_fold_that_tests_it(compared):
    """A pixel is in exactly one fold's map, and is counted in that fold's confusion matrix."""
    maps = [np.load(compared / f"fits/pretrained-fold{fold}/scores.npz")["map"] for fold in (0, 1)]
    assert maps[0].shape == (80, 80) and not (np.isfinite(maps[0]) & np.isfinite(maps[1])).any()
    for fold in (0, 1):
        columns = np.sum(labelled.scores(compared, "pretrained", fold)["test"]["confusion"], axis=0)
        shown = maps[fold][np.isfinite(maps[fold])].astype(int)
        assert np.bincount(shown, minlength=3).tolist() == columns.tolist()


# The arms


def test_arms_start_where_they_should(compared, pretrained):
    """Pre-trained weights move a little, frozen ones not at all, and scratch shares none of them."""
    weights = torch.load(pretrained, weights_only=True)["model"]
    name = "blocks.0.attn.qkv.weight"
    moved = {
        arm: surveys.largest_difference({"w": weights[name]}, {"w": labelled.fit(compared, arm)["model"][name]})
        for arm in ARMS[:3]
    }
    assert moved["probe"] == 0.0 < moved["pretrained"] < 0.5 < moved["scratch"]


def test_a_frozen_encoder_stays_bit_identical(compared, pretrained):
    weights = torch.load(pretrained, weights_only=True)["model"]
    before = {k: w for k, w in weights.items() if k.startswith(("blocks.", "patch_embed.", "cls_", "nodata_", "chan"))}
    for fold in (0, 1):
        model = labelled.fit(compared, "probe", fold)["model"]
        assert surveys.same_bits(before, {k: model[k] for k in before})
        assert any(key.startswith("head.") for key in model)
    heads = [labelled.fit(compared, "probe", fold)["model"]["head.merge.linear.weight"] for fold in (0, 1)]
    assert not torch.equal(*heads)


def test_freeze_encoder_makes_the_probe_the_first_arm(survey, labels, pretrained, compared, tmp_path):
    flags = ["--finetune", str(pretrained), "--freeze_encoder", "--label_scale", "2", "--no_final"]
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "classes.tif") == 0
    assert list(labelled.read_strict(tmp_path / "metrics.json")["arms"]) == ["probe"]
    assert not (tmp_path / "checkpoint-last.pth").exists()
    assert labelled.scores(tmp_path, "probe")["test"] == labelled.scores(compared, "probe")["test"]


def test_the_constant_is_the_commonest_training_class(compared):
    for fold in (0, 1):
        confusion = np.array(labelled.scores(compared, "constant", fold)["test"]["confusion"])
        facts = labelled.fit(compared, "pretrained", fold)["training"]
        assert np.flatnonzero(confusion.sum(axis=0)).tolist() == [int(np.argmax(facts["class_counts"]))]


def test_arms_can_be_added_to_a_finished_run(survey, labels, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    flags = ["--no_final", "--only_folds", "1"]
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "classes.tif") == 0
    before = (tmp_path / "fits/scratch-fold1/scores.json").read_bytes()
    more = [*flags, "--resume", "auto", "--baselines", "constant"]
    assert labelled.finetune(survey, tmp_path, *more, labels=labels / "classes.tif") == 0
    assert "scratch fold 1 was done before" in caplog.text
    assert (tmp_path / "fits/scratch-fold1/scores.json").read_bytes() == before
    metrics = labelled.read_strict(tmp_path / "metrics.json")
    assert [list(of["folds"]) for of in metrics["arms"].values()] == [["1"], ["1"]]


# The tasks


def test_values_are_predicted_in_their_units(survey, labels, tmp_path):
    flags = "--task regression --head linear --baselines constant trees --tree_samples 60 --epochs 4".split()
    titles: dict[str, str] = {}
    with drawn(titles):
        assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "values.tif", pictures=True) == 0
    metrics = labelled.read_strict(tmp_path / "metrics.json")
    assert metrics["headline"] == "r2" and "all_folds" not in metrics["arms"]["scratch"]
    constant = metrics["arms"]["constant"]["folds"]["0"]["test"]
    facts = labelled.fit(tmp_path, "scratch")["training"]
    assert constant["bias"] == pytest.approx(facts["mean"] - constant["truth_mean"], abs=1e-4)
    assert 90 < labelled.fit(tmp_path, "scratch", None)["training"]["mean"] < 110
    assert metrics["arms"]["scratch"]["summary"]["rmse"]["mean"] < 20  # mGal: not far from the labels, of 100 +- 5
    assert set(titles) == {"scores", "map"}


def test_presences_are_ranked(survey, labels, tmp_path):
    flags = "--task classification --baselines trees constant --tree_samples 60 --background_distance 2".split()
    titles: dict[str, str] = {}
    with drawn(titles):
        assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "points.csv", pictures=True) == 0
    metrics = labelled.read_strict(tmp_path / "metrics.json")
    assert metrics["task"] == "prospectivity"
    assert metrics["arms"]["constant"]["summary"]["roc_auc"]["mean"] == 0.5
    assert sum(metrics["split"]["tested"]) == 24 * 11  # ten of background for each presence
    with np.load(tmp_path / "fits/scratch-fold1/scores.npz") as arrays:
        assert len(arrays["classes"]) == metrics["split"]["tested"][1] and set(arrays["classes"]) == {0, 1}
        assert len(np.unique(arrays["blocks"])) == metrics["split"]["blocks"][1]
    assert set(titles) == {"scores", "map", "success_rate", "calibration"}
    assert "roc_auc on test ground" in titles["scores"] and "scratch" in titles["calibration"]
    state = labelled.fit(tmp_path, "scratch", None)
    assert state["task"]["kind"] == "prospectivity" and state["model_config"]["kind"] == "classification"


@pytest.mark.parametrize(
    ("name", "flags", "kinds"),
    [
        ("kinds.csv", "--label_column rock --mixup 0.5 --cutmix 0.5 --reprob 0.3 --smoothing 0.1", 2),
        ("classes.tif", "--class_weights balanced --cls_token", 3),  # whole tiles
    ],
)
def test_classes_of_windows(survey, labels, tmp_path, name, flags, kinds):
    more = ["--task", "classification", "--baselines", "forest", "--tree_samples", "60", *flags.split()]
    assert labelled.finetune(survey, tmp_path, *more, labels=labels / name) == 0
    metrics = labelled.read_strict(tmp_path / "metrics.json")
    assert metrics["task"] == "classification"
    assert np.shape(metrics["arms"]["forest"]["all_folds"]["confusion"]) == (kinds, kinds)
    assert metrics["arms"]["scratch"]["summary"]["top1"]["n"] == 2


# Splits


def test_a_random_split_says_everywhere_that_it_leaks(survey, labels, tmp_path, caplog):
    titles: dict[str, str] = {}
    caplog.set_level(logging.INFO)
    flags = "--split random --baselines constant".split()
    with drawn(titles):
        assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "classes.tif", pictures=True) == 0
    metrics = labelled.read_strict(tmp_path / "metrics.json")
    assert metrics["warning"] == metrics["split"]["warning"] == LEAK_WARNING
    assert set(titles) == {"scores", "confusion", "map"}
    assert all(LEAK_WARNING in text for text in titles.values())
    assert f"WARNING: {LEAK_WARNING}" in caplog.text
    assert not (tmp_path / "checkpoint-last.pth").exists()  # no fit on all labels: its scores would be these


def test_the_control_that_sees_the_tested_labels(survey, labels, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    flags = "--no_network --baselines trees --tree_samples 4000 --split leaking --only_folds 0".split()
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "classes.tif") == 0
    assert CONTROL_WARNING in caplog.text
    metrics = labelled.read_strict(tmp_path / "metrics.json")
    assert list(metrics["arms"]) == ["trees"] and metrics["split"]["warning"] == CONTROL_WARNING
    fit = metrics["arms"]["trees"]["folds"]["0"]
    assert fit["test"]["accuracy"] > 0.99  # it was told
    assert fit["train_labels"] == sum(metrics["split"]["tested"]) and fit["train_cpu_seconds"] > 0


def test_folds_have_a_seed_of_their_own(survey, labels, alone, tmp_path):
    flags = "--seed 3 --fold_seed 0 --no_final".split()
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "classes.tif") == 0
    first, second = (labelled.read_strict(run / "metrics.json")["split"] for run in (alone, tmp_path))
    assert first["tested_classes"] == second["tested_classes"]
    assert not same_weights(alone, tmp_path)


def test_what_a_fit_cost_is_kept(alone):
    facts = labelled.read_strict(alone / "fits/scratch-fold0/scores.json")
    state = labelled.fit(alone, "scratch")
    assert facts["train_windows"] == facts["epochs"] * state["options"]["tiles_per_epoch"]
    assert facts["train_cpu_seconds"] > 0 and facts["peak_memory_mb"] > 100
    # A multiply-add in every weight of the encoder's linear layers for each token, and twice that backward.
    linear = sum(w.numel() for name, w in state["model"].items() if w.ndim == 2 and name.startswith("blocks"))
    tokens = state["model_config"]["img_size"] ** 2 // state["model_config"]["patch_size"] ** 2
    tokens *= len(state["model_config"]["channel_groups"])
    assert facts["train_flops"] > facts["train_windows"] * 6 * linear * tokens


def test_from_checkpoint_tests_what_pretraining_held_out(survey, labels, pretrained, tmp_path):
    flags = ["--finetune", str(pretrained), "--split", "from_checkpoint"]
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "classes.tif") == 0
    held_out = np.zeros((40, 40), dtype=bool)
    for left, bottom, right, top in torch.load(pretrained, weights_only=True)["held_out"]:
        rows = slice(round((6_000_000 - top) / 400), round((6_000_000 - bottom) / 400))
        held_out[rows, round((left - 500_000) / 400) : round((right - 500_000) / 400)] = True
    tested = np.isfinite(np.load(tmp_path / "fits/pretrained-fold0/scores.npz")["map"])
    assert 0 < held_out.sum() < 800
    np.testing.assert_array_equal(tested, held_out & whole_labels(survey, labels, tmp_path))
    # and a checkpoint of it is scored on the same ground again
    checkpoint = tmp_path / "fits/pretrained-fold0/checkpoint-last.pth"
    assert labelled.score(checkpoint, tmp_path / "eval") == 0
    again = labelled.read_strict(tmp_path / "eval/evaluation.json")
    assert again["test"] == labelled.scores(tmp_path, "pretrained")["test"]


def whole_labels(survey: Path, labels: Path, folder: Path) -> np.ndarray:
    """(40, 40) bool, where classes.tif is labelled and a layer is valid, from a run that tests all of it."""
    output = folder / "whole"
    flags = "--no_final --epochs 1 --baselines constant".split()
    assert labelled.finetune(survey, output, *flags, labels=labels / "classes.tif") == 0
    return np.any([np.isfinite(np.load(output / f"fits/constant-fold{k}/scores.npz")["map"]) for k in (0, 1)], axis=0)


def test_a_share_of_the_labels(survey, labels, alone, tmp_path):
    assert labelled.finetune(survey, tmp_path, "--label_fraction", "0.3", labels=labels / "classes.tif") == 0
    few, all_of = labelled.scores(tmp_path, "scratch"), labelled.scores(alone, "scratch")
    assert 0.2 < few["train_labels"] / all_of["train_labels"] < 0.4
    assert few["test"]["count"] == all_of["test"]["count"]
    assert not (tmp_path / "checkpoint-last.pth").exists()


def test_patience_keeps_the_best_weights(survey, labels, tmp_path):
    flags = (
        "--folds 3 --fold_block 1 --val_buffer 2 --patience 2 --epochs 8 --lr 0.02 --no_final --only_folds 0 1".split()
    )
    flags = [*flags, "--ema_decay", "0"]  # averages are too steady to end a fit so soon
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "classes.tif") == 0
    stopped = 0
    for fold in (0, 1):
        values = [line["validation"] for line in surveys.log(tmp_path, "epoch") if line["fold"] == fold]
        best = int(np.argmax(values))
        stopped += len(values) < 8
        state = labelled.fit(tmp_path, "scratch", fold)
        assert state["best"]["epoch"] == best and surveys.same_bits(state["model"], state["best"]["model"])
        assert labelled.scores(tmp_path, "scratch", fold)["epochs"] == len(values)
    assert stopped
    assert labelled.score(tmp_path / "fits/scratch-fold1/checkpoint-last.pth", tmp_path / "eval") == 0
    again = labelled.read_strict(tmp_path / "eval/evaluation.json")
    assert again["test"] == labelled.scores(tmp_path, "scratch", 1)["test"]


# What does not matter


def test_a_layer_that_holds_the_labels_is_hidden(survey, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    flags = ["--task", "regression", "--no_final", "--only_folds", "0"]
    gravity = survey / "gravity.tif"
    assert labelled.finetune(survey, tmp_path / "a", *flags, labels=gravity) == 0
    assert "layer 'gravity' holds the labels: it is hidden from the network" in caplog.text
    state = labelled.fit(tmp_path / "a", "scratch")
    assert state["hidden"] == [0] and state["training"]["class_counts"] == ()
    # Shown as no-data by hand and labelled by a copy, it gives the same network.
    copy = tmp_path / "copy.tif"
    copy.write_bytes(gravity.read_bytes())
    assert labelled.finetune(survey, tmp_path / "b", *flags, "--masked_bands", "0", labels=copy) == 0
    assert surveys.same_bits(labelled.fit(tmp_path / "b", "scratch")["model"], state["model"])


def test_labels_where_nothing_is_known_change_nothing(survey, labels, alone, tmp_path):
    """Other labels under nodata of all layers, and more of them outside of the layers: the same bits."""
    codes = np.full((200, 200), 7, dtype=np.uint8)
    y, x = (np.mgrid[:160, :160] + 0.5) / 10.0
    inner = np.array(labelled.CODES)[np.clip(np.round(1 + np.sin(0.9 * x) + 0.5 * np.sin(1.1 * y)), 0, 2).astype(int)]
    inner[:4] = labelled.NODATA_CODE
    inner[:18, :28] = 12  # within the hole of both layers, 2 km by 3 km
    codes[20:180, 20:180] = inner
    path = write_grid(tmp_path / "classes.tif", codes, left=498_000.0, top=6_002_000.0, nodata=labelled.NODATA_CODE)
    assert labelled.finetune(survey, tmp_path / "output", labels=path) == 0
    assert same_weights(tmp_path / "output", alone)
    assert labelled.scores(tmp_path / "output", "scratch")["test"] == labelled.scores(alone, "scratch")["test"]


def test_another_code_for_unlabelled_changes_nothing(survey, labels, alone, tmp_path):
    codes = labelled_codes()
    codes[codes == labelled.NODATA_CODE] = 255
    path = write_grid(tmp_path / "classes.tif", codes)
    assert labelled.finetune(survey, tmp_path / "output", "--label_nodata", "255", labels=path) == 0
    assert same_weights(tmp_path / "output", alone)


def labelled_codes() -> np.ndarray:
    """The codes of `labelled.write_classes`."""
    y, x = (np.mgrid[:160, :160] + 0.5) / 10.0
    codes = np.array(labelled.CODES)[np.clip(np.round(1 + np.sin(0.9 * x) + 0.5 * np.sin(1.1 * y)), 0, 2).astype(int)]
    codes[:4] = labelled.NODATA_CODE
    return codes.astype(np.uint8)


def test_what_lies_under_the_layers_nodata_changes_nothing(labels, alone, tmp_path):
    other = surveys.write_survey(tmp_path / "survey", under_nodata=1e30)
    assert labelled.finetune(other, tmp_path / "output", labels=labels / "classes.tif") == 0
    assert same_weights(tmp_path / "output", alone)


def test_reading_threads_and_memory_change_nothing(survey, labels, alone, tmp_path):
    flags = "--num_workers 2 --cache none --save_minutes 0.000001".split()
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "classes.tif") == 0
    assert same_weights(tmp_path, alone)


def test_micro_batches_add_up(survey, labels, alone, tmp_path):
    flags = "--batch_size 2 --accum_iter 2".split()
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "classes.tif") == 0
    for fold in (0, None):
        weights = [labelled.fit(output, "scratch", fold)["model"] for output in (tmp_path, alone)]
        labelled.assert_weights_agree(*weights)


# What is learned


@pytest.mark.parametrize("task", ["segmentation", "regression"])
def test_what_a_layer_says_is_learned(survey, tmp_path, task):
    """Labels made of a layer on the base grid: a sign or a smooth field. The network beats the constant by far."""
    y, x = (np.mgrid[:40, :40] + 0.5) * 0.4
    field = 40 * np.sin(1.7 * x) * np.cos(1.3 * y) + 15 * np.sin(2.9 * y + x)  # the layers without their noise
    target = np.where(field > 0, 2, 1).astype(np.uint8) if task == "segmentation" else field.astype(np.float32)
    path = write_grid(tmp_path / "labels.tif", target, resolution=400.0)
    flags = "--epochs 10 --tiles_per_epoch 40 --batch_size 8 --only_folds 0 --no_final --baselines constant".split()
    assert labelled.finetune(survey, tmp_path / "output", "--task", task, *flags, labels=path) == 0
    ours, constant = (labelled.scores(tmp_path / "output", arm)["test"] for arm in ("scratch", "constant"))
    if task == "segmentation":
        assert ours["mean_iou"] > 0.6 > 0.4 > constant["mean_iou"]
    else:
        assert ours["rmse"] < 0.5 * constant["rmse"] and ours["r2"] > 0.7


# Scoring alone


def test_scoring_a_checkpoint_gives_the_numbers_of_its_fit(compared, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for arm in ("pretrained", "probe"):
        assert labelled.score(compared / f"fits/{arm}-fold1/checkpoint-last.pth", tmp_path) == 0
        found = labelled.read_strict(tmp_path / "evaluation.json")
        assert found["test"] == labelled.scores(compared, arm, 1)["test"]
        assert found["scored"] == "test ground of fold 1" and found["warning"] is None
    before = (compared / "metrics.json").read_bytes()
    assert labelled.score(compared / "fits/probe-fold0/checkpoint-last.pth", compared) == 0
    assert (compared / "metrics.json").read_bytes() == before  # in the run's own folder nothing is replaced
    (compared / "evaluation.json").unlink()


def test_labels_are_the_same_wherever_the_program_is_called_from(survey, labels, compared, tmp_path, monkeypatch):
    path, flags = labels / "classes.tif", ["--only_folds", "0", "--no_final"]
    monkeypatch.chdir(labels)
    assert labelled.finetune(survey, tmp_path / "run", *flags, labels=Path(path.name)) == 0
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "run/fits/scratch-fold0/checkpoint-last.pth"
    assert labelled.score(checkpoint, tmp_path / "eval", "--labels", str(path)) == 0
    found = labelled.read_strict(tmp_path / "eval/evaluation.json")
    assert found["scored"] == "test ground of fold 0"
    assert found["test"] == labelled.scores(tmp_path / "run", "scratch", 0)["test"]


@pytest.mark.parametrize(
    ("name", "which"),
    [("checkpoint-last.pth", "all of these labels")]
    + [("fits/probe-fold1/checkpoint-last.pth", "these labels but for the test ground of fold 1")],
)
def test_weights_that_know_the_labels_are_named(survey, labels, compared, tmp_path, caplog, name, which):
    flags = ["--finetune", str(compared / name), "--only_folds", "0", "--no_final", "--epochs", "1"]
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "classes.tif") == 0
    assert f"was fitted on {which}: scores here are not those of ground it has not seen" in caplog.text


def test_other_labels_and_other_ground_are_scored_everywhere(survey, labels, compared, tmp_path):
    last = compared / "checkpoint-last.pth"
    other = labelled.write_classes(tmp_path, name="copy.tif")
    assert labelled.score(last, tmp_path / "same_ground", "--labels", str(other)) == 0
    found = labelled.read_strict(tmp_path / "same_ground/evaluation.json")
    assert found["scored"] == "all labels" and "lie on ground that the checkpoint was fitted on" in found["warning"]
    assert found["test"]["count"] == sum(labelled.read_strict(compared / "metrics.json")["split"]["tested"])

    far = tmp_path / "far"
    far.mkdir()
    for name, resolution in surveys.RESOLUTIONS.items():
        count = round(64 * 100 / resolution)
        values = np.random.default_rng(1).normal(size=(count, count)).astype(np.float32)
        write_grid(far / f"{name}.tif", values, resolution=resolution, left=700_000.0)
    codes = np.zeros((64, 64), np.uint8)
    codes[8:40, 8:40] = 3  # a corner of one class: too little to cut folds of, enough to score
    path = write_grid(tmp_path / "far.tif", codes, left=700_000.0, nodata=0)
    flags = ["--data_dir", str(far), "--labels", str(path)]
    assert labelled.score(last, tmp_path / "far_ground", *flags) == 0
    found = labelled.read_strict(tmp_path / "far_ground/evaluation.json")
    assert found["warning"] is None and found["test"]["count"] == 16 * 16
    assert np.sum(found["test"]["confusion"], axis=1).tolist() == [256, 0, 0]


def test_regression_is_scored_again_with_its_layer_hidden(survey, tmp_path):
    flags = ["--task", "regression", "--no_final", "--only_folds", "1"]
    assert labelled.finetune(survey, tmp_path, *flags, labels=survey / "gravity.tif") == 0
    assert labelled.score(tmp_path / "fits/scratch-fold1/checkpoint-last.pth", tmp_path / "eval") == 0
    found = labelled.read_strict(tmp_path / "eval/evaluation.json")
    assert found["test"] == labelled.scores(tmp_path, "scratch", 1)["test"]


def test_points_are_scored_again(survey, labels, tmp_path):
    flags = "--task classification --no_final --background_distance 2".split()
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels / "points.csv") == 0
    assert labelled.score(tmp_path / "fits/scratch-fold0/checkpoint-last.pth", tmp_path / "eval") == 0
    found = labelled.read_strict(tmp_path / "eval/evaluation.json")
    assert found["test"] == labelled.scores(tmp_path, "scratch")["test"]


def test_help_has_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        main_finetune.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--finetune", "--labels", "--split", "--baselines", "--eval", "--patience"))


def test_a_short_fit_whose_updates_all_overflow_fails(survey, labels, tmp_path, monkeypatch, capsys):
    """Untrained weights are no success; what the message advises leads to a run."""
    backward = Updater.backward
    monkeypatch.setattr(Updater, "backward", lambda updater, loss: backward(updater, loss * math.inf))
    flags = ["--amp", "fp16", "--only_folds", "0"]
    assert labelled.finetune(survey, tmp_path / "fp16", *flags, labels=labels / "classes.tif") == 1
    message = capsys.readouterr().err
    assert message.count("main_finetune: error: ") == 1
    assert "all 6 updates were skipped: gradients overflow fp16" in message and "--amp off" in message
    monkeypatch.undo()
    flags = ["--amp", "off", "--only_folds", "0"]
    assert labelled.finetune(survey, tmp_path / "off", *flags, labels=labels / "classes.tif") == 0
