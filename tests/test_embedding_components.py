"""Embeddings as colours and classes."""

import numpy as np
import pytest

from util.inference.embedding_components import (
    class_colours,
    classify,
    fit_clusters,
    fit_components,
    project,
    smooth,
    to_bytes,
)


class TestComponents:
    def test_two_directions(self):
        """Points along (3, 4), five times as wide as along (-4, 3): both are found, the wider first."""
        rng = np.random.default_rng(0)
        along, across = rng.normal(size=(2, 4000))
        found = fit_components(np.outer(5 * along, [0.6, 0.8]) + np.outer(across, [-0.8, 0.6]) + [10, -10], 2)
        np.testing.assert_allclose(found.components_[0], [0.6, 0.8], atol=0.02)
        np.testing.assert_allclose(found.explained_variance_ratio_, [25 / 26, 1 / 26], atol=0.01)
        projected = project(found, np.array([[10.0], [-10.0]])[..., None] + np.array([[0.6], [0.8]])[..., None])
        np.testing.assert_allclose(projected[:, 0, 0], [1, 0], atol=0.2)

    def test_absent_bands_count_as_the_mean_and_absent_places_stay_absent(self):
        found = fit_components(np.random.default_rng(0).normal(size=(50, 3)), 2)
        values = np.array([[np.nan, np.nan], [found.mean_[1], np.nan], [found.mean_[2], np.nan]])[..., None]
        projected = project(found, values)
        np.testing.assert_allclose(projected[:, 0], 0, atol=1e-12)
        assert np.isnan(projected[:, 1]).all()

    def test_fewer_places_than_components(self):
        found = fit_components(np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), 16)
        assert found.components_.shape == (2, 3)
        np.testing.assert_allclose(project(found, np.eye(3)[:, :1])[0], [0], atol=1e-12)

    def test_the_same_each_time(self):
        sample = np.random.default_rng(1).normal(size=(400, 20)) @ np.diag(np.arange(1.0, 21))
        first, second = (fit_components(sample.copy(), 3).components_ for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert (np.take_along_axis(first, np.abs(first).argmax(axis=1)[:, None], axis=1) > 0).all()
        np.testing.assert_array_equal(*(fit_clusters(sample.copy(), 4, seed=3) for _ in range(2)))

    def test_too_few(self):
        with pytest.raises(ValueError, match="principal components of 1 complete places: expected at least 2"):
            fit_components(np.zeros((1, 3)), 2)


def test_bytes():
    values = np.array([[[-5.0, 0.0, 5.0, 10.0, 99.0, np.nan]]])
    assert to_bytes(values, np.array([0.0]), np.array([10.0])).tolist() == [[[1, 1, 128, 255, 255, 0]]]


class TestClusters:
    def test_two_heaps(self):
        rng = np.random.default_rng(0)
        sample = np.concatenate([rng.normal(size=(30, 2)), rng.normal(size=(70, 2)) + 50])
        centres = fit_clusters(sample, 2, seed=0)
        np.testing.assert_allclose(centres, [[50, 50], [0, 0]], atol=1)  # the larger first
        values = np.array([[49.0, 1.0, np.nan], [51.0, 2.0, 3.0]])[..., None]
        assert classify(values, centres)[0, :, 0].tolist() == [1, 2, 0]

    def test_no_more_classes_than_places(self):
        places = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
        centres = fit_clusters(places, 5, seed=0)
        np.testing.assert_allclose(centres[np.lexsort(centres.T)], places[np.lexsort(places.T)])


@pytest.mark.parametrize("count", [2, 10, 20, 40, 255])
def test_colours_differ(count):
    assert len(set(class_colours(count))) == count


def test_smooth_is_the_mean_of_the_known_neighbours():
    values = np.arange(9.0).reshape(1, 3, 3)
    values[0, 0, 0] = np.nan
    found = smooth(values)
    assert np.isnan(found[0, 0, 0]) and found[0, 1, 1] == pytest.approx(36 / 8)
    assert found[0, 2, 2] == pytest.approx((4 + 5 + 7 + 8) / 4) and found[0, 0, 1] == pytest.approx(15 / 5)


def test_smoothing_turns_speckle_into_areas():
    """Two halves with noise as large as their difference: single places of the other class nearly vanish."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0.0, 1.0], 20)[None, :].repeat(40, axis=0)
    values = truth[None] + rng.normal(scale=0.5, size=(1, 40, 40))
    centres = np.array([[0.0], [1.0]])
    wrong = [(classify(image, centres)[0] - 1 != truth).mean() for image in (values, smooth(values))]
    assert wrong[0] > 0.1 and wrong[1] < 0.03
