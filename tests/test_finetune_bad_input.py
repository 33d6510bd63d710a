"""What cannot be fine-tuned on is refused before training, by name, with exit status 2 and one message."""

import argparse
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import main_finetune
import models_vit_group_channels as models
from datasets.rasters.handles import close_datasets
from tests import labelled, surveys
from tests.rasters import write_grid

SCORED = "finetuned/fits/scratch-fold0/checkpoint-last.pth"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with survey/, labels, pre-trained and fine-tuned checkpoints; nothing in it is changed."""
    folder = tmp_path_factory.mktemp("place")
    survey = surveys.write_survey(folder / "survey")
    labels = labelled.write_classes(folder)
    labelled.write_values(folder)
    labelled.write_points(folder)
    labelled.write_points(folder, kinds=("basalt", "granite"), name="kinds.csv")
    labelled.write_points(folder, kinds=("basalt",), name="one_kind.csv")
    codes = np.zeros((160, 160), np.uint8)
    codes[40:80, 60:90] = 3
    write_grid(folder / "one_class.tif", codes, nodata=0)
    codes[40:60] = np.where(codes[40:60], 7, 0)
    write_grid(folder / "one_block.tif", codes, nodata=0)
    codes[40:60] = np.where(codes[40:60], 99, 0)
    write_grid(folder / "new_class.tif", codes, nodata=0)
    write_grid(folder / "far.tif", np.full((20, 20), 3, np.uint8), left=900_000.0, nodata=0)
    write_grid(folder / "flat.tif", np.full((160, 160), 2.5, np.float32))
    assert surveys.train(survey, folder / "pretrained", "--epochs", "1", "--tiles_per_epoch", "8") == 0
    assert labelled.finetune(survey, folder / "finetuned", "--only_folds", "0", "--epochs", "1", labels=labels) == 0
    (folder / "one_layer").mkdir()
    shutil.copy(survey / "gravity.tif", folder / "one_layer")
    (folder / "degrees").mkdir()
    for name in ("gravity", "magnetics"):
        values = np.random.default_rng(0).normal(size=(160, 160)).astype(np.float32)
        write_grid(folder / f"degrees/{name}.tif", values, resolution=0.001, left=141.0, top=-36.0, crs="EPSG:4326")
    damaged = bytearray((folder / "pretrained/checkpoint-last.pth").read_bytes())
    damaged[5000] ^= 1
    (folder / "damaged.pth").write_bytes(damaged)
    (folder / "text.pth").write_text("no checkpoint")
    (folder / "file").write_text("taken")
    published(folder / "published.pth", groups=[[0, 1, 2, 3], [4, 5]])
    return folder


def published(path: Path, *, groups: list[list[int]]) -> None:
    """Weights of a small encoder as SatMAE++ writes them, for other channels than the survey's."""
    size = {"embed_dim": 64, "num_heads": 1, "depth": 1, "channel_embed": 16, "img_size": 8, "patch_size": 4}
    channels = {"in_chans": sum(map(len, groups)), "channel_groups": groups}
    model = models.build_finetune_model({"kind": "classification", "num_classes": 2, **size, **channels})
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "nodata_token"}
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(grouped_bands=groups)}, path)


def refused(arguments: list[str], capsys) -> str:
    """The one message with which the program refuses its command line, before any training."""
    capsys.readouterr()
    status: object
    try:
        with nothing_is_trained():
            status = labelled.run(arguments)
    except SystemExit as end:  # argparse ends the program itself
        status = end.code
    message = capsys.readouterr().err
    assert status == 2, message
    assert message.count("main_finetune: error: ") == 1 and "Traceback" not in message
    return message.split("main_finetune: error: ")[1]


CASES = [
    # labels
    ("", "nowhere.tif", "nowhere.tif.*no such file|nowhere.tif.*not found|no such file.*nowhere.tif"),
    ("", None, "--labels is missing: expected a class raster"),
    ("", "far.tif", "far.tif.*overlap"),
    ("", "one_class.tif", "one_class.tif.*one class|one_class.tif.*expected (at least )?two"),
    ("--task classification --label_column rock", "one_kind.csv", "one_kind.csv.*(one|two) class"),
    ("--task classification --label_column stone", "kinds.csv", "'stone'.*rock"),
    ("--task regression", "flat.tif", "flat.tif: the .* training values are all 2.5; expected values that differ"),
    ("--label_band 2", "classes.tif", "classes.tif.*band 2"),
    (
        "--task regression --data_dir {}/one_layer",
        "one_layer/gravity.tif",
        "gravity.tif is the only layer that is shown",
    ),
    ("--no_network", "classes.tif", "--no_network without --baselines: nothing is left to fit"),
    # weights
    ("--finetune {}/nowhere.pth", "classes.tif", "nowhere.pth: no such file"),
    ("--finetune {}/damaged.pth", "classes.tif", "damaged.pth: damaged, the SHA-256"),
    ("--finetune {}/text.pth", "classes.tif", "text.pth.*no checkpoint"),
    (
        "--finetune {}/published.pth",
        "classes.tif",
        r"published.pth: weights for 6 channels in groups \[\[0, 1, 2, 3\], \[4, 5\]\], but there are 2 layers in",
    ),
    (
        "--finetune {}/pretrained/checkpoint-last.pth --data_dir {}/degrees",
        "classes.tif",
        "degrees: its CRS EPSG:4326 .*is in degrees, expected m as in training .*or give --base_resolution in degrees",
    ),
    (
        "--finetune {}/pretrained/checkpoint-last.pth --data_dir {}/one_layer",
        "classes.tif",
        "one_layer lacks the layers 'magnetics' of the checkpoint.*--missing_layers allow",
    ),
    (
        "--finetune {}/pretrained/checkpoint-last.pth --patch_size 2",
        "classes.tif",
        "--patch_size 2: the checkpoint .* was trained with 4; leave it out",
    ),
    (
        "--finetune {}/pretrained/checkpoint-last.pth --output_dir {}/pretrained",
        "classes.tif",
        "holds the checkpoint that --finetune names, which would be moved aside",
    ),
    # options that do not go together
    ("--task classification --label_scale 2", "classes.tif", "--label_scale 2 does nothing for --task classification"),
    ("--task classification --head linear", "classes.tif", "--head linear does nothing for --task classification"),
    ("--mixup 0.5", "classes.tif", "--mixup 0.5 does nothing for --task segmentation; it is for classification"),
    ("--task regression --reprob 0.5", "values.tif", "--reprob 0.5 does nothing for --task regression"),
    ("--resume {}/finetuned/checkpoint-last.pth", "classes.tif", "expected auto.*--eval; weights .* --finetune"),
    ("--eval", "classes.tif", "--eval needs --resume CHECKPOINT"),
    ("--eval --resume auto", "classes.tif", "--eval needs --resume CHECKPOINT"),
    ("--freeze_encoder", "classes.tif", "--freeze_encoder without --finetune: a probe needs a pre-trained encoder"),
    ("--baselines probe", "classes.tif", "--baselines probe without --finetune: a probe needs a pre-trained encoder"),
    (
        "--baselines trees+embeddings",
        "classes.tif",
        r"--baselines trees\+embeddings without --finetune: its features need a pre-trained encoder",
    ),
    ("--layer_decay 1.5", "classes.tif", "--layer_decay 1.5: expected above 0, at most 1"),
    ("--split from_checkpoint", "classes.tif", "--split from_checkpoint needs --finetune CHECKPOINT"),
    (
        "--split from_checkpoint --finetune {}/pretrained/checkpoint-last.pth",
        "classes.tif",
        "pretrained/checkpoint-last.pth held out no ground.*use --split blocks",
    ),
    (
        "--split from_checkpoint --patience 2 --finetune {}/pretrained/checkpoint-last.pth",
        "classes.tif",
        "--patience 2 with --split from_checkpoint: that split sets no ground aside",
    ),
    # sizes, folds
    ("--input_size 10", "classes.tif", "--input_size 10 is not a multiple of --patch_size 4; 8 or 12 would be"),
    ("--label_scale 3", "classes.tif", "scale 3.*power of two|power of two.*3"),
    ("--folds 30", "classes.tif", "--folds 30: only .* hold a label.*choose fewer --folds"),
    ("--folds 1", "classes.tif", "--folds 1: expected at least 2"),
    ("--patience 2", "classes.tif", "--folds 2: expected at least 3 with early stopping"),
    ("", "one_block.tif", "no label is left to train on: all lie in tested blocks or nearer"),
    ("--val_buffer 39", "classes.tif", "no label is left to train on.*choose a smaller --val_buffer"),
    ("--label_fraction 1e-9", "classes.tif", "--label_fraction 1e-09 keeps none"),
    ("--label_fraction 2", "classes.tif", "--label_fraction: 2: expected a number above 0, at most 1"),
    (
        "--label_blocks 40",
        "classes.tif",
        "--label_blocks 40: fold 0 has [0-9]+ labelled blocks at least half",
    ),
    ("--label_blocks 0", "classes.tif", "--label_blocks: 0: expected"),
    ("--label_blocks 2 --label_fraction 0.5", "classes.tif", "--label_blocks 2 with --label_fraction 0.5: give one"),
    ("--label_blocks 2 --split random", "classes.tif", "--label_blocks 2 with --split random: expected --split blocks"),
    ("--only_folds 7", "classes.tif", "--only_folds 7: there are 2 folds, expected 0 to 1"),
    ("--masked_bands 0 1", "classes.tif", "every layer is hidden, so there is nothing to predict from"),
    ("--masked_bands 5", "classes.tif", "--masked_bands 5: there are 2 layers, expected 0 to 1"),
    ("--model huge", "classes.tif", "model 'huge': expected one of tiny"),
    ("--device cuda:9", "classes.tif", "--device cuda:9"),
    # places
    ("--output_dir {}/file", "classes.tif", "--output_dir .*file: not writable .*choose another directory"),
    ("--log_dir {}/file/below", "classes.tif", "--log_dir .*below: not writable"),
]


def nothing_is_trained():
    """Fails if a network is trained."""
    return mock.patch.object(main_finetune, "fit_epoch", side_effect=AssertionError("training began"))


@pytest.mark.parametrize(("flags", "labels", "pattern"), CASES, ids=[f"{flags} {name}" for flags, name, _ in CASES])
def test_refused(place, tmp_path, capsys, flags, labels, pattern):
    given = [part.replace("{}", str(place)) for part in flags.split()]
    output = tmp_path / "output"
    arguments = labelled.arguments(place / "survey", output, labels=None if labels is None else place / labels)
    message = refused([*arguments, *given], capsys)
    assert re.search(pattern, message, re.DOTALL), message
    assert not output.exists() or not list(output.iterdir())


def test_the_folder_of_an_earlier_run_is_left_alone_when_refused(place, tmp_path, capsys):
    output = tmp_path / "finetuned"
    shutil.copytree(place / "finetuned", output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for flags in (["--folds", "30"], ["--labels", str(place / "far.tif")]):
        refused([*labelled.arguments(place / "survey", output, labels=place / "classes.tif"), *flags], capsys)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


# Scoring alone


@pytest.mark.parametrize(
    ("checkpoint", "flags", "pattern"),
    [
        ("finetuned/checkpoint-last.pth", "", "was fitted on all of these labels, so they cannot score it; name the"),
        ("finetuned/checkpoint-last.pth", "--labels {}/./survey/../classes.tif", "was fitted on all of these labels"),
        ("finetuned/checkpoint-last.pth", "--labels {}/new_class.tif", "new_class.tif.*99"),
        (SCORED, "--task regression", "--task regression: .*was fine-tuned with --task segmentation; leave it out"),
        (SCORED, "--task classification", "--task classification: .*was fine-tuned with --task segmentation"),
        (SCORED, "--label_scale 2", "--label_scale 2: .*was fine-tuned with --label_scale 1"),
        (SCORED, "--input_size 32", "--input_size 32: .*was fine-tuned with --input_size "),
        (SCORED, "--val_buffer 3", "folds.*buffer: checkpoint 4, now 3"),
        (SCORED, "--data_dir {}/one_layer", "lacks the layers 'magnetics'"),
        ("pretrained/checkpoint-last.pth", "", "pretrained/checkpoint-last.pth: .*task.* missing"),
        ("damaged.pth", "", "damaged.pth: damaged"),
        ("nowhere.pth", "", "nowhere.pth: no such file"),
    ],
)
def test_scoring_is_refused(place, tmp_path, capsys, checkpoint, flags, pattern):
    given = [part.replace("{}", str(place)) for part in flags.split()]
    arguments = [
        "--eval",
        "--resume",
        str(place / checkpoint),
        "--output_dir",
        str(tmp_path),
        "--device",
        "cpu",
        *given,
    ]
    message = refused(arguments, capsys)
    assert re.search(pattern, message, re.DOTALL), message
    assert not list(tmp_path.iterdir())


def test_labels_that_changed_since_are_not_scored(place, tmp_path, capsys):
    """The folds would be others, and test what was trained on."""
    folder = tmp_path / "labels"
    folder.mkdir()
    labels = labelled.write_classes(folder)
    flags = ["--only_folds", "0", "--epochs", "1", "--no_final"]
    assert labelled.finetune(place / "survey", tmp_path / "output", *flags, labels=labels) == 0
    write_grid(labels, np.random.default_rng(0).choice([3, 7, 12], (160, 160)).astype(np.uint8), nodata=0)
    close_datasets()  # of this process, which has the file open
    checkpoint = tmp_path / "output/fits/scratch-fold0/checkpoint-last.pth"
    arguments = ["--eval", "--resume", str(checkpoint), "--output_dir", str(tmp_path / "eval"), "--device", "cpu"]
    assert "folds (labels or layers changed) of the checkpoint differs" in refused(arguments, capsys)


# What looks odd but is right


def test_published_weights_of_the_same_channels(place, tmp_path):
    published(tmp_path / "published.pth", groups=[[1], [0]])
    flags = ["--finetune", str(tmp_path / "published.pth"), "--only_folds", "0", "--no_final", "--epochs", "1"]
    assert labelled.finetune(place / "survey", tmp_path / "output", *flags, labels=place / "classes.tif") == 0
    state = labelled.fit(tmp_path / "output", "pretrained")
    assert state["model_config"]["embed_dim"] == 64 and state["options"]["patch_size"] == 4
    assert labelled.score(tmp_path / "output/fits/pretrained-fold0/checkpoint-last.pth", tmp_path / "eval") == 0


def test_a_missing_layer_may_be_allowed(place, tmp_path):
    flags = ["--finetune", str(place / "pretrained/checkpoint-last.pth"), "--data_dir", str(place / "one_layer")]
    more = ["--missing_layers", "allow", "--only_folds", "0", "--no_final", "--epochs", "1"]
    assert labelled.finetune(place / "survey", tmp_path, *flags, *more, labels=place / "classes.tif") == 0
    assert labelled.fit(tmp_path, "pretrained")["hidden"] == [1]
