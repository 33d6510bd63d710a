"""Flips and quarter turns."""

import pytest
import torch

from datasets.loading.augment import ROTATIONS, rotated, rotated_back

SQUARE = torch.tensor([[1, 2], [3, 4]])


def test_the_eight_ways_typed_out():
    images = SQUARE.expand(ROTATIONS, 1, 2, 2)
    expected = [
        [[1, 2], [3, 4]],
        [[2, 4], [1, 3]],
        [[4, 3], [2, 1]],
        [[3, 1], [4, 2]],
        [[2, 1], [4, 3]],
        [[1, 3], [2, 4]],
        [[3, 4], [1, 2]],
        [[4, 2], [3, 1]],
    ]
    assert rotated(images, torch.arange(ROTATIONS))[:, 0].tolist() == expected


def test_images_validity_and_targets_turn_alike():
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(0, 9, (20, 6, 6), generator=rng)
    images = target[:, None].float().expand(-1, 3, -1, -1)
    turns = torch.randint(0, ROTATIONS, (20,), generator=rng)
    assert torch.equal(rotated(images, turns)[:, 2].long(), rotated(target, turns))
    assert torch.equal(rotated(target > 4, turns), rotated(target, turns) > 4)


def test_the_input_is_left_alone():
    images = torch.arange(8.0).reshape(2, 1, 2, 2)
    before = images.clone()
    rotated(images, torch.tensor([3, 5]))
    assert torch.equal(images, before)


def test_what_is_no_square_is_refused():
    with pytest.raises(ValueError, match="2 x 3 pixels: expected square"):
        rotated(torch.zeros(1, 2, 3), torch.tensor([1]))


def test_turning_back():
    images = torch.randn(ROTATIONS, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    turns = torch.arange(ROTATIONS)
    assert torch.equal(rotated_back(rotated(images, turns), turns), images)
    views = rotated(images[:1].expand(ROTATIONS, 2, 5, 5), turns)
    assert len({tuple(image.flatten().tolist()) for image in views}) == ROTATIONS
