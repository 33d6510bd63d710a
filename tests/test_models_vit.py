import json

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch.utils.flop_counter import FlopCounterMode

import models_vit_group_channels as models
from tests.test_model import SMALL, make_batch, make_model, wake
from util.checkpoints.encoder_weights import EncoderWeights, load_encoder

HEADS = pytest.mark.parametrize("head", ["linear", "upsample"])
KINDS = [
    {"kind": "dense", "head": "linear", "num_outputs": 3},
    {"kind": "dense", "head": "upsample", "num_outputs": 3, "head_width": 4, "scale": 2},
    {"kind": "classification", "num_classes": 5},
    {"kind": "classification", "num_classes": 5, "global_pool": False},
]
ALL_KINDS = pytest.mark.parametrize("kind", KINDS, ids=["linear", "upsample", "mean", "class_token"])


def make_predictor(head="upsample", **changes):
    torch.manual_seed(0)
    return models.GroupChannelsDensePredictor(**{**SMALL, "head": head, "head_width": 4, "num_outputs": 3, **changes})


def build(kind, **changes):
    torch.manual_seed(0)
    return models.build_finetune_model({**SMALL, **kind, **changes})


def batch(*, valid_share=1.0, n=2):
    images, valid, _ = make_batch(n=n, valid_share=valid_share, scales=(1,))
    return images[0], valid[0]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


# ---- shapes, order, validity


@HEADS
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_outputs_have_the_chosen_scale(head, scale):
    found = make_predictor(head, scale=scale)(*batch())
    assert found.shape == (2, 3, 16 * scale, 16 * scale) and found.dtype == torch.float32


@HEADS
@pytest.mark.parametrize("scale", [1, 4])
def test_what_lies_under_nodata_changes_no_output_and_no_gradient(head, scale):
    model = wake(make_predictor(head, scale=scale))
    images, valid = batch(valid_share=0.6)
    valid[0, :, :8] = False  # whole tokens too
    target = torch.randn(2, 3, 16 * scale, 16 * scale)
    reference = None
    for value in (0.0, -99999.0, 1e30, float("nan"), float("inf")):
        output = model(torch.where(valid, images, value), valid)
        found = [output, *gradients(model, (output - target).square().mean()).values()]
        assert all(tensor.isfinite().all() for tensor in found)
        reference = found if reference is None else reference
        assert all(torch.equal(a, b) for a, b in zip(reference, found, strict=True))


@HEADS
def test_permuting_channels_and_groups_together_changes_nothing(head):
    order = [1, 2, 0]  # channel i of the second model is channel order[i] of the first
    groups = tuple(tuple(order.index(c) for c in group) for group in SMALL["channel_groups"])
    first, second = wake(make_predictor(head)), make_predictor(head, channel_groups=groups)
    state = first.state_dict()
    if head == "upsample":  # features, then channels, then their validity
        weight = state["head.fuse.weight"]
        state["head.fuse.weight"] = torch.cat([weight[:, :4], weight[:, 4:7][:, order], weight[:, 7:][:, order]], dim=1)
    second.load_state_dict(state)
    images, valid = batch(valid_share=0.8)
    assert torch.allclose(first(images, valid), second(images[:, order], valid[:, order]), atol=1e-5)


@HEADS
def test_an_absent_group_contributes_nothing(head):
    model = wake(make_predictor(head))
    images, valid = batch()
    valid[:, 1] = False  # all of the second group
    before = model(images, valid)
    found = gradients(model, before.square().mean())["head.merge.linear.weight"]
    assert found[:, :24].abs().max() > 0 and found[:, 24:].abs().max() == 0
    with torch.no_grad():
        model.head.merge.linear.weight[:, 24:] += 1.0
    assert torch.equal(model(images, valid), before)


@HEADS
def test_where_nothing_is_valid_the_output_is_defined_and_the_same(head):
    model = wake(make_predictor(head)).eval()
    images, _ = batch()
    found = model(images, torch.zeros_like(images, dtype=torch.bool))
    assert found.isfinite().all() and torch.equal(found[0], found[1])
    if head == "linear":  # its bias alone, whatever the place
        bias = model.head.merge.linear.bias.view(3, 4, 4)
        assert torch.allclose(found[0, :, 4:8, 8:12], bias, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=["linear", "upsample", "mean", "class_token"])
def test_every_parameter_has_a_gradient(kind):
    model = wake(build(kind, drop_path=0.1))
    found = gradients(model, model(*batch()).square().sum())
    unused = {name for name, gradient in found.items() if gradient is None or not gradient.any()}
    assert unused <= {"nodata_token"}


# ---- tokens


@ALL_KINDS
def test_tokens_are_those_of_the_pretrained_encoder(kind):
    """After `norm` the two agree; under a mean over tokens that norm is not part of the model."""
    pretrained, model = wake(make_model()).eval(), build(kind).eval()
    report = load_encoder(model, weights_of(pretrained))
    images, valid = batch(valid_share=0.5)
    valid[0, :, :8] = False
    with torch.no_grad():
        expected, expected_valid = pretrained.forward_tokens(images, valid)
        found, found_valid = model.forward_tokens(images, valid)
        found = pretrained.norm(found) if kind.get("global_pool", True) and kind["kind"] != "dense" else found
    assert found.shape == (2, 2, 16, 24) and found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-6) and torch.equal(found_valid, expected_valid)
    assert len(report.loaded) == sum(not name.startswith(("head.", "fc_norm.", "channel_cls")) for name in names(model))


def names(model):
    return [name for name, _ in model.named_parameters()]


def weights_of(model):
    return EncoderWeights(None, model.state_dict(), model.config, {}, published=False)


def test_the_embedding_of_a_tile_is_the_mean_of_its_valid_tokens():
    model = wake(build(KINDS[2])).eval()
    images, valid = batch(valid_share=0.9)
    valid[0, :, :8] = False
    tokens, token_valid = model.forward_tokens(images, valid)
    means = torch.stack([sample[ok].mean(dim=0) for sample, ok in zip(tokens, token_valid, strict=True)])
    assert torch.allclose(model.forward_features(images, valid), model.fc_norm(means), atol=1e-5)


# ---- rate decay, freezing


@ALL_KINDS
def test_rates_decay_from_the_head_to_the_embeddings(kind):
    model = build(kind, depth=3)
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    name_of = {id(p): name for name, p in model.named_parameters()}
    found = {name_of[id(p)]: group for group in groups for p in group["params"]}
    assert set(found) == set(names(model))
    for name, group in found.items():
        layer = 4  # norm and head
        if name.startswith("blocks."):
            layer = 1 + int(name.split(".")[1])
        elif not name.startswith(("norm.", "fc_norm.", "head")):
            layer = 0
        assert group["lr_scale"] == 0.5 ** (4 - layer), name
        is_plain = name.endswith("bias") or "norm" in name or name.endswith(("_token", "_embed"))
        assert group["weight_decay"] == (0.0 if is_plain else 0.05), name
    coarse = model.group_matcher(coarse=True)
    assert coarse["blocks"] == "^blocks" and set(coarse) == {"stem", "blocks"}


@ALL_KINDS
def test_a_frozen_encoder_keeps_its_weights_and_skips_no_block(kind):
    model = wake(build(kind, drop_path=0.9, grad_checkpointing=True))
    models.freeze_encoder(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    images, valid = batch(valid_share=0.9)
    assert not model.blocks.training and not model.patch_embed.training and model.head.training
    assert torch.equal(model(images, valid), model(images, valid))  # no drop path
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    model(images, valid).square().mean().backward()
    optimizer.step()
    trained = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert trained == {name for name in before if name.startswith(("norm.", "fc_norm.", "head."))}
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)
    assert not model._encode(*model._prepare(images, valid), [])[0].requires_grad
    model.eval()
    assert not model.head.training


def test_drop_path_is_for_training_alone():
    model = wake(make_predictor(drop_path=0.5))
    images, valid = batch(n=16)
    assert not torch.equal(model.train()(images, valid), model(images, valid))
    assert torch.equal(model.eval()(images, valid), model(images, valid))


# ---- learning


@HEADS
def test_one_batch_of_classes_can_be_overfitted(head):
    model = make_predictor(head, depth=1, scale=2)
    images, valid = batch(n=1)
    classes = torch.randint(0, 3, (1, 4, 4), generator=torch.Generator().manual_seed(2))
    classes = classes.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)  # (1, 32, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images, valid), classes).backward()
        optimizer.step()
    assert (model(images, valid).argmax(dim=1) == classes).float().mean() > 0.97


@HEADS
def test_one_batch_of_values_can_be_overfitted(head):
    model = make_predictor(head, depth=1, num_outputs=1)
    images, valid = batch(n=1)
    target = images.cumsum(dim=3)[:, :1] / 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(images, valid) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# ---- precision, memory, compilation, cost


@HEADS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_with_extreme_inputs(head, dtype):
    model = wake(make_predictor(head, scale=2))
    images, valid = batch(valid_share=0.9)
    with torch.autocast("cpu", dtype=dtype):
        output = model(1e5 * images, valid)
        tokens, _ = model.forward_tokens(1e5 * images, valid)
    assert output.dtype == tokens.dtype == torch.float32
    found = [output, tokens, *gradients(model, output.square().mean()).values()]
    assert all(tensor.isfinite().all() for tensor in found)


@HEADS
def test_half_precision_is_near_full_precision(head):
    model, inputs = wake(make_predictor(head, scale=2)), batch(valid_share=0.9)
    full = model(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(*inputs)
    assert (half - full).abs().mean() < 0.02 * full.abs().mean()  # 8 bits, over a few layers


def test_attention_is_written_out_in_bfloat16_on_a_cpu(monkeypatch):
    model, (imgs, valid) = make_predictor(), batch()
    outputs = {}
    for most in (512, 4):  # 4: fewer than there are tokens
        monkeypatch.setattr(models, "MOST_EXPLICIT_TOKENS", most)
        with torch.autocast("cpu", torch.bfloat16):
            outputs[most] = model(imgs, valid)
        assert {block.attn.fused_attn for block in model.blocks} == {most == 4}
    torch.testing.assert_close(outputs[4], outputs[512], atol=0.02, rtol=0.02)
    monkeypatch.setattr(models, "MOST_EXPLICIT_TOKENS", 512)
    model(imgs, valid)
    assert all(block.attn.fused_attn for block in model.blocks), "full precision"
    model.fused_attention = False
    model(imgs, valid)
    assert not any(block.attn.fused_attn for block in model.blocks), "as asked for"


def test_checkpointing_gives_the_same_gradients():
    plain, saving = wake(make_predictor()), make_predictor(grad_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    a, b = [gradients(model, model(*batch()).square().mean()) for model in (plain, saving)]
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("frozen", [False, True])
@HEADS
def test_compiles_as_one_graph(head, frozen):
    model = wake(make_predictor(head, depth=1, scale=2))
    if frozen:
        models.freeze_encoder(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    images, valid = batch(valid_share=0.8)
    assert torch.allclose(compiled(images, valid), model(images, valid), atol=1e-6)


@pytest.mark.parametrize(("scale", "share"), [(1, 0.16), (2, 0.22), (4, 0.45)])
def test_the_upsampling_head_is_a_modest_share_of_the_smallest_encoder(scale, share):
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    with torch.device("meta"):
        model = models.build_finetune_model(
            {
                "kind": "dense",
                "size": "tiny",
                "in_chans": 8,
                "channel_groups": groups,
                "num_outputs": 10,
                "scale": scale,
            }
        )
        images = torch.empty(1, 8, 96, 96)
    flops = []
    for call in (model, model.forward_tokens):
        with FlopCounterMode(display=False) as counter:
            call(images)
        flops.append(counter.get_total_flops())
    assert 0 < flops[0] - flops[1] < share * flops[1]


# ---- building


@ALL_KINDS
def test_config_rebuilds_the_model_after_json(kind):
    model = wake(build(kind, drop_path=0.2)).eval()
    twin = models.build_finetune_model(json.loads(json.dumps(model.config))).eval()
    twin.load_state_dict(model.state_dict())
    images, valid = batch(valid_share=0.7)
    assert type(twin) is type(model) and twin.config == model.config and model.config["kind"] == kind["kind"]
    assert torch.equal(model(images, valid), twin(images, valid))


@pytest.mark.parametrize("name", list(models.MODEL_SIZES))
def test_sizes_are_those_of_pretraining(name):
    with torch.device("meta"):
        model = models.build_finetune_model({"kind": "dense", "size": name, "depth": 1, "num_outputs": 2})
    size = models.MODEL_SIZES[name]
    assert (model.config["embed_dim"], model.config["num_heads"]) == (size.embed_dim, size.num_heads)
    assert len(model.blocks) == model.config["depth"] == 1


def test_the_encoder_of_a_pretraining_config_can_be_built():
    pretrained = make_model()
    model = models.build_finetune_model({"kind": "dense", **models.encoder_arguments(pretrained.config)})
    encoder = [name for name in names(model) if not name.startswith(("head.", "channel_cls"))]
    assert all(model.state_dict()[name].shape == pretrained.state_dict()[name].shape for name in encoder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "detection"}, "kind of model 'detection': expected one of classification, dense"),
        ({}, "kind of model None"),
        ({"kind": "dense", "size": "huge"}, "model 'huge': expected one of tiny"),
        ({"kind": "dense", "head": "none"}, "head 'none': expected one of linear, upsample"),
        ({"kind": "dense", "scale": 3}, "scale 3 with head 'upsample'"),
        ({"kind": "dense", "channel_groups": [[0], [1]]}, r"missing \[2\]"),
    ],
)
def test_what_does_not_fit_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        models.build_finetune_model({**SMALL, **config})


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"imgs of shape \(1, 3, 8, 8\): expected \(N, 3, 16, 16\)"):
        make_predictor()(torch.zeros(1, 3, 8, 8))
