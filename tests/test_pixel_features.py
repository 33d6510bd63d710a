"""Values, local means and spreads of layers on target pixels: against sums done slowly, pixel by pixel."""

import numpy as np
import pytest

from datasets.finetuning import pixel_features as module
from datasets.finetuning.pixel_features import RADII, feature_names, pixel_features
from datasets.layers.encoding import Encoding
from datasets.layers.layer import Layer
from datasets.survey.inference_survey import open_inference_survey
from tests.rasters import write_grid

NAN = np.nan


def write_layers(tmp_path, *, under=-9999.0, seed=0):
    """gravity in pixels of 200 m with a hole, magnetics in pixels of 50 m with another and a coarser part of 2 x 2."""
    rng = np.random.default_rng(seed)
    gravity = rng.normal(20, 5, (12, 14)).astype(np.float32)
    magnetics = (1e5 + rng.normal(0, 300, (48, 56))).astype(np.float32)
    gravity[3:6, 4:9] = under
    magnetics[20:40, 5:20] = under
    write_grid(tmp_path / "gravity.tif", gravity, resolution=200.0, nodata=under)
    write_grid(tmp_path / "magnetics.tif", magnetics, resolution=50.0, nodata=under)
    return [np.where(values == np.float32(under), NAN, values.astype(np.float64)) for values in (gravity, magnetics)]


def survey_of(tmp_path, *, base=100.0, **options):
    layers = [Layer(name, str(tmp_path / f"{name}.tif")) for name in ("gravity", "magnetics")]
    return open_inference_survey(
        layers,
        encodings=[Encoding()] * 2,
        input_size=8,
        scales=(1, 2),
        base_resolution=base,
        finest_scale=2,
        **options,
    )


def weights(low, high, length):
    """(length,) share of each pixel between two places."""
    edges = np.arange(length)
    return np.clip(np.minimum(high, edges + 1) - np.maximum(low, edges), 0, None)


def slowly(values, centre, half, pixels_per_base):
    """Mean and spread over a square around a centre, in base pixels, of a layer that starts at the same corner."""
    low, high = (np.subtract(centre, half) * pixels_per_base, np.add(centre, half) * pixels_per_base)
    weight = np.outer(weights(low[0], high[0], values.shape[0]), weights(low[1], high[1], values.shape[1]))
    weight = np.where(np.isnan(values), 0.0, weight)
    if not weight.sum() > 1e-9:
        return NAN, NAN
    mean = np.nansum(weight * values) / weight.sum()
    return mean, np.sqrt(np.nansum(weight * (values - mean) ** 2) / weight.sum())


@pytest.mark.parametrize(("base", "scale"), [(100.0, 1), (100.0, 2), (200.0, 4), (150.0, 1)])
def test_against_slow_sums(tmp_path, base, scale):
    layers = write_layers(tmp_path)
    survey = survey_of(tmp_path, base=base)
    rows, cols = survey.shape
    pixels = np.random.default_rng(1).integers(0, (rows * scale, cols * scale), (60, 2))
    radii = (0, 1, 3)
    features = pixel_features(survey, pixels, scale=scale, radii=radii)
    assert features.dtype == np.float32 and features.shape == (60, 2 * 7)
    for pixel, found in zip(pixels, features, strict=True):
        expected = []
        for values, resolution in zip(layers, (200.0, 50.0), strict=True):
            centre = (pixel + 0.5) / scale
            expected.append(slowly(values, centre, 0.5 / scale, base / resolution)[0])
            for radius in radii:
                expected += slowly(values, centre, radius + 0.5, base / resolution)
        assert np.allclose(found, expected, rtol=1e-6, atol=1e-3, equal_nan=True)
    assert np.isnan(features[:, 0]).any() and np.isfinite(features[:, 0]).any()


def test_names(tmp_path):
    write_layers(tmp_path)
    names = feature_names(survey_of(tmp_path), radii=(1, 8))
    assert names[:5] == ("gravity", "gravity mean 1", "gravity std 1", "gravity mean 8", "gravity std 8")
    assert names[5] == "magnetics" and len(names) == 10
    assert len(feature_names(survey_of(tmp_path))) == 2 * (1 + 2 * len(RADII))


def test_hidden_layers_have_no_features(tmp_path):
    write_layers(tmp_path)
    whole, part = survey_of(tmp_path), survey_of(tmp_path, hidden=[0])
    pixels = np.array([[0, 0], [11, 13]])
    assert feature_names(part) == tuple(name for name in feature_names(whole) if name.startswith("magnetics"))
    assert np.array_equal(pixel_features(part, pixels), pixel_features(whole, pixels)[:, 9:], equal_nan=True)


def test_what_lies_under_nodata_changes_nothing(tmp_path):
    found = []
    for under in (-9999.0, 1e6):
        write_layers(tmp_path, under=under)
        rows, cols = np.mgrid[:24, :28]
        found.append(pixel_features(survey_of(tmp_path), np.stack([rows.ravel(), cols.ravel()], axis=1)))
    assert np.array_equal(*found, equal_nan=True)


def test_the_order_of_pixels_and_the_size_of_windows_do_not_matter(tmp_path, monkeypatch):
    write_layers(tmp_path)
    survey = survey_of(tmp_path)
    pixels = np.random.default_rng(2).integers(0, (24, 28), (80, 2))
    at_once = pixel_features(survey, pixels)
    shuffled = np.random.default_rng(3).permutation(80)
    assert np.allclose(pixel_features(survey, pixels[shuffled]), at_once[shuffled], atol=1e-2, equal_nan=True)
    monkeypatch.setattr(module, "_WINDOW_EDGE", 1)  # tiles of 16 base pixels
    assert np.allclose(pixel_features(survey, pixels), at_once, atol=1e-2, equal_nan=True)
    assert pixel_features(survey, np.empty((0, 2), int)).shape == (0, 18)


def test_a_plane_has_the_mean_of_its_middle_and_no_spread_where_it_is_flat(tmp_path):
    row, col = np.mgrid[:40, :40]
    write_grid(tmp_path / "gravity.tif", (3.0 * row + col).astype(np.float32), resolution=100.0)
    write_grid(tmp_path / "magnetics.tif", np.where(col < 20, 7.0, 9.0).astype(np.float32), resolution=100.0)
    features = pixel_features(survey_of(tmp_path), np.array([[15, 10], [20, 18]]), radii=(1, 3))
    assert np.allclose(features[:, [0, 1, 3]], [[55] * 3, [78] * 3], atol=1e-4)
    assert np.allclose(features[0, 2], np.sqrt((9 + 1) * 2 / 3), atol=1e-4)  # of -1, 0, 1 times the slopes
    assert np.allclose(features[0, 5:], [7, 7, 0, 7, 0], atol=1e-3)
    assert np.allclose(features[1, 5:], [7, 7, 0, 7 + 2 * 2 / 7, 2 * np.sqrt(10) / 7], atol=1e-3)


def test_classes_and_directions_are_no_numbers_to_take_means_of(tmp_path):
    rock = np.full((40, 40), 3.0, np.float32)
    rock[:, 20:] = 900.0
    write_grid(tmp_path / "gravity.tif", rock, resolution=100.0)
    col = np.mgrid[:40, :40][1]
    write_grid(tmp_path / "magnetics.tif", np.where(col % 2, 350.0, 10.0).astype(np.float32), resolution=100.0)
    encodings = (
        Encoding("categorical", (), (), codes=(3.0, 900.0), names=("shale", "basalt"), frequencies=(0.5, 0.5)),
        Encoding("circular", (0.0, 0.0), (1.0, 1.0)),
    )
    layers = [
        Layer("rock", str(tmp_path / "gravity.tif"), kind="categorical", kind_stated=True),
        Layer("aspect", str(tmp_path / "magnetics.tif"), kind="circular", kind_stated=True),
    ]
    survey = open_inference_survey(
        layers,
        encodings=encodings,
        input_size=8,
        scales=(1,),
        base_resolution=100.0,
        finest_scale=1,
    )
    names = feature_names(survey, radii=(1,))
    assert names == tuple(
        f"{name}{suffix}"
        for name in ("rock shale", "rock basalt", "aspect cosine", "aspect sine")
        for suffix in ("", " mean 1")
    )
    features = pixel_features(survey, np.array([[20, 19], [20, 30]]), radii=(1,))
    assert np.allclose(features[0, :4], [1, 2 / 3, 0, 1 / 3], atol=1e-6)
    assert np.allclose(features[1, :4], [0, 0, 1, 1], atol=1e-6)
    cosine, sine = np.cos(np.radians(10)), np.sin(np.radians(10))
    assert np.allclose(features[1, 4:], [cosine, cosine, sine, -sine / 3], atol=1e-6)  # not the 180 between them
