"""The front for notebooks: functions that do what the command lines do, and raise what these say."""

import json
import os
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import gridmae
import models_mae_group_channels as models
from tests import labelled, small_main, surveys
from tests.arrays import dataset_of
from tests.rasters import write_grid
from util.processes.signals import Stopped

ROOT = Path(__file__).resolve().parents[1]


def keywords(flags):
    """Flags of a command line as keywords."""
    found, name = {}, ""
    for word in flags:
        if word.startswith("--"):
            name = word[2:]
            found[name] = True
        else:
            before = found[name]
            found[name] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return found


@pytest.fixture
def small():
    """Networks small enough for tests, and no pictures, which take longer."""
    with mock.patch.dict(models.MODEL_SIZES, tiny=small_main.SMALL), mock.patch("main_pretrain.draw"):
        yield


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


def test_pretraining_is_that_of_the_command_line(survey, tmp_path, small):
    flags = [*surveys.FLAGS, *surveys.HELD_OUT]
    found = gridmae.pretrain(data_dir=survey, output_dir=tmp_path / "a", **keywords(flags))
    assert small_main.main(surveys.arguments(survey, tmp_path / "b", *flags)) == 0
    assert found.checkpoint == tmp_path / "a/checkpoint-last.pth"
    one, other = surveys.checkpoint(tmp_path / "a"), surveys.checkpoint(tmp_path / "b")
    assert surveys.same_bits(one["model"], other["model"])
    last = surveys.log(tmp_path / "b", "epoch")[-1]["val"]
    assert [line["epoch"] for line in found.epochs] == [1, 2]
    assert found.skill["gravity"]["1x"] == last["gravity"]["1x"]["skill"] and set(found.skill) == set(last)


def test_fine_tuning_and_maps(survey, tmp_path, small, capsys):
    labels = labelled.write_classes(tmp_path)
    options = keywords(labelled.FLAGS) | {"epochs": 1, "only_folds": [0], "baselines": ["trees"]}
    found = gridmae.finetune(data_dir=survey, labels=labels, output_dir=tmp_path / "fits", quiet=True, **options)
    assert set(found.scores) == {"scratch", "trees"}
    summary = json.loads((tmp_path / "fits/metrics.json").read_text())["arms"]["trees"]["summary"]
    assert found.scores["trees"]["mean_iou"] == summary["mean_iou"]["mean"]
    again = {"resume": tmp_path / "fits/fits/scratch-fold0/checkpoint-last.pth", "output_dir": tmp_path / "scored"}
    scored = gridmae.finetune(eval=True, quiet=True, device="cpu", **again)
    assert scored.checkpoint == again["resume"]
    assert scored.scores["checkpoint"]["mean_iou"] == pytest.approx(found.scores["scratch"]["mean_iou"])
    maps = gridmae.predict(
        checkpoint=found.checkpoint, output="prediction", output_dir=tmp_path / "maps", device="cpu", quiet=True
    )
    assert maps.rasters and all(path.suffix == ".tif" for path in maps.rasters) and maps.pictures
    assert " I " not in capsys.readouterr().err


def test_a_survey_is_opened_as_the_flags_say(survey):
    found = gridmae.open_survey(data_dir=survey, input_size=16, patch_size=4, scales=[1, 2], val_fraction=0)
    assert [layer.name for layer in found.layers] == ["gravity", "magnetics"]
    assert (found.input_size, tuple(found.scales), found.base_resolution) == (16, (1, 2), 200.0)


@pytest.mark.parametrize("name", ["a.tif", "a.nc"])
def test_a_file_that_was_corrected_meanwhile_is_read_anew(tmp_path, name):
    options = {"data_dir": tmp_path} if name == "a.tif" else {"dataset_type": "xarray", "data_path": [tmp_path / name]}
    means = []
    for size in (1.0, 3.0):
        values = np.random.default_rng(0).normal(50, 5, (64, 64)).astype(np.float32) * np.float32(size)
        path = write_grid(tmp_path / "a.tif", values)
        (tmp_path / "a.nc").unlink(missing_ok=True)
        dataset_of(path).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
        if name == "a.tif":
            (tmp_path / "a.nc").unlink()
        found = gridmae.open_survey(input_size=4, patch_size=2, scales=[1, 2], val_fraction=0, **options)
        means.append(float(np.nanmean(found.stack.bands[0].read(0, 0, 64, 64))))
    assert means[0] == pytest.approx(50, abs=1) and means[1] == pytest.approx(150, abs=3)


def test_errors_are_raised_with_the_message_of_the_program(survey, tmp_path, capsys):
    with pytest.raises(
        ValueError, match=r"main_pretrain: error: unrecognized arguments: --epoch=3; did you mean --epochs"
    ):
        gridmae.pretrain(data_dir=survey, epoch=3)
    with pytest.raises(ValueError, match=r"argument --epochs: .*a whole number"):
        gridmae.pretrain(data_dir=survey, epochs="many")
    with pytest.raises(ValueError, match=r"main_finetune: error: labels .*nothing\.tif"):
        gridmae.finetune(
            data_dir=survey, labels=tmp_path / "nothing.tif", output_dir=tmp_path / "out", **keywords(labelled.FLAGS)
        )
    with pytest.raises((ValueError, OSError), match="no_such_folder"):
        gridmae.open_survey(data_dir="no_such_folder")


def test_a_run_that_was_stopped_is_no_result(survey, tmp_path, small):
    """Stopped by a signal the programs end with status 0: what they should have written is not there."""
    options = {"data_dir": survey, "output_dir": tmp_path / "a", **keywords(surveys.FLAGS)}
    with (
        mock.patch("main_pretrain.train_epoch", lambda *_: False),
        pytest.raises(RuntimeError, match=r"main_pretrain: stopped, expected finished.*again with resume='auto'"),
    ):
        gridmae.pretrain(**options)
    assert not gridmae.pretrain(dry_run=True, **options).epochs  # the record there is of the run before
    options = {"data_dir": survey, "output_dir": tmp_path / "b", **keywords(labelled.FLAGS)}
    with (
        mock.patch("main_finetune.compare_fold", side_effect=Stopped),
        pytest.raises(RuntimeError, match=r"main_finetune: stopped, expected finished"),
    ):
        gridmae.finetune(labels=labelled.write_classes(tmp_path), **options)


def test_keywords_become_flags():
    parser = gridmae.main_pretrain.get_args_parser()
    options = {"epochs": 3, "pin_mem": False, "dry_run": True, "auto": False, "scales": (1, 2), "lr": None}
    options |= {"dropped_bands": [], "output_dir": Path("a b"), "grouped_bands": [[0, 1], (2,)]}
    expected = ["--epochs=3", "--no-pin_mem", "--dry_run", "--scales", "1", "2", "--dropped_bands"]
    expected += [f"--output_dir={Path('a b')}", "--grouped_bands", "0", "1", "--grouped_bands", "2"]
    assert gridmae._command_line(parser, options) == expected
    assert parser.parse_args(expected).grouped_bands == [[0, 1], [2]]


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "docs/tutorials/own_data.ipynb", as_version=4)
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS=str(torch.get_num_threads())):
        client = nbclient.NotebookClient(
            notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()
    texts = ["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    found = re.search(r"agrees with the true units on (\d+) % of ground without labels", "".join(texts))
    assert found and int(found[1]) > 60
    shutil.rmtree(tmp_path / "own_data")
    assert not list(tmp_path.iterdir())  # all that it writes is in one folder


def test_the_stored_tutorial_is_small_and_was_run():
    notebook = json.loads((ROOT / "docs/tutorials/own_data.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert (ROOT / "docs/tutorials/own_data.ipynb").stat().st_size < 400_000
