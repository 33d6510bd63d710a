"""Stems: tokens and dense heads see layers at their native pixels, and nothing leaks from where they must not look."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import models_vit_group_channels
from models_mae_group_channels import MaskedAutoencoderGroupChannelViT, build_model
from models_vit_group_channels import build_finetune_model, encoder_arguments
from util.model.native_stem import STEM_MAPS, NativeStem, StemPixels, compressed, maps_by_patch, patches_of
from util.model.patches import patchify, random_masking, visible_valid_counts

SIZE, PATCH = 16, 4
SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 2, "channel_embed": 8}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "decoder_channel_embed": 8}
GROUPS = {"channel_groups": ((2, 0), (1,), (3,)), "native_scales": (4, 2, 4, 1), "detail_scales": (0.5, 0.3, 0.0, 0.0)}
COMMON = {"img_size": SIZE, "patch_size": PATCH, "in_chans": 4, **SIZES, **GROUPS}


def make_mae(stem="native", **changes):
    torch.manual_seed(0)
    scored = {1: (0, 1, 2, 3), 2: (0, 1, 2), 4: (0, 2)}
    arguments = {**COMMON, **DECODER, "scored": scored, "scale_heads": "subpixel", "stem": stem, **changes}
    return MaskedAutoencoderGroupChannelViT(**arguments)


def make_dense(stem="native", **changes):
    torch.manual_seed(0)
    return build_finetune_model({"kind": "dense", "num_outputs": 3, **COMMON, "stem": stem, **changes})


def make_native(seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count, 2, 4 * SIZE, 4 * SIZE), (count, 1, 2 * SIZE, 2 * SIZE)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def make_inputs(count=2):
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(count, 4, s * SIZE, s * SIZE, generator=generator) for s in (1, 2, 4)]
    valid = [torch.ones_like(image, dtype=torch.bool) for image in images]
    return images, valid, torch.rand(count, 3 * (SIZE // PATCH) ** 2, generator=generator)


def forward(model, images, valid, noise, native, **more):
    return model(images[0], images[1:], valid=valid[0], valid_up=valid[1:], noise=noise, native=native, **more)


class TestStem:
    def test_compressed_values_keep_their_sign_and_order(self):
        x = torch.tensor([-1e5, -1.0, 0.0, 0.01, 1.0, 1e5])
        y = compressed(x)
        assert torch.equal(y.sign(), x.sign()) and (y.diff() > 0).all()
        assert y[-1] < 45 and float(y[3]) == pytest.approx(0.01, rel=0.01)

    def test_inputs_are_value_validity_and_detail(self):
        """A base pixel of 3 with native pixels 1, 5, 3 and an invalid one; the detail has a standard deviation of 2."""
        stem = NativeStem(scale=2, detail_scales=(2.0,))
        own = torch.tensor([[1.0, 5.0], [3.0, torch.nan]]).view(1, 1, 1, 2, 1, 2)
        base = torch.full((1, 1, 1, 1), 3.0)
        inputs = stem._describe(StemPixels(own, base, base > 0))
        value, valid, detail = (part.flatten() for part in inputs)
        assert torch.equal(value, compressed(torch.tensor([1.0, 5.0, 3.0, 0.0])))
        assert valid.tolist() == [1, 1, 1, 0]
        assert torch.equal(detail, compressed(torch.tensor([-1.0, 1.0, 0.0, 0.0])))

    def test_detail_is_given_for_values_alone(self):
        assert NativeStem(scale=2, detail_scales=(0.5, 0.0)).pixels.in_features == (2 * 2 + 1) * 4
        assert NativeStem(scale=1, detail_scales=(0.5, 0.0)).pixels.in_features == 2 * 2

    def test_patches_and_maps_are_sorted_as_images_are(self):
        image = torch.arange(2 * SIZE * 2 * SIZE, dtype=torch.float32).view(1, 1, 2 * SIZE, 2 * SIZE)
        base = torch.randn(1, 1, SIZE, SIZE)
        found = patches_of(image, base, base > -9, patch_size=PATCH, scale=2)
        own = found.own.flatten(0, 2).flatten(1, 2)  # (L, p, s, p, s)
        assert torch.equal(own.reshape(1, 1, -1, (2 * PATCH) ** 2), patchify(image, 2 * PATCH))
        assert torch.equal(found.base.flatten(0, 2).flatten(1), patchify(base, PATCH)[0, 0])
        maps = maps_by_patch(base.permute(0, 2, 3, 1), PATCH)  # as if the only map were the value
        assert torch.equal(maps.flatten(1), patchify(base, PATCH)[0, 0])

    def test_names_of_published_parameters_stay(self):
        with_stem, without = make_mae().state_dict(), make_mae("base").state_dict()
        assert {name for name in with_stem if not name.startswith("stems.")} == set(without)
        assert all(with_stem[name].shape == value.shape for name, value in without.items())


class TestTokens:
    @pytest.mark.parametrize("group", [0, 1])
    def test_pixels_of_a_patch_change_its_token_alone(self, group):
        model, (images, valid, _) = make_mae().eval(), make_inputs()
        native = make_native()
        scale = model.native_scales[group]
        row, col = 1, 2  # of the patch
        edge = PATCH * scale
        changed = [image.clone() for image in native]
        changed[group][0, 0, row * edge : (row + 1) * edge, col * edge : (col + 1) * edge] += 1.0
        tokens = []
        for own in (native, changed):
            found, token_valid = model.embed(images[0], valid[0])
            tokens.append(model.add_stems(found, token_valid, model.stem_maps(images[0], valid[0], own)))
        differs = (tokens[0] != tokens[1]).any(dim=-1)
        assert differs.nonzero().tolist() == [[0, group, row * (SIZE // PATCH) + col]]

    def test_visible_tokens_alone_are_computed_to_the_same_numbers(self):
        model, (images, valid, _) = make_mae().eval(), make_inputs()
        native = make_native()
        tokens, token_valid = model.embed(images[0], valid[0])
        whole = model.add_stems(tokens, token_valid, model.stem_maps(images[0], valid[0], native))
        seen = torch.rand(token_valid.shape, generator=torch.Generator().manual_seed(3)) < 0.4
        part = model.add_stems_where(tokens, seen, images[0], valid[0], native)
        assert torch.equal(part[~seen], tokens[~seen])
        # Sums of thousands of products in another order, which depends on the processor: float32 rounding.
        torch.testing.assert_close(part[seen], whole[seen], atol=1e-5, rtol=1e-5)

    def test_visible_patches_come_in_few_numbers(self, monkeypatch):
        """So that their memory is used again from update to update."""
        monkeypatch.setattr(models_vit_group_channels, "STEM_BATCH", 8)
        model, (images, valid, _) = make_mae(), make_inputs()
        tokens, _ = model.embed(images[0], valid[0])
        generator, counts, given = torch.Generator().manual_seed(0), set(), set()
        for stem in model.stems:
            stem.register_forward_pre_hook(lambda _, inputs: given.add(len(inputs[0].own)))
        for share in (0.0, 0.3, 0.4, 0.5, 0.6, 1.0):
            seen = torch.rand(tokens.shape[:3], generator=generator) < share
            counts.update(seen.sum(dim=(0, 2)).tolist())
            model.add_stems_where(tokens, seen, images[0], valid[0], make_native())
        assert given == {-(-count // 8) * 8 for count in counts} and len(given) < len(counts)

    def test_hidden_pixels_change_no_prediction(self):
        model, (images, valid, noise) = make_mae().eval(), make_inputs()
        native = make_native()
        before = forward(model, images, valid, noise, native, details=True)
        side = SIZE // PATCH
        changed = []
        for group, image in enumerate(native):
            edge = PATCH * model.native_scales[group]
            hidden = before.mask[:, group].view(-1, 1, side, side).repeat_interleave(edge, 2).repeat_interleave(edge, 3)
            changed.append(torch.where(hidden > 0, image + 7.0, image))
        after = forward(model, images, valid, noise, changed, details=True)
        assert torch.equal(before.pred, after.pred) and torch.equal(before.loss, after.loss)

    @pytest.mark.parametrize("scale", [1, 2, 4])
    def test_what_lies_under_nodata_changes_nothing(self, scale):
        """Native pixels where the base pixel is invalid, and targets of every scale."""
        model, (images, valid, noise) = make_mae(), make_inputs()
        generator = torch.Generator().manual_seed(4)
        valid = [torch.rand(v.shape, generator=generator) < 0.7 for v in valid]
        results = []
        for value in (0.0, -99999.0, torch.inf):
            native = make_native()
            for image, group in zip(native, ((2, 0), (1,)), strict=True):
                factor = image.shape[-1] // SIZE
                gone = ~valid[0][:, list(group)].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
                image[gone] = value
            level = (1, 2, 4).index(scale)
            filled = list(images)
            filled[level] = torch.where(valid[level], images[level], torch.tensor(value))
            model.zero_grad()
            out = forward(model, filled, valid, noise, native, details=True)
            (out.loss + out.ms_loss).backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            results.append([out.loss, out.ms_loss, out.pred, out.error_sums, *gradients])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_finer_scales_are_scored_in_hidden_tokens_alone(self):
        model, (images, valid, noise) = make_mae(), make_inputs()
        out = forward(model, images, valid, noise, make_native(), details=True)
        hidden = out.mask.sum(dim=2).sum(dim=0)  # (G,)
        group_of = [0, 1, 0, 2]
        for level, scale in enumerate((1, 2, 4)):
            for layer in range(4):
                scored = layer in model.scored[scale]
                expected = float(hidden[group_of[layer]]) * (PATCH * scale) ** 2 if scored else 0.0
                assert float(out.error_counts[level, layer]) == expected
        base = make_mae("base")
        counts = forward(base, images, valid, noise, None, details=True).error_counts
        assert float(counts[1, 0]) == 2 * (2 * SIZE) ** 2

    def test_a_linear_encoder_would_not_see_roughness(self):
        """Native pixels of the same mean, rough and smooth, give different tokens."""
        model, (images, valid, _) = make_mae().eval(), make_inputs()
        smooth = [torch.zeros_like(image) for image in make_native()]
        rough = [image.clone() for image in smooth]
        rough[0][:, :, ::2, ::2], rough[0][:, :, 1::2, ::2] = 1.0, -1.0
        flat = torch.zeros_like(images[0])
        first, second = (model.forward_tokens(flat, valid[0], own)[0] for own in (smooth, rough))
        assert not torch.allclose(first, second)


class TestMasks:
    @pytest.mark.parametrize("spatial", [False, True])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
    def test_a_fraction_of_the_valid_tokens_is_removed(self, spatial, share):
        generator = torch.Generator().manual_seed(0)
        token_valid = torch.rand(8, 3, 16, generator=generator) <= share
        if spatial:
            token_valid = token_valid[:, :1].expand(8, 3, 16).contiguous()
        positions = 16 if spatial else 48
        keep = positions // 4
        noise = torch.rand(8, positions, generator=generator)
        counts = visible_valid_counts(token_valid, 0.75, keep=keep, spatial=spatial)
        ids_keep, ids_restore, mask = random_masking(
            noise, keep=keep, token_valid=token_valid, spatial=spatial, keep_valid=counts
        )
        assert ids_keep.shape == (8, keep * (3 if spatial else 1))
        assert torch.equal(ids_restore.sort(dim=1).values, torch.arange(48).expand(8, 48))
        visible = (token_valid & (mask == 0))[:, 0].sum(1) if spatial else (token_valid & (mask == 0)).sum((1, 2))
        valid = token_valid[:, 0].sum(1) if spatial else token_valid.sum((1, 2))
        assert torch.equal(visible, torch.where(valid > 0, (valid // 4).clamp_min(1), 0))

    def test_where_all_is_valid_nothing_changes(self):
        token_valid, noise = torch.ones(4, 2, 16, dtype=torch.bool), torch.rand(4, 32)
        counts = visible_valid_counts(token_valid, 0.7, keep=int(32 * (1 - 0.7)), spatial=False)
        arguments = {"keep": int(32 * (1 - 0.7)), "token_valid": token_valid, "spatial": False}
        plain, counted = random_masking(noise, **arguments), random_masking(noise, **arguments, keep_valid=counts)
        assert all(torch.equal(a, b) for a, b in zip(plain, counted, strict=True))


class TestDenseHead:
    @pytest.mark.parametrize("scale", [1, 2, 4])
    @pytest.mark.parametrize("head", ["upsample", "linear"])
    def test_every_stem_predicts_at_every_scale(self, scale, head):
        images, valid, _ = make_inputs()
        for stem in ("native", "tokens", "head", "base"):
            model = make_dense(stem, scale=scale, head=head)
            out = model(images[0], valid[0], None if stem == "base" else make_native())
            assert out.shape == (2, 3, scale * SIZE, scale * SIZE) and out.isfinite().all()

    @pytest.mark.parametrize(("stem", "sees"), [("native", True), ("tokens", True), ("head", True), ("base", False)])
    def test_what_sees_own_pixels(self, stem, sees):
        model, (images, valid, _) = make_dense(stem).eval(), make_inputs()
        outputs = [model(images[0], valid[0], make_native(seed) if sees else None) for seed in (0, 1)]
        assert torch.equal(*outputs) != sees

    @pytest.mark.parametrize("scale", [2, 4])
    def test_own_pixels_reach_the_pixel_that_holds_them(self, scale):
        """At the scale of the head: the refined features differ only around the changed own pixel."""
        model, (images, valid, _) = make_dense("head", scale=scale), make_inputs(1)
        nn.init.normal_(model.head.detail_out.weight)
        native = make_native(count=1)
        changed = [image.clone() for image in native]
        changed[0][0, 0, 20, 40] += 3.0
        fine = [
            model.head.fine_stems[0](own[0], images[0][:, [2, 0]], valid[0][:, [2, 0]]) for own in (native, changed)
        ]
        where = (fine[0] != fine[1]).any(dim=1)[0].nonzero().tolist()
        assert where == [[20 * scale // 4, 40 * scale // 4]]

    @pytest.mark.parametrize("value", [-99999.0, torch.inf])
    def test_what_lies_under_nodata_changes_nothing(self, value):
        model, (images, valid, _) = make_dense(scale=4), make_inputs()
        valid = torch.rand(valid[0].shape, generator=torch.Generator().manual_seed(5)) < 0.6
        outputs = []
        for filling in (0.0, value):
            native = make_native()
            for image, group in zip(native, ((2, 0), (1,)), strict=True):
                factor = image.shape[-1] // SIZE
                image[~valid[:, list(group)].repeat_interleave(factor, 2).repeat_interleave(factor, 3)] = filling
            outputs.append(model(torch.where(valid, images[0], torch.tensor(filling)), valid, native))
        assert torch.equal(*outputs)

    def test_the_encoder_of_pretraining_gives_the_same_tokens(self):
        mae, (images, valid, _) = make_mae().eval(), make_inputs()
        dense = build_finetune_model({"kind": "dense", "num_outputs": 3, **encoder_arguments(mae.config)}).eval()
        own = dense.state_dict()
        dense.load_state_dict({**own, **{k: v for k, v in mae.state_dict().items() if k in own and "head" not in k}})
        found = [model.forward_tokens(images[0], valid[0], make_native())[0] for model in (mae, dense)]
        torch.testing.assert_close(*found)

    def test_classification(self):
        torch.manual_seed(0)
        model = build_finetune_model({"kind": "classification", "num_classes": 5, **COMMON, "stem": "native"}).eval()
        images, valid, _ = make_inputs()
        outputs = [model(images[0], valid[0], make_native(seed)) for seed in (0, 1)]
        assert outputs[0].shape == (2, 5) and not torch.equal(*outputs)


class TestWeights:
    def test_weights_without_stems_mean_the_same(self):
        """Published weights load strictly, and the stems begin by adding nothing."""
        base, native = make_mae("base").eval(), make_mae("native", depth=2).eval()
        native.load_state_dict(base.state_dict(), strict=True)
        images, valid, noise = make_inputs()
        found = forward(native, images, valid, noise, make_native())
        expected = forward(base, images, valid, noise, None)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])

    def test_config_rebuilds_the_model_after_json(self):
        model = make_mae()
        again = MaskedAutoencoderGroupChannelViT(**json.loads(json.dumps(model.config)))
        again.load_state_dict(model.state_dict())
        images, valid, noise = make_inputs()
        results = [forward(m.eval(), images, valid, noise, make_native())[0] for m in (model, again)]
        assert torch.equal(*results)

    def test_older_configs_have_no_stem(self):
        config = {k: v for k, v in make_mae("base").config.items() if k not in ("stem", *GROUPS)}
        config |= {"channel_groups": GROUPS["channel_groups"]}
        assert not MaskedAutoencoderGroupChannelViT(**config).stems
        assert "stem" not in encoder_arguments(config)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_finite_with_extreme_values(self, dtype):
        model, (images, valid, noise) = make_mae(), make_inputs()
        native = [image * 1e5 for image in make_native()]
        with torch.autocast("cpu", dtype=dtype):
            loss = forward(model, images, valid, noise, native)[0]
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    def test_compiles_as_one_graph_whatever_is_valid(self):
        model, graphs = make_mae(), []

        def counting(graph, _):
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(model, backend=counting, fullgraph=True)
        images, valid, noise = make_inputs()
        plain = forward(model, images, valid, noise, make_native())[0]
        torch.testing.assert_close(forward(compiled, images, valid, noise, make_native())[0], plain)
        for share in (0.9, 0.3):
            ragged = [torch.rand_like(image) < share for image in images]
            forward(compiled, images, ragged, noise, make_native())
        assert len(graphs) == 1


class TestErrors:
    def test_missing_or_wrong_native_images(self):
        model, (images, valid, noise) = make_mae(), make_inputs()
        for native in (None, make_native()[:1], [image[:, :, :-1] for image in make_native()]):
            with pytest.raises(ValueError, match=r"native images of shapes .*: expected \[\(2, 2, 64, 64\)"):
                forward(model, images, valid, noise, native)

    def test_unknown_stem(self):
        with pytest.raises(ValueError, match="stem 'fine': expected one of native, base, tokens, head"):
            make_mae("fine")

    @pytest.mark.parametrize(
        "changes", [{"native_scales": (4, 2)}, {"native_scales": None}, {"detail_scales": (-1,) * 4}]
    )
    def test_scales_that_do_not_fit(self, changes):
        with pytest.raises(ValueError, match="expected for each of 4 channels"):
            make_mae(**changes)


def test_one_stem_for_each_group():
    model = build_model("tiny", **{**COMMON, "stem": "native", **{k: v for k, v in DECODER.items()}} | SIZES)
    assert [stem.scale for stem in model.stems] == [4, 2, 1]
    assert model.native_shapes == [(2, 64), (1, 32)]
    assert make_dense().head.fuse.in_channels == 16 + 2 * 4 + 3 * STEM_MAPS
    assert np.prod(model.stems[0].proj.weight.shape) == PATCH**2 * STEM_MAPS * 24
