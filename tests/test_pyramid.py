"""Native pixels to every scale: means over valid pixels, written out or against plain counting."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.layers.encoding import linear_encodings
from datasets.survey.pyramid import Pyramid, overlap_weights, pool_overlap
from datasets.survey.stack import LayerBundle, Placement

NAN = float("nan")


def block(channels=(0,), *, rows, cols=None, ratio=1.0, ratio_x=None, aligned=True):
    placement = Placement(ratio_x=ratio if ratio_x is None else ratio_x, ratio_y=ratio, offset_x=0.0, offset_y=0.0)
    return LayerBundle(
        channels=channels, rows=rows, cols=rows if cols is None else cols, aligned=aligned, placement=placement
    )


def pyramid(bundles, *, tile, input_size, scales=(1, 2), scored=None, centre=None, scale=None):
    channels = sum(len(b.channels) for b in bundles)
    return Pyramid(
        bundles=bundles,
        tile_rows=tile,
        tile_cols=tile,
        input_size=input_size,
        scales=scales,
        scored=scored or {scale: range(channels) for scale in scales},
        encodings=linear_encodings(centre or [0.0] * channels, scale or [1.0] * channels),
    )


def batch(*planes):
    """(N, C, rows, cols) float32 of one sample whose channels are given."""
    return torch.tensor(np.stack([np.asarray(plane, dtype=np.float32) for plane in planes])[None])


class TestWrittenOut:
    FOUR = ((1, 3, 10, 20), (5, 7, 30, 40), (0, 0, 2, 2), (0, 8, 2, 6))

    def test_four_by_four(self):
        sample = pyramid([block(rows=4)], tile=4, input_size=2)([batch(self.FOUR)], [None])
        assert sample.imgs.tolist() == [[[[4, 25], [2, 3]]]]
        assert sample.imgs_up[0].tolist() == [[[list(map(float, row)) for row in self.FOUR]]]
        assert sample.valid.all() and sample.valid_up[0].all()
        assert (sample.imgs.dtype, sample.valid.dtype) == (torch.float32, torch.bool)
        assert (sample.imgs_up[0].dtype, sample.valid_up[0].dtype) == (torch.float32, torch.bool)

    def test_four_by_four_with_holes(self):
        """Means are over what is valid, a pixel without any is invalid, and 0 stands in its place."""
        values = np.array(self.FOUR, dtype=float)
        values[0, 0] = values[1, 1] = NAN  # leaves 3 and 5
        values[:2, 2:] = NAN  # leaves nothing
        values[2, 3] = values[3, 2] = values[3, 3] = NAN  # leaves 2
        sample = pyramid([block(rows=4)], tile=4, input_size=2)([batch(values)], [None])
        assert sample.imgs.tolist() == [[[[4, 0], [2, 2]]]]
        assert sample.valid.tolist() == [[[[True, False], [True, True]]]]
        assert sample.imgs_up[0].tolist() == [[[[0, 3, 0, 0], [5, 0, 0, 0], [0, 0, 2, 0], [0, 8, 0, 0]]]]
        np.testing.assert_array_equal(sample.valid_up[0][0, 0].numpy(), np.isfinite(values))

    def test_eight_by_eight_at_three_scales(self):
        """Value 8 * row + column, so that the mean of a square is that of its corners."""
        values = np.arange(64.0).reshape(8, 8)
        values[0, 0] = NAN
        sample = pyramid([block(rows=8)], tile=8, input_size=2, scales=(1, 2, 4))([batch(values)], [None])
        first = sum(8 * r + c for r in range(4) for c in range(4)) / 15  # one of its sixteen is missing
        np.testing.assert_allclose(sample.imgs[0, 0], [[first, 17.5], [45.5, 49.5]], rtol=1e-6)
        expected = [[(1 + 8 + 9) / 3, 6.5, 8.5, 10.5]] + [[16 * r + 4.5 + 2 * c for c in range(4)] for r in range(1, 4)]
        np.testing.assert_allclose(sample.imgs_up[0][0, 0], expected, rtol=1e-6)
        assert not sample.valid_up[1][0, 0, 0, 0] and sample.valid_up[1].sum() == 63

    def test_a_200_m_layer_beside_a_100_m_one(self):
        """Tile of 4 x 4 pixels of 100 m, base pixel 200 m: the coarse layer is taken as it is, and not scored at 2x."""
        blocks = [block((0,), rows=4), block((1,), rows=2, ratio=0.5)]
        make = pyramid(blocks, tile=4, input_size=2, scored={1: (0, 1), 2: (0,)})
        sample = make([batch(self.FOUR), batch(((1, 2), (NAN, 4)))], [None, None])
        assert sample.imgs[0].tolist() == [[[4, 25], [2, 3]], [[1, 2], [0, 4]]]
        assert sample.valid[0, 1].tolist() == [[True, True], [False, True]]
        assert sample.valid_up[0][0, 0].all() and not sample.valid_up[0][0, 1].any()
        assert not sample.imgs_up[0][0, 1].any()

    def test_a_layer_coarser_than_the_base_pixel_is_shown_but_not_scored(self):
        """One pixel of 400 m under 2 x 2 base pixels of 200 m."""
        blocks = [block((0,), rows=8), block((1,), rows=2, ratio=0.25)]
        make = pyramid(blocks, tile=8, input_size=4, scored={1: (0,), 2: (0,)})
        sample = make([batch(np.ones((8, 8))), batch(((1, 2), (NAN, 4)))], [None, None])
        expected = np.kron([[1, 2], [0, 4]], np.ones((2, 2)))
        np.testing.assert_array_equal(sample.imgs[0, 1], expected)
        np.testing.assert_array_equal(sample.valid[0, 1], expected > 0)
        assert not sample.valid_up[0][0, 1].any() and not sample.imgs_up[0][0, 1].any()

    def test_anisotropic_pixels(self):
        """Pixels of 50 x 100 m under base pixels of 100 m: pairs along a row are averaged."""
        blocks = [block((0,), rows=2, cols=4, ratio=1.0, ratio_x=2.0)]
        sample = pyramid(blocks, tile=2, input_size=2, scales=(1,))([batch(((1, 3, 5, 7), (0, 2, NAN, 8)))], [None])
        assert sample.imgs[0, 0].tolist() == [[2, 6], [1, 8]]

    def test_three_native_pixels_under_two_base_pixels(self):
        """Each base pixel takes one native pixel and half of the middle one: (1 + 0.5 * 4) / 1.5 and so on."""
        blocks = [block((0,), rows=3, ratio=0.75)]
        values = np.tile([1.0, 4.0, 7.0], (3, 1))
        sample = pyramid(blocks, tile=4, input_size=2, scales=(1,))([batch(values)], [None])
        np.testing.assert_allclose(sample.imgs[0, 0], [[2, 6], [2, 6]], rtol=1e-6)
        values[:, 1] = NAN
        sample = pyramid(blocks, tile=4, input_size=2, scales=(1,))([batch(values)], [None])
        np.testing.assert_allclose(sample.imgs[0, 0], [[1, 7], [1, 7]], rtol=1e-6)

    def test_a_shifted_window(self):
        """Half a native pixel in: base pixels take halves of the outer pixels and all of the middle one."""
        blocks = [block((0,), rows=5, aligned=False)]
        values = np.tile([2.0, 4.0, 6.0, 8.0, 30.0], (5, 1))
        make = pyramid(blocks, tile=4, input_size=2, scales=(1, 2))
        sample = make([batch(values)], [torch.tensor([[0.0, 0.5]])])
        np.testing.assert_allclose(sample.imgs[0, 0, 0], [(1 + 4 + 3) / 2, (3 + 8 + 15) / 2], rtol=1e-6)
        np.testing.assert_allclose(sample.imgs_up[0][0, 0, 0], [3, 5, 7, 19], rtol=1e-6)


class TestWeights:
    def test_written_out(self):
        weights = overlap_weights(torch.tensor([0.0, 0.5]), pixels=3.0, native=4, size=2)
        assert weights.tolist() == [[[1, 0.5, 0, 0], [0, 0.5, 1, 0]], [[0.5, 1, 0, 0], [0, 0, 1, 0.5]]]
        assert weights.dtype == torch.float32

    def test_rows_sum_to_the_length_of_an_output_pixel(self):
        weights = overlap_weights(torch.tensor([0.3]), pixels=6.4, native=8, size=4)
        torch.testing.assert_close(weights.sum(-1), torch.full((1, 4), 1.6))

    def test_what_the_window_does_not_reach_counts_as_missing(self):
        """A window of two pixels for a tile of four: the other half is invalid."""
        weights = overlap_weights(torch.zeros(1), pixels=4.0, native=2, size=4)
        values, valid = pool_overlap(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), weights, weights)
        np.testing.assert_array_equal(valid[0, 0], np.outer([1, 1, 0, 0], [1, 1, 0, 0]))
        np.testing.assert_array_equal(values[0, 0], np.outer([1, 1, 0, 0], [1, 1, 0, 0]))


def with_holes(seed, *shape):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    return np.where(rng.random(shape) < 0.3, NAN, values)


class TestProperties:
    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 1000), size=st.integers(1, 4), pooling=st.sampled_from([1, 2, 3]))
    def test_pooling_whole_blocks_equals_pooling_shared_areas(self, seed, size, pooling):
        edge = size * 4 * pooling
        values = torch.tensor(with_holes(seed, 2, 3, edge, edge), dtype=torch.float32)
        make = pyramid([block((0, 1, 2), rows=edge)], tile=edge, input_size=size, scales=(1, 2, 4))
        whole, shifted = make([values], [None]), make([values], [torch.zeros(2, 2)])
        for a, b in zip((whole.imgs, *whole.imgs_up), (shifted.imgs, *shifted.imgs_up), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        for a, b in zip((whole.valid, *whole.valid_up), (shifted.valid, *shifted.valid_up), strict=True):
            assert torch.equal(a, b)

    def test_means_are_those_of_valid_pixels(self):
        values = with_holes(0, 8, 8)
        sample = pyramid([block(rows=8)], tile=8, input_size=2, scales=(1,))([batch(values)], [None])
        for row in range(2):
            for col in range(2):
                inside = values[4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
                assert sample.imgs[0, 0, row, col] == pytest.approx(np.nanmean(inside), abs=1e-6)

    @settings(max_examples=40, deadline=None)
    @given(row=st.integers(0, 20), col=st.integers(0, 20), holes=st.booleans())
    def test_250_m_on_a_100_m_grid_is_weighted_by_shared_area(self, row, col, holes):
        """Against means over 50 m, in which pixels of 250, 100 and 400 m are all whole."""
        native = with_holes(row, 24, 24) if holes else np.random.default_rng(col).normal(size=(24, 24))
        placed = block(rows=14, ratio=0.4, aligned=False)  # tile of 32 reference pixels = 12.8 native ones
        first_row, first_col, *phase = placed.window(row, col)
        window = np.full((14, 14), NAN)
        part = native[first_row : first_row + 14, first_col : first_col + 14]
        window[: part.shape[0], : part.shape[1]] = part
        make = pyramid([placed], tile=32, input_size=8, scales=(1,))
        sample = make([batch(window)], [torch.tensor([phase])])
        fine = np.full((160, 160), NAN)
        fine[:120, :120] = np.kron(native, np.ones((5, 5)))
        tile = fine[2 * row : 2 * row + 64, 2 * col : 2 * col + 64].reshape(8, 8, 8, 8)
        valid = np.isfinite(tile)
        count = valid.sum(axis=(1, 3))
        expected = np.where(valid, tile, 0).sum(axis=(1, 3)) / np.maximum(count, 1)
        np.testing.assert_array_equal(sample.valid[0, 0], count > 0)
        np.testing.assert_allclose(sample.imgs[0, 0], expected, atol=2e-6)

    @settings(max_examples=40, deadline=None)
    @given(
        ratio=st.sampled_from([1.0, 0.5, 0.4, 1 / 3]),
        origin=st.integers(0, 40),
        offset=st.sampled_from([0.0, 0.5, 0.3]),
        slope=st.floats(-2, 2),
    )
    def test_a_plane_stays_a_plane_where_base_pixels_hold_whole_numbers_of_native_ones(
        self, ratio, origin, offset, slope
    ):
        """Whatever part of a native pixel the tile starts in."""
        pixel = round(2 / ratio) if ratio != 0.4 else 5  # reference pixels under a base pixel: 2 native ones
        tile, native = 4 * pixel, 40
        placement = Placement(ratio_x=ratio, ratio_y=ratio, offset_x=offset, offset_y=0.0)
        placed = LayerBundle(channels=(0,), rows=native, cols=native, aligned=False, placement=placement)
        first_row, first_col, *phase = placed.window(origin, origin)
        rows, cols = first_row + np.arange(native) + 0.5, first_col + np.arange(native) + 0.5
        plane = slope * rows[:, None] + 3 * cols[None, :]
        sample = pyramid([placed], tile=tile, input_size=4, scales=(1,))([batch(plane)], [torch.tensor([phase])])
        centres = ratio * (origin + (np.arange(4) + 0.5) * pixel)
        expected = slope * centres[:, None] + 3 * (centres + offset)[None, :]
        np.testing.assert_allclose(sample.imgs[0, 0], expected, rtol=1e-5, atol=1e-3)

    def test_channels_go_where_they_belong(self):
        blocks = [block((0, 3), rows=4), block((2,), rows=2, ratio=0.5), block((1,), rows=5, aligned=False)]
        arrays = [
            batch(np.full((4, 4), 1.0), np.full((4, 4), 4.0)),
            batch(np.full((2, 2), 3.0)),
            batch(np.full((5, 5), 2.0)),
        ]
        sample = pyramid(blocks, tile=4, input_size=2, scales=(1,))(arrays, [None, None, torch.tensor([[0.5, 0.25]])])
        torch.testing.assert_close(sample.imgs[0].mean(dim=(1, 2)), torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def test_samples_do_not_mix(self):
        values = torch.tensor(with_holes(5, 3, 1, 5, 5), dtype=torch.float32)
        phases = torch.tensor([[0.0, 0.5], [0.25, 0.0], [0.7, 0.1]])
        make = pyramid([block(rows=5, aligned=False)], tile=4, input_size=2)
        together = make([values], [phases])
        for n in range(3):
            alone = make([values[n : n + 1]], [phases[n : n + 1]])
            torch.testing.assert_close(alone.imgs, together.imgs[n : n + 1], rtol=0, atol=0)

    def test_normalised_and_back(self):
        values = batch(with_holes(1, 4, 4) * 50 + 400, with_holes(2, 4, 4) * 0.01)
        make = pyramid(
            [block((0, 1), rows=4)], tile=4, input_size=4, scales=(1,), centre=[400.0, -1.0], scale=[50.0, 0.01]
        )
        sample = make([values], [None])
        expected = (values - torch.tensor([400.0, -1.0])[:, None, None]) / torch.tensor([50.0, 0.01])[:, None, None]
        torch.testing.assert_close(sample.imgs, torch.nan_to_num(expected))
        back = torch.where(sample.valid, make.to_physical(sample.imgs), NAN)
        torch.testing.assert_close(back, values, equal_nan=True, rtol=1e-5, atol=1e-5)

    def test_nothing_valid_gives_zeros(self):
        make = pyramid([block((0,), rows=4)], tile=4, input_size=2, centre=[7.0], scale=[2.0])
        for phase in (None, torch.zeros(1, 2)):
            sample = make([batch(np.full((4, 4), NAN))], [phase])
            assert not sample.imgs.any() and not sample.valid.any()
            assert not sample.imgs_up[0].any() and not sample.valid_up[0].any()


class TestFiner:
    """The same tiles for networks that see the finest pixels: 4 x 4 pixels of 100 m, 2 base pixels of 200 m."""

    def make(self):
        blocks = [block((0,), rows=4), block((1,), rows=2, ratio=0.5), block((2,), rows=1, ratio=0.25)]
        return pyramid(blocks, tile=4, input_size=2, scored={1: (0, 1), 2: (0,)})

    def test_every_layer_is_resampled_to_the_finest_pixels(self):
        values = np.arange(16.0).reshape(4, 4)
        values[0, 0] = NAN
        sample = self.make().finer(2)([batch(values), batch(((1, 2), (NAN, 4))), batch(((7,),))], [None] * 3)
        assert sample.imgs[0, 0].tolist() == np.nan_to_num(values).tolist() and not sample.imgs_up
        assert sample.imgs[0, 1].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 4, 4], [0, 0, 4, 4]]
        assert sample.imgs[0, 2].tolist() == [[7] * 4] * 4
        expected = ~np.isnan(values), [[True] * 4] * 2 + [[False] * 2 + [True] * 2] * 2, [[True] * 4] * 4
        assert all(np.array_equal(found, ok) for found, ok in zip(sample.valid[0], expected, strict=True))

    def test_the_finest_layer_that_counts_decides(self):
        assert (self.make().finest_zoom(), self.make().finest_zoom(hidden={0})) == (2, 1)
        finer = pyramid([block(rows=10, ratio=2.5)], tile=4, input_size=2)  # pixels of 40 m under base pixels of 200 m
        assert finer.finest_zoom() == 5
        uneven = pyramid([block(rows=7, ratio=1.7, ratio_x=1.2, aligned=False)], tile=4, input_size=2)
        assert uneven.finest_zoom() == 2  # 3.4 by 2.4 pixels: parts must be no finer than either edge
