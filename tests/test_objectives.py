"""Losses of fine-tuning against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from util.finetuning.objectives import (
    DenseClasses,
    DenseValues,
    WindowClasses,
    class_weights,
    dense_cross_entropy,
    dense_squared_error,
    smoothed,
    soft_cross_entropy,
)
from util.training.engine import seed_step


class Fixed(nn.Module):
    """Gives the same outputs whatever it is shown, and remembers what that was."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.seen = outputs, None

    def forward(self, imgs, valid):
        self.seen = imgs, valid
        return self.outputs


def test_class_weights():
    assert class_weights([10, 90], "none").tolist() == [1, 1]
    assert class_weights([10, 90], "balanced").tolist() == pytest.approx([5, 100 / 180])
    root = class_weights([10, 90, 0], "sqrt")
    assert float(root[0] / root[1]) == pytest.approx(3) and float(root[2]) == 0
    assert float((root * torch.tensor([10.0, 90.0, 0.0])).sum()) == pytest.approx(100)


def test_dense_cross_entropy_counts_labelled_pixels_alone():
    logits = torch.zeros(2, 4, 1, 2)
    logits[0, 1, 0, 0] = math.log(5)  # shares 1/8, 5/8, 1/8, 1/8
    target = torch.tensor([[[1, -1]], [[-1, 2]]])
    loss = dense_cross_entropy(logits, target, weights=torch.tensor([1.0, 1.0, 2.0, 1.0]), smoothing=0, per_window=0.5)
    assert float(loss) == pytest.approx((math.log(8 / 5) + 2 * math.log(4)) / (2 * 0.5))


def test_dense_losses_do_not_depend_on_how_windows_are_batched():
    rng = torch.Generator().manual_seed(1)
    logits, target = torch.randn(6, 3, 4, 4, generator=rng), torch.randint(-1, 3, (6, 4, 4), generator=rng)
    weights = torch.tensor([0.5, 1.0, 2.0])
    kwargs = {"weights": weights, "smoothing": 0.1, "per_window": 7.0}
    whole = dense_cross_entropy(logits, target, **kwargs)
    parts = [dense_cross_entropy(logits[k : k + 2], target[k : k + 2], **kwargs) for k in (0, 2, 4)]
    assert float(sum(parts) / 3) == pytest.approx(float(whole), rel=1e-6)


def test_what_is_unlabelled_has_no_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    target = torch.tensor([[[0, -1], [-1, 2]]])
    dense_cross_entropy(logits, target, weights=torch.ones(3), smoothing=0.1, per_window=2).backward()
    assert (logits.grad.abs().sum(dim=1)[0] > 0).tolist() == [[True, False], [False, True]]


def test_a_batch_without_labels_has_a_loss_of_zero_and_a_gradient():
    output = torch.randn(2, 1, 2, 2, requires_grad=True)
    loss = dense_squared_error(output, torch.full((2, 2, 2), float("nan")), per_window=3)
    loss.backward()
    assert float(loss.detach()) == 0 and float(output.grad.abs().sum()) == 0


def test_dense_squared_error():
    output = torch.tensor([[[[1.0, 5.0]]], [[[2.0, 0.0]]]])
    target = torch.tensor([[[3.0, float("nan")]], [[2.0, 1.0]]])
    assert float(dense_squared_error(output, target, per_window=1.5)) == pytest.approx((4 + 0 + 1) / (2 * 1.5))


def test_values_are_learned_in_units_of_their_spread_and_predicted_in_their_own():
    model = Fixed(torch.tensor([[[[0.5]]]]))
    objective = DenseValues(mean=100, std=4, per_window=1)
    assert float(objective.predict(model, None, None)) == 102
    assert float(objective.loss(model, None, None, torch.tensor([[[106.0]]]))) == pytest.approx((0.5 - 1.5) ** 2)


def test_class_shares_sum_to_one():
    model = Fixed(torch.randn(2, 3, 4, 4))
    shares = DenseClasses([1, 1, 1], per_window=1, weighting="none", smoothing=0).predict(model, None, None)
    assert torch.allclose(shares.sum(dim=1), torch.ones(2, 4, 4))


def test_smoothing_and_soft_targets():
    shares = smoothed(torch.tensor([2]), count=4, smoothing=0.2)
    assert shares.tolist() == [pytest.approx([0.05, 0.05, 0.85, 0.05])]
    loss = soft_cross_entropy(torch.zeros(1, 4), shares, weights=torch.ones(4))
    assert float(loss) == pytest.approx(math.log(4))


def window_loss(seed, **mixing):
    model = Fixed(torch.zeros(4, 2))
    options = {"weighting": "none", "smoothing": 0, "mixup": 0, "cutmix": 0, "erasing": 0} | mixing
    objective = WindowClasses([5, 5], **options)
    imgs = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 8, 8).clone()
    valid = torch.ones(4, 3, 8, 8, dtype=torch.bool)
    valid[1, :, :4] = False
    seed_step(seed, step=0, rank=0)
    objective.loss(model, imgs, valid, torch.tensor([0, 1, 0, 1]))
    return model.seen


def test_mixup_mixes_values_and_keeps_what_is_valid_in_both():
    imgs, valid = window_loss(1, mixup=0.8)
    assert not valid[1, :, :4].any() and not valid[2, :, :4].any()  # timm mixes the first with the last and so on
    assert valid[0].all() and valid[3].all() and valid[1:3, :, 4:].all()
    assert 0 < float(imgs[0, 0, 0, 0]) < 3


def test_cutmix_pastes_validity_along():
    imgs, valid = window_loss(3, cutmix=1.0)
    pasted = imgs[1, 0] == 2.0
    assert pasted.any() and not pasted.all()
    assert torch.equal(valid[1, 0], pasted | (torch.arange(8) >= 4)[:, None])


def test_erased_rectangles_are_invalid():
    imgs, valid = window_loss(0, erasing=1.0)
    assert not valid[0].all() and valid[0].any()
    assert torch.equal(valid[0, 0], valid[0, 2])


def test_the_same_seed_mixes_the_same():
    first, second, other = window_loss(5, mixup=0.8), window_loss(5, mixup=0.8), window_loss(6, mixup=0.8)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[0], other[0])
