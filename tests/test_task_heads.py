import pytest
import torch

from util.model.task_heads import GroupMerge, HeadSize, LinearHead, UpsampleHead, make_task_head, soft_limit


def make_head(kind, *, scale=1, outputs=3, channels=2):
    torch.manual_seed(0)
    size = HeadSize(groups=2, width=6, patch_size=4, scale=scale, outputs=outputs, channels=channels, head_width=4)
    head = make_task_head(kind, size)
    head.init_weights()
    return head


def make_inputs(*, n=2, channels=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, 2, 9, 6, generator=generator)
    imgs = torch.randn(n, channels, 12, 12, generator=generator)
    valid = torch.rand(imgs.shape, generator=generator) < 0.8
    token_valid = torch.ones(n, 2, 9, dtype=torch.bool)
    return tokens, token_valid, torch.where(valid, imgs, 0.0), valid


def test_groups_are_added_up_where_they_are_valid():
    merge = GroupMerge(groups=2, width=2, outputs=1)
    with torch.no_grad():
        merge.linear.weight.copy_(torch.tensor([[1.0, 2.0, 10.0, 20.0]]))
        merge.linear.bias.fill_(0.5)
    tokens = torch.tensor([[[[1.0, 1.0]], [[1.0, 3.0]]]])  # (1, 2 groups, 1 place, 2)
    found = [merge(tokens, torch.tensor([[[a], [b]]])).item() for a in (True, False) for b in (True, False)]
    assert found == [1 + 2 + 10 + 60 + 0.5, 1 + 2 + 0.5, 10 + 60 + 0.5, 0.5]


def test_invalid_tokens_may_hold_anything():
    tokens, token_valid, _, _ = make_inputs()
    token_valid[0, 1] = False
    merge = GroupMerge(groups=2, width=6, outputs=5)
    poisoned = tokens.clone()
    poisoned[0, 1] = torch.nan
    assert torch.equal(merge(tokens, token_valid), merge(poisoned, token_valid))


def test_linear_head_writes_each_patch_from_its_own_token():
    head, inputs = make_head("linear", scale=2, outputs=1), make_inputs()
    before = head(*inputs)
    changed = inputs[0].clone()
    changed[0, 1, 5] += 1.0  # row 1, column 2 of 3 x 3 patches of 8 x 8 output pixels
    difference = head(changed, *inputs[1:]) - before
    assert before.shape == (2, 1, 24, 24)
    touched = difference.abs() > 0
    assert touched[0, 0, 8:16, 16:24].all() and touched.sum() == 64
    # Linear: twice the step is twice the difference, and its pixels run row by row as in the weights.
    changed[0, 1, 5] += 1.0
    assert torch.allclose(head(changed, *inputs[1:]) - before, 2 * difference, atol=1e-5)
    step = head.merge.linear.weight[:, 6:].sum(dim=1).view(8, 8)
    assert torch.allclose(difference[0, 0, 8:16, 16:24], step, atol=1e-5)


def test_outputs_of_the_linear_head_are_planes_of_their_own():
    head, inputs = make_head("linear", outputs=3), make_inputs()
    with torch.no_grad():
        head.merge.linear.weight.zero_()
        head.merge.linear.bias.copy_(torch.arange(3.0).repeat_interleave(16))
    assert torch.equal(head(*inputs), torch.arange(3.0).view(1, 3, 1, 1).expand(2, 3, 12, 12))


def test_detail_starts_at_zero_and_the_finer_image_is_the_coarse_one_interpolated():
    inputs, coarse, fine = make_inputs(), make_head("upsample"), make_head("upsample", scale=4)
    fine.load_state_dict(coarse.state_dict(), strict=False)
    base, found = coarse(*inputs), fine(*inputs)
    assert base.shape == (2, 3, 12, 12) and found.shape == (2, 3, 48, 48)
    expected = torch.nn.functional.interpolate(base, scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.allclose(found, expected, atol=1e-6)
    with torch.no_grad():
        fine.detail_out.weight[:, 0] = 0.1  # the features themselves have mean 0
    assert (fine(*inputs) - expected).abs().max() > 0.01


def test_the_images_reach_the_output_pixel_by_pixel():
    head, inputs = make_head("upsample"), make_inputs()
    tokens, token_valid, imgs, valid = inputs
    changed = imgs.clone()
    changed[0, 0, 2, 3] += 1.0
    touched = ((head(tokens, token_valid, changed, valid) - head(*inputs)).abs() > 0)[0].any(dim=0)
    assert touched[2, 3] and not touched[2, 8:].any() and not touched[7:].any()  # four 3x3 convolutions reach 4 pixels


def test_soft_limit_passes_small_values_and_bounds_large_ones():
    x = torch.tensor([-1e5, -1.0, 0.0, 0.5, 2.0, 1e5, 1e30])
    y = soft_limit(x)
    assert y[1:5].tolist() == pytest.approx([-1.0, 0.0, 0.5, 2.0], rel=0.05, abs=0)
    assert (y.diff() > 0).all() and y[5] == pytest.approx(43.3, abs=0.1) and y.isfinite().all()
    assert soft_limit(torch.tensor(60000.0, dtype=torch.float16)).dtype == torch.float32


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="head 'deep': expected one of linear, upsample"):
        make_head("deep")
    with pytest.raises(ValueError, match="scale 3 with head 'upsample': expected 1, 2, 4"):
        make_head("upsample", scale=3)
    with pytest.raises(ValueError, match="scale 0, 3 outputs"):
        make_head("linear", scale=0)
    with pytest.raises(ValueError, match="0 outputs"):
        make_head("linear", outputs=0)
    assert isinstance(make_head("linear", scale=3), LinearHead) and isinstance(make_head("upsample"), UpsampleHead)
