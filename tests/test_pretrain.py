"""The whole program on a small survey: what it leaves behind, and what may and may not change its numbers."""

import json
import logging
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import matplotlib.image
import numpy as np
import pytest
import rasterio
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_pretrain
import models_mae_group_channels as models
from datasets.synthetic.sample_survey import write_sample_survey
from tests import surveys
from tests.rasters import write_grid
from tests.small_main import SMALL
from util.checkpoints.checkpoint_file import CHECKPOINT_KEYS
from util.options.version import VERSION
from util.processes import distributed as dist
from util.records import pretrain_records
from util.training.engine import Updater

SCORED = {"gravity": ["1x", "2x"], "magnetics": ["1x", "2x", "4x"]}
"""At a base pixel of 400 m the 200 m layer has details down to scale 2, the 100 m layer down to 4."""


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def plain(survey, tmp_path_factory):
    """The output of a run with `FLAGS` alone."""
    output = tmp_path_factory.mktemp("plain")
    assert surveys.train(survey, output) == 0
    return output


@pytest.fixture(scope="module")
def finished(survey, tmp_path_factory):
    """The output of a run that scores a held-out tile and draws it, with TensorBoard's events in `events`."""
    output = tmp_path_factory.mktemp("finished")
    flags = [*surveys.HELD_OUT, "--log_dir", str(output / "events"), "--keep_every", "1", "--figure_every", "2"]
    assert surveys.train(survey, output, *flags, pictures=True) == 0
    return output


# What a run leaves behind


def test_the_files_of_a_run(finished):
    names = {path.name for path in finished.iterdir()}
    checkpoints = {f"checkpoint-{name}.pth" for name in ("last", "previous", 1, 2)}
    pictures = {"reconstruction-2.png", "reconstruction-last.png"}
    page = {"report.html", "report.json"}
    assert names == {"log.txt", "layers.csv", "statistics.json", "events", *page, *checkpoints, *pictures}
    assert surveys.same_bits(surveys.checkpoint(finished), surveys.checkpoint(finished, "2"))
    assert surveys.same_bits(surveys.checkpoint(finished, "previous"), surveys.checkpoint(finished, "1"))
    # A row for each layer and scale, with input, masked, reconstruction, target and error: five wide pictures.
    picture = matplotlib.image.imread(finished / "reconstruction-last.png")
    assert picture.shape[0] > 500 and picture.shape[1] > 500 and picture.std() > 0.05


def test_the_log(finished):
    training, epochs = surveys.log(finished), surveys.log(finished, "epoch")
    updates = training[-1]["step"] // 2
    assert [line["step"] for line in training] == list(range(1, 2 * updates + 1))
    assert [line["epoch"] for line in training] == [1] * updates + [2] * updates
    assert [(line["step"], line["epoch"]) for line in epochs] == [(updates, 1), (2 * updates, 2)]
    # The rate: a linear warm-up over the first epoch, then half a cosine from 0.001 to 0.
    down = [0.0005 * (1 + math.cos(math.pi * k / updates)) for k in range(updates)]
    expected = [*(0.001 * (k + 1) / updates for k in range(updates)), *down]
    assert [line["lr"] for line in training] == pytest.approx(expected)
    for line in training:
        total = 0.6 * line["train_base_loss"] + 0.4 * line["train_scale_loss"]
        assert line["train_loss"] == pytest.approx(total, rel=1e-5)
        assert {name: list(by_scale) for name, by_scale in line["train_layers"].items()} == SCORED
        assert line["grad_norm"] > 0 and line["tiles_per_s"] > 0 and 0 <= line["wait_share"] < 1
        assert line["peak_memory_mb"] > 10
    for line in epochs:
        assert line["val_tiles"] == 1 and line["seconds"] > 0
        assert line["val_loss"] == pytest.approx(0.6 * line["val_base_loss"] + 0.4 * line["val_scale_loss"], rel=1e-5)
        assert {name: list(by_scale) for name, by_scale in line["val"].items()} == SCORED
        for by_scale in line["val"].values():
            for scores in by_scale.values():
                best = min(scores["rmse_mean"], scores["rmse_interpolation"]) ** 2
                if "skill_hidden" not in scores:  # at the base scale only hidden ground is scored
                    assert scores["skill"] == pytest.approx(1 - scores["rmse"] ** 2 / best)
                else:  # the best guess is chosen on hidden and on visible ground apart, so it may be better still
                    assert scores["skill"] <= 1 - scores["rmse"] ** 2 / best + 1e-9
                    both = [scores["skill_hidden"], scores["skill_visible"]]
                    assert min(both) - 1e-9 <= scores["skill"] <= max(both) + 1e-9
    # What costs nothing does not change while the model learns.
    free = [
        [scores[key] for by_scale in line["val"].values() for scores in by_scale.values() for key in scores
         if key in ("rmse_mean", "rmse_interpolation")]
        for line in epochs
    ]  # fmt: skip
    assert free[0] == free[1] and len(free[0]) == 10


@pytest.mark.parametrize("stem, hidden_alone", [("native", True), ("head", False)])
def test_the_picture_shows_what_is_scored(survey, tmp_path, stem, hidden_alone):
    """With a stem in heads alone tokens see base pixels, so finer scales are predicted and scored everywhere."""
    flags = [*surveys.HELD_OUT, "--epochs", "1", "--tiles_per_epoch", "8", "--stem", stem]
    with mock.patch.object(pretrain_records, "reconstruction_rows", wraps=pretrain_records.reconstruction_rows) as rows:
        assert surveys.train(survey, tmp_path, *flags, pictures=True) == 0
    assert rows.call_args.kwargs["hidden_alone"] is hidden_alone
    (epoch,) = surveys.log(tmp_path, "epoch")
    assert ("skill_visible" in epoch["val"]["magnetics"]["4x"]) is not hidden_alone


def test_tensorboard(finished):
    events = EventAccumulator(str(finished / "events"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    losses = {f"2_loss/{name}{part}" for name in ("training", "held_out") for part in ("", "_base", "_finer")}
    layers = {f"{name}_{scale}" for name, by_scale in SCORED.items() for scale in by_scale}
    health = {
        "5_optimiser/lr",
        "5_optimiser/grad_norm",
        "6_speed/tiles_per_s",
        "6_speed/wait_share",
        "7_memory/peak_mb",
    }
    by_layer = {f"{kind}/{name}" for kind in ("1_skill", "3_error", "4_layer_loss") for name in layers}
    assert set(tags["scalars"]) >= losses | health | by_layer
    steps = [line["step"] for line in surveys.log(finished)]
    assert [event.step for event in events.Scalars("2_loss/training")] == steps
    assert [event.value for event in events.Scalars("2_loss/training")] == pytest.approx(
        [line["train_loss"] for line in surveys.log(finished)]
    )
    assert [event.step for event in events.Scalars("2_loss/held_out")] == [steps[-1] // 2, steps[-1]]
    about = {name: events.SummaryMetadata(name).summary_description for name in by_layer | losses}
    assert (
        all(about.values())
        and "units of the layer" in about["3_error/gravity_1x"]
        and "below 0" in about["1_skill/gravity_1x"]
    )
    assert set(tags["images"]) == {f"reconstruction/{name}" for name in SCORED}
    assert [len(events.Images(name)) for name in tags["images"]] == [1] * len(SCORED)
    (row,) = {name for name in tags["scalars"] if name.startswith("final/1_skill") and "gravity_1x" in name}
    assert events.Scalars(row)[-1].value == events.Scalars("1_skill/gravity_1x")[-1].value
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.PluginTagToContent("hparams"))
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    options = next(text for tag, text in texts.items() if tag.startswith("options"))
    assert "| batch_size | 8 |" in options and "| input_size | 16 |" in options
    environment = next(text for tag, text in texts.items() if tag.startswith("environment"))
    assert f"| torch | {torch.__version__} |" in environment


def test_a_checkpoint_is_enough_to_rebuild_the_model(finished):
    state = surveys.checkpoint(finished)
    assert set(CHECKPOINT_KEYS) <= set(state)
    assert (state["epoch"], state["update"]) == (2, 0)
    assert state["step"] == surveys.log(finished)[-1]["step"]
    assert [layer["name"] for layer in state["layers"]] == ["gravity", "magnetics"]
    assert state["options"]["batch_size"] == 8 and state["version"] == VERSION
    assert state["statistics"] == json.loads((finished / "statistics.json").read_text(encoding="utf-8"))
    config = json.loads(json.dumps(state["model_config"]))  # plain enough for JSON
    network = models.MaskedAutoencoderGroupChannelViT(**config)
    network.load_state_dict(state["model"])
    assert surveys.same_bits(dict(network.state_dict()), dict(state["model"]))


def test_the_table_of_layers_can_be_trained_from(plain, survey, tmp_path):
    assert surveys.train(survey, tmp_path / "again") == 0
    arguments = surveys.arguments(survey, tmp_path / "table")[2:]  # without --data_dir
    with mock.patch.dict(models.MODEL_SIZES, tiny=SMALL):
        assert main_pretrain.main(["--train_path", str(plain / "layers.csv"), *arguments]) == 0
    assert surveys.losses(tmp_path / "table") == surveys.losses(plain)


def test_an_earlier_run_in_the_same_place_is_moved_aside(survey, tmp_path, caplog):
    output = tmp_path / "output"
    assert surveys.train(survey, output) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert surveys.train(survey, output, "--epochs", "1") == 0
    assert f"{output} held an earlier run: now in {output / 'earlier-1'}" in caplog.text
    assert {path.name: path.read_bytes() for path in (output / "earlier-1").iterdir()} == before
    assert [line["step"] for line in surveys.log(output)] == list(range(1, 8))
    assert not (output / "checkpoint-2.pth").exists()


def test_a_run_leaves_the_events_of_others_in_a_shared_folder(survey, tmp_path, caplog):
    for name in ("one", "two", "one"):
        flags = ["--epochs", "1", "--tiles_per_epoch", "8", "--log_dir", str(tmp_path / "events")]
        assert surveys.train(survey, tmp_path / name, *flags) == 0
        if name == "two":
            assert "held an earlier run" not in caplog.text
            assert len(list((tmp_path / "events").iterdir())) == 2


# What must not change the numbers


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--num_workers 2",
        "--num_workers 4",
        "--cache ram",
        "--cache none --num_workers 2",
        "--log_every 20",
        "--save_minutes 0.000001",
        "--grad_checkpointing",
    ],
)
def test_the_same_seed_gives_the_same_bits(plain, survey, tmp_path, flags):
    assert surveys.train(survey, tmp_path, *flags.split()) == 0
    if "--log_every" not in flags:
        assert surveys.losses(tmp_path) == surveys.losses(plain)
    ours, theirs = surveys.checkpoint(tmp_path), surveys.checkpoint(plain)
    assert surveys.same_bits([ours[key] for key in ("model", "optimizer", "step")], [theirs[key] for key in
                             ("model", "optimizer", "step")])  # fmt: skip


def test_another_seed_gives_other_numbers(plain, survey, tmp_path):
    assert surveys.train(survey, tmp_path, "--seed", "1") == 0
    assert surveys.losses(tmp_path)[0] != surveys.losses(plain)[0]


@pytest.mark.parametrize("flags", ["--batch_size 4 --accum_iter 2", "--batch_size 1 --accum_iter 8"])
def test_micro_batches_add_up(plain, survey, tmp_path, flags):
    """The same eight tiles an update, in one piece or in several; the last update of an epoch has a single tile.

    Only the order of float32 sums differs. Losses of 14 updates agree to 1e-6 of their value (2e-7 was seen).
    """
    assert surveys.train(survey, tmp_path, *flags.split()) == 0
    assert surveys.largest_loss_difference(plain, tmp_path) < 1e-6
    surveys.assert_weights_agree(*(surveys.checkpoint(output)["model"] for output in (plain, tmp_path)))


@pytest.mark.parametrize("value", [0.0, 1e30, math.nan])
def test_what_lies_under_nodata_changes_no_weight(plain, tmp_path, value):
    """Files that hold -99999, 0, 1e30 or NaN in their holes train the same weights, bit for bit."""
    other = surveys.write_survey(tmp_path / "survey", under_nodata=value)
    with rasterio.open(other / "magnetics.tif") as file:
        corner = file.read(1)[0, 0]
    assert corner == np.float32(value) or (math.isnan(value) and np.isnan(corner))
    assert surveys.train(other, tmp_path / "output") == 0
    assert surveys.losses(tmp_path / "output") == surveys.losses(plain)
    for key in ("model", "optimizer"):
        assert surveys.same_bits(surveys.checkpoint(tmp_path / "output")[key], surveys.checkpoint(plain)[key])


def test_nodata_under_the_gradient(tmp_path):
    """The gradient of the first update, whatever its tiles, is the same whatever lies in the holes."""
    gradients = []
    for value in (-99999.0, 1e30):
        folder = tmp_path / str(value)
        survey = surveys.write_survey(folder / "survey", under_nodata=value)
        run, batch = one_batch(survey, folder / "output", tiles=surveys.TILES)
        assert not batch["valid"].all()
        run.model(**batch)[0].backward()
        gradients.append([p.grad for p in run.state.network.parameters() if p.grad is not None])
    assert len(gradients[0]) > 20
    assert surveys.same_bits(*gradients)


# What a run can do


def one_batch(survey: Path, output: Path, *, tiles: int, size: models.ModelSize = SMALL):
    """A run made ready, and the arguments of its model for the first tiles of its first epoch."""
    with mock.patch.dict(models.MODEL_SIZES, tiny=size):
        args = main_pretrain.get_args_parser().parse_args(surveys.arguments(survey, output))
        run = main_pretrain.prepare(args, torch.device("cpu"), dist.Ranks())
    training = run.data.training
    epoch = replace(run.batches, reader=training.reader(), batch_size=tiles).epoch(0)
    sample, noise = epoch.read(next(epoch.plan)).to(run.device, training.pyramid())
    run.files.close()
    return run, {**sample._asdict(), "noise": noise}


def test_one_batch_can_be_overfitted(tmp_path):
    survey = surveys.write_survey(tmp_path / "survey", size=96)
    run, batch = one_batch(survey, tmp_path / "output", tiles=4, size=models.ModelSize(64, 2, 2, 16, 64, 2, 2, 16))
    history = []
    for step in range(250):
        loss, finer, *_ = run.model(**batch, mask_ratio=0.5)
        total = 0.6 * loss + 0.4 * finer
        run.state.updater.backward(total)
        run.state.updater.step(0.003 * min(1, (step + 1) / 20))
        history.append([float(total.detach()), float(loss.detach()), float(finer.detach())])
    first, last = np.array(history[0]), np.array(history[-10:]).mean(axis=0)
    assert (last < first * [0.05, 0.01, 0.15]).all(), last / first


@pytest.mark.parametrize(
    "flags",
    [
        "--norm_pix_loss",
        "--spatial_mask",
        "--model_type vanilla",
        "--scale_heads shared",
        "--scale_heads shared --model_type vanilla --spatial_mask --norm_pix_loss",
        "--scales 1 2",
        "--scales 1",
        "--scales 1 3",
        "--masked_bands 0",
        "--dropped_bands 0",
        "--grouped_bands 0 1",
        "--grouped_bands 1 --grouped_bands 0",
        "--extent intersection",
        "--mask_ratio 0 --stem base",
        "--base_loss_weight 0",
        "--scale_loss_weight 0",
        "--amp bf16",
        "--amp fp16",
        "--tile_overlap 0 --min_valid 0",
    ],
)
def test_one_epoch_with(survey, tmp_path, flags, caplog):
    """Each option trains, scores, and leaves a checkpoint with finite weights that rebuild the model."""
    caplog.set_level(logging.INFO)
    run = [*surveys.HELD_OUT, "--epochs", "1", "--tiles_per_epoch", "12", *flags.split()]
    assert surveys.train(survey, tmp_path, *run) == 0
    state = surveys.checkpoint(tmp_path)
    assert state["step"] == 2
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())
    models.MaskedAutoencoderGroupChannelViT(**state["model_config"]).load_state_dict(state["model"])
    assert all(math.isfinite(loss) for losses in surveys.losses(tmp_path) for loss in losses)
    (epoch,) = surveys.log(tmp_path, "epoch")
    assert math.isfinite(epoch["val_loss"]) and epoch["val_tiles"] > 0
    scored = {(name, scale): scores for name, by_scale in epoch["val"].items() for scale, scores in by_scale.items()}
    if "--norm_pix_loss" in flags:  # predictions of single patches' shapes have no physical unit
        assert scored["gravity", "1x"]["rmse"] is None
    # A layer is scored down to its native pixels: with scales 1 2 the base pixel is 200 m, with scale 1 alone 100 m.
    expected = {"--scales 1 2": 3, "--scales 1": 1, "--scales 1 3": 3, "--masked_bands 0": 3, "--dropped_bands 0": 3}
    assert len(scored) == expected.get(flags, 5)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--mask_ratio 0.97 --dropped_bands 0", "--mask_ratio 0.97 leaves none of the 16 tokens of a tile visible"),
        ("--mask_ratio 0", "--mask_ratio 0 hides no token, and visible tokens see their own finer pixels, so there is"),
        ("--mask_ratio 0 --stem base --scales 1", "--mask_ratio 0 hides no token, and no finer scale has a weight"),
        ("--scales 1 --base_loss_weight 0", "--base_loss_weight 0: no layer is scored at a scale finer than the base"),
    ],
)
def test_runs_that_would_learn_nothing_are_refused(survey, tmp_path, capsys, flags, message):
    assert surveys.train(survey, tmp_path, *flags.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("main_pretrain: error: ") == 1
    assert not list(tmp_path.glob("checkpoint*"))


def test_masked_layers_are_seen_as_no_data(survey, tmp_path):
    """A layer that is masked, and one whose file is empty of other values there, train the same weights."""
    flags = ["--masked_bands", "0", "--epochs", "1"]
    assert surveys.train(survey, tmp_path / "one", *flags) == 0
    other = surveys.write_survey(tmp_path / "survey")
    with rasterio.open(other / "gravity.tif", "r+") as file:
        values = file.read(1)
        file.write(np.where(values == file.nodata, values, values[::-1, ::-1] * 3 + 1).astype(np.float32), 1)
    assert surveys.train(other, tmp_path / "other", *flags) == 0
    first, second = surveys.losses(tmp_path / "one"), surveys.losses(tmp_path / "other")
    assert first == second


def test_polygons_limit_the_ground(survey, tmp_path):
    import geopandas
    from shapely.geometry import box

    polygons = tmp_path / "area.gpkg"
    ground = box(500_000, 5_988_000, 512_000, 6_000_000)
    geopandas.GeoDataFrame(geometry=[ground], crs="EPSG:28354").to_file(polygons)
    flags = ["--aoi", str(polygons), "--epochs", "1"]
    assert surveys.train(survey, tmp_path / "inside", *flags) == 0
    inside = surveys.checkpoint(tmp_path / "inside")["statistics"]
    # The square of 12 km has 120 x 120 pixels of 100 m; the hole in its corner, 20 x 30 of them, is not counted,
    # nor the part inside it of the round one.
    count = next(item["count"] for item in inside if item["name"] == "magnetics")
    y, x = (np.mgrid[:120, :120] + 0.5) / 10
    assert count == ((y >= 2) | (x >= 3)).sum() - (np.hypot(x - 11, y - 8) < 1.5).sum()


def test_a_layer_of_few_places_has_a_mean_of_its_own(tmp_path):
    """Updates without a pixel of a layer have no loss for it; the epoch's is the mean of the others."""
    survey = surveys.write_survey(tmp_path / "survey")
    with rasterio.open(survey / "gravity.tif", "r+") as file:
        values = file.read(1)
        values[:, 24:] = file.nodata
        file.write(values, 1)
    flags = ["--epochs", "1", "--batch_size", "1", "--min_valid", "0.3"]
    assert surveys.train(survey, tmp_path / "output", *flags) == 0
    seen = [line["train_layers"]["gravity"]["1x"] for line in surveys.log(tmp_path / "output")]
    (epoch,) = surveys.log(tmp_path / "output", "epoch")
    known = [loss for loss in seen if loss is not None]
    assert 5 < len(known) < len(seen)
    assert epoch["train_layers"]["gravity"]["1x"] == pytest.approx(np.mean(known))


def test_another_survey_can_be_scored(survey, tmp_path):
    other = surveys.write_survey(tmp_path / "other", size=128)
    flags = ["--test_path", str(other / "layers.csv"), "--epochs", "1", "--tiles_per_epoch", "8"]
    assert surveys.train(survey, tmp_path / "output", *flags) == 0
    (epoch,) = surveys.log(tmp_path / "output", "epoch")
    assert epoch["val_tiles"] == 9  # 3 x 3 windows of 64 pixels, 32 apart


def test_another_survey_is_scored_on_no_layer_finer_than_its_pixels(survey, tmp_path):
    """Gravity of 800 m there, twice the base pixel: its interpolated values are no truth, in scores and in losses."""
    values = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    losses = []
    for factor in (1, 1000):
        other = surveys.write_survey(tmp_path / f"other {factor}", size=128)
        flags = ["--stem", "base", "--epochs", "1", "--tiles_per_epoch", "8", "--test_path", str(other / "layers.csv")]
        write_grid(other / "gravity.tif", factor * values, resolution=800.0)
        with mock.patch.object(models.MaskedAutoencoderGroupChannelViT, "embed", embed_magnetics_alone):
            assert surveys.train(survey, tmp_path / f"output {factor}", *flags) == 0
        (epoch,) = surveys.log(tmp_path / f"output {factor}", "epoch")
        assert epoch["val"]["gravity"]["1x"]["rmse"] is None and epoch["val"]["magnetics"]["1x"]["rmse"] > 0
        losses.append(epoch["val_base_loss"])
    assert losses[0] == losses[1]


def embed_magnetics_alone(network, imgs, valid, embed=models.MaskedAutoencoderGroupChannelViT.embed):
    """The tokens of a network that sees the values of its second layer alone."""
    return embed(network, imgs * torch.tensor([0.0, 1.0]).view(1, -1, 1, 1), valid)


def test_nothing_held_out_is_said_once(plain, survey, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert surveys.train(survey, tmp_path, "--epochs", "1") == 0
    assert caplog.text.count("no held-out tiles: nothing will be scored (see --val_fraction)") == 1
    assert not {"val_loss", "val"} & set(surveys.log(tmp_path, "epoch")[0])
    assert not list(tmp_path.glob("reconstruction*")) and "picture " not in caplog.text


def test_more_epochs_than_needed_say_so(plain, survey, caplog):
    caplog.set_level(logging.INFO)
    before = surveys.checkpoint(plain)
    assert surveys.train(survey, plain, "--resume", "auto") == 0
    assert "all 2 epochs are done; a larger --epochs would go on" in caplog.text
    assert surveys.same_bits(surveys.checkpoint(plain), before)


@pytest.mark.parametrize("where", ["open_pretrain_data", "log_window"])
def test_ctrl_c_ends_with_one_line(survey, tmp_path, monkeypatch, capsys, where):
    """Before the loop once is enough, within it twice ends it at once: no traceback, no half checkpoint."""

    def interrupted(*_, **__):
        if where == "open_pretrain_data":
            raise KeyboardInterrupt
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(main_pretrain, where, interrupted)
    assert surveys.train(survey, tmp_path) == 1
    assert capsys.readouterr().err.rstrip().endswith("main_pretrain: stopped by Ctrl-C")
    assert not list(tmp_path.glob("*checkpoint*"))


# Losses that are not finite


def test_gradients_that_overflow_for_good_stop_the_run(survey, tmp_path, monkeypatch, capsys):
    """With --amp fp16 each update is skipped at half the scale of the one before: an end after 25, not after all 35."""
    backward = Updater.backward
    monkeypatch.setattr(Updater, "backward", lambda updater, loss: backward(updater, loss * math.inf))
    output = tmp_path / "output"
    assert surveys.train(survey, output, "--amp", "fp16", "--epochs", "5") == 1
    assert "the last 25 updates were skipped: gradients overflow fp16" in capsys.readouterr().err
    lines = surveys.log(output)
    assert [line["skipped"] for line in lines] == [1] * 24
    assert [line["loss_scale"] for line in lines] == [2.0 ** (16 - k) for k in range(1, 25)]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_short_run_whose_updates_all_overflow_fails(survey, tmp_path, monkeypatch, capsys, resumed):
    """Fewer updates than end a run before its end: untrained weights are no success; updates before resuming count."""
    output = tmp_path / "output"
    if resumed:
        assert surveys.train(survey, output, "--amp", "fp16", "--epochs", "1") == 0
    backward = Updater.backward
    monkeypatch.setattr(Updater, "backward", lambda updater, loss: backward(updater, loss * math.inf))
    status = surveys.train(survey, output, "--amp", "fp16", "--epochs", "2", *(["--resume", "auto"] * resumed))
    message = capsys.readouterr().err
    assert status == (0 if resumed else 1), message
    assert message.count("main_pretrain: error: ") == (0 if resumed else 1)
    expected = (
        "all 14 updates were skipped: gradients overflow fp16 even at a loss scale of 4, and the weights are those"
    )
    assert (expected in message) == (not resumed)
    if not resumed:  # the advice leads to a run
        monkeypatch.undo()
        assert surveys.train(survey, tmp_path / "again", "--amp", "off", "--epochs", "2") == 0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    """A layer whose squares exceed float32 in one place: the update with that place is refused, by name."""
    survey = surveys.write_survey(tmp_path / "survey")
    values = np.random.default_rng(0).normal(size=(160, 160)).astype(np.float32)
    values[72:88, 72:88] = 1e25 * np.arange(1, 17)
    write_grid(survey / "magnetics.tif", values, resolution=100)
    table = "name,path,normalize\ngravity,gravity.tif,standard\nmagnetics,magnetics.tif,none\n"
    (survey / "layers.csv").write_text(table, encoding="utf-8")
    flags = ["--train_path", str(survey / "layers.csv"), "--tile_overlap", "0", "--epochs", "9", "--batch_size", "1"]
    output = tmp_path / "output"
    arguments = surveys.arguments(survey, output, *flags, "--save_minutes", "0.000001")[2:]
    with mock.patch.dict(models.MODEL_SIZES, tiny=SMALL):
        assert main_pretrain.main(arguments) == 1
    message = capsys.readouterr().err
    assert message.count("main_pretrain: error: ") == 1
    state = surveys.checkpoint(output)
    step = state["step"]  # saved after every update, so the failed one is the next
    assert f"loss not finite at step {step} (epoch {step // 9 + 1}); that step did not touch the weights" in message
    (row, col) = json.loads(message.split("reference pixels: ")[1].split(". Mend")[0])[0]
    assert row < 88 and row + 64 > 72 and col < 88 and col + 64 > 72
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())


# As typed


def run_program(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """Runs a program to its end in a folder of its own."""
    return subprocess.run(
        command, cwd=cwd, env=surveys.environment(), capture_output=True, text=True, timeout=300, check=False
    )


NOTES = (
    "--batch_size 8 --accum_iter 16 --epochs 1 --warmup_epochs 1 --input_size 96 --patch_size 8 --mask_ratio 0.75 "
    "--model_type group_c --dataset_type grid --grouped_bands 0 --grouped_bands 1 --blr 0.0001 --num_workers 8 "
    "--output_dir ./output_dir --log_dir ./output_dir --val_tiles 1 --tiles_per_epoch 8 --num_workers 2"
).split()
"""As typed, but for the last options, which shorten it."""


def test_the_commands_of_the_notes(tmp_path):
    """As a module and as a file, with no data given; the sample survey is there, smaller than by default."""
    write_sample_survey(tmp_path / "sample_survey", rows=832, cols=832)
    first = run_program([sys.executable, "-m", "main_pretrain", *NOTES], tmp_path)
    assert first.returncode == 0, first.stderr
    assert "using the sample survey, sample_survey/layers.csv" in first.stderr
    assert "tensorboard --logdir output_dir" in first.stderr
    output = tmp_path / "output_dir"
    assert surveys.checkpoint(output)["epoch"] == 1
    again = NOTES + ["--epochs", "2"]
    second = run_program([sys.executable, str(surveys.ROOT / "main_pretrain.py"), *again], tmp_path)
    assert second.returncode == 0, second.stderr
    assert "held an earlier run: now in output_dir/earlier-1" in second.stderr
    assert surveys.checkpoint(output)["epoch"] == 2
    assert surveys.checkpoint(output / "earlier-1")["epoch"] == 1
    assert [line["epoch"] for line in surveys.log(output, "epoch")] == [1, 2]


@pytest.mark.slow
def test_compiled_models_learn_the_same(plain, survey, tmp_path):
    """Compiled code rounds differently; 1e-3 of the loss is far more than that makes in 14 updates."""
    assert surveys.train(survey, tmp_path, "--compile") == 0
    assert surveys.largest_loss_difference(plain, tmp_path) < 1e-3
    assert not any("_orig_mod" in name for name in surveys.checkpoint(tmp_path)["model"])
