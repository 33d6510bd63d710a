"""Settings that suit a small survey, and the warnings where settings do not."""

import json
import shlex

import numpy as np
import pytest

import main_pretrain
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.suggestion import HELD_OUT_FRACTIONS, LEAST_HELD_OUT, LEAST_UPDATES, short_run, suggest
from scripts import describe_grids
from tests import small_main, surveys
from tests.rasters import write_grid


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """596 x 530 pixels of 200 m, on which the defaults leave 1 held-out tile; values are correlated over 2 km."""
    folder = tmp_path_factory.mktemp("small survey")
    y, x = np.mgrid[:596, :530] * 0.2
    values = np.sin(x / 2) * np.cos(y / 3) + np.random.default_rng(3).normal(size=x.shape)
    write_grid(folder / "magnetics.tif", values.astype(np.float32), resolution=200.0)
    return folder


def settings(folder, **changed):
    return SurveySettings(data_dir=str(folder), **{"input_size": 48, "scales": [1, 2, 4], "native": True, **changed})


def test_the_defaults_leave_one_held_out_tile_and_the_suggestion_enough(small):
    assert len(open_survey(settings(small)).tiles.val) < LEAST_HELD_OUT
    found = suggest(settings(small), {}, tiles_per_update=32)
    assert found.held_out_tiles >= LEAST_HELD_OUT and found.updates >= LEAST_UPDATES and not found.shortfalls
    sizes = {name: value for name, value in found.options.items() if name in SurveySettings.__dataclass_fields__}
    tiles = open_survey(settings(small, **sizes)).tiles
    assert (len(tiles.train), len(tiles.val)) == (found.training_tiles, found.held_out_tiles)
    updates = -(-(found.options.get("tiles_per_epoch") or len(tiles.train)) // 32) * found.options["epochs"]
    assert updates == found.updates


def test_what_is_given_stays(small):
    given = {"input_size": 32, "epochs": 7, "val_fraction": 0.2}
    found = suggest(settings(small, **{k: v for k, v in given.items() if k != "epochs"}), given, tiles_per_update=32)
    assert not set(given) & set(found.options)
    assert 32 % found.options["patch_size"] == 0 and found.updates % 7 == 0
    assert any("updates" in text for text in found.shortfalls) == (found.updates < LEAST_UPDATES)


@pytest.mark.parametrize(
    "flags, expected",
    [("--patch_size 5", (20, 5)), ("--input_size 20", (20, 5)), ("--input_size 24 --patch_size 6", (24, 6))],
)
def test_the_other_size_is_chosen_to_fit_the_one_that_is_given(small, capsys, flags, expected):
    assert describe_grids.main(["--data_dir", str(small), "--suggest", "--json", *flags.split()]) == 0
    args = main_pretrain.get_args_parser().parse_args(
        shlex.split(json.loads(capsys.readouterr().out)["suggestion"]["command"])[3:]
    )
    assert (args.input_size, args.patch_size) == expected


def test_sizes_that_fit_nothing_are_refused(small, capsys):
    assert describe_grids.main(["--data_dir", str(small), "--suggest", "--input_size", "13"]) == 2
    assert "--input_size 13: no patch of 2 to 8 base pixels divides it; give another size" in capsys.readouterr().err
    assert describe_grids.main(["--data_dir", str(small), "--suggest", *"--input_size 13 --patch_size 5".split()]) == 2
    assert "--input_size 13 is not a multiple of --patch_size 5; 10 or 15 would be" in capsys.readouterr().err


def test_a_large_survey_keeps_the_default_tile(tmp_path):
    values = np.random.default_rng(0).normal(size=(3000, 3000)).astype(np.float32)
    write_grid(tmp_path / "a.tif", values, resolution=100.0)
    found = suggest(settings(tmp_path), {}, tiles_per_update=32)
    assert (found.options["base_resolution"], found.options["input_size"], found.options["patch_size"]) == (400, 48, 8)
    assert "tiles_per_epoch" not in found.options and found.options["val_fraction"] == HELD_OUT_FRACTIONS[0]


def test_a_token_holds_pixels_of_the_coarsest_layer(tmp_path):
    rng = np.random.default_rng(0)
    write_grid(tmp_path / "fine.tif", rng.normal(size=(3000, 3000)).astype(np.float32), resolution=100.0)
    write_grid(tmp_path / "coarse.tif", rng.normal(size=(100, 100)).astype(np.float32), resolution=3000.0)
    found = suggest(settings(tmp_path), {}, tiles_per_update=32)
    assert found.options["base_resolution"] == 800 and found.options["patch_size"] * 800 >= 2 * 3000


def test_a_survey_of_a_few_pixels_gets_the_nearest_and_hears_what_is_missing(tmp_path):
    write_grid(tmp_path / "a.tif", np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32))
    found = suggest(settings(tmp_path), {}, tiles_per_update=32)
    assert found.options["base_resolution"] == 100 and found.shortfalls
    write_grid(tmp_path / "a.tif", np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32))
    with pytest.raises(ValueError, match="a tile covers .* the survey has only 8 x 8"):
        suggest(settings(tmp_path), {}, tiles_per_update=32)


def test_short_runs_are_named():
    assert short_run(updates=LEAST_UPDATES, held_out=LEAST_HELD_OUT) == []
    few, poor = short_run(updates=50, held_out=1)
    assert few.startswith("only 50 updates in the whole run") and poor.startswith("only 1 held-out tile, fewer than 8")
    assert short_run(updates=LEAST_UPDATES, held_out=0, scores=False) == []


def test_the_printed_command_reads_what_was_proposed(small, capsys):
    """The page, the JSON object and the command agree."""
    assert describe_grids.main(["--data_dir", str(small), "--suggest", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    words = shlex.split(facts["suggestion"]["command"])
    assert words[:3] == ["python", "-m", "main_pretrain"]
    args = main_pretrain.get_args_parser().parse_args(words[3:])
    assert args.data_dir == str(small) and args.epochs == facts["suggestion"]["options"]["epochs"]
    assert facts["tiles"]["val"] == facts["suggestion"]["held_out_tiles"]
    assert facts["tile"]["pixels"] == args.input_size
    assert describe_grids.main(["--data_dir", str(small), "--suggest"]) == 0
    page = capsys.readouterr().out
    assert page.splitlines()[-1] == "next: " + facts["suggestion"]["command"] and "a tile of" in page and " km" in page


def test_auto_trains_as_proposed_and_continues(small, tmp_path, caplog):
    flags = ["--data_dir", str(small), "--auto", "--epochs", "1", "--tiles_per_epoch", "8", "--batch_size", "8"]
    flags += ["--output_dir", str(tmp_path), "--device", "cpu", "--num_workers", "0", "--val_tiles", "2"]
    assert small_main.main(flags) == 0
    options = surveys.checkpoint(tmp_path)["options"]
    assert options["epochs"] == 1 and options["input_size"] < 48 and options["auto"]
    assert "suggested: " in caplog.text and "only 1 update in the whole run" in caplog.text
    assert "--auto takes settings" not in caplog.text  # it was given
    assert small_main.main([*flags, "--resume", "auto"]) == 0


def test_auto_trains_for_the_epochs_that_it_proposes(small, tmp_path, caplog):
    """One update an epoch, so that the usual 50 epochs are too few."""
    flags = ["--data_dir", str(small), "--auto", "--tiles_per_epoch", "8", "--batch_size", "8", "--dry_run"]
    assert small_main.main([*flags, "--output_dir", str(tmp_path), "--device", "cpu", "--num_workers", "0"]) == 0
    assert f"--epochs {LEAST_UPDATES} of 8 tiles" in caplog.text and f"all {LEAST_UPDATES} about" in caplog.text
