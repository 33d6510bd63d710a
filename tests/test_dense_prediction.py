"""Per-pixel outputs of overlapping tiles, blended."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets.loading.augment import ROTATIONS, rotated, rotated_back
from util.finetuning.predictors import TreePredictor
from util.finetuning.scoring import BlockSums, SampledMap, merged, score_ground
from util.mosaics.dense_prediction import DensePrediction, seen_pixels, viewed
from util.mosaics.mosaic import blocks_of


def ground(rows, cols):
    """A plane of base pixels, NaN outside of it and in a hole."""
    y, x = np.mgrid[:rows, :cols]
    plane = (0.5 * y - 0.25 * x).astype(np.float32)
    plane[3:6, 4:9] = np.nan
    return plane


def sampler(plane, size):
    def sample(origins):
        padded = np.pad(plane, size, constant_values=np.nan)
        tiles = np.stack([padded[r + size : r + 2 * size, c + size : c + 2 * size] for r, c in origins])
        values = torch.from_numpy(tiles)[:, None]
        return SimpleNamespace(imgs=torch.nan_to_num(values), valid=~values.isnan(), native=())

    return sample


def prediction(scale, **changes):
    options = {"bands": 1, "size": 8, "patch": 2, "overlap": 0.5, "scale": scale, "batch_size": 5}
    options["views"] = [lambda imgs, valid, native: imgs.repeat_interleave(scale, 2).repeat_interleave(scale, 3)]
    return DensePrediction(device=torch.device("cpu"), **(options | changes))


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("shape", [(17, 23), (5, 7), (8, 8)])
def test_blending_a_plane_gives_the_plane(scale, shape):
    plane = ground(*shape)
    expected = plane.repeat(scale, axis=0).repeat(scale, axis=1)
    for block in blocks_of(*shape, edge=10):
        found = prediction(scale).of(block, shape, sampler(plane, 8))
        part = expected[block.top * scale : block.bottom * scale, block.left * scale : block.right * scale]
        np.testing.assert_allclose(found[0], part, rtol=1e-6, atol=1e-6)  # NaN at the same places


def test_blocks_and_batches_change_nothing():
    plane = ground(19, 26)
    whole = prediction(1).of(blocks_of(19, 26, edge=64)[0], (19, 26), sampler(plane, 8))
    for edge, batch in ((6, 1), (11, 64)):
        parts = np.full_like(whole, np.nan)
        for block in blocks_of(19, 26, edge=edge):
            part = prediction(1, batch_size=batch).of(block, (19, 26), sampler(plane, 8))
            parts[:, block.top : block.bottom, block.left : block.right] = part
        np.testing.assert_array_equal(parts, whole)


def predicted_around(plane, *, edge, wrap_columns):
    """What a network predicts that adds each pixel's column in its tile, on ground that repeats after its columns."""
    rows, cols = plane.shape

    def sample(origins):
        tiles = np.stack(
            [plane[np.ix_(np.arange(r, r + 8).clip(0, rows - 1), np.arange(c, c + 8) % cols)] for r, c in origins]
        )
        values = torch.from_numpy(tiles)[:, None]
        return SimpleNamespace(imgs=values, valid=torch.ones_like(values, dtype=torch.bool), native=())

    network = prediction(1, wrap_columns=wrap_columns, views=[lambda imgs, valid, native: imgs + torch.arange(8.0)])
    found = np.full((1, rows, cols), np.nan, np.float32)
    for block in blocks_of(rows, cols, edge=edge):
        found[:, block.top : block.bottom, block.left : block.right] = network.of(block, plane.shape, sample)
    return found


@pytest.mark.parametrize("cols", [24, 26])  # a whole number of steps of 4 columns, and not
def test_around_a_planet_tiles_are_blended_across_the_date_line(cols):
    """Ground turned by one step of the tiles gives the same map, turned; with ends, the columns beside them differ."""
    plane = np.random.default_rng(0).normal(size=(8, cols)).astype(np.float32)
    whole = predicted_around(plane, edge=64, wrap_columns=cols)
    np.testing.assert_allclose(predicted_around(plane, edge=7, wrap_columns=cols), whole, atol=1e-5)
    if cols == 24:
        turned = predicted_around(np.roll(plane, 4, axis=1), edge=64, wrap_columns=cols)
        np.testing.assert_allclose(turned, np.roll(whole, 4, axis=2), atol=1e-5)
        ends = predicted_around(plane, edge=64, wrap_columns=0)
        np.testing.assert_allclose(ends[..., 4:-4], whole[..., 4:-4], atol=1e-5)
        # By its own column a lone tile at the edge adds 0; blended with the one that ends there it adds more.
        assert (whole - ends)[0, :, 0].min() > 1.0


def test_scores_take_what_is_tested():
    truth = np.array([[0, 1, 1], [1, -1, 0]], dtype=np.int16)
    tested = np.array([[True, True, False], [True, False, True]])
    shares = np.zeros((2, 2, 3), np.float32)
    shares[0, 0, 0] = shares[1, 0, 1] = shares[0, 1, 0] = shares[1, 1, 2] = 1
    seen = []
    outcome = score_ground(
        SimpleNamespace(of_ground=lambda block, where: shares),
        SimpleNamespace(update=lambda p, t: seen.append((p.tolist(), t.tolist())), compute=lambda: {"count": 4}),
        units=blocks_of(2, 3, edge=9),
        scale=1,
        truth_of=lambda window: (truth, tested),
        shape=(2, 3),
        blocks_of=lambda *window, scale: np.array([[0, 0, 0], [1, 1, 1]]),
        sums=BlockSums(2, 2),
    )
    assert seen == [([0, 1, 0, 1], [0, 1, 1, 0])] and outcome.scores == {"count": 4}
    np.testing.assert_array_equal(outcome.arrays["map"], [[0, 1, np.nan], [0, np.nan, 1]])
    assert outcome.arrays["blocks"].tolist() == [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]


def test_a_tested_pixel_without_prediction_is_an_error():
    with pytest.raises(ValueError, match="no finite prediction at 1 tested pixels of base rows 0 to 2"):
        score_ground(
            SimpleNamespace(of_ground=lambda block, where: np.array([[[1.0, 2.0], [np.nan, 3.0]]])),
            SimpleNamespace(),
            units=blocks_of(2, 2, edge=4),
            scale=1,
            truth_of=lambda window: (np.zeros((2, 2)), np.ones((2, 2), bool)),
            shape=(2, 2),
            blocks_of=lambda *window, scale: np.zeros((2, 2), int),
            sums=BlockSums(1, 1),
        )


def test_sums_of_values_by_block():
    sums = BlockSums(3, 1)
    sums.add(np.array([0, 0, 2]), np.array([1.0, 3.0, 5.0]), np.array([2.0, 1.0, 5.0]))
    assert sums.values.tolist() == [[2, 5, 3, 3, 5], [0, 0, 0, 0, 0], [1, 0, 0, 5, 25]]


def test_a_sampled_map_shows_every_nth_pixel_however_it_is_painted():
    whole = np.arange(23 * 17, dtype=np.float32).reshape(23, 17)
    picture = SampledMap((23, 17), most=8)
    assert picture.step == 3
    for row in range(0, 23, 5):
        for col in range(0, 17, 4):
            picture.paint(row, col, whole[row : row + 5, col : col + 4])
    np.testing.assert_array_equal(picture.values, whole[1::3, 1::3])


def test_parts_of_several_processes_merge():
    nan = np.nan
    parts = [np.array([1.0, nan, nan]), np.array([nan, 2.0, nan])]
    np.testing.assert_array_equal(merged(parts), [1, 2, nan])


def test_trees_predict_tested_pixels_alone():
    """Features are the pixel's own row and column, of target pixels of the whole ground."""
    trees = SimpleNamespace(predict=lambda features: features.astype(np.float32))
    outputs = TreePredictor(trees, lambda pixels: pixels, scale=2, pixels=np.array([[5, 6], [7, 8]]))
    image = outputs.of_ground(blocks_of(8, 8, edge=4)[3], np.array([[False, True], [True, False]]))
    np.testing.assert_array_equal(image, [[[np.nan, 8], [9, np.nan]], [[np.nan, 9], [8, np.nan]]])
    assert outputs.of_windows(np.array([1])).tolist() == [[7, 8]]


def test_views_average_what_depends_on_direction():
    """A network that adds its column number: over eight views the mean of all columns, and their spread."""
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)

    def view(turn):
        def forward(imgs, valid, native):
            turns = torch.full((len(imgs),), turn)
            return rotated_back(rotated(imgs, turns) + ramp, turns)

        return forward

    views = [view(turn) for turn in range(ROTATIONS)]
    imgs = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, squares = viewed(views, imgs, imgs > -9, ())
    torch.testing.assert_close(mean, imgs + 1.5)
    row, col = np.mgrid[:4, :4] - 1.5
    np.testing.assert_allclose(squares[0, 0], (row**2 + col**2) / 2, atol=1e-5)
    assert viewed(views[:1], imgs, imgs > -9, ())[1] is None

    side_by_side = {"bands": 1, "size": 4, "patch": 4, "overlap": 0.0, "scale": 1, "batch_size": 2}
    whole = DensePrediction(views, device=torch.device("cpu"), **side_by_side)
    zero = SimpleNamespace(imgs=torch.zeros(2, 1, 4, 4), valid=torch.ones(2, 1, 4, 4, dtype=torch.bool), native=())
    mosaic = whole.mosaic(blocks_of(4, 8, edge=8)[0], (4, 8), lambda origins: zero, with_std=True)
    np.testing.assert_allclose(mosaic.mean, 1.5, atol=1e-6)
    np.testing.assert_allclose(mosaic.std[0], np.tile(np.sqrt((row**2 + col**2) / 2), 2), atol=1e-5)


def test_base_pixels_are_seen_where_any_of_their_parts_is():
    valid = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    valid[0, 0, 1, 0] = valid[0, 1, 2, 3] = True
    assert seen_pixels(valid, 2).tolist() == [[[True, False], [False, True]]]
    assert torch.equal(seen_pixels(valid, 4), valid.any(dim=1))
