import pytest
import torch

from util.model.patches import patchify, random_masking, token_validity, unpatchify


def test_patchify_runs_row_by_row():
    images = torch.arange(16).view(1, 1, 4, 4)
    expected = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    assert torch.equal(patchify(images, 2)[0, 0], expected)


def test_unpatchify_is_the_inverse_of_patchify():
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(unpatchify(patchify(images, 4), 4), images)
    assert patchify(images > 0, 4).dtype == torch.bool


def test_patchify_refuses_a_size_that_does_not_fit():
    with pytest.raises(ValueError, match=r"10 x 12 pixels: expected multiples of patch_size 4"):
        patchify(torch.zeros(1, 1, 10, 12), 4)
    with pytest.raises(ValueError, match=r"L a square number"):
        unpatchify(torch.zeros(1, 1, 6, 16), 4)
    with pytest.raises(ValueError, match=r"expected \(N, C, L, 9\)"):
        unpatchify(torch.zeros(1, 1, 4, 16), 3)


def test_token_is_valid_if_any_pixel_of_any_channel_of_its_group_is():
    valid = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    valid[0, 2, 0, 3] = True  # channel 2, second patch
    valid[0, 1, 3, 0] = True  # channel 1, third patch
    tokens = token_validity(valid, 2, group_order=torch.tensor([2, 0, 1]), group_sizes=[2, 1])
    assert tokens.tolist() == [[[False, True, False, False], [False, False, True, False]]]


def test_smallest_noise_stays_visible():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.8, 0.2]])
    everything = torch.ones(1, 2, 3, dtype=torch.bool)
    keep, restore, mask = random_masking(noise, keep=2, token_valid=everything, spatial=False)
    assert keep.tolist() == [[1, 5]]
    assert mask.tolist() == [[[1, 0, 1], [1, 1, 0]]]
    assert restore.tolist() == [noise.argsort().argsort()[0].tolist()]


def test_invalid_tokens_are_visible_only_where_valid_ones_run_out():
    noise = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).repeat(2, 1)
    valid = torch.tensor([[[False, False, True, True]], [[False, False, False, True]]])
    keep, _, mask = random_masking(noise, keep=2, token_valid=valid, spatial=False)
    assert keep.tolist() == [[2, 3], [3, 0]]
    assert mask.tolist() == [[[1, 1, 0, 0]], [[0, 1, 1, 0]]]


def test_noise_of_any_size_cannot_make_an_invalid_token_visible():
    noise = torch.tensor([[-1e30, 1e30, 5.0, 7.0]])
    valid = torch.tensor([[[False, True, True, True]]])
    _, _, mask = random_masking(noise, keep=3, token_valid=valid, spatial=False)
    assert mask.tolist() == [[[1, 0, 0, 0]]]


def test_spatial_masking_removes_a_location_in_all_groups():
    noise = torch.tensor([[0.4, 0.1, 0.3, 0.2]])
    valid = torch.tensor([[[True, False, True, True], [True, False, False, True]]])
    keep, restore, mask = random_masking(noise, keep=2, token_valid=valid, spatial=True)
    assert mask.tolist() == [[[1, 1, 0, 0]] * 2]
    assert sorted(keep[0].tolist()) == [2, 3, 6, 7]
    order = restore[0].argsort()
    assert torch.equal(order[:4], keep[0]) and sorted(order.tolist()) == list(range(8))
