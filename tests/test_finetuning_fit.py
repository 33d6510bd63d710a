"""Rates of a fit's optimiser."""

from dataclasses import replace

import pytest
import torch

from models_vit_group_channels import build_finetune_model, freeze_encoder
from util.finetuning.fit import make_updater
from util.options.finetune_values import TrainingSettings

DEPTH = 2
SETTINGS = TrainingSettings(
    seed=0,
    epochs=1,
    tiles_per_epoch=1,
    batch_size=1,
    accum_iter=1,
    lr=0.01,
    blr=None,
    min_lr=0.0,
    warmup_epochs=0,
    weight_decay=0.05,
    layer_decay=1.0,
    head_lr_scale=1.0,
    clip_grad=1.0,
    ema_decay=0.0,
    augment=True,
    patience=0,
)


def network(kind="dense"):
    outputs = {"num_outputs": 3} if kind == "dense" else {"num_classes": 3}
    arguments = {"img_size": 16, "in_chans": 2, "channel_groups": ((0,), (1,)), "depth": DEPTH, **outputs}
    return build_finetune_model({"kind": kind, "size": "tiny", **arguments})


def rates(model, *, layer_decay, head_lr_scale):
    """Rate of every weight by name, in an update at 0.01."""
    updater = make_updater(
        model,
        model,
        replace(SETTINGS, layer_decay=layer_decay, head_lr_scale=head_lr_scale),
        peak_lr=0.01,
        is_pretrained=True,
        device=torch.device("cpu"),
        amp_dtype=None,
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    updater.step(0.01)
    found = {id(p): group["lr"] for group in updater.optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in updater.optimizer.param_groups)
    return {name: found[id(p)] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["dense", "classification"])
def test_rates_decay_towards_the_input_and_the_head_has_its_own(kind):
    found = rates(network(kind), layer_decay=0.5, head_lr_scale=8)
    expected = {"patch_embed": 0.01 / 8, "blocks.0": 0.01 / 4, "blocks.1": 0.01 / 2, "head": 0.08}
    for part, rate in expected.items():
        of_part = [value for name, value in found.items() if name.startswith(part)]
        assert of_part and of_part == pytest.approx([rate] * len(of_part)), part
    norms = [value for name, value in found.items() if name.startswith(("norm.", "fc_norm."))]
    assert norms == pytest.approx([0.01] * 2)


def test_a_probe_trains_head_and_norm_alone():
    model = network()
    freeze_encoder(model)
    found = rates(model, layer_decay=0.75, head_lr_scale=1)
    assert list(found.values()) == pytest.approx([0.01] * len(found))
    assert all(name.startswith(("norm.", "head.")) for name in found)
