"""Untrained convolutions of native pixels: what they tell apart, holes, seeds, and windows of any size."""

import numpy as np
import pytest
import torch

from datasets.finetuning import pixel_features, random_features
from datasets.finetuning.random_features import LayerFilters, draw_filters
from datasets.layers.encoding import Encoding, linear_encodings
from datasets.layers.layer import Layer
from datasets.survey.inference_survey import open_inference_survey
from tests.rasters import write_grid
from tests.test_pixel_features import write_layers

EVERYWHERE = np.stack(np.mgrid[:24, :28], axis=-1).reshape(-1, 2)
"""All base pixels of 100 m of `write_layers`."""


def survey_of(folder, *, base=100.0, **options):
    """The layers of `write_layers`, in model units."""
    return open_inference_survey(
        [Layer(name, str(folder / f"{name}.tif")) for name in ("gravity", "magnetics")],
        encodings=linear_encodings([20.0, 1e5], [5.0, 300.0]),
        input_size=8,
        scales=(1,),
        base_resolution=base,
        finest_scale=1,
        **options,
    )


def features_of(survey, pixels=EVERYWHERE, **options):
    filters = draw_filters(survey, EVERYWHERE, count=4, seed=options.pop("seed", 0))
    return random_features.random_features(survey, filters, pixels, **options)


def one_layer(folder, values, *, base):
    """A survey of one layer in pixels of 100 m."""
    write_grid(folder / "layer.tif", values.astype(np.float32), resolution=100.0, nodata=-9999.0)
    return open_inference_survey(
        [Layer("layer", str(folder / "layer.tif"))],
        encodings=[Encoding()],
        input_size=8,
        scales=(1,),
        base_resolution=base,
        finest_scale=4,
    )


def test_written_out(tmp_path, monkeypatch):
    """A filter that copies the pixel, over columns of 2, 5, -9 and no-data: positive and negative values apart."""
    values = np.tile([[2.0, 5.0, -9.0, -9999.0]], (3, 1))
    survey = one_layer(tmp_path, values, base=100.0)
    weights = torch.zeros(1, 1, 3, 3)
    weights[0, 0, 1, 1] = 1.0
    filters = {0: LayerFilters(weights, torch.zeros(1))}
    found = random_features.random_features(survey, filters, np.array([[1, 0], [1, 1], [1, 2]]), radii=(0, 1))
    none = np.zeros(3)
    alone = np.stack([none + 1, [2, 5, 0], [0, 0, 9]], axis=1)  # valid share, positive, negative
    around = np.stack([[6 / 9, 1, 6 / 9], [3.5, 7 / 3, 2.5], [0, 3, 4.5]], axis=1)
    np.testing.assert_allclose(found, np.concatenate([alone, around], axis=1), rtol=1e-6)


def test_the_directions_of_filters_are_those_of_patches(tmp_path):
    """Stripes have two patches alone, so that every filter is one of two opposite ones, with responses of +-1."""
    values = np.where(np.mgrid[:32, :32][1] % 2, 7.0, 3.0)
    survey = one_layer(tmp_path, values, base=400.0)
    pixels = np.stack(np.mgrid[1:7, 1:7], axis=-1).reshape(-1, 2)
    filters = draw_filters(survey, pixels, count=6)[0]
    window = torch.tensor(values[1:4, 1:8], dtype=torch.float32)[None, None]
    response = torch.nn.functional.conv2d(window, filters.weights, filters.bias)[0, :, 0]
    signs = response.sign()
    assert (signs[:, 1:] == -signs[:, :-1]).all() and len(torch.unique(signs, dim=0)) == 2
    torch.testing.assert_close(
        response.abs(), torch.ones_like(response), rtol=0.3, atol=0
    )  # one may be drawn more often


def test_shape_range_and_layers_without_a_valid_pixel(tmp_path):
    write_layers(tmp_path)
    survey = survey_of(tmp_path)
    found = features_of(survey)
    assert found.shape == (24 * 28, 2 * 2 * (1 + 2 * 4)) and found.dtype == np.float32
    assert np.nanmin(found) >= 0 and np.isfinite(found).any(axis=0).all()
    inside = np.argwhere(np.ones((2, 3))) + [8, 12]  # of the hole of gravity, rows 6 to 11 and columns 8 to 17
    filters = draw_filters(survey, inside)
    assert list(filters) == [1] and list(draw_filters(survey_of(tmp_path, base=200.0, hidden=[1]), inside - 8)) == [0]


def test_where_nothing_is_valid_only_the_share_is_known(tmp_path):
    write_layers(tmp_path)
    survey = survey_of(tmp_path, base=50.0)
    filters = draw_filters(survey, np.argwhere(np.ones((48, 56))), count=4)
    found = random_features.random_features(survey, filters, np.array([[30, 12]]), radii=(1,))[0]
    assert found[9] == 0 and np.isnan(found[10:18]).all() and np.isfinite(found[:9]).all()


def test_what_lies_under_nodata_changes_nothing(tmp_path):
    found = []
    for under in (-9999.0, 1e6):
        write_layers(tmp_path, under=under)
        found.append(features_of(survey_of(tmp_path)))
    assert np.array_equal(*found, equal_nan=True)


def test_the_seed_decides(tmp_path):
    write_layers(tmp_path)
    survey = survey_of(tmp_path)
    assert np.array_equal(features_of(survey), features_of(survey), equal_nan=True)
    assert not np.array_equal(features_of(survey), features_of(survey, seed=1), equal_nan=True)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_order_of_pixels_and_the_size_of_windows_do_not_matter(tmp_path, monkeypatch, scale):
    write_layers(tmp_path)
    survey = survey_of(tmp_path)
    filters = draw_filters(survey, EVERYWHERE, count=5)
    pixels = np.random.default_rng(2).integers(0, (24 * scale, 28 * scale), (60, 2))

    def features(pixels):
        return random_features.random_features(survey, filters, pixels, scale=scale)

    at_once = features(pixels)
    assert np.allclose(features(pixels[::-1])[::-1], at_once, rtol=1e-4, atol=1e-4, equal_nan=True)
    monkeypatch.setattr(pixel_features, "_WINDOW_EDGE", 1)  # windows of 16 base pixels
    monkeypatch.setattr(random_features, "_AT_ONCE", 2)
    assert np.allclose(features(pixels), at_once, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert features(np.empty((0, 2), int)).shape == (0, at_once.shape[1])
