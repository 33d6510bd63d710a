"""Textures of hidden patches: their numbers, what counts in their loss, and runs that learn them."""

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models_mae_group_channels import MaskedAutoencoderGroupChannelViT
from models_vit_group_channels import build_finetune_model, encoder_arguments
from tests import small_maps, surveys
from tests.test_encoder_weights import save_ours
from tests.test_native_stem import COMMON, PATCH, SIZE, forward, make_inputs, make_mae, make_native
from tests.test_resume import assert_same_end, stop_at
from util.checkpoints.encoder_weights import load_encoder, read_encoder_weights
from util.model.texture import (
    FLAT,
    LEAST_EDGE,
    TEXTURE_NUMBERS,
    TYPICAL_DETAIL,
    difference_kernels,
    mean_differences,
    source_images,
)
from util.training.flops import step_cost

make = partial(make_mae, texture=True)
FLAGS = ["--texture_weight", "0.5"]


def losses(model, images, valid, noise, native):
    return forward(model, images, valid, noise, native, details=True)


def differences(image, valid=None, edge=8):
    image = torch.as_tensor(image, dtype=torch.float32)[None, None]
    valid = torch.ones_like(image, dtype=torch.bool) if valid is None else valid[None, None]
    return [found[0] for found in mean_differences(image, valid, difference_kernels(), edge=edge)]


class TestDifferences:
    def test_kernels_ignore_constants_and_have_unit_length(self):
        kernels = difference_kernels()
        assert kernels.shape == (TEXTURE_NUMBERS // 2, 1, 3, 3)
        torch.testing.assert_close(kernels.sum(dim=(1, 2, 3)), torch.zeros(8))
        torch.testing.assert_close(kernels.square().sum(dim=(1, 2, 3)), torch.ones(8))
        assert len({tuple(kernel.flatten().tolist()) for kernel in kernels}) == 8

    def test_a_slope_has_first_differences_alone(self):
        """3 a pixel along a row: 6 between the outer of three pixels, 12 at a spacing of 2, 0 down a column."""
        means, known = differences(torch.arange(8.0).expand(8, 8) * 3)
        slope = 6 / 2**0.5
        expected = [slope, slope, 0, slope, 0, 0, 0, 0, 2 * slope, 2 * slope, 0, 2 * slope, 0, 0, 0, 0]
        torch.testing.assert_close(means[0], torch.tensor(expected), atol=1e-5, rtol=1e-5)
        assert known.all()

    def test_stripes_of_two_pixels_curve_at_the_shorter_spacing_alone(self):
        """Columns 1, -1, 1, -1: a second difference of 4, and equal values two and four pixels apart."""
        means, _ = differences(torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8))
        curve = 4 / 6**0.5
        expected = [0, 0, 0, 0, curve, curve, 0, curve, *[0] * 8]
        torch.testing.assert_close(means[0], torch.tensor(expected), atol=1e-6, rtol=1e-6)

    def test_nothing_outside_a_patch_counts(self):
        image = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
        changed = image.clone()
        changed[8:, :8] += torch.arange(8.0) * 5  # patch 2
        before, after = differences(image)[0], differences(changed)[0]
        assert (before != after).any(dim=1).tolist() == [False, False, True, False]
        torch.testing.assert_close(before[3], differences(image[8:, 8:])[0][0])

    @pytest.mark.parametrize("value", [0.0, -99999.0, torch.inf, torch.nan])
    def test_squares_with_an_invalid_pixel_do_not_count(self, value):
        """Below an invalid row the slope is seen; with every third column invalid no 3 x 3 pixels are left."""
        slope, valid = torch.arange(8.0).expand(8, 8), torch.ones(8, 8, dtype=torch.bool)
        valid[1] = False
        means, known = differences(torch.where(valid, slope, value), valid)
        assert known.all()
        torch.testing.assert_close(means, differences(slope)[0], atol=1e-6, rtol=1e-6)
        valid[:, ::3] = False
        means, known = differences(torch.where(valid, slope, value), valid)
        assert not known.any() and (means == 0).all()


class TestSources:
    def found(self, model):
        return {(s.channel, s.group): (s.scale, s.native) for s in model.texture_head.sources}

    def test_native_pixels_where_there_are_finer_ones(self):
        """Channels 2 and 0 share an image of 4 x 4 native pixels, 1 has 2 x 2; patches of 3 have too few pixels."""
        expected = {(2, 0): (4, (0, 0, 1)), (0, 0): (4, (0, 1, 1)), (1, 1): (2, (1, 0, 1))}
        assert self.found(make()) == expected
        assert make().texture_head.group_sizes == [2, 1, 0]

    def test_targets_where_base_pixels_alone_are_seen(self):
        assert self.found(make("base")) == {(2, 0): (4, None), (0, 0): (4, None), (1, 1): (2, None)}
        larger = make("base", patch_size=8)
        assert self.found(larger)[3, 2] == (1, None)

    def test_a_coarser_layer_of_a_group_is_measured_at_its_own_pixels(self):
        scales = {"native_scales": (4, 2, 2, 1), "scored": {1: (0, 1, 2, 3)}}  # channel 2 lies beside channel 0
        model = make(**scales, scales=(1,))
        assert self.found(model)[2, 0] == (2, (0, 0, 2)) and self.found(model)[0, 0] == (4, (0, 1, 1))
        coarse = torch.randn(1, 2, 2 * SIZE, 2 * SIZE)
        native = [coarse.repeat_interleave(2, 2).repeat_interleave(2, 3), torch.randn(1, 1, 2 * SIZE, 2 * SIZE)]
        base = torch.zeros(1, 4, SIZE, SIZE)
        images = source_images(model.texture_head.sources, {1: (base, base == 0)}, native)
        assert torch.equal(images[0][0], coarse[:, :1]) and images[0][1].all()

    def test_a_layer_whose_pixels_do_not_divide_those_of_its_group_is_measured_at_its_target(self):
        """Beside 3 x 3 pixels of channel 0 the 2 x 2 of channel 2 are interpolated: those of its target are not."""
        scales = {"native_scales": (3, 2, 2, 1), "scored": {1: (0, 1, 2, 3), 2: (0, 1, 2)}, "scales": (1, 2)}
        expected = {(2, 0): (2, None), (0, 0): (3, (0, 1, 1)), (1, 1): (2, (1, 0, 1))}
        assert self.found(make(**scales)) == expected
        base_alone = make(**(scales | {"scales": (1,), "scored": {1: (0, 1, 2, 3)}}), patch_size=8)
        assert self.found(base_alone)[2, 0] == (1, None)

    def test_classes_angles_and_layers_without_weight_have_none(self):
        row = {"loss": "", "loss_scale": 1.0}
        rows = [
            {"kind": "continuous", "channels": 1, **row},
            {"kind": "circular", "channels": 2, **row},
            {"kind": "continuous", "channels": 1, **row},
        ]
        plain = {"layers": rows, "channel_groups": ((0,), (1, 2), (3,)), "patch_size": 8, "scored": None}
        assert list(self.found(make("base", **plain))) == [(0, 0), (3, 2)]
        assert list(self.found(make("base", **plain, channel_weights=(0, 1, 1, 1)))) == [(3, 2)]

    def test_no_layer_left(self):
        with pytest.raises(ValueError, match=f"patch_size 4: no scored layer of values has {LEAST_EDGE} or more"):
            make("base", scored={1: (0, 1, 2, 3)})


class TestLoss:
    def test_it_is_that_on_paper(self):
        """A head that predicts zeros: the errors of hidden tokens one by one, and their means."""
        model, (images, valid, noise), native = make(channel_weights=(1, 1, 3, 1)), make_inputs(), make_native()
        for linear in model.texture_head.linear.values():
            nn.init.zeros_(linear.weight)
        out = losses(model, images, valid, noise, native)
        details, weights = (0.5, 0.3, TYPICAL_DETAIL), (1.0, 1.0, 3.0)
        errors = {}
        for channel, image in {0: native[0][:, 1:], 1: native[1], 2: native[0][:, :1]}.items():
            edge = PATCH * image.shape[-1] // SIZE
            means, _ = mean_differences(image, image.isfinite(), difference_kernels(), edge=edge)
            target = (FLAT + means / details[channel]).log()
            errors[channel] = F.smooth_l1_loss(torch.zeros_like(target), target, reduction="none").mean(-1)  # (N, L)
        samples = []
        for n in range(2):
            total = count = 0.0
            for group, channels in enumerate(((2, 0), (1,))):
                for patch in range((SIZE // PATCH) ** 2):
                    if out.mask[n, group, patch]:
                        total += sum(weights[c] * errors[c][n, patch].item() for c in channels) / len(channels)
                        count += sum(weights[c] for c in channels) / len(channels)
            samples.append(total / count)
        assert out.texture_loss.item() == pytest.approx(sum(samples) / 2, rel=1e-5)
        assert out.losses == (out.loss, out.ms_loss, out.texture_loss)

    @pytest.mark.parametrize("stem", ["native", "base"])
    def test_what_lies_under_nodata_changes_nothing(self, stem):
        model, (images, valid, noise) = make(stem), make_inputs()
        generator = torch.Generator().manual_seed(4)
        corner = torch.rand(2, 4, SIZE, SIZE, generator=generator) < 0.97
        valid = [corner.repeat_interleave(s, 2).repeat_interleave(s, 3) for s in (1, 2, 4)]
        results = []
        for value in (0.0, -99999.0, torch.inf):
            native = make_native()
            for image, group in zip(native, ((2, 0), (1,)), strict=True):
                image[~valid[(1, 2, 4).index(image.shape[-1] // SIZE)][:, list(group)]] = value
            filled = [torch.where(ok, image, torch.tensor(value)) for ok, image in zip(valid, images, strict=True)]
            model.zero_grad()
            out = losses(model, filled, valid, noise, native)
            out.texture_loss.backward()
            results.append([out.texture_loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        assert results[0][0] > 0
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_a_batch_is_the_mean_of_its_samples(self):
        model, (images, valid, noise), native = make().eval(), make_inputs(), make_native()
        whole = losses(model, images, valid, noise, native).texture_loss
        parts = [
            losses(model, *([x[n : n + 1] for x in part] for part in (images, valid)), noise[n : n + 1],
                   [x[n : n + 1] for x in native]).texture_loss
            for n in range(2)
        ]  # fmt: skip
        assert float(whole.detach()) == pytest.approx(float(sum(parts).detach()) / 2, rel=1e-5)

    def test_nothing_valid_costs_nothing_and_every_weight_has_a_gradient(self):
        model, (images, valid, noise) = make(), make_inputs()
        out = losses(model, images, [torch.zeros_like(ok) for ok in valid], noise, make_native())
        sum(out.losses).backward()
        assert out.texture_loss == 0
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_finite_with_extreme_values(self, dtype):
        model, (images, valid, noise) = make(), make_inputs()
        with torch.autocast("cpu", dtype=dtype):
            out = losses(model, images, valid, noise, [image * 1e5 for image in make_native()])
        sum(out.losses).backward()
        assert out.texture_loss.dtype == torch.float32 and out.texture_loss.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    def test_compiles_as_one_graph_whatever_is_valid(self):
        model, graphs = make(), []

        def counting(graph, _):
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(model, backend=counting, fullgraph=True)
        images, valid, noise = make_inputs()
        for share in (1.1, 0.9, 0.3):
            ragged = [torch.rand_like(image) < share for image in images]
            found, plain = (losses(m, images, ragged, noise, make_native()).losses for m in (compiled, model))
            torch.testing.assert_close(found, plain)
        assert len(graphs) == 1


class TestModel:
    def test_other_weights_start_as_without(self):
        plain, model = make_mae(), make()
        state = plain.state_dict()
        new = {name for name in model.state_dict() if name not in state}
        assert new == {f"texture_head.linear.{g}.{name}" for g in (0, 1) for name in ("weight", "bias")}
        assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
        assert "texture" not in plain.config and plain.texture_head is None
        out = losses(plain, *make_inputs(), make_native())
        assert out.texture_loss is None and len(out.losses) == 2

    def test_config_rebuilds_the_model_after_json(self):
        model = make()
        again = MaskedAutoencoderGroupChannelViT(**json.loads(json.dumps(model.config)))
        again.load_state_dict(model.state_dict())
        assert torch.equal(*(losses(m, *make_inputs(), make_native()).texture_loss for m in (model, again)))

    def test_the_encoder_goes_into_fine_tuning_without_the_head(self, tmp_path):
        pretrained = make()
        dense = build_finetune_model({"kind": "dense", "num_outputs": 3, **encoder_arguments(pretrained.config)})
        report = load_encoder(dense, read_encoder_weights(save_ours(tmp_path / "a.pth", pretrained)))
        assert {name for name in report.left_out if "texture" in name} == {
            f"texture_head.linear.{g}.{name}" for g in (0, 1) for name in ("weight", "bias")
        }

    def test_flops_count_the_head(self):
        """Two layers of 4 x 4 and one of 2 x 2 native pixels: 16 differences of 3 x 3 pixels, and a linear map."""
        with torch.device("meta"):
            plain, model = (make_mae(**{"texture": on, **COMMON}) for on in (False, True))
        costs = [step_cost(m, batch_size=1) for m in (plain, model)]
        patches = (SIZE // PATCH) ** 2
        windows = sum(count * 8 * 9 * ((e - 2) ** 2 + (e - 4) ** 2) for count, e in ((2, 4 * PATCH), (1, 2 * PATCH)))
        expected = 2 * patches * (windows + 16 * 3 * TEXTURE_NUMBERS)
        assert costs[1].forward_flops - costs[0].forward_flops == expected
        assert costs[1].head_forward_flops - costs[0].head_forward_flops == expected


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def trained(survey, tmp_path_factory):
    """A run with textures and a held-out tile, which nothing stopped."""
    output = tmp_path_factory.mktemp("trained")
    assert surveys.train(survey, output, *surveys.HELD_OUT, *FLAGS) == 0
    return output


class TestRuns:
    def test_the_loss_is_logged_by_itself(self, trained):
        for line in surveys.log(trained):
            parts = (0.6 * line["train_base_loss"], 0.4 * line["train_scale_loss"], 0.5 * line["train_texture_loss"])
            assert line["train_loss"] == pytest.approx(sum(parts), rel=1e-5) and line["train_texture_loss"] > 0
        for line in surveys.log(trained, "epoch"):
            parts = (0.6 * line["val_base_loss"], 0.4 * line["val_scale_loss"], 0.5 * line["val_texture_loss"])
            assert line["val_loss"] == pytest.approx(sum(parts), rel=1e-5)
        first, last = surveys.log(trained, "epoch")
        assert last["train_texture_loss"] < first["train_texture_loss"]
        events = b"".join(path.read_bytes() for path in trained.glob("events*"))
        assert b"2_loss/training_texture" in events and b"2_loss/held_out_texture" in events

    def test_resuming_changes_nothing(self, survey, trained, tmp_path):
        flags = [*surveys.HELD_OUT, *FLAGS]
        with stop_at(3):
            assert surveys.train(survey, tmp_path, *flags) == 0
        assert surveys.train(survey, tmp_path, *flags, "--resume", "auto", "--num_workers", "2") == 0
        assert_same_end(tmp_path, trained)

    @pytest.mark.parametrize(
        "more", ["--batch_size 2 --accum_iter 2", pytest.param("--batch_size 4 --fsdp", marks=pytest.mark.slow)]
    )
    def test_ranks_accumulation_and_sharding_change_only_rounding(self, survey, trained, tmp_path, more):
        output, flags = tmp_path / "output", [*surveys.HELD_OUT, *FLAGS, *more.split(), "--grad_checkpointing"]
        results = surveys.run_ranks(surveys.arguments(survey, output, *flags), tmp_path)
        assert [status for status, _ in results] == [0, 0], results
        assert surveys.largest_loss_difference(trained, output) < 1e-6
        for one, two in zip(*(surveys.log(folder, "epoch") for folder in (trained, output)), strict=True):
            for key in ("train_texture_loss", "val_texture_loss"):
                assert two[key] == pytest.approx(one[key], rel=1e-6)

    def test_another_weight_is_refused(self, survey, trained, capsys):
        flags = [*surveys.HELD_OUT, "--resume", "auto"]
        assert surveys.train(survey, trained, *flags, "--texture_weight", "0.1") == 2
        assert "options.texture_weight: checkpoint 0.5, now 0.1" in capsys.readouterr().err
        assert surveys.train(survey, trained, *flags) == 2
        assert "options.texture_weight: checkpoint 0.5, now '(absent)'" in capsys.readouterr().err

    def test_a_run_without_is_as_of_versions_without(self, survey, tmp_path):
        assert surveys.train(survey, tmp_path, "--epochs", "1") == 0
        facts = surveys.checkpoint(tmp_path)["facts"]
        assert "texture_weight" not in facts["options"] and "texture" not in facts["model"]
        assert not any("train_texture_loss" in line for line in surveys.log(tmp_path))
        assert surveys.train(survey, tmp_path, "--resume", "auto", "--texture_weight", "0") == 0

    def test_textures_alone_are_something_to_learn(self, survey, tmp_path, caplog):
        caplog.set_level("INFO")
        alone = "--base_loss_weight 0 --scale_loss_weight 0 --texture_weight 1 --dry_run".split()
        assert surveys.train(survey, tmp_path, *alone) == 0
        assert "textures of 2 of 2 layers" in caplog.text

    def test_a_reconstruction_does_without(self, trained, tmp_path):
        flags = ["--checkpoint", str(trained), "--output", "reconstruction", "--draws", "4", "--device", "cpu"]
        assert small_maps.infer([*flags, "--output_dir", str(tmp_path)]) == 0
        assert (tmp_path / "reconstruction_magnetics_4x.tif").exists()
