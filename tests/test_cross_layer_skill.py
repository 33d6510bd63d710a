"""Which layer is predicted from which: choices of shown groups, and a network that copies what it is shown."""

import csv
import math
import re

import numpy as np
import pytest
import torch

from datasets.layers.encoding import Encoding
from scripts import layer_report
from tests.surveys import train, write_survey
from util.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from util.metrics.cross_layer_skill import (
    CrossLayerScore,
    ShownGroups,
    cross_layer_scores,
    shown_groups_for,
    shown_groups_noise,
)
from util.metrics.skill import ScoredLayer
from util.model.layer_losses import LayerChannels
from util.plots.cross_layer_skill import matrix_figure


class CopyOther:
    """Predicts layer 1 from layer 0 where its token is shown, and says 0 of everything else; three groups of one."""

    patch_size = 2

    def valid_positions(self, valid):
        return torch.nn.functional.max_pool2d(valid.float(), 2).flatten(1) > 0

    def reconstruct(self, imgs, valid, native, *, noise, keep):
        order = noise.argsort(dim=1).argsort(dim=1)
        hidden = (order >= keep).unflatten(1, (3, -1))
        seen = ~hidden[:, :1].unflatten(2, (4, 4)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        image = torch.zeros_like(imgs)
        image[:, 1:2] = imgs[:, :1] * seen
        return {1: image}, hidden


def scores(mask_ratio=0.75, valid=None):
    first = torch.tensor(np.random.default_rng(0).normal(size=(4, 1, 8, 8)), dtype=torch.float32)
    imgs = torch.cat([first, first, torch.ones_like(first)], dim=1)
    valid = torch.ones_like(imgs, dtype=torch.bool) if valid is None else valid
    chance = torch.rand(4, 3, 16, generator=torch.Generator().manual_seed(0))
    encoding = Encoding(scales=(2.0,))
    layers = [ScoredLayer(LayerChannels(c), encoding.decode, 2.0, (0.0,)) for c in range(3)]
    return cross_layer_scores(
        CopyOther(),
        [(imgs[:3], valid[:3], chance[:3], ()), (imgs[3:], valid[3:], chance[3:], ())],
        layers=layers,
        groups=((0,), (1,), (2,)),
        scored=(0, 1),
        mask_ratio=mask_ratio,
    )


def test_shown_groups_of_three():
    found = shown_groups_for(1, 3)
    assert len(found) == len(set(found)) == 7
    assert {(shown.own, shown.others) for shown in found} == {
        *((True, ()), (True, (0,)), (True, (2,)), (True, (0, 2)), (False, (0,)), (False, (2,)), (False, (0, 2)))
    }


def test_noise_shows_the_chosen_groups():
    valid = torch.ones(2, 3, 16, dtype=torch.bool)
    valid[1, 0, :4] = valid[1, 1, :8] = False
    chance = torch.rand(2, 3, 16)
    noise, counts = shown_groups_noise(ShownGroups(1, True, (0,)), valid, chance, mask_ratio=0.75)
    assert counts.tolist() == [16 + 4, 12 + 2]
    shown = torch.zeros(2, 48).scatter(1, noise.argsort(dim=1)[:, :14], 1.0)[1].bool().view(3, 16)
    assert shown[0].tolist() == valid[1, 0].tolist() and shown[1].sum() == 2 and not (shown & ~valid[1]).any()
    assert not shown[2].any()


def test_a_layer_is_known_from_what_shows_it():
    found = scores()
    assert found[1, ShownGroups(1, False, (0,))].skill == 1 and found[1, ShownGroups(1, False, (0, 2))].skill == 1
    assert found[1, ShownGroups(1, False, (2,))].skill == 0 and found[0, ShownGroups(0, False, (1,))].skill == 0
    assert found[1, ShownGroups(1, True, (0, 2))].skill == 1 and found[1, ShownGroups(1, True, ())].skill == 0
    assert not any(layer == 2 for layer, _ in found)  # not scored
    assert found[1, ShownGroups(1, False, (0,))].pixels == 4 * 64
    assert found[1, ShownGroups(1, True, (0,))].pixels == 4 * 64 * 3 // 4
    score = found[1, ShownGroups(1, False, (2,))]
    assert score.constant_report == pytest.approx(4 * score.constant)


def test_tiles_with_little_to_show_are_scored_with_the_others():
    valid = torch.ones(4, 3, 8, 8, dtype=torch.bool)
    valid[0, 0, :4] = False
    valid[1, 0] = False
    found = scores(valid=valid)
    assert found[1, ShownGroups(1, False, (0,))].pixels == 3 * 64  # of the second tile nothing is shown
    assert 0.7 < found[1, ShownGroups(1, False, (0,))].skill < 1


def test_figure():
    values = [[1.0, math.nan], [0.25, -0.5]]
    figure = matrix_figure((("a", values), ("b", values)), rows=["x", "y"], columns=["p", "q"])
    texts = [text.get_text() for axis in figure.axes[:2] for text in axis.texts]
    assert texts == ["1.00", "0.25", "-0.50"] * 2
    assert CrossLayerScore(0.5, 2.0, 0, 0, 1).skill == 0.75


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_survey(folder / "survey")
    flags = ["--val_fraction", "0.1", "--val_buffer", "0", "--mask_shape", "random", "layer", "--epochs", "1"]
    assert train(folder / "survey", folder / "run", *flags) == 0
    return folder


class TestReport:
    def test_table_and_picture(self, trained, tmp_path, capsys):
        checkpoint = str(trained / "run" / "checkpoint-last.pth")
        assert layer_report.main(["--checkpoint", checkpoint, "--output_dir", str(tmp_path), "--device", "cpu"]) == 0
        with open(tmp_path / "layer_report.csv", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert {(row["layer"], row["shown"]) for row in rows} == {
            ("gravity", "part of gravity"),
            ("gravity", "magnetics"),
            ("gravity", "part of gravity and magnetics"),
            ("magnetics", "part of magnetics"),
            ("magnetics", "gravity"),
            ("magnetics", "part of magnetics and gravity"),
        }
        for row in rows:
            ratio = float(row["model"]) / float(row["constant"])
            assert float(row["skill"]) == pytest.approx(1 - ratio**2, abs=1e-3) and row["measure"] == "rmse"
        assert (tmp_path / "layer_report.png").stat().st_size > 5000
        printed = capsys.readouterr()
        assert f"next: python -m main_finetune --finetune {checkpoint} --labels" in printed.err
        head, gravity, magnetics, legend = printed.out.splitlines()
        assert head.split("  ")[0] == "skill of" and len({len(line) for line in (head, gravity, magnetics)}) == 1
        assert gravity.startswith("gravity") and gravity.count("(itself)") == magnetics.count("(itself)") == 1
        shown = {(row["layer"], row["shown"]): float(row["skill"]) for row in rows}
        assert f"{shown['gravity', 'magnetics']:+.3f}" in gravity and legend.startswith("0 is no better")

    def test_a_checkpoint_without_options_of_later_versions(self, trained, tmp_path):
        state = load_checkpoint(trained / "run" / "checkpoint-last.pth")
        for name in ("transform", "data_path", "layer_dim", "crs", "dataset_type"):
            del state["options"][name]
        save_checkpoint(tmp_path / "old.pth", state)
        flags = ["--checkpoint", str(tmp_path / "old.pth"), "--output_dir", str(tmp_path), "--device", "cpu"]
        assert layer_report.main(flags) == 0

    @pytest.mark.parametrize(
        "flags, message",
        [
            (["--model_type", "vanilla"], "one group of layers, expected at least two.*--grouped_bands"),
            (["--spatial_mask"], "trained with --spatial_mask, expected a model without it"),
            (["--val_fraction", "0"], "no held-out tiles .*train with some"),
        ],
    )
    def test_models_that_cannot_tell_are_refused(self, trained, tmp_path, capsys, flags, message):
        held_out = ["--val_fraction", "0.1", "--val_buffer", "0", "--epochs", "1", "--tiles_per_epoch", "8"]
        assert train(trained / "survey", tmp_path / "run", *held_out, *flags) == 0
        checkpoint = str(tmp_path / "run" / "checkpoint-last.pth")
        capsys.readouterr()
        assert layer_report.main(["--checkpoint", checkpoint, "--output_dir", str(tmp_path), "--device", "cpu"]) == 2
        assert re.search(message, capsys.readouterr().err)

    def test_other_layers_are_refused(self, trained, tmp_path, capsys):
        (trained / "survey" / "other.csv").write_text("path\nmagnetics.tif\ngravity.tif\n")
        arguments = ["--checkpoint", str(trained / "run" / "checkpoint-last.pth"), "--output_dir", str(tmp_path)]
        table = str(trained / "survey" / "other.csv")
        assert layer_report.main([*arguments, "--device", "cpu", "--train_path", table]) == 2
        assert "layers magnetics, gravity; expected gravity, magnetics as in training" in capsys.readouterr().err
