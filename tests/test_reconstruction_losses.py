import pytest
import torch

from util.model.reconstruction_losses import error_totals, masked_patch_mean, patch_moments, pixel_mean, sum_groups

GROUPS = {"group_order": torch.tensor([2, 0, 1]), "group_sizes": [1, 2]}  # groups (2,) and (0, 1)


def base_loss(pred, target, *, mask, valid, weights=(1.0, 1.0, 1.0)):
    return masked_patch_mean((pred - target).square(), mask=mask, valid=valid, weights=torch.tensor(weights), **GROUPS)


def example():
    """One sample, three channels, two patches of one row of two pixels each (p*p = 2, for the eye)."""
    error = torch.tensor([[[[1.0, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 10], [11, 12]]]])
    mask = torch.tensor([[[1.0, 0], [1, 1]]])  # group (2,): first patch removed; group (0, 1): both
    return error, torch.zeros_like(error), mask, torch.ones_like(error, dtype=torch.bool)


def test_groups_are_summed_in_any_order():
    values = torch.tensor([[1.0, 10, 100]])
    assert sum_groups(values, **GROUPS).tolist() == [[100, 11]]


def test_base_loss_is_the_published_mean_over_removed_pairs():
    pred, target, mask, valid = example()
    pairs = [(81 + 100) / 2, (1 + 4 + 25 + 36) / 4, (9 + 16 + 49 + 64) / 4]
    assert base_loss(pred, target, mask=mask, valid=valid).item() == pytest.approx(sum(pairs) / 3, rel=1e-6)


def test_base_loss_leaves_out_invalid_pixels_and_pairs_without_any():
    pred, target, mask, valid = example()
    valid[0, 2, 0] = False  # the removed patch of group (2,)
    valid[0, 0, 1, 1] = False  # the pixel with error 4
    target[~valid] = torch.tensor([float("nan"), 1e30, float("inf")])
    pairs = [(1 + 4 + 25 + 36) / 4, (9 + 49 + 64) / 3]
    assert base_loss(pred, target, mask=mask, valid=valid).item() == pytest.approx(sum(pairs) / 2, rel=1e-6)


def test_channel_weights_weigh_pixels_and_pairs_and_leave_the_size_of_the_loss():
    pred, target, mask, valid = example()
    # Group (2,) has weight 3; in group (0, 1) channel 0 is left out.
    weights, errors = [3.0, 1.0, 1.0], [(81 + 100) / 2, (25 + 36) / 2, (49 + 64) / 2]
    expected = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
    value = base_loss(pred, target, mask=mask, valid=valid, weights=(0.0, 1.0, 3.0))
    assert value.item() == pytest.approx(expected, rel=1e-6)
    once = base_loss(pred, target, mask=mask, valid=valid)
    twice = base_loss(pred, target, mask=mask, valid=valid, weights=(2.0, 2.0, 2.0))
    assert twice.item() == pytest.approx(once.item(), rel=1e-6)


def test_fine_loss_is_the_mean_over_valid_pixels_of_each_sample():
    pred = torch.tensor([[[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]]]).repeat(2, 1, 1, 1)
    target = torch.zeros_like(pred)
    valid = torch.ones_like(pred, dtype=torch.bool)
    valid[1, :, 0] = False
    target[~valid] = float("nan")
    loss = pixel_mean((pred - target).abs(), valid=valid, weights=torch.tensor([1.0, 1.0]))
    assert loss.item() == pytest.approx((36 / 8 + 22 / 4) / 2, rel=1e-6)
    weighed = pixel_mean((pred - target).abs(), valid=valid, weights=torch.tensor([3.0, 0.0]))
    assert weighed.item() == pytest.approx((10 / 4 + 7 / 2) / 2, rel=1e-6)


def test_nothing_to_score_is_zero_with_a_gradient():
    pred, target, mask, valid = example()
    pred.requires_grad_(True)
    nothing = torch.zeros_like(valid)
    loss = base_loss(pred, target, mask=mask, valid=nothing)
    loss = loss + pixel_mean((pred - target).abs(), valid=nothing, weights=torch.ones(3))
    loss.backward()
    assert loss.item() == 0 and torch.equal(pred.grad, torch.zeros_like(pred))


def test_a_sample_without_anything_to_score_counts_as_zero():
    pred, target, mask, valid = example()
    both = [torch.cat([t, t]) for t in (pred, target, mask, valid)]
    both[3][1] = False
    alone = base_loss(pred, target, mask=mask, valid=valid)
    value = base_loss(both[0], both[1], mask=both[2], valid=both[3])
    assert value.item() == pytest.approx(alone.item() / 2, rel=1e-6)


def test_losses_are_means_over_samples_however_divided():
    torch.manual_seed(0)
    pred, target = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4)
    valid, mask = torch.rand(6, 3, 4, 4) > 0.6, (torch.rand(6, 2, 4) > 0.4).float()
    whole = base_loss(pred, target, mask=mask, valid=valid)
    parts = [
        base_loss(pred[i : i + 2], target[i : i + 2], mask=mask[i : i + 2], valid=valid[i : i + 2]) for i in (0, 2, 4)
    ]
    assert whole.item() == pytest.approx(sum(parts).item() / 3, rel=1e-6)


def test_moments_are_those_of_the_valid_pixels():
    patches = torch.tensor([[[[1.0, 3, 5, 1e30]], [[7, 7, 7, 7]]]])
    valid = torch.tensor([[[[True, True, True, False]], [[False] * 4]]])
    mean, spread = patch_moments(patches, valid, eps=0.0)
    assert mean.flatten().tolist() == [3, 0]
    assert spread.flatten().tolist() == pytest.approx([(8 / 3) ** 0.5, 0], abs=1e-6)


def test_totals_are_those_of_each_channel():
    error = torch.arange(8.0).view(2, 2, 2)
    sums, counts = error_totals(error, error > 1)
    assert sums.tolist() == [4 + 5, 2 + 3 + 6 + 7] and counts.tolist() == [2, 4]
