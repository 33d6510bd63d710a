"""The examples run, and compute what the main path computes."""

from unittest import mock

import numpy as np
import pytest
import torch

import models_mae_group_channels as models
from datasets.survey.open_survey import SurveySettings, open_survey
from tests import small_main, surveys

pytest.importorskip("xbatcher")
pytest.importorskip("rioxarray")

from examples import xbatcher_loop as loop  # noqa: E402

SIZE, PATCH = 16, 4
EDGE = SIZE * loop.FINEST


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The small survey as a store, and tiles that fit it."""
    for name, value in (("SIZE", SIZE), ("PATCH", PATCH), ("BATCH", 2)):
        monkeypatch.setattr(loop, name, value)
    with mock.patch.dict(models.MODEL_SIZES, tiny=small_main.SMALL):
        yield loop.as_zarr(surveys.write_survey(tmp_path / "survey"))


def test_losses_are_those_of_the_main_path_for_the_same_tiles(store):
    import xarray

    survey = open_survey(SurveySettings(data_path=[str(store)], input_size=SIZE, scales=loop.SCALES, native=True))
    torch.manual_seed(0)
    model = models.build_model(
        "tiny", img_size=SIZE, patch_size=PATCH, stem="native", **survey.channel_options()
    ).eval()
    corners = np.array([[row, col] for row in (0, EDGE) for col in (0, EDGE)])  # of xbatcher's lattice
    sample = survey.pyramid()(*survey.reader().read(corners).parts)
    noise = torch.rand(len(corners), SIZE**2 // PATCH**2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(
            sample.imgs, sample.imgs_up, valid=sample.valid, valid_up=sample.valid_up, noise=noise, native=sample.native
        )
    layers = xarray.open_zarr(store)[[layer.name for layer in survey.layers]]
    normalised = [(layers[s.name] - s.centre) / s.scale for s in survey.statistics]
    generator = loop.xbatcher.BatchGenerator(xarray.merge(normalised), input_dims={"y": EDGE, "x": EDGE})
    tiles = np.stack([tile.to_dataarray().values for tile in generator]).astype(np.float32)
    assert 0.02 < np.isnan(tiles).mean() < 0.5
    with torch.no_grad():
        found = loop.losses(model, torch.from_numpy(tiles), noise)
    np.testing.assert_allclose(found, expected[:2], rtol=1e-5)


def test_the_loop_learns(store, capsys):
    history = loop.main(["--store", str(store), "--epochs", "12"])
    assert np.mean(history[-3:]) < 0.97 * np.mean(history[:3])
    assert "epoch 12 of 12: loss" in capsys.readouterr().out
