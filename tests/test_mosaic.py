"""Overlapping tiles to one image: full cover, no seams, exact means and spreads, and masked views that hide it all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from util.inference.view_masks import draws_to_show_all, least_draws, view_noise, visible_counts
from util.model.patches import token_pixels
from util.mosaics.mosaic import Block, Mosaic, WeightedMoments, blocks_of, raised_cosine, tile_origins

CPU = torch.device("cpu")


def blend(image, *, tile, stride, window=None, step=1):
    """Cuts (rows, cols) into tiles, edges padded with NaN of no weight, and merges them again."""
    rows, cols = image.shape
    top, left, bottom, right = window or (0, 0, rows, cols)
    mosaic = Mosaic(1, bottom - top, right - left, device=CPU)
    taper = raised_cosine(tile)[:, None] * raised_cosine(tile)
    for row in tile_origins(rows, tile=tile, stride=stride, align=1):
        for col in tile_origins(cols, tile=tile, stride=stride, align=1):
            padded = torch.full((tile, tile), torch.nan)
            part = torch.from_numpy(image[row : row + tile, col : col + tile].astype(np.float32))
            padded[: part.shape[0], : part.shape[1]] = part
            known = torch.isfinite(padded)
            mosaic.add(torch.where(known, padded, 0.0)[None], known * taper, row=row - top, col=col - left)
    return mosaic


class TestOrigins:
    @given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(-20, 0))
    @settings(max_examples=200, deadline=None)
    def test_tiles_cover_everything_and_start_on_patches(self, length, patches, steps, align, first):
        tile = patches * align
        stride = min(steps, patches) * align
        found = tile_origins(length, tile=tile, stride=stride, align=align, first=first)
        assert found[0] == first and (np.diff(found) > 0).all() and ((found - first) % align == 0).all()
        assert (np.diff(found) <= stride).all()
        assert found[-1] + tile >= length
        assert len(found) == 1 or found[-1] + tile < length + align

    def test_written_out(self):
        assert tile_origins(100, tile=48, stride=24, align=8).tolist() == [0, 24, 48, 56]
        assert tile_origins(30, tile=48, stride=24, align=8).tolist() == [0]

    @pytest.mark.parametrize("stride", [0, 12, 56])
    def test_stride_that_does_not_fit(self, stride):
        with pytest.raises(ValueError, match=f"stride {stride}: expected a multiple of 8 from 8 to the tile's 48"):
            tile_origins(100, tile=48, stride=stride, align=8)

    def test_units_cover_once(self):
        blocks = blocks_of(100, 70, edge=48)
        seen = np.zeros((100, 70), dtype=int)
        for block in blocks:
            seen[block.top : block.bottom, block.left : block.right] += 1
        assert (seen == 1).all() and [(u.row, u.col) for u in blocks] == [(r, c) for r in range(3) for c in range(2)]
        assert blocks[0].grown(2) == Block(0, 0, -2, -2, 50, 50)


class TestBlending:
    def test_weights_of_tiles_half_a_tile_apart_sum_to_one(self):
        weights = raised_cosine(16)
        torch.testing.assert_close(weights[:8] + weights[8:], torch.ones(8))
        assert (weights > 0).all()

    @pytest.mark.parametrize(("rows", "cols"), [(97, 101), (13, 211), (48, 48), (7, 5)])
    def test_identity_for_awkward_sizes(self, rows, cols):
        image = np.random.default_rng(0).normal(size=(rows, cols)).astype(np.float32)
        np.testing.assert_allclose(blend(image, tile=48, stride=24).mean[0], image, rtol=2e-6, atol=1e-6)

    def test_a_plane_and_a_sinusoid_have_no_seams(self):
        """Each tile is off by a constant of its own; second differences of the mosaic stay as small as the taper's."""
        y, x = np.mgrid[:120, :120].astype(np.float32)
        for image in (0.5 * x - 0.25 * y, 10 * np.sin(x / 9) * np.cos(y / 7)):
            mosaic = Mosaic(1, 120, 120, device=CPU)
            taper = raised_cosine(48)[:, None] * raised_cosine(48)
            rng = np.random.default_rng(1)
            for row in tile_origins(120, tile=48, stride=24, align=8):
                for col in tile_origins(120, tile=48, stride=24, align=8):
                    part = np.ascontiguousarray(image[row : row + 48, col : col + 48]) + rng.normal()
                    mosaic.add(torch.from_numpy(part.astype(np.float32))[None], taper, row=row, col=col)
            off = mosaic.mean[0] - image
            inner = off[30:90, 30:90]
            assert np.abs(off).max() < 4 and inner.std() > 0.1  # the constants are there
            # A hard seam would jump by the difference of two constants, about 1; the taper spreads it over 24 pixels.
            assert np.abs(np.diff(inner, axis=0)).max() < 0.25 and np.abs(np.diff(inner, axis=1)).max() < 0.25

    def test_a_window_is_a_slice_of_the_whole(self):
        image = np.random.default_rng(2).normal(size=(90, 80)).astype(np.float32)
        whole = blend(image, tile=32, stride=16)
        part = blend(image, tile=32, stride=16, window=(17, 5, 60, 71))
        assert np.array_equal(part.mean, whole.mean[:, 17:60, 5:71])
        assert np.array_equal(part.std, whole.std[:, 17:60, 5:71])

    def test_spaced_pixels(self):
        mosaic = Mosaic(1, 4, 4, device=CPU)
        mosaic.add(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.ones(2, 2), row=-1, col=1, step=2)
        expected = np.full((4, 4), np.nan)
        expected[1, 1], expected[1, 3] = 3, 4
        np.testing.assert_array_equal(mosaic.mean[0], expected)

    def test_outside_the_window_nothing_happens(self):
        mosaic = Mosaic(1, 4, 4, device=CPU)
        for row, col in ((4, 0), (0, -2), (-2, 0), (0, 9)):
            mosaic.add(torch.ones(1, 2, 2), torch.ones(2, 2), row=row, col=col)
        assert np.isnan(mosaic.mean).all() and np.isnan(mosaic.std).all()


class TestMoments:
    def test_mean_and_spread_of_all_views_and_tiles(self):
        """Merging moments of views, tile by tile, is the weighted mean and spread of everything at once."""
        rng = np.random.default_rng(3)
        values = torch.from_numpy(1000 + rng.normal(size=(3, 4, 1, 2, 2)).astype(np.float32))  # tiles, views
        seen = torch.from_numpy((rng.random((3, 4, 1, 2, 2)) < 0.6).astype(np.float32))
        tile_weights = [0.2, 1.0, 0.5]
        mosaic = Mosaic(1, 2, 2, device=CPU)
        for tile, factor in enumerate(tile_weights):
            moments = WeightedMoments((1, 2, 2), CPU)
            for view in range(4):
                moments.add(values[tile, view], seen[tile, view])
            mosaic.add(moments.mean, moments.weight * factor, squares=moments.squares * factor, row=0, col=0)
        weights = seen.numpy() * np.array(tile_weights)[:, None, None, None, None]
        mean = (weights * values.numpy()).sum((0, 1)) / weights.sum((0, 1))
        spread = np.sqrt((weights * (values.numpy() - mean) ** 2).sum((0, 1)) / weights.sum((0, 1)))
        np.testing.assert_allclose(mosaic.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(mosaic.std, spread, rtol=1e-3)


class TestViews:
    @pytest.mark.parametrize("ratio", [0.25, 0.4, 0.5, 0.75, 0.9])
    def test_every_valid_place_is_hidden_at_least_once(self, ratio):
        generator = torch.Generator().manual_seed(0)
        valid = torch.rand(40, 72, generator=generator) < torch.linspace(0.02, 1.0, 40)[:, None]
        counts = visible_counts(valid, ratio)
        places = np.arange(80).reshape(40, 2)
        for keep in counts.unique().tolist():
            if keep == 0:
                continue
            chosen = (counts == keep).nonzero()[:, 0]
            part = valid[chosen]
            never_hidden = part.clone()
            for draw in range(least_draws(ratio)):
                noise = view_noise(part, keep=keep, draw=draw, origins=places[chosen.numpy()], seed=0)
                visible = noise.argsort(dim=1)[:, :keep]
                shown = torch.zeros_like(part).scatter(1, visible, torch.ones_like(part))
                assert (shown & part).sum(dim=1).eq(keep).all()
                never_hidden &= shown
            assert not never_hidden.any()

    def test_every_valid_place_is_shown_after_enough_draws(self):
        valid = torch.rand(5, 36, generator=torch.Generator().manual_seed(1)) < 0.8
        never_shown = valid.clone()
        for draw in range(draws_to_show_all(valid, 6)):
            noise = view_noise(valid, keep=6, draw=draw, origins=np.zeros((5, 2), int), seed=0)
            never_shown &= noise.argsort(dim=1).argsort(dim=1) >= 6
        # The last turn through the places may begin before the first has shown its remainder: at most five are left.
        assert never_shown.sum(dim=1).max() <= 5

    def test_at_most_the_share_is_shown_and_single_tokens_are_left_out(self):
        valid = torch.arange(36)[None] < torch.tensor([0, 1, 2, 5, 20, 36])[:, None]
        assert visible_counts(valid, 0.75).tolist() == [0, 0, 1, 1, 5, 9]

    def test_masks_follow_from_place_and_seed_alone(self):
        valid = torch.ones(3, 36, dtype=torch.bool)
        places = np.array([[0, 0], [-8, 24], [48, 24]])
        noise = view_noise(valid, keep=9, draw=1, origins=places, seed=5)
        alone = view_noise(valid[:1], keep=9, draw=1, origins=places[1:2], seed=5)
        assert torch.equal(noise[1:2], alone) and not torch.equal(noise[0], noise[1])
        assert not torch.equal(view_noise(valid, keep=9, draw=1, origins=places, seed=6), noise)

    @pytest.mark.parametrize("ratio", [0.0, 1.0])
    def test_ratio_that_hides_nothing_or_all(self, ratio):
        with pytest.raises(ValueError, match="nothing or everything would be hidden; expected above 0, below 1"):
            least_draws(ratio)

    def test_tokens_to_pixels(self):
        tokens = torch.tensor([[[True, False, False, True]]])
        assert token_pixels(tokens, scale=2, patch_size=1)[0, 0].int().tolist() == [
            [1, 1, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 1],
            [0, 0, 1, 1],
        ]
