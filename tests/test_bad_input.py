"""What cannot be trained on is refused before training, by name, with exit status 2 and one message."""

import json
import re

import numpy as np
import pytest
import torch

import main_pretrain
from tests import surveys
from tests.bad_inputs import BAD_INPUTS, SMALL
from tests.rasters import write_grid


def refused(arguments: list[str], capsys) -> str:
    """The one message with which the program refuses its command line."""
    capsys.readouterr()
    status: object
    try:
        status = main_pretrain.main(arguments)
    except SystemExit as end:  # argparse ends the program itself
        status = end.code
    message = capsys.readouterr().err
    assert status == 2, message
    assert message.count("main_pretrain: error: ") == 1 and "Traceback" not in message
    return message.split("main_pretrain: error: ")[1]


@pytest.mark.parametrize(("make", "pattern"), [case[1:] for case in BAD_INPUTS], ids=[case[0] for case in BAD_INPUTS])
def test_refused(tmp_path, capsys, make, pattern):
    (tmp_path / "data").mkdir()
    arguments = [*make(tmp_path / "data"), "--device", "cpu", "--output_dir", str(tmp_path / "output")]
    message = refused(arguments, capsys)
    assert re.search(pattern, message, re.DOTALL), message
    assert not (tmp_path / "output").exists() or not list((tmp_path / "output").iterdir())


@pytest.fixture
def survey(tmp_path):
    """The small survey."""
    return surveys.write_survey(tmp_path / "survey")


@pytest.mark.parametrize("flag", ["--output_dir", "--log_dir"])
@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_places_that_cannot_be_written(survey, tmp_path, capsys, flag, place):
    (tmp_path / "taken").write_text("a file of another kind")
    arguments = surveys.arguments(survey, tmp_path / "output", flag, str(tmp_path / place))
    message = refused(arguments, capsys)
    assert f"{flag} {tmp_path / place}: not writable (" in message and "choose another directory" in message
    assert (tmp_path / "taken").read_text() == "a file of another kind"


@pytest.mark.parametrize("shape", ["stripes", "layer"])
def test_masks_that_cannot_be_are_refused_before_any_batch_size_is_tried(survey, tmp_path, capsys, monkeypatch, shape):
    monkeypatch.setattr(main_pretrain.setup, "fit_batch", lambda *_, **__: pytest.fail("a batch size was tried"))
    flags = ["--mask_shape", shape, "--spatial_mask", "--batch_size", "auto"]
    message = refused(surveys.arguments(survey, tmp_path / "output", *flags), capsys)
    assert f"--mask_shape {shape}: " in message


def test_the_folder_of_an_earlier_run_is_left_alone_when_refused(survey, tmp_path, capsys):
    output = tmp_path / "output"
    assert surveys.train(survey, output, "--epochs", "1") == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    refused(surveys.arguments(survey, output, "--input_size", "1024"), capsys)
    refused(surveys.arguments(survey, output, "--resume", "auto", "--seed", "9"), capsys)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda", "--device cuda: .*use --device cpu"),
        ("cuda:7", "--device cuda:7: .*use --device cpu"),
        ("gpu", "--device gpu: unknown, expected auto, cpu, cuda, cuda:K or mps"),
    ],
)
def test_devices_that_are_not_there(survey, tmp_path, capsys, monkeypatch, device, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(surveys.arguments(survey, tmp_path / "output", "--device", device), capsys)
    assert re.search(expected, message), message


def test_a_gpu_that_torch_was_not_built_for(survey, tmp_path, capsys, monkeypatch):
    for name, value in dict(
        is_available=True,
        device_count=1,
        get_device_capability=(3, 5),
        get_device_name="Tesla K40",
        get_arch_list=["sm_75", "sm_80", "sm_90"],
    ).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    message = refused(surveys.arguments(survey, tmp_path / "output", "--device", "cuda"), capsys)
    assert "no kernels for Tesla K40 (sm_35), it was built for sm_75, sm_80, sm_90" in message


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--epochs 0", "argument --epochs: 0: expected a whole number of at least 1"),
        ("--lr -1", "argument --lr: -1: expected a number above 0"),
        ("--lr nan", "argument --lr: nan: expected a number above 0"),
        ("--weight_decay inf", "argument --weight_decay: inf: expected a number of at least 0"),
        ("--mask_ratio 1", "argument --mask_ratio: 1: expected a number from 0 to below 1"),
        ("--num_workers -1", "argument --num_workers: -1: expected a whole number of at least 0"),
        ("--amp fp8", "argument --amp: invalid choice: 'fp8'"),
        ("--dataset_type tiff", "argument --dataset_type: invalid choice: 'tiff'"),
        ("--world_size 2", "--world_size 2 needs --local_rank 0 to 1 in each process, got -1; simpler: torchrun"),
        ("--scale_heads shared --scales 1 3", "[3] are not powers of two"),
        ("--resume nowhere.pth", "nowhere.pth: no such file"),
    ],
)
def test_flags_that_make_no_sense(survey, tmp_path, capsys, flags, expected):
    message = refused(surveys.arguments(survey, tmp_path / "output", *flags.split()), capsys)
    assert expected in message


def test_flags_of_losses_that_leave_nothing(survey, tmp_path, capsys):
    weights = ["--base_loss_weight", "0", "--scale_loss_weight", "0"]
    message = refused(surveys.arguments(survey, tmp_path / "output", *weights), capsys)
    assert "--base_loss_weight" in message and "--scale_loss_weight" in message


# Input that looks odd but is right: it is read rightly, or the difference would show in the statistics


def scored_values(folder, capsys, *flags: str) -> dict[str, dict]:
    """Statistics of the layers of a folder after a short run on them."""
    output = folder.parent / "output"
    arguments = ["--data_dir", str(folder), "--output_dir", str(output), *SMALL, "--device", "cpu", "--epochs", "1"]
    status = main_pretrain.main([*arguments, "--tiles_per_epoch", "4", "--no_progress", *flags])
    assert status == 0, capsys.readouterr().err
    items = json.loads((output / "statistics.json").read_text(encoding="utf-8"))
    return {item["name"]: item for item in items}


VALUES = np.random.default_rng(3).normal(50.0, 20.0, size=(40, 40)).round().clip(1, 120)


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (VALUES.astype(np.float32), {"south_up": True}),
        (VALUES.astype(np.float64), {}),
        (((VALUES - 10) / 0.5).astype(np.int16), {"scale": 0.5, "offset": 10.0}),
        (VALUES.astype(np.uint8), {"nodata": 255}),
        (VALUES.astype(np.float32), {"left": 500_050.0}),  # half a pixel beside the other layer
        (VALUES.astype(np.float32), {"blockysize": 1}),  # strips of one row
        (VALUES.astype(np.float32), {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}),
    ],
)
def test_other_ways_of_storing_the_same(tmp_path, capsys, array, options):
    folder = tmp_path / "data"
    folder.mkdir()
    write_grid(folder / "a.tif", VALUES[::-1].astype(np.float32))
    write_grid(folder / "b.tif", array, **options)
    found = scored_values(folder, capsys)["b"]
    assert found["count"] == VALUES.size
    assert found["mean"] == pytest.approx(VALUES.mean()) and found["std"] == pytest.approx(VALUES.std())


def test_bands_ratios_and_dummies(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    dummies = VALUES.copy()
    dummies[:12, :20] = -99999.0
    write_grid(folder / "a.tif", np.stack([VALUES, dummies]).astype(np.float32), band_names=["tmi", "k"])
    write_grid(folder / "b.tif", VALUES[:16, :16].astype(np.float32), resolution=250.0)
    found = scored_values(folder, capsys)
    assert len(found) == 3
    counts = sorted(item["count"] for item in found.values())
    assert counts == [16 * 16, 40 * 40 - 12 * 20, 40 * 40]
    assert all(0 < item["mean"] < 100 for item in found.values())
