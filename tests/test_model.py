import json
from functools import partial

import pytest
import torch
from torch import nn

import models_mae_group_channels
from models_mae_group_channels import (
    MODEL_SIZES,
    GroupChannelsVisionTransformer,
    MaskedAutoencoderGroupChannelViT,
    build_model,
    check_partition,
)
from util.model.patches import patchify, unpatchify

SMALL = {
    "img_size": 16,
    "patch_size": 4,
    "in_chans": 3,
    "channel_groups": ((2, 0), (1,)),
    "channel_embed": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
}
DECODER = {
    "decoder_channel_embed": 4,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
HEADS = pytest.mark.parametrize("heads", ["shared", "subpixel"])


def make_model(**changes):
    torch.manual_seed(0)
    return MaskedAutoencoderGroupChannelViT(**{**SMALL, **DECODER, **changes})


def wake(model):
    """Give random values to what starts at zero, so that every parameter matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def make_batch(*, n=2, valid_share=1.0, scales=(1, 2, 4), channels=3, size=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(n, channels, size * s, size * s, generator=generator) for s in scales]
    valid = [torch.rand(image.shape, generator=generator) < valid_share for image in images]
    noise = torch.rand(n, 32, generator=generator)
    return images, valid, noise


def run(model, images, valid, noise, **options):
    return model(images[0], images[1:], valid=valid[0], valid_up=valid[1:], noise=noise, **options)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def total(result):
    return 0.6 * result[0] + 0.4 * result[1]


# ---- results on paper


def test_base_loss_compares_each_channel_with_itself_under_the_mask_of_its_group():
    model, (images, valid, noise) = wake(make_model()), make_batch()
    loss, _, pred, mask = run(model, images, valid, noise)
    target = patchify(images[0], 4)
    group_of = {2: 0, 0: 0, 1: 1}
    samples = []
    for n in range(2):
        pairs = []
        for group, channels in enumerate(((2, 0), (1,))):
            for patch in range(16):
                if mask[n, group, patch]:
                    assert all(group_of[c] == group for c in channels)
                    errors = [(pred[n, c, patch] - target[n, c, patch]).square().mean() for c in channels]
                    pairs.append(sum(errors) / len(errors))
        samples.append(sum(pairs) / len(pairs))
    assert loss.item() == pytest.approx((sum(samples) / 2).item(), rel=1e-5)


def test_mask_keeps_the_smallest_noise_and_the_published_number():
    model, (images, valid, noise) = make_model(), make_batch()
    mask = run(model, images, valid, noise)[3]
    assert mask.shape == (2, 2, 16)
    visible = noise.argsort(dim=1)[:, :8]
    assert torch.equal((mask.flatten(1) == 0).nonzero()[:, 1].view(2, 8), visible.sort(dim=1).values)
    assert run(model, images, valid, noise, mask_ratio=0.4)[3].sum().item() == 2 * (32 - int(32 * 0.6))


def test_spatial_mask_is_the_same_in_all_groups():
    model, (images, valid, _) = make_model(spatial_mask=True), make_batch()
    mask = run(model, images, valid, torch.rand(2, 16))[3]
    assert torch.equal(mask[:, 0], mask[:, 1]) and mask.sum().item() == 2 * 2 * 12


def test_details_hold_images_and_sums_of_errors_by_channel():
    scored = {1: [0, 1, 2], 2: [0, 2], 4: []}
    model = wake(make_model(scored=scored, scale_heads="subpixel"))
    images, valid, noise = make_batch(valid_share=0.7)
    result = run(model, images, valid, noise, details=True)
    plain = run(model, images, valid, noise)
    assert all(torch.equal(a, b) for a, b in zip(plain, result, strict=False))
    assert set(result.images) == {1, 2} and torch.equal(result.images[1], unpatchify(result.pred, 4))
    removed = result.mask[:, [0, 1, 0]].unsqueeze(-1).expand(-1, -1, -1, 16)
    counted = unpatchify(removed, 4).bool() & valid[0]
    base = torch.where(counted, result.images[1] - images[0], 0).square().sum(dim=(0, 2, 3))
    finer = torch.where(valid[1], result.images[2] - images[1], 0).abs().sum(dim=(0, 2, 3))
    assert torch.allclose(result.error_sums[0], base, rtol=1e-5)
    assert torch.allclose(result.error_sums[1], finer * torch.tensor([1, 0, 1]), rtol=1e-5)
    assert torch.equal(result.error_sums[2], torch.zeros(3))
    assert torch.equal(result.error_counts[0], counted.sum(dim=(0, 2, 3)).float())
    assert result.error_counts[1].tolist() == [valid[1][:, 0].sum().item(), 0, valid[1][:, 2].sum().item()]
    assert not result.error_sums.requires_grad


def test_light_heads_start_as_interpolation_of_what_is_visible_and_what_is_predicted():
    model, (images, valid, noise) = make_model(scale_heads="subpixel"), make_batch(valid_share=0.8)
    result = run(model, images, valid, noise, details=True)
    visible = unpatchify((result.mask[:, [0, 1, 0]] == 0).unsqueeze(-1).expand(-1, -1, -1, 16), 4) & valid[0]
    base = torch.where(visible, images[0], result.images[1])
    assert torch.allclose(torch.nn.functional.avg_pool2d(result.images[4], 4), base, atol=1e-5)
    assert torch.allclose(torch.nn.functional.avg_pool2d(result.images[2], 2), base, atol=1e-5)


# ---- order of channels and groups


@HEADS
def test_permuting_channels_and_groups_together_permutes_the_output(heads):
    order = [1, 2, 0]  # channel i of the second model is channel order[i] of the first
    place = [order.index(c) for c in range(3)]
    groups = tuple(tuple(place[c] for c in group) for group in SMALL["channel_groups"])
    scored = {1: [0, 1, 2], 2: [0, 1], 4: [0]}
    first = wake(make_model(scale_heads=heads, scored=scored))
    second = make_model(
        scale_heads=heads,
        channel_groups=groups,
        scored={s: [place[c] for c in channels] for s, channels in scored.items()},
    )
    state = first.state_dict()
    for name, value in state.items():
        if name.startswith("proj_up_conv.weight"):
            state[name] = value[:, order]
        elif "proj_out" in name:
            state[name] = value[order]
        elif name.endswith("_taps"):
            scale = int(name.split(".")[1])
            channels = [c for c in order if c in first.plan[scale][scale]]
            taps = dict(zip(sorted(channels), value, strict=True))
            state[name] = torch.stack([taps[c] for c in channels])
        elif "amplitudes" in name:  # the channels of a group keep their order in it
            assert value.shape == second.state_dict()[name].shape
    second.load_state_dict(state)
    images, valid, noise = make_batch(valid_share=0.8)
    a = run(first, images, valid, noise, details=True)
    b = run(second, [x[:, order] for x in images], [v[:, order] for v in valid], noise, details=True)
    assert torch.allclose(a.pred[:, order], b.pred, atol=1e-5) and torch.equal(a.mask, b.mask)
    assert torch.allclose(a.loss, b.loss, rtol=1e-5) and torch.allclose(a.ms_loss, b.ms_loss, rtol=1e-5)
    for s in a.images:
        assert torch.allclose(a.images[s][:, order], b.images[s], atol=1e-5)
    assert torch.allclose(a.error_sums[:, order], b.error_sums, rtol=1e-4)


# ---- validity


@HEADS
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_what_is_stored_under_nodata_changes_nothing(heads, norm_pix_loss):
    model = wake(make_model(scale_heads=heads, norm_pix_loss=norm_pix_loss))
    images, valid, noise = make_batch(valid_share=0.6)
    valid[0][0, :, :8] = False  # whole tokens too
    reference = None
    for value in (0.0, -99999.0, 1e30, float("nan"), float("inf")):
        filled = [torch.where(v, x, torch.tensor(value)) for x, v in zip(images, valid, strict=True)]
        result = run(model, filled, valid, noise, details=True)
        found = [result.loss, result.ms_loss, result.pred, result.error_sums, *result.images.values()]
        found += gradients(model, total(result)).values()
        assert all(tensor.isfinite().all() for tensor in found)
        reference = found if reference is None else reference
        assert all(torch.equal(a, b) for a, b in zip(reference, found, strict=True))


def test_tokens_without_valid_pixels_are_not_scored():
    model = wake(make_model())
    images, valid, noise = make_batch()
    valid[0][:, :, :8] = False  # half of the locations, in all groups
    loss, _, pred, mask = run(model, images, valid, noise)
    upper, lower = mask.view(2, 2, 2, 8).unbind(2)
    assert (lower.sum(dim=(1, 2)) == 12).all()  # of 16 valid tokens three quarters are removed
    assert (upper.sum(dim=(1, 2)) == 12).all()  # and the places that are left are those of tokens without valid pixels
    moved = pred.detach().clone()
    moved[:, :, :8] += 100.0
    grad = torch.autograd.grad(loss, pred)[0]
    assert grad[:, :, :8].abs().max() == 0 and grad[:, :, 8:].abs().max() > 0


def test_nodata_token_stands_in_where_valid_tokens_run_out():
    model, (images, valid, noise) = wake(make_model()), make_batch()
    full = gradients(model, run(model, images, valid, noise)[0])["nodata_token"]
    assert torch.equal(full, torch.zeros_like(full))
    for v in valid:
        v[:, :, v.shape[2] // 8 :] = False  # 2 of 16 rows: 8 valid tokens at most
    valid[0][:, 1] = False  # 4 of them left, of 8 visible ones
    some = gradients(model, total(run(model, images, valid, noise)))["nodata_token"]
    assert some.abs().max() > 0


@HEADS
def test_nothing_valid_gives_zero_losses_and_zero_gradients(heads):
    model, (images, valid, noise) = wake(make_model(scale_heads=heads)), make_batch(valid_share=0.0)
    result = run(model, images, valid, noise)
    found = gradients(model, total(result))
    assert result[0].item() == 0 and result[1].item() == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found.values())


def test_loss_is_the_mean_over_micro_batches():
    model, (images, valid, noise) = wake(make_model()), make_batch(n=4, valid_share=0.3)
    valid[0][1] = False
    whole = run(model, images, valid, noise)
    parts = [
        run(model, [x[i : i + 2] for x in images], [v[i : i + 2] for v in valid], noise[i : i + 2]) for i in (0, 2)
    ]
    for k in (0, 1):
        assert whole[k].item() == pytest.approx((parts[0][k] + parts[1][k]).item() / 2, rel=1e-5)


# ---- scores and heads


@HEADS
def test_a_scale_at_which_nothing_is_scored_has_no_head(heads):
    with_two = make_model(scale_heads=heads, scored={1: [0, 1, 2], 2: [1]})
    names = [name for name, _ in with_two.named_parameters()]
    assert not [n for n in names if n.startswith(("up_block2", "subpixel_heads.4"))]
    images, valid, noise = make_batch()
    result = with_two(images[0], [images[1], None], noise=noise, details=True)
    assert set(result.images) == {1, 2}
    assert result.images[2][:, [0, 2]].abs().max() == 0 and result.images[2][:, 1].abs().max() > 0
    base_only = make_model(scale_heads=heads, scales=(1,))
    assert not [n for n, _ in base_only.named_parameters() if n.startswith(("up_", "proj_up", "subpixel"))]
    loss, ms_loss, _, _ = base_only(images[0], [], noise=noise)
    assert loss.item() > 0 and ms_loss.item() == 0


@HEADS
def test_targets_of_channels_that_are_not_scored_do_not_matter(heads):
    scored = {"1": [0, 1], "2": [0, 1], "4": [1]}
    model, (images, valid, noise) = wake(make_model(scale_heads=heads, scored=scored)), make_batch()
    before = run(model, images, valid, noise)
    changed = [images[0], images[1].clone(), images[2].clone()]
    changed[1][:, 2] += 5.0
    changed[2][:, [0, 2]] -= 5.0
    after = run(model, changed, valid, noise)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    changed[2][:, 1] += 5.0
    assert not torch.equal(before[1], run(model, changed, valid, noise)[1])


def test_published_heads_reach_any_power_of_two():
    model = make_model(scales=(1, 2, 8), in_chans=1, channel_groups=((0,),), proj_ratio=2)
    assert model.up_block2.proj_out is None and model.up_block3.proj_out is not None
    images = [torch.randn(1, 1, 16 * s, 16 * s) for s in (1, 2, 8)]
    result = model(images[0], images[1:], details=True)
    assert result.images[8].shape == (1, 1, 128, 128) and set(result.images) == {1, 2, 8}


def test_channel_weights_leave_out_and_weigh_channels():
    images, valid, noise = make_batch()
    without = wake(make_model(channel_weights=[1, 0, 1]))
    loss, ms_loss, pred, _ = run(without, images, valid, noise)
    changed = [x.clone() for x in images]
    for x in changed[1:]:
        x[:, 1] += 3.0
    assert torch.equal(run(without, changed, valid, noise)[1], ms_loss)
    assert torch.autograd.grad(loss, pred)[0][:, 1].abs().max() == 0


@HEADS
def test_every_parameter_has_a_gradient(heads):
    model = wake(make_model(scale_heads=heads, scored={1: [0], 2: [0, 1], 4: [1]}))
    found = gradients(model, total(run(model, *make_batch())))
    assert not [name for name, gradient in found.items() if gradient is None]
    # Only the no-data token, and predictions of channels not scored at the base scale, may have zeros.
    unused = {name for name, gradient in found.items() if gradient.abs().max() == 0}
    assert unused <= {"nodata_token"}


def test_normalised_targets_do_not_depend_on_units():
    model = wake(make_model(norm_pix_loss=True))
    images, valid, noise = make_batch(valid_share=0.8)
    _, _, pred, mask = run(model, images, valid, noise)
    model.eval()
    result = run(model, images, valid, noise, details=True)
    target, ok = patchify(images[0], 4), patchify(valid[0], 4)
    count = ok.sum(-1, keepdim=True)
    mean = (target * ok).sum(-1, keepdim=True) / count
    spread = (((target - mean).square() * ok).sum(-1, keepdim=True) / count + 1e-6).sqrt()
    assert torch.allclose(result.images[1], unpatchify(pred * spread + mean, 4), atol=1e-5)
    removed = mask[:, [0, 1, 0]].unsqueeze(-1) * ok
    expected = ((pred - (target - mean) / spread).square() * removed).sum(dim=(0, 2, 3))
    assert torch.allclose(result.error_sums[0], expected, rtol=1e-4)


# ---- precision, memory, compilation


@HEADS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_with_extreme_inputs(heads, dtype):
    model = wake(make_model(scale_heads=heads))
    images, valid, noise = make_batch(valid_share=0.9)
    images = [1e5 * image for image in images]
    with torch.autocast("cpu", dtype=dtype):
        result = run(model, images, valid, noise)
    assert result[0].dtype == result[1].dtype == result[2].dtype == torch.float32
    found = gradients(model, total(result))
    assert all(t.isfinite().all() for t in [*result, *found.values()])


@HEADS
def test_half_precision_is_near_full_precision(heads):
    model, (images, valid, noise) = wake(make_model(scale_heads=heads)), make_batch()
    full = run(model, images, valid, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(model, images, valid, noise)
    for k in (0, 1):  # bfloat16 has 8 bits: 2^-8 relative, over a few layers
        assert half[k].item() == pytest.approx(full[k].item(), rel=0.02)


def test_checkpointing_gives_the_same_gradients():
    plain, (images, valid, noise) = wake(make_model()), make_batch()
    saving = make_model(grad_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    a = gradients(plain, total(run(plain, images, valid, noise)))
    b = gradients(saving, total(run(saving, images, valid, noise)))
    assert all(torch.equal(a[name], b[name]) for name in a)


@HEADS
def test_compiles_as_one_graph(heads):
    model, (images, valid, noise) = wake(make_model(scale_heads=heads, depth=1)), make_batch(valid_share=0.8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for a, b in zip(run(model, images, valid, noise), run(compiled, images, valid, noise, details=False), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@HEADS
def test_one_batch_can_be_overfitted(heads):
    model = make_model(scale_heads=heads, depth=1)
    images, valid, noise = make_batch(n=1)
    images[1] = images[2].unflatten(3, (-1, 2)).mean(4).unflatten(2, (-1, 2)).mean(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        loss, ms_loss, _, _ = run(model, images, valid, noise)
        (0.6 * loss + 0.4 * ms_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_noise_is_drawn_when_it_is_not_given():
    model, (images, _, _) = make_model(), make_batch()
    torch.manual_seed(3)
    first = model(images[0], images[1:])
    noise = torch.manual_seed(3) and torch.rand(2, 32)
    assert torch.equal(model(images[0], images[1:], noise=noise)[3], first[3])


# ---- building, loading


def test_config_rebuilds_the_model_after_json():
    model = make_model(scored={1: [0, 1, 2], 4: [1]}, scale_heads="subpixel", channel_weights=[1, 2, 0.5])
    twin = MaskedAutoencoderGroupChannelViT(**json.loads(json.dumps(model.config)))
    twin.load_state_dict(model.state_dict())
    images, valid, noise = make_batch()
    a, b = run(model, images, valid, noise), run(twin, images, valid, noise)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) and twin.config == model.config


@pytest.mark.parametrize("name", list(MODEL_SIZES))
def test_sizes_have_names(name):
    with torch.device("meta"):
        model = build_model(name, in_chans=2, channel_groups=((0,), (1,)))
        same = getattr(models_mae_group_channels, f"mae_vit_{name}_patch16")(in_chans=2, channel_groups=((0,), (1,)))
        other = build_model(f"mae_vit_{name}_patch16", in_chans=2, channel_groups=((0,), (1,)), depth=1)
    assert model.config == same.config and len(other.blocks) == 1
    assert model.config["patch_size"] == 8 and model.config["scale_heads"] == "shared"


def test_weights_without_the_nodata_token_load_strictly():
    model = make_model()
    state = make_model().state_dict()
    del state["nodata_token"]
    before = model.nodata_token.detach().clone()
    model.load_state_dict(state, strict=True)
    assert torch.equal(model.nodata_token, before) and "nodata_token" not in state


def test_embeddings_are_fixed_in_pretraining_and_trained_in_fine_tuning():
    fixed = {name for name, p in make_model().named_parameters() if not p.requires_grad}
    assert fixed == {"pos_embed", "channel_embed", "decoder_pos_embed", "decoder_channel_embed"}
    assert all(p.requires_grad for p in make_classifier().parameters())


# ---- the encoder for fine-tuning


def make_classifier(**changes):
    torch.manual_seed(0)
    return GroupChannelsVisionTransformer(**{**SMALL, "num_classes": 5, **changes})


def test_encoder_weights_move_from_pretraining_to_fine_tuning():
    pretrained, model = wake(make_model()), make_classifier()
    missing, unexpected = model.load_state_dict(pretrained.state_dict(), strict=False)
    assert set(missing) == {"channel_cls_embed", "fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    prefixes = ("decoder_", "mask_token", "norm.", "proj_up", "up_block")
    assert all(name.startswith(prefixes) for name in unexpected)


@pytest.mark.parametrize("global_pool", [True, False])
def test_embedding_does_not_depend_on_what_is_under_nodata(global_pool):
    model = make_classifier(global_pool=global_pool).eval()
    images, valid, _ = make_batch(valid_share=0.5)
    valid[0][0, :, :8] = False
    found = [model.forward_features(torch.where(valid[0], images[0], v), valid[0]) for v in (0.0, torch.nan)]
    assert found[0].shape == (2, 24) and torch.equal(found[0], found[1])
    assert model(images[0]).shape == (2, 5)


def test_embedding_is_the_mean_over_tokens_with_valid_pixels():
    model = make_classifier(norm_layer=lambda width, **_: nn.Identity()).eval()
    images, valid, _ = make_batch()
    valid[0][:, :, :8] = False
    tokens = []
    model.blocks[-1].register_forward_hook(lambda module, given, output: tokens.append(output))
    found = model.forward_features(images[0], valid[0])
    kept = tokens[0][:, 1:].unflatten(1, (2, 16))[:, :, 8:]
    assert torch.allclose(found, kept.mean(dim=(1, 2)), atol=1e-5)
    assert model.forward_features(images[0], torch.zeros_like(valid[0])).abs().max() == 0


def test_fine_tuning_uses_every_parameter():
    model = make_classifier(drop_path=0.1)
    model(make_batch()[0][0]).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_groups": ((0,), (1,))}, r"missing \[2\]; expected each of channels 0 to 2"),
        ({"channel_groups": ((0, 1), (1, 2))}, r"more than once \[1\]"),
        ({"channel_groups": ((0, 1, 2), (3,))}, r"out of range \[3\]"),
        ({"channel_groups": ((0, 1, 2), ())}, r"empty groups \[1\]"),
        ({"img_size": 18}, "img_size 18: expected a multiple of patch_size 4"),
        ({"embed_dim": 25}, "width 25 with 2 heads"),
        ({"channel_embed": 7}, "7 for the channel embedding"),
        ({"decoder_channel_embed": 16}, "width 16 with 2 heads"),
        ({"scales": (2, 4)}, r"scales \(2, 4\): expected 1 followed by increasing whole numbers"),
        ({"scales": (1, 4, 2)}, r"scales \(1, 4, 2\): expected 1 followed by"),
        ({"scales": (1, 3)}, r"\[3\] are not powers of two; .* scale_heads 'subpixel'"),
        ({"scored": {1: [0], 3: [0]}}, r"scored channels \[0\] at scale 3: expected scales from \(1, 2, 4\)"),
        ({"scored": {1: [0, 5]}}, r"scored channels \[0, 5\] at scale 1"),
        ({"scored": {2: [0]}}, "no channel is scored at scale 1"),
        ({"scale_heads": "none"}, "scale_heads 'none': expected one of subpixel, shared"),
        ({"channel_weights": [1, 1]}, "expected 3 numbers"),
        ({"channel_weights": [1, 1, -1]}, "expected 3 numbers >= 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model(**changes)


def test_inputs_that_do_not_fit_are_refused():
    model, (images, valid, noise) = make_model(scored={1: [0, 1, 2], 2: [0]}), make_batch()
    call = partial(model, images[0], images[1:])
    with pytest.raises(ValueError, match=r"imgs of shape \(2, 2, 16, 16\): expected \(N, 3, 16, 16\)"):
        model(images[0][:, :2], images[1:])
    with pytest.raises(ValueError, match=r"target of scale 2 of shape .* expected \(N, 3, 32, 32\)"):
        model(images[0], [images[2], images[1]])
    with pytest.raises(ValueError, match=r"1 finer targets and 2 validity masks: expected 2"):
        model(images[0], images[1:2])
    with pytest.raises(ValueError, match=r"target of scale 2 is None, but channels \(0,\) are scored"):
        model(images[0], [None, None])
    with pytest.raises(ValueError, match=r"validity of imgs .* torch.float32: expected bool"):
        call(valid=valid[0].float())
    with pytest.raises(ValueError, match=r"validity of target of scale 2"):
        call(valid_up=[valid[2], valid[1]])
    with pytest.raises(ValueError, match=r"noise of shape \(2, 16\): expected \(2, 32\)"):
        call(noise=noise[:, :16])
    with pytest.raises(ValueError, match="mask_ratio 0.99 leaves 0 of 32 positions visible"):
        call(mask_ratio=0.99)
    with pytest.raises(ValueError, match="mask_ratio -1 leaves 64 of 32"):
        call(mask_ratio=-1)


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="model 'huge': expected one of tiny, small, base, large"):
        build_model("huge")


def test_partition_of_any_order_is_kept():
    assert check_partition([[2], [0, 1]], 3) == ((2,), (0, 1))
