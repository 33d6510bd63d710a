"""Encoder weights: what is loaded, left out, interpolated and refused. The published shapes are read from
$GRIDMAE_REFERENCE_DIR/parity.
"""

import argparse
import os
from ast import literal_eval
from pathlib import Path

import pytest
import torch

import models_vit_group_channels as models
from tests.test_model import SMALL, make_batch, make_model, wake
from util.checkpoints.checkpoint_file import CheckpointError, save_checkpoint
from util.checkpoints.encoder_weights import EncoderWeights, _config_from_shapes, load_encoder, read_encoder_weights

REFERENCE = Path(os.environ.get("GRIDMAE_REFERENCE_DIR", "nowhere")) / "parity"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="set GRIDMAE_REFERENCE_DIR to the folder that holds parity/"
)
LAYERS = [{"name": "gravity"}, {"name": "magnetics"}, {"name": "elevation"}]
# What SatMAE's heads of 64 numbers ask for, small.
PUBLISHED = {"embed_dim": 64, "num_heads": 1, "depth": 2, "channel_embed": 16, "decoder_num_heads": 2}
PUBLISHED_ENCODER = {k: v for k, v in PUBLISHED.items() if not k.startswith("decoder_")}


def make_finetuned(**changes):
    return models.build_finetune_model({"kind": "dense", **SMALL, "num_outputs": 2, "head_width": 4, **changes})


def save_ours(path, model, **more):
    contents = {"model": model.state_dict(), "model_config": model.config, "layers": LAYERS, "step": 3, **more}
    save_checkpoint(path, contents | {"optimizer": {"state": {}}, "scaler": {}, "rng": {}})
    return path


def save_published(path, model, **args):
    """As SatMAE writes them: parameters by name, an optimiser, and the options as they were parsed."""
    state = {name: p for name, p in model.state_dict().items() if name != "nodata_token"}
    options = argparse.Namespace(**{"model": "mae_vit_x", "blr": 1e-4, "dropped_bands": [0, 9, 10], **args})
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    torch.save({"model": state, "optimizer": optimizer, "epoch": 49, "scaler": {"scale": 1.0}, "args": options}, path)
    return path


def same(model, pretrained, name):
    return torch.equal(model.state_dict()[name], pretrained.state_dict()[name])


# ---- our own checkpoints


def test_a_checkpoint_of_pretraining_goes_into_every_model(tmp_path):
    pretrained = wake(make_model(scale_heads="subpixel"))
    weights = read_encoder_weights(save_ours(tmp_path / "a.pth", pretrained, base_resolution=100.0))
    assert weights.config == pretrained.config and not weights.published
    assert weights.contents["layers"] == LAYERS and weights.contents["base_resolution"] == 100.0
    assert not {"model", "optimizer", "scaler", "rng"} & set(weights.contents)
    for changes, new in (
        ({}, {"channel_cls_embed", "head"}),
        ({"kind": "classification"}, {"channel_cls_embed", "head", "fc_norm"}),
        ({"kind": "classification", "global_pool": False}, {"channel_cls_embed", "head"}),
    ):
        own = {"kind": "dense", **models.encoder_arguments(weights.config), **changes}
        model = models.build_finetune_model(own)
        head = {name: p.clone() for name, p in model.state_dict().items() if name.startswith("head.")}
        report = load_encoder(model, weights)
        assert {name.split(".")[0] for name in report.new} == new and not report.interpolated
        assert set(report.loaded) | set(report.new) == set(model.state_dict())
        assert all(same(model, pretrained, name) for name in report.loaded) and "nodata_token" in report.loaded
        assert all(torch.equal(p, model.state_dict()[name]) for name, p in head.items())
        left_out = {name.split(".")[0] for name in report.left_out}
        assert {"mask_token", "decoder_blocks", "decoder_pos_embed", "subpixel_heads"} <= left_out
        assert ("norm" in left_out) == ("fc_norm" in new)
        text = "\n".join(report.summary_lines())
        assert f"{len(report.loaded)} tensors loaded" in text and "decoder_norm (2)" in text and "head (" in text


def test_heads_of_another_task_stay_behind(tmp_path):
    first, second = wake(make_finetuned()), make_finetuned(kind="dense", num_outputs=5, head="linear", scale=2)
    report = load_encoder(second, read_encoder_weights(save_ours(tmp_path / "a.pth", first)))
    assert "channel_cls_embed" in report.loaded and "norm.weight" in report.loaded
    assert all(name.startswith("head.") for name in (*report.new, *report.left_out)) and report.left_out
    pooled = models.build_finetune_model({"kind": "classification", **SMALL, "num_classes": 4})
    report = load_encoder(second, read_encoder_weights(save_ours(tmp_path / "b.pth", pooled)))
    assert "fc_norm.weight" in report.left_out
    assert {name for name in report.new if "head" not in name} == {"norm.weight", "norm.bias"}


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = save_ours(tmp_path / "a.pth", make_model())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged, the SHA-256"):
        read_encoder_weights(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"a\.pth: (cannot be read|refused)"):
        read_encoder_weights(path)
    torch.save({"model": make_model().state_dict(), "model_config": {}}, path)
    with pytest.raises(CheckpointError, match="its checksum is missing"):
        read_encoder_weights(path)
    with pytest.raises(FileNotFoundError, match="none.pth: no such file"):
        read_encoder_weights(tmp_path / "none.pth")


# ---- published ones


def test_a_published_file_is_read_with_its_options(tmp_path):
    pretrained = wake(make_model(**PUBLISHED))
    groups = [[2, 0], [1]]
    weights = read_encoder_weights(save_published(tmp_path / "a.pth", pretrained, grouped_bands=groups))
    assert weights.published and weights.contents["epoch"] == 49 and weights.contents["args"]["blr"] == 1e-4
    of_stems = {"stem": "base", "native_scales": None, "detail_scales": None}
    assert weights.config | of_stems == models.encoder_arguments(pretrained.config)
    model = make_finetuned(**PUBLISHED_ENCODER)
    report = load_encoder(model, weights)
    assert all(same(model, pretrained, name) for name in report.loaded)
    assert {name.split(".")[0] for name in report.new} == {"head", "channel_cls_embed", "nodata_token"}
    images, valid, _ = make_batch(scales=(1,))
    expected = pretrained.eval().forward_tokens(images[0])[0]
    assert torch.allclose(model.eval().forward_tokens(images[0])[0], expected, atol=1e-6)


def test_groups_that_are_not_stated_are_the_published_ones_or_consecutive(tmp_path):
    sentinel = make_model(**PUBLISHED, in_chans=10, channel_groups=models.SENTINEL_GROUPS)
    weights = read_encoder_weights(save_published(tmp_path / "a.pth", sentinel, grouped_bands=[]))
    assert weights.config["channel_groups"] == [[0, 1, 2, 6], [3, 4, 5, 7], [8, 9]]
    plain = make_model(**PUBLISHED, channel_groups=((0, 1), (2,)))
    assert read_encoder_weights(save_published(tmp_path / "b.pth", plain)).config["channel_groups"] == [[0, 1], [2]]


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "a.pth", tmp_path / "it_ran"
    for hostile in (Hostile(trace), argparse.Namespace(model=Hostile(trace))):
        torch.save({"model": {}, "args": hostile}, path)
        with pytest.raises(CheckpointError, match=r"a\.pth: refused, it holds Python objects other than"):
            read_encoder_weights(path)
    assert not trace.exists()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"epoch": 3}, "expected a dict of tensors under 'model', found NoneType"),
        ([1, 2], "expected a dict of tensors under 'model', found list"),
        ({"model": {"a": 3}}, "expected a dict of tensors"),
        ({"model": {"patch_embed.proj.weight": torch.zeros(4, 3, 2, 2)}}, "no grouped-channel encoder: .* found patch"),
        ({"model": {}}, "no grouped-channel encoder: .* found nothing"),
    ],
)
def test_files_without_an_encoder_are_refused(tmp_path, contents, message):
    torch.save(contents, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        read_encoder_weights(tmp_path / "a.pth")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "a.pth").write_text("layer,path\n")
    with pytest.raises(CheckpointError, match=r"a\.pth: (refused|cannot be read)"):
        read_encoder_weights(tmp_path / "a.pth")


def published_state(name):
    lines = (REFERENCE / f"param_names_{name}.txt").read_text().splitlines()
    shapes = {line.split("\t")[0]: literal_eval(line.split("\t")[1]) for line in lines if not line.startswith("#")}
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@needs_reference
@pytest.mark.parametrize("kind", ["dense", "classification"])
@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("trained", ["mae", "finetune"])
def test_published_names_and_shapes_load(trained, size, kind):
    name = f"{'mae_' if trained == 'mae' else 'finetune_'}vit_{size}_patch16"
    state = published_state(name)
    weights = EncoderWeights(Path(name), state, _config_from_shapes(Path(name), state, None), {}, published=True)
    with torch.device("meta"):
        model = models.build_finetune_model({"kind": kind, "size": size})  # the defaults are those of SatMAE++
    of_stems = {"stem": "base", "native_scales": None, "detail_scales": None}
    assert weights.config | of_stems == models.encoder_arguments(model.config)
    report = load_encoder(model, weights)
    encoder = {key for key in state if not key.startswith(("decoder_", "proj_up", "up_block", "mask_token", "head."))}
    pooled, norm = trained == "finetune", {"norm.weight", "norm.bias"}
    unused = set() if pooled == (kind == "classification") else {f"fc_{key}" for key in norm} if pooled else norm
    assert set(report.loaded) == encoder - unused
    assert set(state) == set(report.loaded) | set(report.left_out)


# ---- what does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_chans": 2, "channel_groups": [[0], [1]]}, "in_chans: weights 3, model 2; channel_groups: weights"),
        (
            {"channel_groups": [[0, 2], [1]]},
            r"0 gravity, 1 magnetics, 2 elevation\) belong .* channel_groups: weights \[\[2, 0\], \[1\]\], model",
        ),
        ({"patch_size": 8}, "patch_size: weights 4, model 8. Build the model with the layers, groups and sizes"),
        ({"embed_dim": 32}, "embed_dim: weights 24, model 32"),
        ({"depth": 3}, "depth: weights 2, model 3"),
        ({"num_heads": 4}, "num_heads: weights 2, model 4"),
        ({"mlp_ratio": 4}, "mlp_ratio: weights 2, model 4"),
        ({"channel_embed": 12}, "channel_embed: weights 8, model 12"),
    ],
)
def test_another_encoder_is_refused_by_name_and_touches_nothing(tmp_path, changes, message):
    weights = read_encoder_weights(save_ours(tmp_path / "a.pth", make_model()))
    model = make_finetuned(**changes)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_encoder(model, weights)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.1.norm1.weight"), "not in the weights: blocks.1.norm1.weight"),
        (lambda state: state.pop("norm.weight"), "not in the weights: norm.weight"),
        (lambda state: state.pop("pos_embed"), "not in the weights: pos_embed"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 parameters do not fit .*not in the model: extra"),
        (
            lambda state: state.update(cls_token=torch.zeros(1, 1, 3)),
            r"cls_token: weights \(1, 1, 3\), model \(1, 1, 24",
        ),
    ],
)
def test_missing_unknown_and_misshapen_parameters_are_refused(change, message):
    pretrained = make_model()
    state = dict(pretrained.state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        load_encoder(make_finetuned(), EncoderWeights(Path("a"), state, pretrained.config, {}, published=False))


def test_positions_are_interpolated_to_tiles_of_another_size(tmp_path):
    pretrained = wake(make_model())
    weights = read_encoder_weights(save_ours(tmp_path / "a.pth", pretrained))
    model = make_finetuned(img_size=24)
    report = load_encoder(model, weights)
    assert report.interpolated == "pos_embed from 4 x 4 to 6 x 6 patches" and "pos_embed" in report.loaded
    assert "interpolated: pos_embed" in "\n".join(report.summary_lines())
    assert torch.equal(model.pos_embed[:, :1], pretrained.pos_embed[:, :1]) and model.pos_embed.shape == (1, 37, 16)
    assert model(torch.zeros(1, 3, 24, 24)).shape == (1, 2, 24, 24)
