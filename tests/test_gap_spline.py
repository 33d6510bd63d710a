"""Which gaps are filled, and how a prediction is joined to what surrounds it."""

import numpy as np
import pytest

from scripts.measure_gapfill import punch
from util.inference import gap_spline as gaps
from util.inference.gap_spline import fillable, gap_details, resample_linear


class TestFillable:
    def test_narrow_gaps_are_filled_and_wide_ones_are_not(self):
        valid = np.ones((60, 60), dtype=bool)
        valid[10:14, 5:55] = False  # four pixels wide, long
        valid[25:55, 20:50] = False  # thirty wide
        fill = fillable(valid, width_y=8, width_x=8)
        assert fill[10:14, 5:55].all()
        inside = fill[25:55, 20:50]
        assert not inside[8:22, 8:22].any() and inside.mean() < 0.05  # but for its corners
        assert not (fill & valid).any()

    def test_ground_beyond_the_outline_is_left_alone(self):
        valid = np.zeros((40, 40), dtype=bool)
        valid[10:30, 10:30] = True
        assert not fillable(valid, width_y=12, width_x=12).any()

    def test_pixels_may_be_oblong(self):
        valid = np.ones((40, 40), dtype=bool)
        valid[:, 18:24] = False  # six columns
        valid[18:24, :] = False  # six rows
        fill = fillable(valid, width_y=20, width_x=2)
        assert fill[18:24, 5].all() and not fill[5, 20:22].any()

    def test_nothing_or_everything_valid(self):
        for valid in (np.zeros((5, 5), bool), np.ones((5, 5), bool)):
            assert not fillable(valid, width_y=3, width_x=3).any()

    def test_the_answer_does_not_depend_on_the_window(self):
        rng = np.random.default_rng(0)
        valid = rng.random((80, 80)) < 0.9
        valid[20:34, 30:40] = False
        whole = fillable(valid, width_y=6, width_x=6)
        part = fillable(valid[10:60, 15:70], width_y=6, width_x=6)
        assert np.array_equal(part[7:-7, 7:-7], whole[17:53, 22:63])


def hole(values, rows, cols):
    """The values with a rectangle taken out, and where it was."""
    fill = np.zeros(values.shape, dtype=bool)
    fill[rows, cols] = True
    return np.where(fill, np.nan, values).astype(np.float32), fill


class TestDetails:
    def test_a_plane_is_the_splines_and_no_detail(self):
        y, x = np.mgrid[:40, :40].astype(np.float32)
        plane = 3 + 0.5 * x - 0.25 * y
        values, fill = hole(plane, slice(12, 24), slice(15, 28))
        spline, detail = gap_details(values, 7 - x, fill)
        np.testing.assert_allclose(spline[fill], plane[fill], atol=1e-3)
        np.testing.assert_allclose(detail[fill], 0, atol=1e-3)
        assert np.isnan(spline[~fill]).all() and np.isnan(detail[~fill]).all()

    def test_a_prediction_that_is_off_by_a_plane_is_put_right(self):
        y, x = np.mgrid[:40, :40].astype(np.float32)
        truth = 5 * np.exp(-((x - 21) ** 2 + (y - 18) ** 2) / 12)  # a hill inside the hole, unseen from around it
        values, fill = hole(truth, slice(10, 27), slice(12, 31))
        spline, detail = gap_details(values, truth + 3 + 0.1 * x - 0.2 * y, fill)
        assert np.abs(spline - truth)[fill].max() > 4
        np.testing.assert_allclose((spline + detail)[fill], truth[fill], atol=1e-2)

    def test_pixels_without_prediction_stay_open(self):
        values, fill = hole(np.ones((20, 20)), slice(5, 9), slice(5, 9))
        predicted = np.full(values.shape, 2.0, dtype=np.float32)
        predicted[5, 5] = np.nan
        spline, _ = gap_details(values, predicted, fill)
        assert np.isnan(spline[5, 5]) and np.allclose(spline[6:9, 6:9], 1.0, atol=1e-4)

    def test_few_points_or_all_on_one_line(self):
        for known in (np.s_[0, :2], np.s_[0, :]):
            values = np.full((6, 6), np.nan, dtype=np.float32)
            values[known] = 7
            fill = np.isnan(values)
            spline, detail = gap_details(values, np.zeros((6, 6), np.float32), fill)
            np.testing.assert_allclose(spline[1:4, :2], 7, atol=1e-4)
            np.testing.assert_allclose(detail[1:4, :2], 0, atol=1e-4)

    def test_nothing_around(self):
        values = np.full((6, 6), np.nan, dtype=np.float32)
        spline, _ = gap_details(values, values, np.ones((6, 6), dtype=bool))
        assert np.isnan(spline).all()

    def test_very_many_points(self, monkeypatch):
        monkeypatch.setattr(gaps, "SPLINE_POINTS", 20)
        y, x = np.mgrid[:40, :40].astype(np.float32)
        truth = np.sin(x / 9) + np.cos(y / 8)
        values, fill = hole(truth, slice(14, 20), slice(12, 30))
        spline, _ = gap_details(values, np.zeros_like(values), fill)
        assert np.abs(spline - truth)[fill].max() < 0.1


class TestResample:
    def test_identity_and_halves(self):
        image = np.arange(12, dtype=np.float32).reshape(3, 4)
        assert np.array_equal(resample_linear(image, np.arange(3.0), np.arange(4.0)), image)
        np.testing.assert_allclose(resample_linear(image, np.array([0.5]), np.array([1.5, 9.0])), [[3.5, 5.0]])

    def test_unknown_neighbours_are_left_out(self):
        image = np.array([[1.0, np.nan], [3.0, np.nan]], dtype=np.float32)
        result = resample_linear(image, np.array([0.5]), np.array([0.0, 0.4, 0.9]))
        np.testing.assert_allclose(result, [[2.0, 2.0, np.nan]])


@pytest.mark.parametrize("size, most", [(31, 0), (32, 1), (64, 1)])
def test_artificial_holes_lie_whole_and_with_their_margin_within_the_layer(size, most):
    """A square of 8 needs a margin of 12 on either side: 32 pixels."""
    values, taken = np.zeros((size, 90)), np.zeros((size, 90), dtype=bool)
    holes = punch(values, edge=8, count=1, taken=taken, rng=np.random.default_rng(0))
    assert len(holes) == most and taken.sum() == 64 * most
    for rows, cols in holes:
        assert 12 <= rows.start and rows.stop <= size - 12 and 12 <= cols.start and cols.stop <= 78
