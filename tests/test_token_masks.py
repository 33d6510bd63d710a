"""Masks shaped like surveys: what is hidden is a block, stripes or a group, as much of it as the mask ratio says."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from datasets.loading.token_masks import Masks, dropped_layers, mask_fractions
from util.model.patches import random_masking

SIDE, GROUPS = 8, 3
POSITIONS = np.arange(40)


def masks(*pairs, **options):
    arguments = {"groups": GROUPS, "side": SIDE, "spatial": False, "mask_ratio": 0.75}
    return Masks(fractions=mask_fractions(pairs), **(arguments | options))


def hidden(plan, epoch=0, positions=POSITIONS):
    """(n, G, side, side) bool, True where a token is hidden."""
    noise = torch.from_numpy(plan.noise(positions, seed=0, epoch=epoch))
    valid = torch.ones(len(noise), plan.groups, plan.side**2, dtype=torch.bool)
    keep = int(noise.shape[1] * (1 - plan.mask_ratio))
    mask = random_masking(noise, keep=keep, token_valid=valid, spatial=plan.spatial)[2]
    return mask.bool().numpy().reshape(-1, plan.groups, plan.side, plan.side)


@pytest.mark.parametrize("shape", ["random", "block", "lines", "noise", "layer"])
def test_as_much_is_hidden_as_the_ratio_says(shape):
    assert (hidden(masks((shape, None))).sum(axis=(1, 2, 3)) == 0.75 * GROUPS * SIDE**2).all()


def test_a_function_of_seed_epoch_and_position():
    plan = masks(("random", 0.2), ("block", 0.2), ("lines", 0.2), ("noise", 0.2), ("layer", 0.2))
    noise = plan.noise(POSITIONS, seed=1, epoch=2)
    assert noise.dtype == np.float32 and noise.min() >= 0
    np.testing.assert_array_equal(noise[7:9], plan.noise(POSITIONS[7:9], seed=1, epoch=2))
    for seed, epoch in ((2, 2), (1, 3), (1, -1)):
        assert (plan.noise(POSITIONS, seed=seed, epoch=epoch) != noise).any(axis=1).all()


def test_random_tiles_have_the_same_masks_whatever_other_shapes_there_are():
    alone = masks(("random", None)).noise(POSITIONS, seed=0, epoch=0)
    mixed = masks(("random", 0.5), ("block", 0.5)).noise(POSITIONS, seed=0, epoch=0)
    same = (alone == mixed).all(axis=1)
    assert 10 < same.sum() < 30  # 20 expected, standard deviation 3


def test_blocks_are_connected_and_compact():
    for tile in hidden(masks(("block", None), mask_ratio=0.25)):
        for group in tile:
            assert ndimage.label(group)[1] == 1
            rows, cols = np.nonzero(group)
            assert np.ptp(rows) < SIDE - 1 or np.ptp(cols) < SIDE - 1
            assert group.sum() == SIDE**2 / 4


def test_blocks_of_groups_lie_apart_and_those_of_a_spatial_mask_together():
    apart = hidden(masks(("block", None), mask_ratio=0.25))
    assert (apart[:, 0] != apart[:, 1]).any(axis=(1, 2)).mean() > 0.8
    together = hidden(masks(("block", None), spatial=True))
    assert (together == together[:, :1]).all()


def test_lines_are_seen_from_one_end_to_the_other():
    """Along one of the two axes visible tokens of a group reach across the tile, and they lie in narrow stripes."""
    for tile in hidden(masks(("lines", None))):
        for group in ~tile:
            rows, cols = np.nonzero(group)
            assert max(np.ptp(rows), np.ptp(cols)) >= SIDE - 2
            assert ndimage.label(group, structure=np.ones((3, 3)))[1] <= 6


@pytest.mark.parametrize("side", [6, 8, 16])
def test_noise_hides_every_patch_as_often_and_in_clumps(side):
    """Patches 3 apart are opposite more often than random ones, those side by side alike; no patch is preferred."""
    plan = masks(("noise", None), side=side, groups=1, mask_ratio=0.5)
    mask = hidden(plan, positions=np.arange(2000))[:, 0]
    assert (
        abs(mask.mean(axis=0) - 0.5).max() < 0.05
    )  # 4.5 standard deviations of 2,000 draws: sqrt(0.25 / 2000) = 0.011
    alike = {k: (mask == np.roll(mask, k, axis=2)).mean() for k in (1, 3)}
    assert alike[1] > 0.6 and alike[3] < 0.48  # random masks: 0.486 to 0.498


def test_noise_differs_between_groups_unless_the_mask_is_spatial():
    apart = hidden(masks(("noise", None)))
    assert (apart[:, 0] == apart[:, 1]).mean() == pytest.approx(0.75**2 + 0.25**2, abs=0.03)  # as if independent
    together = hidden(masks(("noise", None), spatial=True))
    assert (together == together[:, :1]).all()


def test_whole_groups_are_hidden():
    gone = hidden(masks(("layer", None))).all(axis=(2, 3))  # (n, G)
    assert set(gone.sum(axis=1)) == {1, 2}
    assert (gone.mean(axis=0) > 0.2).all()
    gone = hidden(masks(("layer", None), groups=2, mask_ratio=0.5)).all(axis=(2, 3))
    assert (gone.sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    "pairs, expected",
    [
        ([("random", None)], (("random", 1.0),)),
        ([("random", None), ("block", None)], (("random", 0.5), ("block", 0.5))),
        ([("random", 3.0), ("layer", 1.0)], (("random", 0.75), ("layer", 0.25))),
    ],
)
def test_shares_add_up_to_1(pairs, expected):
    assert mask_fractions(pairs) == expected


@pytest.mark.parametrize(
    "pairs, message",
    [
        ([("stripes", None)], "--mask_shape stripes: expected each of random, block, lines, noise, layer at most once"),
        ([("block", None), ("block", None)], "--mask_shape block block: expected each of"),
        ([("block", 0.5), ("random", None)], "--mask_shape block=0.5 random: expected a fraction above 0 for every"),
        ([("block", 0.0)], "--mask_shape block=0: expected a fraction above 0"),
    ],
)
def test_shares_that_make_no_sense_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        mask_fractions(pairs)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"groups": 1}, "--mask_shape layer: there is one group of layers, expected at least two .*--grouped_bands"),
        ({"spatial": True}, "--mask_shape layer: --spatial_mask hides all groups alike"),
        ({"mask_ratio": 0.3}, "--mask_ratio 0.3 of 3 groups is less than one, expected at least 0.333; raise it"),
    ],
)
def test_layer_masks_need_groups_to_hide(options, message):
    with pytest.raises(ValueError, match=message):
        masks(("random", 0.5), ("layer", 0.5), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"groups": 1, "side": 2, "mask_ratio": 0.9}, "--mask_ratio 0.9 leaves none of the 4 tokens .* at most 0.75;"),
        ({"side": 2, "spatial": True, "mask_ratio": 0.8}, "none of the 4 patches of a tile visible, .* at most 0.75;"),
        ({"groups": 10, "side": 1, "mask_ratio": 0.95}, "none of the 10 tokens .*expected at most 0.8999; lower it"),
        ({"groups": 1, "side": 1, "mask_ratio": 0.5}, "hides the only token of a tile, expected at least two tokens"),
    ],
)
def test_a_ratio_that_leaves_no_token_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        masks(("random", None), **options)
    if "most" in message:
        most = float(message.split("most ")[1].split(";")[0])
        assert masks(("random", None), **(options | {"mask_ratio": most})).mask_ratio == most


class TestDroppedLayers:
    def test_share_and_at_least_one_kept(self):
        dropped = dropped_layers(np.arange(4000), layers=5, probability=0.3, seed=0, epoch=0)
        assert dropped.mean() == pytest.approx(0.3, abs=0.01) and dropped.dtype == bool
        assert not dropped_layers(np.arange(500), layers=2, probability=0.99, seed=0, epoch=0).all(axis=1).any()
        assert not dropped_layers(np.arange(50), layers=1, probability=0.99, seed=0, epoch=0).any()

    def test_a_function_of_seed_epoch_and_position(self):
        options = {"layers": 6, "probability": 0.5}
        dropped = dropped_layers(POSITIONS, seed=1, epoch=2, **options)
        np.testing.assert_array_equal(dropped[5:6], dropped_layers(np.array([5]), seed=1, epoch=2, **options))
        assert (dropped != dropped_layers(POSITIONS, seed=1, epoch=3, **options)).any()
