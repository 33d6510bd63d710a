"""The U-Net baseline: shapes at every scale of labels, its input, its checkpoint, and what is refused."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests import labelled, surveys
from util.finetuning import fit
from util.finetuning.compared_methods import BASELINES, trained_network
from util.finetuning.cost import window_flops
from util.finetuning.unet import UNet, new_unet

SIZES = {"in_chans": 2, "outputs": 3, "img_size": 8, "patch_size": 4}


def unet(*, per_pixel=True, zoom=4, scale=1):
    torch.manual_seed(0)
    return UNet(**SIZES, per_pixel=per_pixel, zoom=zoom, scale=scale)


def batch(edge, seed=0, count=2):
    """Values and validity of a batch, invalid in one corner of the first channel."""
    imgs = torch.randn(count, 2, edge, edge, generator=torch.Generator().manual_seed(seed))
    valid = torch.ones_like(imgs, dtype=torch.bool)
    valid[:, 0, :8, :8] = False
    return torch.where(valid, imgs, 0.0), valid


@pytest.mark.parametrize(("zoom", "scale"), [(4, 1), (4, 2), (4, 4), (3, 2), (1, 2)])
def test_pixels_are_predicted_at_the_scale_of_the_labels(zoom, scale):
    network = unet(zoom=zoom, scale=scale)
    assert network(*batch(8 * zoom)).shape == (2, 3, 8 * scale, 8 * scale)
    assert network(*batch(8 * zoom, count=1)).isfinite().all()  # batch normalisation of a single window


def test_values_beyond_half_precision_do_not_overflow():
    imgs, valid = batch(32)
    imgs[0, 1, 20, 20] = 1e30
    with torch.autocast("cpu", dtype=torch.float16):
        assert unet()(imgs, valid).isfinite().all()


def test_windows_get_one_prediction():
    assert unet(per_pixel=False)(*batch(32)).shape == (2, 3)
    assert unet(per_pixel=False, zoom=1)(*batch(8, count=1)).isfinite().all()


def test_outputs_are_means_over_target_pixels():
    fine, coarse = unet(scale=4).eval(), unet(scale=2).eval()
    with torch.no_grad():
        expected = fine(*batch(32)).unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean(dim=(3, 5))
        torch.testing.assert_close(coarse(*batch(32)), expected, rtol=1e-5, atol=1e-6)


def test_validity_is_part_of_the_input():
    network = unet().eval()
    imgs, valid = batch(32)
    assert not torch.equal(network(imgs, valid), network(imgs, torch.ones_like(valid)))


def test_the_seed_decides_and_the_checkpoint_rebuilds_it():
    network = unet().eval()
    rebuilt = trained_network(json.loads(json.dumps(network.config)), pytest.fail).eval()
    rebuilt.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(network(*batch(32)), unet().eval()(*batch(32)))
        assert torch.equal(network(*batch(32)), rebuilt(*batch(32)))


def test_it_takes_the_pixels_of_the_finest_layer_that_is_shown():
    survey = SimpleNamespace(pyramid=SimpleNamespace(finest_zoom=lambda hidden: 5 - len(hidden)), hidden={1})
    config = {"kind": "dense", "in_chans": 2, "num_outputs": 3, "img_size": 8, "patch_size": 4, "scale": 2}
    network = new_unet(config, survey)
    assert network.config == {**SIZES, "kind": "unet", "per_pixel": True, "zoom": 4, "scale": 2}
    assert fit.input_edge(network) == 32 and BASELINES["unet"].is_network and not BASELINES["unet"].is_encoder


def test_its_operations_are_those_of_its_own_pixels():
    coarse, fine = (window_flops(unet(per_pixel=False, zoom=zoom)) for zoom in (8, 16))
    assert fine == pytest.approx(4 * coarse, rel=1e-3)


def test_processes_share_the_statistics_of_batch_normalisation(monkeypatch):
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    monkeypatch.setattr(fit.dist, "mean_over_ranks", lambda tensor: tensor + 1)
    fit.share_batch_statistics(network)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.running_mean", "0.running_var"}


def test_without_its_package_nothing_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ValueError, match="pip install segmentation-models-pytorch, or leave unet out"):
        unet()
    survey, labels = surveys.write_survey(tmp_path / "survey"), labelled.write_classes(tmp_path)
    assert labelled.finetune(survey, tmp_path / "out", "--baselines", "unet", labels=labels) == 2
    assert "--baselines unet needs segmentation_models_pytorch" in capsys.readouterr().err
    assert not (tmp_path / "out" / "fits").exists()
