"""Coverage and statistics of layers, against numbers written out or counted pixel by pixel."""

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.layers.layer import Layer
from datasets.layers.layer_statistics import LayerStatistics, save_statistics, statistics_from_dict
from datasets.rasters.open_band import open_band
from datasets.survey import coverage as statistics
from datasets.survey import statistics as fitting
from datasets.survey.coverage import correlation_length, map_cells, mean_coverage, overlap_matrix
from datasets.survey.stack import Stack, reference_grid
from datasets.survey.statistics import fit_statistics
from tests.blocks import holdout_blocks
from tests.rasters import write_grid

NAN = np.nan
NOTHING_HELD_OUT = holdout_blocks([[False]], 4, 4)


def stack_of(folder, *arrays, extent="union", normalize="standard", **options):
    """Layers a, b, ... from arrays, or (array, resolution, left, top) tuples."""
    bands = []
    for name, entry in zip("abcdef", arrays, strict=False):
        array, *place = entry if isinstance(entry, tuple) else (entry,)
        where = dict(zip(("resolution", "left", "top"), place, strict=False))
        path = write_grid(folder / f"{name}.tif", np.asarray(array), **where, **options)
        bands.append(open_band(Layer(name, str(path), normalize=normalize)))
    return Stack(bands, reference_grid(bands, extent=extent))


class TestOverlapMatrix:
    def test_written_out(self):
        matrix = overlap_matrix(np.array([-0.5, 0.5, 2.0, 3.75]), 3).toarray()
        np.testing.assert_allclose(matrix, np.array([[0.5, 0, 0], [0.5, 1, 0], [0, 0, 1]]), atol=1e-12)

    @settings(deadline=None)
    @given(
        start=st.floats(-5, 5),
        steps=st.lists(st.floats(0.01, 4), min_size=1, max_size=12),
        count=st.integers(1, 20),
    )
    def test_rows_sum_to_the_length_inside(self, start, steps, count):
        edges = start + np.concatenate([[0], np.cumsum(steps)])
        clipped = np.clip(edges, 0, count)
        matrix = overlap_matrix(edges, count)
        assert matrix.shape == (len(steps), count)
        np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), np.diff(clipped), atol=1e-7)
        assert (matrix.sum(axis=0) <= 1 + 1e-7).all()


class TestMapCells:
    VALUES = np.array(
        [
            [1, 2, 3, NAN, 5],
            [3, 6, NAN, NAN, 7],
            [0, 4, 8, 8, 1],
            [0, NAN, 8, 8, 1],
        ],
        dtype=np.float32,
    )

    def test_written_out(self, tmp_path):
        """Cells of 2 x 2 pixels; the last column of cells is one pixel wide."""
        cells, cell = map_cells(stack_of(tmp_path, self.VALUES), 0, step=2)
        assert cell == 2
        np.testing.assert_allclose(cells.fraction, np.array([[1, 0.25, 1], [0.75, 1, 1]]))
        np.testing.assert_allclose(cells.mean, np.array([[3, 3, 6], [4 / 3, 8, 1]]), rtol=1e-6)
        assert cells.fraction.dtype == cells.mean.dtype == np.float32

    def test_an_empty_cell_has_no_mean(self, tmp_path):
        values = np.arange(16, dtype=np.float32).reshape(4, 4)
        values[:2, :2] = NAN
        cells, _ = map_cells(stack_of(tmp_path, values), 0, step=2)
        np.testing.assert_array_equal(cells.fraction, [[0, 1], [1, 1]])
        np.testing.assert_array_equal(np.isnan(cells.mean), [[True, False], [False, False]])

    def test_ground_outside_a_layer_is_not_valid(self, tmp_path):
        """b covers the eastern half of a, at 200 m, and sticks out by half a cell."""
        stack = stack_of(
            tmp_path,
            np.arange(32, dtype=np.float32).reshape(4, 8),
            (np.array([[1, 2, 3], [4, 5, 6.0]]), 200.0, 500_400.0),
        )
        assert (stack.reference.rows, stack.reference.cols) == (4, 10)
        first, _ = map_cells(stack, 0, step=4)
        second, _ = map_cells(stack, 1, step=4)
        np.testing.assert_allclose(first.fraction, [[1, 1, 0]], atol=1e-6)
        np.testing.assert_allclose(second.fraction, [[0, 1, 1]], atol=1e-6)
        np.testing.assert_allclose(second.mean, [[NAN, 3, 4.5]])
        np.testing.assert_allclose(mean_coverage([first, second], 4).fraction, [[0.5, 1, 0.5]])

    def test_pixels_across_cells_count_by_area(self, tmp_path):
        """250 m pixels under cells of 400 m: 1.6 native pixels each way."""
        native = np.arange(16.0).reshape(4, 4)
        native[0, 0] = NAN
        stack = stack_of(tmp_path, np.random.default_rng(0).random((10, 10)), (native, 250.0))
        cells, _ = map_cells(stack, 1, step=4)
        fine = np.kron(native, np.ones((5, 5)))  # 50 m
        for r in range(2):
            for c in range(2):
                ground = fine[8 * r : 8 * r + 8, 8 * c : 8 * c + 8]
                assert cells.fraction[r, c] == pytest.approx(np.isfinite(ground).mean(), abs=1e-6)
                assert cells.mean[r, c] == pytest.approx(np.nanmean(ground), rel=1e-6)

    def test_small_chunks_give_the_same(self, tmp_path, monkeypatch):
        values = np.random.default_rng(0).random((21, 13))
        values[values < 0.3] = NAN
        stack = stack_of(tmp_path, values)
        whole, _ = map_cells(stack, 0, step=4)
        monkeypatch.setattr(statistics, "CHUNK_PIXELS", 50)
        pieces, _ = map_cells(stack, 0, step=4)
        np.testing.assert_allclose(whole.fraction, pieces.fraction, atol=1e-6)
        np.testing.assert_allclose(whole.mean, pieces.mean, rtol=1e-6)

    def test_cells_grow_where_there_would_be_too_many(self, tmp_path, monkeypatch):
        monkeypatch.setattr(statistics, "MAX_CELLS", 30)
        stack = stack_of(tmp_path, np.random.default_rng(0).random((20, 24)))
        cells, cell = map_cells(stack, 0, step=2)
        assert cell == 4 and cells.fraction.shape == (5, 6)

    def test_sampled_rows_stand_for_their_cells(self, tmp_path, monkeypatch):
        """Values and holes that are the same down a column: one row a cell tells all."""
        row = np.array([1, 2, 3, NAN, 5, 6, NAN, NAN, 9], dtype=np.float32)
        stack = stack_of(tmp_path, np.tile(row, (22, 1)))
        full, _ = map_cells(stack, 0, step=4)
        monkeypatch.setattr(statistics, "SAMPLED_PIXELS", 10)
        sampled, _ = map_cells(stack, 0, step=4)
        np.testing.assert_allclose(sampled.fraction, full.fraction, rtol=1e-6)  # the last cells are cut short
        np.testing.assert_allclose(sampled.mean, full.mean, rtol=1e-6)

    def test_sampled_is_close_to_full(self, tmp_path, monkeypatch):
        y, x = np.mgrid[:160, :160] / 40.0
        values = (np.sin(y) + np.cos(x) + np.sin(3 * x + 2 * y)).astype(np.float32)
        values[np.add.outer(np.arange(160), np.arange(160)) < 70] = NAN
        stack = stack_of(tmp_path, values)
        full, _ = map_cells(stack, 0, step=8)
        monkeypatch.setattr(statistics, "SAMPLED_PIXELS", 1000)
        sampled, _ = map_cells(stack, 0, step=8)
        np.testing.assert_allclose(sampled.fraction, full.fraction, atol=0.13)  # a diagonal: half a row of a cell
        inside = full.fraction == 1
        assert np.abs(sampled.mean - full.mean)[inside].max() < 0.1 * np.nanstd(values)


class TestLayerStatistics:
    def test_written_out(self, tmp_path):
        """Training ground is the western half: 1, 2, 3 and 6."""
        values = np.array([[1, 2, 100, 200], [3, 6, 300, NAN]], dtype=np.float32)
        held_out = holdout_blocks([[False, True]], 2, 2)
        found = fit_statistics(stack_of(tmp_path, values), 0, held_out)[0]
        assert (found.name, found.normalize, found.count, found.sampled) == ("a", "standard", 4, False)
        assert found.mean == found.centre == pytest.approx(3.0)
        assert found.std == found.scale == pytest.approx(math.sqrt(14 / 4))
        assert found.median == pytest.approx(2.5)

    def test_the_buffer_is_left_out_too(self, tmp_path):
        values = np.array([[1, 2, 50, 100, 200]] * 2, dtype=np.float32)
        values[1, 0] = 3
        held_out = holdout_blocks([[False, False, True]], 2, 2, 2)
        assert fit_statistics(stack_of(tmp_path, values), 0, held_out)[0].mean == pytest.approx((1 + 2 + 3 + 2) / 4)

    def test_robust(self, tmp_path):
        """Median and half the range of the middle 68 %; an outlier moves neither."""
        values = np.arange(101, dtype=np.float32)[None].repeat(2, 0)
        values[0, 100] = 1e6
        found = fit_statistics(stack_of(tmp_path, values, normalize="robust"), 0, NOTHING_HELD_OUT)[0]
        assert found.centre == found.median == pytest.approx(50)
        assert found.scale == pytest.approx(34, abs=0.5)
        assert found.std > 1e4

    def test_robust_falls_back_on_the_standard_deviation(self, tmp_path):
        values = np.zeros((10, 10), dtype=np.float32)
        values[0, 0] = 10.0  # 68 % of the values are one value
        found = fit_statistics(stack_of(tmp_path, values, normalize="robust"), 0, NOTHING_HELD_OUT)[0]
        assert found.centre == 0 and found.scale == found.std == pytest.approx(math.sqrt(0.99))

    def test_none_leaves_values_as_they_are(self, tmp_path):
        values = np.array([[4.0, 8.0]], dtype=np.float32)
        found = fit_statistics(stack_of(tmp_path, values, normalize="none"), 0, NOTHING_HELD_OUT)[0]
        assert (found.centre, found.scale, found.mean, found.std) == (0.0, 1.0, 6.0, 2.0)

    @pytest.mark.parametrize("normalize", ["standard", "robust"])
    @pytest.mark.parametrize("resolution", [100.0, 200.0, 250.0])
    def test_values_inside_held_out_blocks_change_nothing(self, tmp_path, normalize, resolution):
        rng = np.random.default_rng(0)
        side = int(4000 / resolution)
        values = rng.normal(size=(side, side)).astype(np.float32)
        held_out = holdout_blocks(rng.random((4, 4)) < 0.3, 10, 10, 3)
        assert held_out.chosen.any()
        changed = values.copy()
        for row, col, height, width in held_out.rectangles():  # pixels that touch the block at all
            rows = slice(int(100 * row // resolution), math.ceil(100 * (row + height) / resolution))
            cols = slice(int(100 * col // resolution), math.ceil(100 * (col + width) / resolution))
            changed[rows, cols] = 1e6
        finest = (rng.random((40, 40)), 100.0)
        found = []
        for name, array in (("before", values), ("after", changed)):
            (tmp_path / name).mkdir()
            stack = stack_of(tmp_path / name, (array, resolution), finest, normalize=normalize)
            found.append(fit_statistics(stack, 0, held_out)[0])
        assert found[0] == found[1]
        assert 0 < found[0].count < side * side

    def test_ground_outside_the_reference_grid_changes_nothing(self, tmp_path):
        """With --extent intersection no tile reaches there."""
        values = np.full((4, 8), 1e6, dtype=np.float32)
        values[1:3, 2:6] = [[1, 2, 3, 4], [5, 6, 7, 8]]
        other = (np.random.default_rng(0).random((2, 4)), 100.0, 500_200.0, 5_999_900.0)
        stack = stack_of(tmp_path, values, other, extent="intersection")
        found = fit_statistics(stack, 0, NOTHING_HELD_OUT)[0]
        assert (found.mean, found.count) == (4.5, 8)

    def test_in_memory_or_not_and_in_chunks_the_same(self, tmp_path, monkeypatch):
        stack = stack_of(tmp_path, np.random.default_rng(0).normal(1e4, 5, size=(40, 30)).astype(np.float32))
        lazy = fit_statistics(stack, 0, NOTHING_HELD_OUT)[0]
        stack.load()
        assert fit_statistics(stack, 0, NOTHING_HELD_OUT)[0] == lazy
        monkeypatch.setattr(statistics, "CHUNK_PIXELS", 100)
        pieces = fit_statistics(stack, 0, NOTHING_HELD_OUT)[0]
        assert (pieces.mean, pieces.std, pieces.median) == pytest.approx((lazy.mean, lazy.std, lazy.median), rel=1e-9)

    def test_sampled_is_close_to_full_and_says_so(self, tmp_path, monkeypatch):
        stack = stack_of(tmp_path, np.random.default_rng(0).normal(50, 5, size=(300, 40)).astype(np.float32))
        full = fit_statistics(stack, 0, NOTHING_HELD_OUT)[0]
        monkeypatch.setattr(statistics, "SAMPLED_PIXELS", 1000)
        monkeypatch.setattr(fitting, "SAMPLED_PIXELS", 1000)
        sampled = fit_statistics(stack, 0, NOTHING_HELD_OUT)[0]
        assert sampled.sampled and not full.sampled
        assert sampled.mean == pytest.approx(full.mean, abs=0.2)
        assert sampled.std == pytest.approx(full.std, rel=0.05)

    def test_memory_does_not_grow_with_the_layer(self, tmp_path, monkeypatch):
        """A layer of 1.3 MB as float64, read in chunks of 4000 pixels."""
        monkeypatch.setattr(statistics, "CHUNK_PIXELS", 4000)
        monkeypatch.setattr(fitting, "QUANTILE_SAMPLE", 1000)
        stack = stack_of(tmp_path, np.random.default_rng(0).normal(size=(400, 400)).astype(np.float32))
        tracemalloc.start()
        fit_statistics(stack, 0, NOTHING_HELD_OUT)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300_000

    @pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
    def test_constant_on_training_ground(self, tmp_path, value):
        values = np.full((7, 20), value, dtype=np.float32)
        values[:, 10:] += np.arange(10)
        held_out = holdout_blocks([[False, True]], 7, 10)
        with pytest.raises(
            ValueError, match=r"layer 'a' \(.*a\.tif\): constant \(.*\) on training ground.*dropped_bands"
        ):
            fit_statistics(stack_of(tmp_path, values), 0, held_out)

    def test_no_valid_pixel_on_training_ground(self, tmp_path):
        values = np.full((4, 8), NAN, dtype=np.float32)
        values[:, 4:] = np.arange(16).reshape(4, 4)
        held_out = holdout_blocks([[False, True]], 4, 4)
        with pytest.raises(
            ValueError, match=r"layer 'a' \(.*a\.tif\): no valid pixel on training ground; change --seed"
        ):
            fit_statistics(stack_of(tmp_path, values), 0, held_out)

    def test_saved_as_json(self, tmp_path):
        item = LayerStatistics("a", "standard", 1.5, 2.0, 1.5, 2.0, 1.25, 12, False)
        save_statistics(tmp_path / "statistics.json", [item])
        (stored,) = json.loads((tmp_path / "statistics.json").read_text())
        assert statistics_from_dict(stored) == item
        assert [stored] == [
            {
                "name": "a",
                "normalize": "standard",
                "location": 1.5,
                "spread": 2.0,
                "mean": 1.5,
                "std": 2.0,
                "median": 1.25,
                "count": 12,
                "sampled": False,
                "detail": 0.0,
            }
        ]


def counted_correlation(values, lag):
    """Autocorrelation at a lag in rows, pair by pair."""
    anomaly = values - np.nanmean(values)
    return np.nanmean(anomaly[lag:] * anomaly[:-lag]) / np.nanmean(anomaly**2)


class TestCorrelationLength:
    @pytest.mark.parametrize("period", [24, 40, 80])
    def test_of_a_plane_wave_each_way(self, period):
        """The autocorrelation of a cosine is a cosine: 1/e is passed at acos(1/e) of 2 pi."""
        x = 2 * np.pi * np.arange(8 * period) / period
        field = np.cos(x)[:, None] + np.cos(x)[None, :]
        # Along each axis half of the variance is constant: 0.5 + 0.5 cos(lag) = 1/e.
        expected = np.arccos(2 / math.e - 1) / (2 * np.pi) * period
        assert correlation_length(field) == pytest.approx(expected, rel=0.03)

    def test_of_an_autoregressive_field(self):
        """Correlation 0.9 ** (|rows| + |columns|) falls to 1/e at 1 / -ln 0.9 = 9.5 cells."""
        field = np.random.default_rng(0).normal(size=(500, 500))
        for _ in range(2):
            for row in range(1, 500):
                field[row] = 0.9 * field[row - 1] + math.sqrt(1 - 0.81) * field[row]
            field = field.T.copy()
        assert correlation_length(field[100:, 100:]) == pytest.approx(9.5, rel=0.15)  # 42 x 42 lengths of ground

    def test_of_noise_is_below_a_cell(self):
        assert correlation_length(np.random.default_rng(0).normal(size=(60, 60))) < 1

    def test_is_counted_between_pairs_of_valid_cells(self):
        rng = np.random.default_rng(3)
        noise = rng.normal(size=(98, 90))
        field = np.sum([noise[k : k + 90] for k in range(9)], axis=0)  # correlated down the columns only
        field = np.where(rng.random(field.shape) < 0.4, NAN, field)
        field[:, 45:] = NAN
        lag = next(k for k in range(1, 30) if counted_correlation(field, k) < 1 / math.e)
        before, after = counted_correlation(field, lag - 1) if lag > 1 else 1.0, counted_correlation(field, lag)
        down = lag - 1 + (before - 1 / math.e) / (before - after)
        across = (1 - 1 / math.e) / (1 - counted_correlation(field.T, 1))
        assert correlation_length(field) == pytest.approx((down + across) / 2, rel=1e-6)

    def test_of_a_trend_is_infinite(self):
        assert correlation_length(np.add.outer(np.arange(30.0), np.arange(30.0))) == math.inf

    @pytest.mark.parametrize("field", [np.ones((12, 12)), np.arange(5.0)[None], np.array([[1.0]])])
    def test_where_nothing_can_be_said_it_is_infinite(self, field, recwarn):
        assert correlation_length(field) == math.inf
        assert not recwarn.list
