"""Agreement with numbers computed with the published SatMAE++ model; see the tolerances below.

The large files are read from $GRIDMAE_REFERENCE_DIR/parity; the small one lies in tests/data.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models_mae_group_channels import GroupChannelsVisionTransformer, MaskedAutoencoderGroupChannelViT, build_model

HERE = Path(__file__).parent / "data"
REFERENCE = Path(os.environ.get("GRIDMAE_REFERENCE_DIR", "nowhere")) / "parity"
NOT_ARGUMENTS = {"class", "ln_eps", "mask_ratio", "loss_weights", "timm", "torch", "seed", "qkv_bias"}
# The published model's own differences between fp32 and fp64.
LOSS, VALUE, GRADIENT, FIXED = 1e-6, 1e-5, 1e-3, 1e-6

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="set GRIDMAE_REFERENCE_DIR to the folder that holds parity/"
)


def load(path, build):
    arrays = np.load(path)
    config = json.loads(str(arrays["config"]))
    model = build(**{k: v for k, v in config.items() if k not in NOT_ARGUMENTS})
    state = {k[3:]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("sd/")}
    return arrays, model, state


def run(path, dtype):
    """Everything the files hold, as our model has it, and the reference."""
    arrays, model, state = load(path, MaskedAutoencoderGroupChannelViT)
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name in fixed:  # as we compute them, before they are overwritten
        assert torch.allclose(model.state_dict()[name], state[name], rtol=0, atol=FIXED)
    model.load_state_dict(state, strict=True)
    model.to(dtype)
    found = {}
    model.norm.register_forward_hook(lambda module, given, output: found.update(latent=output.detach()))
    images = [torch.from_numpy(arrays[f"in/{k}"]).to(dtype) for k in ("x1", "x2", "x4")]
    noise = torch.from_numpy(arrays["noise"])
    result = model(images[0], images[1:], mask_ratio=0.75, noise=noise, details=True)
    total = 0.6 * result.loss + 0.4 * result.ms_loss
    total.backward()
    finer = {"l1_2x": result.error_sums[1].sum() / result.error_counts[1].sum()}
    finer["l1_4x"] = result.error_sums[2].sum() / result.error_counts[2].sum()
    losses = {"mse": result.loss, "ms": result.ms_loss, "total": total, **finer}
    found["losses"] = {name: value.item() for name, value in losses.items()}
    found["pred"], found["mask"] = result.pred.detach(), result.mask
    found["pred_2x_sub"] = result.images[2].detach()[..., 1::4, 2::4]
    found["pred_4x_sub"] = result.images[4].detach()[..., 3::8, 5::8]
    found["gradients"] = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.requires_grad}
    found["group_order"] = model.group_order
    return arrays, found


def largest_difference(arrays, found, name):
    value = found[name]
    if name == "pred":  # the published model leaves it in the order of the groups
        value = value.index_select(1, found["group_order"])
    return np.abs(value.numpy() - arrays[f"out/{name}"]).max()


def check_encoder_and_patches(arrays, found):
    assert np.array_equal(found["mask"].numpy(), arrays["out/mask"])
    assert largest_difference(arrays, found, "latent") <= VALUE
    assert largest_difference(arrays, found, "pred") <= VALUE


def check_everything(path):
    arrays, found = run(path, torch.float32)
    check_encoder_and_patches(arrays, found)
    for name in ("mse", "ms", "total", "l1_2x", "l1_4x"):
        assert found["losses"][name] == pytest.approx(float(arrays[f"out/{name}"]), rel=LOSS)
    for name in ("pred_2x_sub", "pred_4x_sub"):  # ten more layers of rounding than pred
        assert largest_difference(arrays, found, name) <= 10 * VALUE
    check_gradients(arrays, found, "gradnorm/", GRADIENT)


def check_gradients(arrays, found, prefix, tolerance):
    expected = {k.removeprefix(prefix): float(arrays[k]) for k in arrays.files if k.startswith(prefix)}
    assert set(found["gradients"]) - set(expected) == {"nodata_token"}
    assert found["gradients"]["nodata_token"] == 0
    for name, value in expected.items():
        assert found["gradients"][name] == pytest.approx(value, rel=tolerance, abs=1e-12), name


def test_small_model_agrees_in_everything():
    check_everything(HERE / "mae_small.npz")


def test_small_model_agrees_in_double_precision():
    arrays, found = run(HERE / "mae_small.npz", torch.float64)
    for name in ("mse", "ms", "total"):
        assert found["losses"][name] == pytest.approx(float(arrays[f"out64/{name}"]), rel=1e-12)
    check_gradients(arrays, found, "gradnorm64/", 1e-9)


@needs_reference
def test_two_channels_agree_in_everything():
    check_everything(REFERENCE / "mae_c2.npz")


@needs_reference
def test_ten_channels_agree_up_to_the_heads_and_differ_where_the_published_order_is_wrong():
    arrays, found = run(REFERENCE / "mae_c10.npz", torch.float32)
    check_encoder_and_patches(arrays, found)
    for name in ("mse", "ms", "total"):
        assert found["losses"][name] != pytest.approx(float(arrays[f"out/{name}"]), rel=1e-4)


@needs_reference
def test_fine_tuning_encoder_agrees():
    arrays, model, state = load(REFERENCE / "vit_c10_gp1.npz", GroupChannelsVisionTransformer)
    model.load_state_dict(state, strict=True)
    images = torch.from_numpy(arrays["in/x1"])
    with torch.no_grad():
        features, logits = model.forward_features(images), model(images)
    assert np.abs(features.numpy() - arrays["out/features"]).max() <= VALUE
    assert np.abs(logits.numpy() - arrays["out/logits"]).max() <= VALUE


@needs_reference
@pytest.mark.parametrize(
    "name", ["mae_vit_base_patch16", "mae_vit_large_patch16", "vit_base_patch16", "vit_large_patch16"]
)
def test_names_and_shapes_are_the_published_ones(name):
    pretraining = name.startswith("mae_")
    lines = (REFERENCE / f"param_names_{'' if pretraining else 'finetune_'}{name}.txt").read_text().splitlines()
    expected = {line.split("\t")[0]: line.split("\t")[1:] for line in lines if not line.startswith("#")}
    with torch.device("meta"):
        model = build_model(name.removeprefix("mae_").removeprefix("vit_"))
        if not pretraining:
            keys = ("embed_dim", "depth", "num_heads", "channel_embed")
            model = GroupChannelsVisionTransformer(**{k: model.config[k] for k in keys})
    found = {n: [str(tuple(p.shape)), "train" if p.requires_grad else "fixed"] for n, p in model.named_parameters()}
    assert found.pop("nodata_token")[1] == "train"
    assert set(found) == set(expected)
    for key, entries in expected.items():
        assert found[key][: len(entries)] == entries, key
