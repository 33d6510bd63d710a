"""Which windows are tiles: strides, held-out ground, epochs. Everything is checked against plain counting."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from datasets.ground.summed_area import summed_area_table, window_sums
from datasets.survey.tiles import Coverage, auto_val_block, index_tiles, origins
from tests.blocks import holdout_blocks

OPTIONS = {
    "height": 16,
    "width": 16,
    "step": 4,
    "overlap": 0.5,
    "min_valid": 0.5,
    "val_fraction": 0.1,
    "val_block": 0,
    "buffer": 4,
    "seed": 0,
}


def full(rows, cols, cell=4):
    """Coverage of a survey without holes, (rows, cols) reference pixels."""
    return Coverage(np.ones((math.ceil(rows / cell), math.ceil(cols / cell)), dtype=np.float32), cell)


def make_index(rows=96, cols=128, coverage=None, **options):
    return index_tiles(coverage or full(rows, cols), (rows, cols), **(OPTIONS | options))


def gap(tile, size, block):
    """Least number of pixels between two rectangles along the axis that separates them best; negative if they meet."""
    row, col, height, width = block
    down = max(row - (tile[0] + size[0]), tile[0] - (row + height))
    across = max(col - (tile[1] + size[1]), tile[1] - (col + width))
    return max(down, across)


def assert_apart(tiles, index):
    for tile in tiles:
        for block in index.held_out.rectangles():
            assert gap(tile, (index.height, index.width), block) >= index.held_out.grid.buffer


class TestSums:
    def test_integral(self):
        np.testing.assert_array_equal(summed_area_table(np.array([[1, 2], [3, 4]])), [[0, 0, 0], [0, 1, 3], [0, 4, 10]])

    def test_window_sums(self):
        values = np.arange(30.0).reshape(5, 6)
        top, left = np.array([0, 1, 4]), np.array([0, 2, 5])
        bottom, right = np.array([5, 3, 5]), np.array([6, 3, 6])
        expected = [values[t:b, lft:r].sum() for t, lft, b, r in zip(top, left, bottom, right, strict=True)]
        np.testing.assert_array_equal(window_sums(summed_area_table(values), top, left, bottom, right), expected)


class TestOrigins:
    @pytest.mark.parametrize(
        "length, tile, stride, step, expected",
        [
            (10, 4, 3, 1, [0, 3, 6]),
            (10, 4, 4, 1, [0, 4, 6]),  # the last one flush with the end
            (10, 4, 4, 4, [0, 4]),  # flush to a whole step: two pixels stay uncovered
            (11, 4, 2, 2, [0, 2, 4, 6]),
            (4, 4, 2, 1, [0]),
            (9, 3, 3, 3, [0, 3, 6]),
        ],
    )
    def test_written_out(self, length, tile, stride, step, expected):
        assert origins(length, tile, stride, step).tolist() == expected

    @given(tile=st.integers(1, 30), stride=st.integers(1, 10), step=st.integers(1, 4), more=st.integers(0, 60))
    def test_cover_the_axis_to_the_last_step(self, tile, stride, step, more):
        assume(stride * step <= tile)
        length = tile + more
        found = origins(length, tile, stride * step, step)
        covered = np.zeros(length, dtype=bool)
        for first in found:
            assert first % step == 0 and 0 <= first <= length - tile
            covered[first : first + tile] = True
        assert covered[: length - more % step].all()
        assert (np.diff(found) > 0).all()

    def test_tile_larger_than_the_axis(self):
        with pytest.raises(ValueError, match="tile of 5 reference pixels is larger than the survey's 4"):
            origins(4, 5, 1, 1)


class TestCoverage:
    @settings(deadline=None)
    @given(seed=st.integers(0, 99), cell=st.integers(1, 4), data=st.data())
    def test_aligned_windows_are_counted_exactly(self, seed, cell, data):
        fraction = np.random.default_rng(seed).random((6, 8)).astype(np.float32)
        ground = np.kron(fraction, np.ones((cell, cell)))
        top, left = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 7))
        height, width = data.draw(st.integers(1, 6 - top)), data.draw(st.integers(1, 8 - left))
        found = Coverage(fraction, cell).of_windows(
            np.array([top * cell]), np.array([left * cell]), height=height * cell, width=width * cell
        )
        window = ground[top * cell : (top + height) * cell, left * cell : (left + width) * cell]
        assert found[0] == pytest.approx(window.mean(), abs=1e-6)

    def test_windows_off_the_cells_are_within_a_cell_and_never_outside_0_to_1(self):
        coverage = Coverage(np.array([[1, 0], [0, 1]], dtype=np.float32), 10)
        rows, cols = (axis.ravel() for axis in np.meshgrid(np.arange(20), np.arange(20), indexing="ij"))
        share = coverage.of_windows(rows, cols, height=1, width=1)
        assert share.shape == (400,)
        np.testing.assert_array_equal(share.reshape(20, 20), np.kron(np.eye(2), np.ones((10, 10))))


class TestHeldOut:
    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 999), block=st.integers(3, 9), buffer=st.integers(0, 12), data=st.data())
    def test_touched_means_closer_than_the_buffer(self, seed, block, buffer, data):
        chosen = np.random.default_rng(seed).random((3, 4)) < 0.3
        held_out = holdout_blocks(chosen, block, block + 1, buffer)
        height, width = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 10))
        rows = np.arange(0, 3 * block + 6)  # some ground beyond the last whole block
        cols = np.arange(0, 4 * (block + 1) + 6)
        grid = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
        expected = [
            any(gap(tile, (height, width), rectangle) < buffer for rectangle in held_out.rectangles())
            if buffer
            else any(gap(tile, (height, width), rectangle) < 0 for rectangle in held_out.rectangles())
            for tile in grid
        ]
        np.testing.assert_array_equal(
            held_out.touched(grid[:, 0], grid[:, 1], height=height, width=width), np.array(expected)
        )

    def test_rectangles(self):
        held_out = holdout_blocks([[False, True], [True, False]], 10, 20, 3)
        assert held_out.rectangles() == [(0, 20, 10, 20), (10, 0, 10, 20)]

    def test_training_ground_written_out(self):
        """One block of 2 x 2 pixels at (2, 2), a buffer of one pixel around it."""
        held_out = holdout_blocks([[False, False, False], [False, True, False]], 2, 2, 1)
        expected = np.ones((6, 7), dtype=bool)
        expected[1:5, 1:5] = False
        np.testing.assert_array_equal(held_out.training_ground(np.arange(6), np.arange(7)), expected)


class TestAutoBlock:
    @pytest.mark.parametrize(
        "shape, expected", [((48, 64), 1), ((96, 128), 2), ((144, 200), 3), ((192, 256), 4), ((1600, 1600), 4)]
    )
    def test_largest_edge_that_leaves_twelve_blocks(self, shape, expected):
        assert auto_val_block(shape, height=16, width=16) == expected


class TestIndex:
    def test_training_tiles_lie_on_the_stride_and_reach_the_edges(self):
        index = make_index(rows=50, cols=44, val_fraction=0.0)
        assert (index.stride_y, index.stride_x) == (8, 8)
        rows, cols = sorted(set(index.train[:, 0])), sorted(set(index.train[:, 1]))
        assert rows == [0, 8, 16, 24, 32]  # the last whole step is 50 - 16 = 34, down to 32
        assert cols == [0, 8, 16, 24, 28]
        assert len(index.train) == 25 and len(index.val) == 0
        assert index.train.dtype == np.int64

    @pytest.mark.parametrize("overlap, stride", [(0.0, 16), (0.5, 8), (0.75, 4), (0.99, 4)])
    def test_stride_follows_the_overlap_in_whole_steps(self, overlap, stride):
        assert make_index(overlap=overlap).stride_x == stride

    def test_default_overlap_visits_every_pixel_about_sixteen_times(self):
        index = make_index(rows=160, cols=160, overlap=0.75, val_fraction=0.0)
        visits = np.zeros((160, 160), dtype=int)
        for row, col in index.train:
            visits[row : row + 16, col : col + 16] += 1
        assert visits[32:128, 32:128].min() == visits[32:128, 32:128].max() == 16

    def test_tiles_without_enough_valid_ground_are_left_out(self):
        fraction = np.ones((24, 32), dtype=np.float32)
        fraction[:, :16] = 0.0  # the western half is no-data
        coverage = Coverage(fraction, 4)
        index = make_index(coverage=coverage, val_fraction=0.0, min_valid=0.5)
        assert index.train[:, 1].min() == 56  # half of the tile in the east
        share = coverage.of_windows(index.train[:, 0], index.train[:, 1], height=16, width=16)
        assert share.min() >= 0.5

    def test_tiles_without_any_valid_ground_are_left_out_even_if_min_valid_is_zero(self):
        fraction = np.zeros((24, 32), dtype=np.float32)
        fraction[10, 10] = 0.01
        index = make_index(coverage=Coverage(fraction, 4), val_fraction=0.0, min_valid=0.0)
        assert all(row <= 40 < row + 16 and col <= 40 < col + 16 for row, col in index.train)

    def test_rounding_does_not_cost_a_wholly_valid_tile(self):
        coverage = Coverage(np.full((24, 32), 1 - 1e-7, dtype=np.float32), 4)
        assert len(make_index(coverage=coverage, val_fraction=0.0, min_valid=1.0).train) == 165

    def test_no_tile_reaches_min_valid(self):
        coverage = Coverage(np.full((24, 32), 0.25, dtype=np.float32), 4)
        with pytest.raises(ValueError, match=r"no tile reaches --min_valid 0\.5: the best of 165 has 0\.25"):
            make_index(coverage=coverage)

    @pytest.mark.parametrize("rows, cols", [(12, 128), (96, 12)])
    def test_tile_larger_than_the_survey(self, rows, cols):
        with pytest.raises(ValueError, match=rf"16 x 16 reference pixels but the survey has only {cols} x {rows}"):
            make_index(rows=rows, cols=cols)

    @pytest.mark.parametrize("rows, cols", [(16, 16), (20, 32), (32, 36)])
    def test_survey_too_small_to_hold_anything_out(self, rows, cols):
        with pytest.raises(ValueError, match="can be held out.*--val_fraction 0 to train without"):
            make_index(rows=rows, cols=cols, buffer=16)
        index = make_index(rows=rows, cols=cols, buffer=16, val_fraction=0.0)
        assert len(index.train) and not len(index.val)

    @settings(max_examples=40, deadline=None)
    @given(
        rows=st.integers(16, 140),
        cols=st.integers(16, 140),
        tile=st.sampled_from([(8, 8), (16, 16), (16, 8)]),
        step=st.sampled_from([1, 2, 4]),
        overlap=st.sampled_from([0.0, 0.5, 0.75]),
        min_valid=st.sampled_from([0.0, 0.3, 0.9]),
        val_fraction=st.sampled_from([0.05, 0.2, 0.7]),
        val_block=st.integers(0, 5),
        buffer=st.integers(0, 12),
        seed=st.integers(0, 5),
    )
    @example(
        rows=20,
        cols=140,
        tile=(8, 8),
        step=4,
        overlap=0.5,
        min_valid=0.3,
        val_fraction=0.2,
        val_block=4,
        buffer=4,
        seed=0,
    )
    def test_training_and_held_out_windows_never_meet(
        self, rows, cols, tile, step, overlap, min_valid, val_fraction, val_block, buffer, seed
    ):
        """Brute force by rectangles: training, in any epoch, stays a buffer away from held-out blocks."""
        shape = (math.ceil(rows / step), math.ceil(cols / step))
        holes = np.random.default_rng(seed).random(shape) < 0.95
        coverage = Coverage(holes.astype(np.float32), step)
        options = {
            "height": tile[0],
            "width": tile[1],
            "step": step,
            "overlap": overlap,
            "min_valid": min_valid,
            "val_fraction": val_fraction,
            "val_block": val_block,
            "buffer": buffer,
            "seed": seed,
        }
        try:
            index = make_index(rows, cols, coverage, **options)
        except ValueError as error:
            assume("can be held out" not in str(error) and "no tile reaches" not in str(error))
            raise
        assert len(index.train) and len(index.val)
        windows = [index.train] + [index.epoch(seed=seed, epoch=epoch) for epoch in range(3)]
        assert_apart(np.unique(np.concatenate(windows), axis=0), index)
        limits = [rows - tile[0], cols - tile[1]]
        for window in (*windows, index.val):
            assert (window >= 0).all() and (window <= limits).all() and (window % step == 0).all()
            share = coverage.of_windows(window[:, 0], window[:, 1], height=tile[0], width=tile[1])
            assert share.min() >= min_valid - 1e-6
        for row, col in index.val:
            assert any(
                r <= row and row + tile[0] <= r + h and c <= col and col + tile[1] <= c + w
                for r, c, h, w in index.held_out.rectangles()
            )

    def test_share_held_out_is_what_was_asked_for(self):
        index = make_index(rows=480, cols=640, val_fraction=0.2)
        assert sum(h * w for _, _, h, w in index.held_out.rectangles()) / (480 * 640) == pytest.approx(0.2, abs=0.02)

    def test_seed_decides_which_blocks(self):
        chosen = [make_index(rows=480, cols=640, seed=seed).held_out.chosen for seed in (0, 0, 1)]
        np.testing.assert_array_equal(chosen[0], chosen[1])
        assert (chosen[0] != chosen[2]).any()

    def test_empty_blocks_are_not_held_out(self):
        fraction = np.zeros((24, 32), dtype=np.float32)
        fraction[:, 24:] = 1.0
        index = make_index(coverage=Coverage(fraction, 4), val_fraction=0.5, val_block=1)
        assert all(col >= 96 for _, col, _, _ in index.held_out.rectangles())


class TestEpoch:
    def test_default_is_a_permutation_of_the_tiles_shifted_by_at_most_half_a_stride(self):
        index = make_index(overlap=0.0)
        found = index.epoch(seed=3, epoch=5)
        assert found.shape == index.train.shape and (found % 4 == 0).all()
        # Strides are 16 and shifts at most 8, so each window is nearest to its own tile in one of the two axes' ways.
        distance = np.abs(found[:, None] - index.train[None]).max(axis=-1)
        assert (distance.min(axis=1) <= 8).all()
        assert len({tuple(window) for window in found}) > 0.9 * len(found)

    def test_without_room_to_shift_it_is_exactly_a_permutation(self):
        index = make_index(overlap=0.75)  # stride = step: no shift smaller than half of it
        found = index.epoch(seed=3, epoch=5)
        assert (found != index.train).any()
        assert sorted(map(tuple, found)) == sorted(map(tuple, index.train))

    def test_depends_on_seed_and_epoch_alone(self):
        index = make_index()
        np.testing.assert_array_equal(index.epoch(seed=1, epoch=2), make_index().epoch(seed=1, epoch=2))
        assert (index.epoch(seed=1, epoch=2) != index.epoch(seed=1, epoch=3)).any()
        assert (index.epoch(seed=1, epoch=2) != index.epoch(seed=2, epoch=2)).any()

    def test_fewer_tiles(self):
        index = make_index(overlap=0.75)
        np.testing.assert_array_equal(index.epoch(seed=0, epoch=0, tiles=7), index.epoch(seed=0, epoch=0)[:7])

    def test_more_tiles_visit_each_equally_often(self):
        index = make_index(overlap=0.75)
        count = len(index.train)
        found = [tuple(window) for window in index.epoch(seed=0, epoch=0, tiles=3 * count)]
        assert sorted(found) == sorted(3 * [tuple(window) for window in index.train])
        assert len(index.epoch(seed=0, epoch=0, tiles=2 * count + 1)) == 2 * count + 1

    def test_shifts_reach_ground_that_the_stride_alone_would_not_start_at(self):
        index = make_index(overlap=0.0, val_fraction=0.0)
        rows = {int(row) for epoch in range(20) for row in index.epoch(seed=0, epoch=epoch)[:, 0]}
        assert rows == set(range(0, 96 - 16 + 1, 4))

    def test_where_every_shift_is_refused_the_tile_stays(self):
        """Valid ground exists only under one unshifted tile."""
        fraction = np.zeros((24, 32), dtype=np.float32)
        fraction[4:8, 8:12] = 1.0
        index = make_index(coverage=Coverage(fraction, 4), min_valid=1.0, val_fraction=0.0, overlap=0.0)
        for epoch in range(5):
            assert index.epoch(seed=0, epoch=epoch).tolist() == [[16, 32]]
