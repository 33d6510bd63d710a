"""Mistakes that everybody makes once, on the command lines of the programs: each is named, with what to do."""

import shutil

import numpy as np
import pytest
import rasterio

import main_finetune
from tests import labelled, small_main, surveys
from tests.rasters import write_grid

SIZES = "--input_size 16 --val_buffer 2".split()
"""Those of the small survey's pre-training."""


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def trained(survey, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    assert surveys.train(survey, output, "--epochs", "1") == 0
    return output


@pytest.fixture(scope="module")
def labels(survey, tmp_path_factory):
    return labelled.write_classes(tmp_path_factory.mktemp("labels"))


def pretrain(capsys, *flags):
    assert small_main.main([*map(str, flags), *surveys.FLAGS]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def finetune(capsys, *flags):
    assert main_finetune.main([str(flag) for flag in flags]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_swapped_flags_name_the_right_one(survey, tmp_path, capsys):
    output = ["--output_dir", tmp_path]
    table, folder, raster = survey / "layers.csv", survey, survey / "gravity.tif"
    assert f"give a table of layers by --train_path {table}" in pretrain(capsys, "--data_dir", table, *output)
    assert "a file, expected a folder of rasters" in pretrain(capsys, "--data_dir", raster, *output)
    assert f"give a folder of rasters by --data_dir {folder}" in pretrain(capsys, "--train_path", folder, *output)
    assert f"it is a raster: give its folder by --data_dir {folder}" in pretrain(
        capsys, "--train_path", raster, *output
    )


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(survey, trained, labels, tmp_path, caplog):
    flags = ["--finetune", str(trained), "--only_folds", "0", "--epochs", "1", "--no_final"]
    assert labelled.finetune(survey, tmp_path, *flags, *SIZES, labels=labels) == 0
    assert f"checkpoint {trained}: a folder, of which checkpoint-last.pth is taken" in caplog.text


def test_resuming_from_the_folder_of_a_run_goes_on_in_it(survey, trained, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(trained, output)
    assert surveys.train(survey, output, "--epochs", "2", "--resume", str(output)) == 0
    assert [line["epoch"] for line in surveys.log(output, "epoch")] == [1, 2]
    assert not list(output.glob("earlier-*"))


def test_a_folder_without_a_checkpoint(survey, tmp_path, capsys):
    message = pretrain(capsys, "--data_dir", survey, "--output_dir", tmp_path / "o", "--resume", tmp_path)
    assert message.endswith(
        f"checkpoint {tmp_path}: a folder without checkpoint-last.pth; give the path of a checkpoint"
    )


def test_a_finetuned_checkpoint_is_not_gone_on_with(survey, trained, labels, tmp_path, capsys):
    flags = ["--finetune", str(trained), "--only_folds", "0", "--epochs", "1"]
    assert labelled.finetune(survey, tmp_path, *flags, *SIZES, labels=labels) == 0
    message = pretrain(capsys, "--data_dir", survey, "--output_dir", tmp_path / "o", "--resume", tmp_path)
    assert "a checkpoint of main_finetune (segmentation), which pre-training cannot continue" in message
    message = pretrain(capsys, "--data_dir", survey, "--output_dir", tmp_path, "--resume", "auto")
    assert "a checkpoint of main_finetune" in message and "main_finetune --resume auto" in message


def test_a_label_raster_under_a_wrong_crs_names_both_and_the_cure(trained, labels, tmp_path, capsys):
    with rasterio.open(labels) as source:
        values, left, top, edge = source.read(1), source.transform.c, source.transform.f, source.transform.a
    moved = write_grid(tmp_path / "lith.tif", values, resolution=edge, left=left, top=top, crs="EPSG:32613")
    message = finetune(capsys, "--finetune", trained, "--labels", moved, "--output_dir", tmp_path / "o")
    assert "in EPSG:32613" in message and "in EPSG:28354" in message
    assert (
        "its coordinates fit the survey's own CRS; correct its CRS (rio edit-info --crs EPSG:28354 lith.tif)" in message
    )
    with rasterio.open(moved, "r+") as mended:  # what rio edit-info does
        mended.crs = "EPSG:28354"
    with rasterio.open(moved) as mended:
        assert np.array_equal(mended.read(1), values) and mended.crs.to_epsg() == 28354


def test_points_without_a_class_are_for_classification(trained, tmp_path, capsys):
    (tmp_path / "deposits.csv").write_text("easting,northing\n505000,5995000\n506000,5994000\n")
    flags = ["--finetune", trained, "--labels", tmp_path / "deposits.csv", "--output_dir", tmp_path / "o"]
    message = finetune(capsys, *flags)
    assert "none, it has no attributes" in message and message.endswith("are for --task classification")


def test_a_warm_up_beyond_the_end_is_named(survey, tmp_path, caplog):
    assert surveys.train(survey, tmp_path, "--epochs", "1", "--warmup_epochs", "2") == 0
    assert "--warmup_epochs 2 is beyond --epochs 1" in caplog.text and "--warmup_epochs 0.1" in caplog.text
    caplog.clear()
    assert surveys.train(survey, tmp_path / "fits", "--epochs", "1", "--warmup_epochs", "1") == 0
    assert "--warmup_epochs" not in caplog.text
