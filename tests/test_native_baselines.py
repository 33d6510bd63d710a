"""Baselines that see native pixels: what base pixels hide from other methods, they find."""

import json

import numpy as np
import pytest

import main_inference
from tests import labelled
from tests.rasters import write_grid

SIZE, BLOCK = 160, 32
"""Pixels of 100 m along the edge of the ground, and of the squares of one texture; a base pixel is 4 of them wide."""


def write_textures(folder):
    """A layer of chequerboards and of stripes, in turn, and labels that tell which.

    Both have mean 0 and standard deviation 1.5 in every square of whole base pixels, so that nothing but the
    arrangement of pixels within base pixels tells them apart.
    """
    row, col = np.mgrid[:SIZE, :SIZE]
    is_striped = (row // BLOCK + col // BLOCK) % 2 == 1
    values = np.where(np.where(is_striped, col, row + col) % 2, 1.5, -1.5)
    (folder / "layers").mkdir()
    write_grid(folder / "layers" / "texture.tif", values.astype(np.float32), resolution=100.0)
    return write_grid(folder / "labels.tif", (1 + is_striped).astype(np.uint8), resolution=100.0, nodata=0)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The output of a run of baselines alone."""
    folder = tmp_path_factory.mktemp("textures")
    labels = write_textures(folder)
    flags = (
        "--no_network --baselines unet trees rcf --only_folds 0 --tree_samples 300 --epochs 4 --tiles_per_epoch 18 "
        "--batch_size 6 --overlap 0 --val_buffer 1"
    )
    assert labelled.finetune(folder / "layers", folder / "out", *flags.split(), labels=labels) == 0
    return folder / "out"


def test_base_pixels_hide_what_these_baselines_find(compared):
    accuracy = {arm: labelled.scores(compared, arm)["test"]["balanced_accuracy"] for arm in ("trees", "rcf", "unet")}
    assert accuracy["trees"] == 0.5 and accuracy["rcf"] > 0.9 and accuracy["unet"] > 0.9


def test_costs_are_those_of_other_methods(compared):
    costs = {"train_seconds", "train_cpu_seconds", "peak_memory_mb"}
    assert costs | {"tree_samples"} <= set(labelled.scores(compared, "rcf"))
    assert costs | {"trained_weights", "train_flops", "train_windows"} <= set(labelled.scores(compared, "unet"))


def test_a_u_net_is_scored_again_but_makes_no_maps(compared, tmp_path, capsys):
    checkpoint = compared / "fits/unet-fold0/checkpoint-last.pth"
    assert labelled.score(checkpoint, tmp_path / "again") == 0
    again = json.loads((tmp_path / "again/evaluation.json").read_text(encoding="utf-8"))
    assert again["test"] == labelled.scores(compared, "unet")["test"]
    assert not (compared / "checkpoint-last.pth").exists()  # no fit on all labels
    maps = ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "maps"), "--device", "cpu"]
    assert main_inference.main([*maps, "--output", "prediction"]) == 2
    assert "a U-Net, which is a baseline of main_finetune that makes no maps" in capsys.readouterr().err
