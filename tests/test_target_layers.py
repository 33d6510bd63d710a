"""Target layers: predicted and never seen, in the model, in data, in runs and in what follows from a checkpoint."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch

from datasets.loading.token_masks import new_masks
from datasets.pretraining.pretrain_data import open_pretrain_data
from datasets.survey.open_survey import SurveySettings, open_survey
from scripts import export, layer_report
from tests import labelled, small_main, small_maps, surveys
from tests.rasters import write_grid
from tests.test_model import gradients, make_batch, make_model, run, total, wake
from util.checkpoints.encoder_weights import read_encoder_weights
from util.inference.finetuned_task import provenance
from util.inference.gap_filling import _fillable_layers
from util.inference.inputs import InferenceInputs
from util.inference.layers import LayerValues, NativeLayer
from util.model.patches import patchify

TARGETED = {"in_chans": 4, "channel_groups": ((3, 1), (2,), (0,)), "target_groups": 1}
"""The model of `SMALL` with a target before its three channels."""


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Classes, gravity and magnetics; the classes, known in part, come first and have a column `kind`."""
    folder = surveys.write_survey(tmp_path_factory.mktemp("survey"))
    labelled.write_classes(folder, name="geology.tif")
    rows = "geology,geology.tif,,categorical\ngravity,gravity.tif,mGal,\nmagnetics,magnetics.tif,nT,\n"
    (folder / "layers.csv").write_text("name,path,units,kind\n" + rows, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(survey, tmp_path_factory):
    """The output of a run whose target is the map of classes."""
    output = tmp_path_factory.mktemp("trained")
    assert train(survey, output, "--target_layers", "geology", *surveys.HELD_OUT) == 0
    return output


def train(survey, output, *flags):
    """Trains on the table of the layers; returns the exit status."""
    table = ["--train_path", str(survey / "layers.csv"), "--output_dir", str(output)]
    return small_main.main([*table, *surveys.FLAGS, *flags])


def opened(survey, **options):
    chosen = {"layers_table": str(survey / "layers.csv"), "input_size": 16, "scales": (1, 2, 4), "val_fraction": 0.0}
    return open_survey(SurveySettings(**(chosen | options)))


def refused(survey, tmp_path, capsys, *flags):
    """What a run says that is refused."""
    assert train(survey, tmp_path / "out", *flags) == 2
    return capsys.readouterr().err


# ---- the model


@pytest.mark.parametrize("changes", [{}, {"spatial_mask": True}, {"stem": "native"}])
def test_the_encoder_is_that_of_a_model_without_the_target(changes):
    if "stem" in changes:
        changes = changes | {"native_scales": (2, 1, 1), "detail_scales": (1.0, 0.0, 0.0)}
    alone = wake(make_model(**changes))
    if "stem" in changes:
        changes = changes | {"native_scales": (4, 2, 1, 1), "detail_scales": (1.0, 1.0, 0.0, 0.0)}
    model = make_model(**TARGETED, **changes)
    shared = {k: v for k, v in alone.state_dict().items() if k.startswith(("patch_embed", "stems", "blocks", "norm"))}
    shared |= {name: alone.state_dict()[name] for name in ("cls_token", "nodata_token", "pos_embed", "channel_embed")}
    own = {k for k in model.state_dict() if k.startswith(("patch_embed", "stems", "blocks", "norm"))}
    assert own <= set(shared)  # nothing of the encoder belongs to the target
    model.load_state_dict(shared, strict=False)
    images, valid, noise = make_batch(channels=4, valid_share=0.3)
    noise = noise[:, :16] if model.spatial_mask else noise
    native = [torch.randn(2, 2, 32, 32)] if model.stems else []
    how = {"noise": noise, "native": native}
    rest = model.forward_encoder(images[0], 0.75, valid=valid[0], **how)
    without = alone.forward_encoder(images[0][:, 1:], 0.75, valid=valid[0][:, 1:], **how)
    assert torch.equal(rest[0], without[0])
    assert torch.equal(rest[1][:, :2], without[1]) and rest[1][:, 2].all()


@pytest.mark.parametrize("heads", ["shared", "subpixel"])
@pytest.mark.parametrize("ratio", [0.0, 0.75])
def test_values_of_the_target_change_the_loss_alone(heads, ratio):
    model = wake(make_model(**TARGETED, scale_heads=heads)).eval()
    images, valid, noise = make_batch(channels=4, valid_share=0.9)
    first = run(model, images, valid, noise, mask_ratio=ratio, details=True)
    features = model.forward_tokens(images[0], valid[0])
    for image, ok in zip(images, valid, strict=True):
        image[:, 0], ok[:, 0] = image[:, 0].flip(-1) + 1, ok[:, 0].flip(-1)
    second = run(model, images, valid, noise, mask_ratio=ratio, details=True)
    assert torch.equal(first.pred, second.pred) and torch.equal(first.mask, second.mask)
    assert all(torch.equal(first.images[s], second.images[s]) for s in first.images)
    assert first.loss != second.loss and first.ms_loss != second.ms_loss
    assert all(map(torch.equal, features, model.forward_tokens(images[0], valid[0])))


def test_with_nothing_else_hidden_the_loss_is_that_of_the_target():
    model = wake(make_model(**TARGETED))
    images, valid, noise = make_batch(channels=4)
    assert model.can_learn(hides=False) == (True, True)
    stem = {"stem": "native", "native_scales": (1, 4, 2, 4), "detail_scales": (0.0,) * 4}
    assert make_model(**TARGETED, **stem).can_learn(hides=False) == (True, True)
    assert make_model(**{**TARGETED, **stem, "target_groups": 0}).can_learn(hides=False) == (False, False)
    loss, _, pred, mask = run(model, images, valid, noise, mask_ratio=0.0)
    assert mask.sum(dim=(0, 2)).tolist() == [0, 0, 2 * 16]
    assert loss.item() == pytest.approx((pred[:, 0] - patchify(images[0], 4)[:, 0]).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("heads", ["shared", "subpixel"])
def test_every_parameter_has_a_gradient(heads):
    model = wake(make_model(**TARGETED, scale_heads=heads))
    images, valid, noise = make_batch(channels=4, valid_share=0.5)
    found = gradients(model, total(run(model, images, valid, noise)))
    assert all(gradient is not None for gradient in found.values())
    assert all(found[f"decoder_pred.{group}.weight"].abs().sum() > 0 for group in range(3))


def test_a_map_is_predicted_without_being_given():
    model = wake(make_model(**TARGETED)).eval()
    images, valid, noise = make_batch(channels=4)
    valid[0][:, 0] = False
    found, hidden = model.reconstruct(images[0], valid[0], noise=noise, keep=31)
    assert hidden[:, 0].all() and hidden[:, 1:].any(dim=1).sum(dim=1).tolist() == [1, 1]
    assert found[4].shape == (2, 4, 64, 64) and found[4][:, 0].std() > 0


def test_a_model_that_sees_nothing_is_refused():
    with pytest.raises(
        ValueError, match="target_groups 2 of 2 channel groups: expected at least one group that is enc"
    ):
        make_model(target_groups=2)


# ---- the data


def test_tiles_and_masks_are_those_without_the_target(survey):
    common = {"test_path": None, "val_tiles": 4, "cache": "none", "device": torch.device("cpu"), "local_ranks": 1}
    chosen = {"layers_table": str(survey / "layers.csv"), "input_size": 16, "scales": (1, 2, 4), "val_fraction": 0.0}
    how = {"seed": 0, "batch_size": 8, "accum_iter": 1, "tiles": None, "layer_dropout": 0.5, "rank": 0, "world_size": 1}
    masks = new_masks([("layer", 0.5), ("block", 0.5)], groups=2, side=4, spatial=False, mask_ratio=0.75)
    data = open_pretrain_data(chosen | {"target_layers": ["geology"]}, **common)
    assert data.training.groups == ((2,), (1,), (0,)) and data.training.targets == (0,)
    batches = data.batches(masks, **how, channel_counts=(3, 1, 1), pin=False)
    without = open_pretrain_data(chosen | {"dropped_bands": [0]}, **common).batches(
        masks, **how, channel_counts=(1, 1), pin=False
    )
    assert np.array_equal(batches.epoch(0).tiles, without.epoch(0).tiles)
    dropped = 0
    for micro in without.epoch(0).plan:
        ours, theirs = (source.epoch(0).read(micro) for source in (batches, without))
        assert torch.equal(ours.noise, theirs.noise)
        assert not ours.dropped[:, :3].any() and torch.equal(ours.dropped[:, 3:], theirs.dropped)
        dropped += int(ours.dropped.sum())
    assert dropped > 0


def test_a_layer_that_is_seen_is_never_dropped_with_all_others(survey):
    """The target has no tokens and gravity is hidden, so that magnetics stay in every tile."""
    common = {"test_path": None, "val_tiles": 4, "cache": "none", "device": torch.device("cpu"), "local_ranks": 1}
    chosen = {"layers_table": str(survey / "layers.csv"), "input_size": 16, "scales": (1, 2, 4), "val_fraction": 0.0}
    data = open_pretrain_data(chosen | {"target_layers": ["geology"], "masked_bands": [1]}, **common)
    how = {"seed": 0, "batch_size": 8, "accum_iter": 1, "tiles": None, "layer_dropout": 0.9, "rank": 0, "world_size": 1}
    masks = new_masks(None, groups=2, side=4, spatial=False, mask_ratio=0.75)
    epoch = data.batches(masks, **how, channel_counts=(3, 1, 1), pin=False).epoch(0)
    assert data.training.layers[2].name == "magnetics"
    assert not any(epoch.read(micro).dropped[:, 4].any() for micro in epoch.plan)


def test_targets_have_groups_of_their_own(survey):
    assert opened(survey, target_layers=["geology"], one_group=True).groups == ((1, 2), (0,))
    assert opened(survey, target_layers=["magnetics"]).groups == ((0,), (1,), (2,))
    assert opened(survey, target_layers=["geology", "magnetics"]).groups == ((1,), (0, 2))
    given = opened(survey, target_layers=["geology"], grouped_bands=[[0], [2, 1]])
    assert given.groups == ((2, 1), (0,)) and given.channel_options()["target_groups"] == 1
    assert "target_groups" not in opened(survey).channel_options()


@pytest.mark.parametrize(
    "flags, said",
    [
        (
            "--target_layers rocks",
            "--target_layers rocks: there is no such layer, expected out of geology, gravity, mag",
        ),
        ("--target_layers geology gravity magnetics", "no layer is left to predict from; expected at least one"),
        ("--target_layers geology gravity --masked_bands 2", "no layer is left to predict from"),
        ("--target_layers geology --masked_bands 0", "--target_layers geology is hidden by --masked_bands 0"),
        ("--target_layers geology --base_resolution 50 --scales 1", "coarser than the base pixel of 50, so it cannot"),
        (
            "--target_layers geology --grouped_bands 0 1 --grouped_bands 2",
            "--grouped_bands puts 'geology', a target (--target_layers), into one channel group with 'gravity'",
        ),
    ],
)
def test_what_cannot_be_a_target_is_refused(survey, tmp_path, capsys, flags, said):
    if "--base_resolution" in flags:
        write_grid(tmp_path / "fine.tif", np.random.default_rng(0).normal(size=(320, 320)), resolution=50.0)
        table = f"name,path,kind\ngeology,{survey}/geology.tif,categorical\nfine,fine.tif,\n"
        (tmp_path / "layers.csv").write_text(table, encoding="utf-8")
        survey = tmp_path
    assert said in refused(survey, tmp_path, capsys, *flags.split())


@pytest.mark.parametrize(
    "column, values, said",
    [
        ("loss_weight", ("0", "1", "1"), "--target_layers geology: its loss_weight is 0, so it would be neither seen"),
        ("group", ("a", "a", "b"), "column `group` puts 'geology', a target (--target_layers), into one channel group"),
    ],
)
def test_tables_that_contradict_a_target_are_refused(survey, tmp_path, capsys, column, values, said):
    names = ("geology", "gravity", "magnetics")
    rows = [f"{name},{survey}/{name}.tif,{value}" for name, value in zip(names, values, strict=True)]
    (tmp_path / "layers.csv").write_text("\n".join([f"name,path,{column}", *rows]), encoding="utf-8")
    assert said in refused(tmp_path, tmp_path, capsys, "--target_layers", "geology")


# ---- runs


def test_a_target_is_scored_against_the_class_frequencies(trained):
    scores = surveys.log(trained, "epoch")[-1]["val"]["geology"]
    assert list(scores) == ["1x", "2x", "4x"]
    for by_scale in scores.values():
        # Nothing of the map is visible, so that the nearest visible class is the mean of the classes, too.
        assert by_scale["cross_entropy_nearest"] == pytest.approx(by_scale["cross_entropy_majority"])
        expected = 1 - by_scale["cross_entropy"] / by_scale["cross_entropy_majority"]
        assert by_scale["skill"] == pytest.approx(expected)


def test_a_directory_will_do_and_resuming_with_other_targets_is_refused(survey, tmp_path, capsys):
    out = tmp_path / "out"
    assert surveys.train(survey, out, "--epochs", "1", "--target_layers", "geology") == 0
    capsys.readouterr()
    assert surveys.train(survey, out, "--resume", "auto", "--target_layers", "gravity") == 2
    assert "target_layers[0]: checkpoint 'geology', now 'gravity'" in capsys.readouterr().err
    assert surveys.train(survey, out, "--resume", "auto") == 2
    assert "target_layers[0]: checkpoint 'geology', now '(absent)'" in capsys.readouterr().err
    assert surveys.train(survey, out, "--resume", "auto", "--target_layers", "geology") == 0


# ---- after pre-training


def without_map(survey, folder):
    """The same survey, in which the map of classes is not there any more."""
    shutil.copytree(survey, folder)
    (folder / "geology.tif").unlink()
    return folder


def test_fine_tuning_needs_no_target(survey, trained, tmp_path):
    elsewhere = without_map(survey, tmp_path / "survey")
    weights = trained / "checkpoint-last.pth"
    encoder = read_encoder_weights(weights)
    assert encoder.config["in_chans"] == 2 and encoder.config["channel_groups"] == [[1], [0]]
    assert [layer["name"] for layer in encoder.contents["targets"]] == ["geology"]
    labels = labelled.write_classes(tmp_path)
    flags = ["--finetune", str(weights), "--stem", "native"]
    assert labelled.finetune(elsewhere, tmp_path / "out", *flags, labels=labels) == 0
    state = surveys.checkpoint(tmp_path / "out")
    assert [layer["name"] for layer in state["layers"]] == ["gravity", "magnetics"]
    assert state["model_config"]["in_chans"] == 2 and "target_groups" not in state["model_config"]
    # Whoever fine-tunes or scores these weights again is warned, too, and maps say it.
    assert [layer["name"] for layer in read_encoder_weights(tmp_path / "out").contents["targets"]] == ["geology"]
    assert provenance(state)["pretraining_targets"] == "geology"


def test_labels_that_were_the_target_are_warned_of(survey, trained, tmp_path, caplog):
    labels = survey / "geology.tif"
    flags = ["--finetune", str(trained / "checkpoint-last.pth"), "--epochs", "1"]
    assert labelled.finetune(survey, tmp_path / "out", *flags, labels=labels) == 0
    assert "a target of pre-training (--target_layers), has values on ground that is tested in fold 0 1" in caplog.text


def test_inference_predicts_the_target_from_the_other_layers(survey, trained, tmp_path):
    elsewhere = without_map(survey, tmp_path / "survey")
    common = ["--checkpoint", str(trained / "checkpoint-last.pth"), "--data_dir", str(elsewhere), "--device", "cpu"]
    made = {}
    for place, folder in (("there", survey), ("gone", elsewhere)):
        for output in ("embeddings", "reconstruction"):
            flags = ["--data_dir", str(folder), "--output", output, "--output_dir", str(tmp_path / place)]
            assert small_maps.infer([*common, *flags, "--no_progress"]) == 0
        for name in ("embeddings", "reconstruction_geology_1x", "reconstruction_geology_4x"):
            with rasterio.open(tmp_path / place / f"{name}.tif") as file:
                made[place, name] = file.read()
    for name in ("embeddings", "reconstruction_geology_1x", "reconstruction_geology_4x"):
        assert np.array_equal(made["there", name], made["gone", name], equal_nan=True)
    codes, probability, error = made["gone", "reconstruction_geology_4x"]
    known = np.isfinite(codes)
    assert set(np.unique(codes[known])) <= set(labelled.CODES) and known.mean() > 0.5
    assert (probability[known] > 1 / 3 - 1e-6).all() and np.isnan(error).all()


def test_the_layer_report_is_refused(trained, tmp_path, capsys):
    flags = ["--checkpoint", str(trained / "checkpoint-last.pth"), "--output_dir", str(tmp_path)]
    assert layer_report.main(flags) == 2
    assert "trained with --target_layers, whose layers are never shown" in capsys.readouterr().err


def test_targets_are_neither_filled_nor_refined(caplog):
    """A continuous target has no measurements to fill gaps between, although the model predicts it."""
    kinds = {"gravity": "continuous", "density": "continuous", "azimuth": "circular"}
    layers = [
        LayerValues(name, "", name, SimpleNamespace(kind=kind, is_continuous=kind == "continuous"))
        for name, kind in kinds.items()
    ]
    native = NativeLayer(0, layers[0], 0.0, 0.0, 1.0, 1.0, 8, 8, (1.0, 1.0), (0.0, 0.0))
    model = SimpleNamespace(target_layers=[1], scored_layers={1: (0, 1, 2), 2: (1,)})
    inputs = InferenceInputs(
        engine=SimpleNamespace(model=model),
        layers=layers,
        natives=[native, None, None],
        known={1: (0, 2), 2: ()},
        **dict.fromkeys(("ground", "read", "tags", "mask_ratio", "seed", "finetuned")),
    )
    assert inputs.continuous("refined") == {1: (0,), 2: ()}
    assert [layer.values.name for layer in _fillable_layers(inputs)] == ["gravity"]
    assert "'azimuth' (circular), 'density' (target, never seen) cannot be filled" in caplog.text
    assert "not filled, because the model does not predict them" not in caplog.text


def test_the_model_card_says_what_the_encoder_has_learned(trained, tmp_path):
    flags = ["--checkpoint", str(trained / "checkpoint-last.pth"), "--format", "torch"]
    assert export.main([*flags, "--output", str(tmp_path / "model.pth")]) == 0
    card = (tmp_path / "model.pth.md").read_text(encoding="utf-8")
    assert "| geology | categorical, not shown to the model, but predicted |" in card
    assert "Pre-trained to predict geology, whose values it has learned wherever they were known." in card
