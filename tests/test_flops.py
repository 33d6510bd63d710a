import pytest
import torch

from models_mae_group_channels import build_model
from models_vit_group_channels import build_finetune_model, freeze_encoder
from scripts.benchmarks.step import divide
from util.finetuning.cost import window_flops
from util.training import flops
from util.training.flops import head_share, step_cost


def tiny(**changes):
    arguments = {"img_size": 32, "in_chans": 2, "channel_groups": ((0,), (1,)), "depth": 1, **changes}
    with torch.device("meta"):
        return build_model("tiny", **arguments)


def test_forward_flops_are_those_on_paper():
    # 32 pixels, patch 8: 2 x 16 tokens, of which 8 are visible; one encoder block, two decoder blocks.
    def block(length, width):
        return length * 12 * width**2 + 2 * length**2 * width

    embed, predict = 2 * 16 * 64 * 192, 2 * 16 * 64 * 128
    expected = embed + block(9, 192) + 9 * 192 * 128 + 2 * block(33, 128) + predict
    counted = step_cost(tiny(scales=(1,)), batch_size=3)
    assert counted.forward_flops == 3 * 2 * expected
    assert counted.head_forward_flops == 0 and counted.head_share == 0


def test_heads_are_what_finer_scales_add():
    model = tiny(scale_heads="shared")
    counted = step_cost(model, batch_size=2)
    width, pixels = 8, 32 * 32
    per_block = width * width * (4 * 4 + 4 * 2 * 9) + 4 * 9 * width * 2  # an input pixel gives four of the output
    expected = 2 * width + per_block + 4 * per_block
    assert counted.head_forward_flops == 2 * 2 * pixels * expected
    assert counted.head_share == pytest.approx(head_share(model))
    assert counted.step_flops > 2.5 * counted.forward_flops


@pytest.mark.parametrize("name", ["tiny", "base"])
@pytest.mark.parametrize("layers", [2, 8, 20, 100])
@pytest.mark.parametrize("groups", [1, 2])
def test_light_heads_stay_within_their_share(name, layers, groups):
    channel_groups = divide(layers, groups)
    with torch.device("meta"):
        model = build_model(name, in_chans=layers, channel_groups=channel_groups, depth=6 if name == "tiny" else 12)
        light = type(model)(**{**model.config, "scale_heads": "subpixel"})
    assert 0 < head_share(light) <= 0.15


def test_empty_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size 0: expected at least 1"):
        step_cost(tiny(), batch_size=0)


def test_windows_of_fine_tuning_are_counted_once_for_the_folds_of_a_method(monkeypatch):
    def network(detail=0.5, classes=3):
        arguments = {"size": "tiny", "img_size": 16, "in_chans": 2, "channel_groups": [[0], [1]], "stem": "native"}
        arguments |= {"native_scales": [4, 2], "detail_scales": [detail, detail], "num_outputs": classes}
        return build_finetune_model({"kind": "dense", **arguments})

    monkeypatch.setattr(flops, "_COUNTED", {})
    frozen = network()
    freeze_encoder(frozen)
    found = [window_flops(of) for of in (network(), network(detail=0.7), network(classes=4), frozen)]
    assert len(flops._COUNTED) == 3 and found[0] == found[1] < found[2] and found[3] < 0.5 * found[0]
    monkeypatch.setattr(flops, "_COUNTED", {})
    assert window_flops(network(detail=0.7)) == found[1]
