"""Fine-tuning on large ground: what is counted in strips and blocks is the same, and needs no table of all pixels."""

import tracemalloc

import numpy as np
import pytest
from scipy.spatial import cKDTree

from datasets.finetuning import window_targets
from datasets.finetuning.window_targets import point_examples
from datasets.ground.summed_area import WindowTotals, summed_area_table, window_sums


def edges(length, size, stride):
    """First and last + 1 pixel of windows along an axis, the last of which ends with it."""
    first = np.unique(np.append(np.arange(0, max(length - size, 0) + 1, stride), max(length - size, 0)))
    return first, np.minimum(first + size, length)


class TestWindows:
    @pytest.mark.parametrize("strip", [1, 7, 64, 100, 1000])
    @pytest.mark.parametrize(("rows", "cols", "size"), [(211, 130, 24), (10, 130, 24), (130, 10, 16)])
    def test_strips_give_the_sums_of_the_whole(self, strip, rows, cols, size):
        values = np.random.default_rng(0).integers(0, 17, size=(rows, cols))
        (tops, bottoms), (lefts, rights) = edges(rows, size, 5), edges(cols, size, 5)
        totals = WindowTotals(tops, lefts, bottoms, rights)
        for row in range(0, rows, strip):
            totals.add(row, values[row : row + strip])
        top, left = (part.ravel() for part in np.meshgrid(tops, lefts, indexing="ij"))
        bottom, right = (part.ravel() for part in np.meshgrid(bottoms, rights, indexing="ij"))
        expected = window_sums(summed_area_table(values), top, left, bottom, right)
        np.testing.assert_array_equal(totals.sums.ravel(), expected)

    def test_memory_is_that_of_the_windows_and_a_few_rows(self):
        """A summed-area table and the counts it is made of take 16 bytes a pixel: 64 MB here."""
        (tops, bottoms), (lefts, rights) = edges(2000, 48, 12), edges(2000, 48, 12)
        strip = np.ones((100, 2000), dtype=np.int32)
        tracemalloc.start()
        totals = WindowTotals(tops, lefts, bottoms, rights)
        for row in range(0, 2000, 100):
            totals.add(row, strip)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4e6
        assert totals.sums.shape == (164, 164) and (totals.sums == 48 * 48).all()


def drawn_from_all(positions, seen, *, background_ratio, least_distance, seed):
    """Background drawn after every pixel was measured: short, and as large as the ground."""
    ground = np.argwhere(seen) + 0.5
    distances = cKDTree(positions).query(ground, distance_upper_bound=max(least_distance, 1e-9))[0]
    ground = ground[distances >= least_distance]
    size = min(round(background_ratio * len(positions)), len(ground))
    return ground[np.random.default_rng((seed, 13)).choice(len(ground), size=size, replace=False)]


class TestBackground:
    @pytest.mark.parametrize("distance", [0.0, 0.5, 3.0, 8.0, 40.0])
    @pytest.mark.parametrize("ratio", [0.5, 10.0, 1e6])
    def test_the_same_ground_is_drawn(self, monkeypatch, distance, ratio):
        monkeypatch.setattr(window_targets, "MEASURED_BLOCK", 32)
        rng = np.random.default_rng(5)
        seen = rng.random((90, 150)) < 0.7
        seen[40:50] = False  # whole rows without ground
        places = np.argwhere(seen)[::900]
        positions = np.concatenate([places + 0.5, places[:3] + rng.random((3, 2))])
        settings = {"background_ratio": ratio, "least_distance": distance, "seed": 3}
        examples, left_out = point_examples(positions, None, seen, **settings)
        assert left_out == 0
        np.testing.assert_array_equal(
            examples.centres[examples.background], drawn_from_all(positions, seen, **settings)
        )

    def test_memory_is_some_bytes_a_pixel_of_a_block(self):
        """Coordinates of all ground and their distances take over 40 bytes a pixel: 160 MB here."""
        seen = np.ones((2000, 2000), dtype=bool)
        positions = np.array([[100.5, 100.5], [1900.5, 700.5]])
        tracemalloc.start()
        examples, _ = point_examples(positions, None, seen, background_ratio=10.0, least_distance=8.0, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(examples.centres) == 22
        assert peak < 32e6
