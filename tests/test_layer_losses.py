"""Losses of layers of several kinds, by hand; and a model of such layers."""

import math

import numpy as np
import pytest
import torch

from models_mae_group_channels import build_model
from util.model.layer_losses import (
    LOG_FLOOR,
    LayerChannels,
    layer_channels,
    layer_errors,
    layers_of_channels,
    to_fractions,
)

ROWS = [
    {"kind": "continuous", "form": "values", "channels": 1, "loss": "", "loss_scale": 1.0},
    {"kind": "circular", "form": "angle", "channels": 2, "loss": "huber", "loss_scale": 1.0},
    {"kind": "categorical", "form": "fractions", "channels": 3, "loss": "", "loss_scale": 0.5},
]


def pixels(*values):
    """(1, C, 1) of one pixel."""
    return torch.tensor(values).view(1, -1, 1)


class TestErrors:
    layers = layer_channels(ROWS, 6)

    def test_written_out(self):
        image = pixels(3.0, 0.5, 4.0, 0.5, 0.25, 0.25)
        target = pixels(1.0, 0.0, 1.0, 0.0, 0.75, 0.25)
        entropy = -0.5 * (0.75 + 0.25) * math.log(0.25 + LOG_FLOOR)
        for default, first in (("mse", 4.0), ("l1", 2.0)):
            found = layer_errors(image, target, self.layers, default=default)
            assert found.flatten().tolist() == pytest.approx([first, (0.25 + 2 * 3 - 1) / 2, entropy])

    @pytest.mark.parametrize("loss, expected", [("mse", [0.25, 4.0]), ("l1", [0.5, 2.0]), ("huber", [0.25, 3.0])])
    def test_losses_that_layers_name(self, loss, expected):
        layers = [LayerChannels(c, loss=loss) for c in range(2)]
        found = layer_errors(pixels(0.5, -2.0), pixels(0.0, 0.0), layers, default="l1")
        assert found.flatten().tolist() == pytest.approx(expected)

    def test_the_share_of_each_class_is_the_target_that_cross_entropy_is_least_at(self):
        """Soft targets: with 3/4 of one class and 1/4 of another, no other prediction costs less."""
        target = pixels(0.75, 0.25, 0.0)
        layers = [LayerChannels(0, 3, "fractions")]
        best = layer_errors(target, target, layers, default="mse").item()
        rounded = layer_errors(pixels(1.0, 0.0, 0.0), target, layers, default="mse").item()
        others = [
            layer_errors(pixels(0.75 + d, 0.25 - d, 0.0), target, layers, default="mse").item() for d in (-0.1, 0.1)
        ]
        assert best == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), abs=1e-5)
        assert min(rounded, *others) > best

    def test_shares_add_up_and_other_channels_stay(self):
        images = torch.randn(2, 6, 4)
        shares = to_fractions(images, self.layers)
        torch.testing.assert_close(shares[:, 3:].sum(dim=1), torch.ones(2, 4))
        assert torch.equal(shares[:, :3], images[:, :3])
        assert to_fractions(images, [LayerChannels(c) for c in range(6)]) is images


class TestRefusals:
    @pytest.mark.parametrize(
        "change, message",
        [
            (
                {"channels": 2},
                "layer 0: kind is 'continuous', form 'values' with 2 channels, expected one of: values with 1",
            ),
            ({"kind": "text", "form": "text"}, "kind is 'text', form 'text'"),
            ({"kind": "text", "form": ""}, "kind is 'text', form '' with 1 channels"),
            (
                {"loss": "cross_entropy"},
                "loss is 'cross_entropy', expected one of mse, l1, huber for a layer of kind cont",
            ),
            (
                {"loss": "l3", "where": "layer 'a' (a.tif, band 1)"},
                r"layer 'a' \(a.tif, band 1\): loss is 'l3', expected",
            ),
            (
                {"kind": "categorical", "form": "fractions", "channels": 2, "loss": "l1"},
                "loss is 'l1', expected one of cross_entropy for a",
            ),
            ({"kind": "categorical", "form": "fractions", "channels": 1}, "form 'fractions' with 1 channels"),
        ],
    )
    def test_kinds(self, change, message):
        with pytest.raises(ValueError, match=message):
            layer_channels([ROWS[0] | change], 1)

    def test_a_new_kind_is_known_by_its_form(self):
        assert layer_channels([ROWS[2] | {"kind": "soil mixture"}], 3)[0].has_fractions

    def test_rows_of_older_checkpoints_have_no_form(self):
        older = [{key: value for key, value in row.items() if key != "form"} for row in ROWS]
        assert layer_channels(older, 6) == layer_channels(ROWS, 6)

    def test_channels_that_do_not_add_up(self):
        with pytest.raises(ValueError, match="6 channels in all, expected in_chans 5"):
            layer_channels(ROWS, 5)

    def test_parts_of_layers(self):
        layers = layer_channels(ROWS, 6)
        assert layers_of_channels(layers, [3, 4, 5, 0], "groups") == (2, 0)
        with pytest.raises(
            ValueError, match=r"groups: channels \[0, 1\] hold only part of the layer with channels \[1, 2\]"
        ):
            layers_of_channels(layers, [0, 1], "groups")


def small(**options):
    arguments = {
        "img_size": 8,
        "patch_size": 4,
        "in_chans": 6,
        "channel_groups": ((0, 3, 4, 5), (1, 2)),
        "scales": (1, 2, 4),
        "scored": {1: range(6), 2: range(6), 4: (0, 3, 4, 5)},
        "scale_heads": "subpixel",
        "layers": ROWS,
        "embed_dim": 32,
        "depth": 1,
        "num_heads": 2,
        "channel_embed": 8,
        "decoder_embed_dim": 32,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
        "decoder_channel_embed": 8,
    }
    torch.manual_seed(0)
    return build_model("tiny", **(arguments | options))


def sample(seed=0):
    """Images of every scale with holes, and their validity; classes one-hot at the finest scale, shares above."""
    rng = np.random.default_rng(seed)
    fine = torch.tensor(rng.normal(size=(3, 6, 32, 32)), dtype=torch.float32)
    codes = torch.tensor(rng.integers(0, 3, size=(3, 16, 16))).repeat_interleave(2, 1).repeat_interleave(2, 2)
    fine[:, 3:] = torch.nn.functional.one_hot(codes, 3).permute(0, 3, 1, 2).float()
    valid = torch.ones(3, 6, 8, 8, dtype=torch.bool)
    valid[:, 0, :3, :3] = False
    valid[:, 3:, 2:5, 6:] = False
    images, oks = [], []
    for s in (1, 2, 4):
        ok = valid.repeat_interleave(s, 2).repeat_interleave(s, 3)
        pooled = torch.nn.functional.avg_pool2d(fine, 4 // s)
        images.append(torch.where(ok, pooled, 0.0))
        oks.append(ok)
    return images, oks


def run(model, images, oks, noise=None):
    noise = torch.linspace(0.9, 0.1, 8).expand(3, 8) if noise is None else noise
    return model(images[0], images[1:], valid=oks[0], valid_up=oks[1:], noise=noise, details=True)


class TestModel:
    @pytest.mark.parametrize("heads", ["subpixel", "shared"])
    def test_predicted_shares_are_shares_at_every_scale(self, heads):
        out = run(small(scale_heads=heads), *sample())
        for s in (1, 2, 4):
            shares = out.images[s][:, 3:]
            torch.testing.assert_close(shares.sum(dim=1), torch.ones_like(shares[:, 0]))
            assert shares.min() >= 0
        assert out.error_sums.shape == out.error_counts.shape == (3, 3)
        assert out.error_counts[2].tolist()[1] == 0  # the circular layer is not scored at scale 4

    def test_coarser_shares_are_means_of_finer_ones(self):
        out = run(small(), *sample())
        torch.testing.assert_close(torch.nn.functional.avg_pool2d(out.images[4][:, 3:], 2), out.images[2][:, 3:])

    def test_what_lies_under_nodata_changes_nothing(self):
        """Neither loss nor gradient, at any scale."""
        images, oks = sample()
        results = []
        for filled in (0.0, 1e6, float("nan")):
            model = small()
            changed = [torch.where(ok, image, filled) for image, ok in zip(images, oks, strict=True)]
            out = run(model, changed, oks)
            (out.loss + out.ms_loss).backward()
            results.append([out.loss, out.ms_loss, *(p.grad for p in model.parameters() if p.grad is not None)])
        for result in results[1:]:
            for one, other in zip(results[0], result, strict=True):
                assert torch.equal(one, other)

    def test_order_of_classes_changes_nothing(self):
        """Relabelled classes with their weights moved along: the same losses."""
        images, oks = sample()
        model, moved = small(), small()
        order = [0, 1, 2, 5, 3, 4]
        state = model.state_dict()
        inside = [0, 3, 1, 2]  # the same order within the first group's channels 0, 3, 4, 5
        state["patch_embed.0.proj.weight"] = state["patch_embed.0.proj.weight"][:, inside]
        for name in ("decoder_pred.0.weight", "decoder_pred.0.bias"):
            state[name] = state[name].unflatten(0, (4, 16))[inside].flatten(0, 1)
        for name, tensor in state.items():
            if "taps" in name:
                rows = {6: order, 4: inside, 2: [0, 1]}[len(tensor)]
                state[name] = tensor[rows]
        moved.load_state_dict(state)
        one = run(model, images, oks)
        other = run(moved, [image[:, order] for image in images], [ok[:, order] for ok in oks])
        torch.testing.assert_close(other.loss, one.loss)
        torch.testing.assert_close(other.ms_loss, one.ms_loss)

    def test_a_batch_can_be_overfitted(self):
        images, oks = sample()
        model = small(embed_dim=64, decoder_embed_dim=64)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        first = None
        for _ in range(150):
            out = run(model, images, oks)
            total = 0.6 * out.loss + 0.4 * out.ms_loss
            first = total.item() if first is None else first
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        assert total.item() < 0.35 * first

    def test_its_configuration_rebuilds_it(self):
        model = small()
        again = build_model("tiny", **{k: v for k, v in model.config.items()})
        again.load_state_dict(model.state_dict())
        assert again.layers == model.layers

    def test_its_configuration_leaves_out_names_for_messages(self):
        assert small(layers=[row | {"where": "layer 'a'"} for row in ROWS]).config == small().config

    def test_models_of_continuous_layers_have_the_configuration_of_old(self):
        assert "layers" not in small(layers=None).config

    def test_losses_are_balanced_at_the_start(self):
        """Predictions of the mean and of the class frequencies cost 1 each."""
        rng = np.random.default_rng(1)
        frequencies = np.array([0.5, 0.3, 0.2])
        scale = -1 / (frequencies * np.log(frequencies)).sum()
        layers = [LayerChannels(0), LayerChannels(1, 3, "fractions", loss_scale=scale)]
        target = torch.zeros(1, 4, 20_000)
        target[:, 0] = torch.tensor(rng.normal(size=20_000))
        drawn = rng.choice(3, size=20_000, p=frequencies)
        target[:, 1:] = torch.nn.functional.one_hot(torch.tensor(drawn), 3).T[None]
        image = torch.tensor([0.0, *frequencies]).view(1, 4, 1).expand_as(target)
        errors = layer_errors(image, target, layers, default="mse").mean(dim=2)
        assert errors.flatten().tolist() == pytest.approx([1, 1], abs=0.03)

    def test_normalised_patches_leave_classes_and_angles_as_they_are(self):
        images, oks = sample()
        out = run(small(norm_pix_loss=True), images, oks)
        plain = run(small(), images, oks)
        assert out.error_sums[0, 2] == plain.error_sums[0, 2] and out.error_sums[0, 0] != plain.error_sums[0, 0]
