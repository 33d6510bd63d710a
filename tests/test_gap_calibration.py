"""What artificial gaps teach: how much of the model's detail helps, and how errors follow distance and roughness."""

import numpy as np
import pytest

from util.inference.gap_calibration import GapModel, TrialGap, fit_gap_model, roughness

FLAT = np.ones((4, 4))
ALL = np.ones((4, 4), dtype=bool)


def tried(count, *, rough=lambda k: 1.0, noise=lambda k: 0.0):
    """Truth is the spline plus 0.4 of the detail plus noise that grows with the distance to the edge."""
    rng = np.random.default_rng(0)
    gap = np.zeros((30, 30), dtype=bool)
    gap[5:25, 5:25] = True
    distance = np.minimum.reduce([np.arange(30) - 4, 25 - np.arange(30)]).clip(0)
    distance = np.minimum.outer(distance, distance)
    for k in range(count):
        spline, detail, error = rng.normal(size=(3, 30, 30))
        truth = spline + 0.4 * detail + 0.1 * distance * noise(k) * error
        yield TrialGap(spline, detail, truth, gap, np.full((30, 30), rough(k)))


class TestFit:
    def test_share_and_errors(self):
        found = list(tried(60, noise=lambda k: 1.0))
        gap_model, gap = fit_gap_model(found), found[0].gap
        assert abs(gap_model.detail_fraction - 0.4) < 0.02 and (np.diff(gap_model.errors) >= 0).all()
        np.testing.assert_allclose(gap_model.errors, 0.1 * np.array(gap_model.distances), rtol=0.1)
        sigma = gap_model.uncertainty(~gap, np.ones((30, 30)))
        assert (sigma[~gap] == 0).all() and sigma[14, 14] > 2 * sigma[5, 5] > 0

    @pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
    def test_errors_that_follow_the_roughness(self, power):
        """Errors of ground that is k times as rough are k^power times as large, which is found out."""
        found = tried(24, rough=lambda k: 2.0 ** (k % 5), noise=lambda k: (2.0 ** (k % 5)) ** power)
        gap_model = fit_gap_model(list(found))
        assert gap_model.power == power and gap_model.typical == 4 and gap_model.least == 1
        rough, distance = np.array([2.0, 8.0]), np.full(2, 5.0)
        np.testing.assert_allclose(gap_model.expected(distance, rough), 0.1 * 5 * rough**power, rtol=0.15)
        assert gap_model.expected(distance, np.array([0.01, 1.0]))[0] == gap_model.expected(distance, np.ones(2))[0]
        assert gap_model.factor(np.array([np.nan])) == 1

    def test_few_gaps_say_nothing_of_roughness(self):
        assert fit_gap_model(list(tried(5, rough=lambda k: 2.0**k, noise=lambda k: 2.0**k))).power == 0

    def test_a_layer_without_any_variation(self):
        zero = np.zeros((4, 4))
        gap_model = fit_gap_model([TrialGap(zero, zero, zero, ALL, zero)] * 8)
        assert gap_model.detail_fraction == 0 and (gap_model.uncertainty(~ALL, zero) == 0).all()

    def test_detail_that_only_harms_is_left_out(self):
        zero = np.zeros((4, 4))
        assert fit_gap_model([TrialGap(zero, FLAT, -FLAT, ALL, FLAT)]).detail_fraction == 0
        assert fit_gap_model([TrialGap(zero, FLAT, 5 * FLAT, ALL, FLAT)]).detail_fraction == 1

    def test_a_rough_gap_does_not_decide_alone(self):
        """Twenty smooth gaps where the detail is right, and a wild one where it is not at all."""
        rng = np.random.default_rng(0)
        zero, fine, wild = np.zeros((4, 4)), rng.normal(size=(20, 4, 4)), 1000 * rng.normal(size=(4, 4))
        found = [TrialGap(zero, detail, detail, ALL, FLAT) for detail in fine]
        assert fit_gap_model([*found, TrialGap(zero, -wild, wild, ALL, FLAT)]).detail_fraction > 0.9

    def test_nothing_to_learn_from(self):
        with pytest.raises(ValueError, match="no artificial gap could be made"):
            fit_gap_model([])


class TestRoughness:
    def test_a_plane_is_smooth_and_a_chessboard_is_not(self):
        y, x = np.mgrid[:40, :40].astype(np.float32)
        fill = np.zeros((40, 40), dtype=bool)
        fill[15:22, 14:23] = True
        for image, expected in ((2 * x - 3 * y, 0.0), (5 * (-1) ** (x + y), 10.0)):
            values = np.where(fill, np.nan, image).astype(np.float32)
            rough = roughness(values, reach_y=8, reach_x=8)
            np.testing.assert_allclose(rough[fill], expected, atol=1e-4)
            assert np.isnan(rough[~fill]).all()

    def test_nearer_ground_counts_more_and_gaps_far_away_do_not(self):
        rng = np.random.default_rng(0)
        values = np.zeros((30, 120), np.float32)
        values[:, 60:] = rng.normal(size=(30, 60))
        fill = np.zeros(values.shape, dtype=bool)
        fill[10:20, [*range(20, 30), *range(55, 66), *range(90, 100)]] = True
        rough = roughness(np.where(fill, np.nan, values), reach_y=10, reach_x=10)
        assert (rough[15, 20:30] < 1e-5).all() and (rough[15, 90:100] > 0.7).all()
        assert (np.diff(rough[15, 55:66]) > 0).all()

    def test_nothing_around(self):
        assert np.isnan(roughness(np.full((6, 6), np.nan, np.float32), reach_y=3, reach_x=3)).all()

    def test_an_unknown_roughness_is_the_usual_one(self):
        gap_model = GapModel(0.0, (1.0,), (3.0,), power=1.0, typical=2.0, least=1.0)
        np.testing.assert_allclose(gap_model.expected(np.ones(3), np.array([np.nan, 4.0, 0.5])), [3.0, 6.0, 1.5])
