"""Transforms of values: written-out numbers, and the way there and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.layers.transforms import Transform, fit_transform


def forward(transform, values):
    return transform.forward(torch.tensor(values, dtype=torch.float64)).numpy()


def test_none_changes_nothing():
    values = torch.tensor([1.0, -2.0, float("nan")])
    transform = fit_transform("none", np.array([1.0, 2.0]))
    assert transform.forward(values) is values and transform.inverse(values) is values


def test_log_is_natural_and_its_mean_is_the_geometric_one():
    transform = fit_transform("log", np.array([1.0, 100.0]))
    np.testing.assert_allclose(forward(transform, [1.0, np.e, 100.0]), [0, 1, np.log(100)], rtol=1e-12, atol=1e-12)
    assert transform.inverse(transform.forward(torch.tensor([1.0, 100.0])).mean()).item() == pytest.approx(10, rel=1e-6)


def test_asinh_is_centred_on_the_median_and_as_wide_as_the_middle():
    values = np.arange(101.0)  # median 50, from 16 to 84
    transform = fit_transform("asinh", values)
    assert (transform.centre, transform.width) == pytest.approx((50, 34))
    np.testing.assert_allclose(forward(transform, [50.0, 84.0, 16.0]), np.arcsinh([0, 1, -1]), rtol=1e-12, atol=1e-12)
    far = forward(transform, [50 + 34e3, 50 + 68e3])
    assert far[1] - far[0] == pytest.approx(np.log(2), abs=1e-6)  # logarithmic far from the middle


def test_quantile_makes_any_values_normal():
    values = np.exp(3 * np.random.default_rng(0).normal(size=20_000))
    changed = forward(fit_transform("quantile", values), values)
    assert changed.mean() == pytest.approx(0, abs=0.01) and changed.std() == pytest.approx(1, abs=0.02)
    assert np.quantile(changed, [0.16, 0.84]) == pytest.approx([-0.994, 0.994], abs=0.02)


def test_quantile_of_many_equal_values():
    """Half of them are 0: that knot stands for the lower half of the scores, and none is lost."""
    values = np.concatenate([np.zeros(500), np.linspace(1, 2, 500)])
    transform = fit_transform("quantile", values)
    assert len(transform.knots) == len(set(transform.knots)) == len(transform.scores)
    assert (np.diff(transform.knots) > 0).all() and (np.diff(transform.scores) > 0).all()
    assert forward(transform, [0.0])[0] < -0.6  # the mean of the lower half of a normal distribution is -0.8


@pytest.mark.parametrize("kind", ["none", "log", "asinh", "quantile"])
@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(50, 10**6).map(lambda n: n / 100), min_size=3, max_size=30, unique=True))
def test_there_and_back(kind, values):
    """Also beyond the ends of what it was fitted to. Tolerance: knots are float32."""
    values = np.array(values)
    transform = fit_transform(kind, values)
    tried = torch.tensor(np.concatenate([values, [0.25, 2e4]]))
    changed = transform.forward(tried)
    torch.testing.assert_close(transform.inverse(changed), tried, rtol=1e-4, atol=1e-4)
    order = tried.argsort()
    assert (changed[order].diff() > 0).all()


def test_nan_stays_nan_and_types_stay():
    for kind in ("log", "asinh", "quantile"):
        transform = fit_transform(kind, np.array([1.0, 2.0, 5.0]))
        changed = transform.forward(torch.tensor([[2.0, float("nan")]]))
        assert changed.dtype == torch.float32 and changed.shape == (1, 2)
        assert changed.isnan().tolist() == [[False, True]]


def test_it_is_plain_data():
    assert Transform("asinh", 1.0, 2.0) == Transform("asinh", 1.0, 2.0)
