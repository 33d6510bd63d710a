import pytest
import torch

from models_mae_group_channels import MODEL_SIZES, build_model
from util.model.scale_heads import (
    MAX_DETAIL_RANK,
    SubpixelHead,
    UpsampleBlock,
    cell_average_taps,
    detail_rank,
    mean_pool,
    neighbours,
    plan_subpixel,
)


def make_head(*, scale=4, groups=((2,), (0,)), patch_size=2, width=8, rank=3):
    head = SubpixelHead(scale=scale, channel_groups=groups, patch_size=patch_size, width=width, rank=rank)
    head.init_weights()
    return head


def test_halves_of_a_cell_on_paper():
    # The parabola with averages a, b, c over three cells has averages b -+ (c - a) / 8 over the halves of the middle.
    assert torch.allclose(cell_average_taps(2), torch.tensor([[1 / 8, 1, -1 / 8], [-1 / 8, 1, 1 / 8]]))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_parts_of_a_cell_of_a_quadratic_field(scale):
    def integral(x):  # of 1 - 2 x + 3 x^2
        return x - x**2 + x**3

    cells = torch.tensor([integral(i + 1.0) - integral(i) for i in range(3)])
    parts = torch.tensor([scale * (integral(1 + (k + 1) / scale) - integral(1 + k / scale)) for k in range(scale)])
    assert torch.allclose(cell_average_taps(scale) @ cells, parts, atol=1e-4)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_interpolation_starts_conservative_and_exact_for_a_ramp(scale):
    head = make_head(scale=scale)
    noise = torch.randn(2, 2, 6, 6)
    assert torch.allclose(mean_pool(head.interpolate(noise), scale), noise, atol=1e-5)
    edge = 6 * scale
    fine = torch.arange(edge).view(1, 1, edge, 1) * 0.3 - torch.arange(edge).view(1, 1, 1, edge) * 0.7
    fine = fine.expand(1, 2, -1, -1)
    inner = slice(scale, -scale)  # the outermost cells have no neighbour to tell the slope
    found = head.interpolate(mean_pool(fine, scale))
    assert torch.allclose(found[..., inner, inner], fine[..., inner, inner], atol=1e-5)


def test_a_given_pixel_does_not_look_at_predicted_ones():
    """A row of pixels, given but for the third: the line through the given ones stands in for what was predicted."""
    x = torch.tensor([1.0, 3.0, 50.0, 7.0, 8.0]).reshape(1, 1, 1, 5)
    known = torch.tensor([True, True, False, True, True]).reshape(1, 1, 1, 5)
    before, after = neighbours(x, known, dim=3)
    assert before.flatten().tolist() == [-1.0, 1.0, 3.0, 6.0, 7.0]
    assert after.flatten().tolist() == [3.0, 5.0, 7.0, 8.0, 9.0]
    alone = torch.tensor([False, True, False, False, False]).reshape(1, 1, 1, 5)
    before, after = neighbours(x, alone, dim=3)
    assert before.flatten().tolist() == [1.0, 3.0, 3.0, 50.0, 7.0]
    assert after.flatten().tolist() == [3.0, 3.0, 7.0, 8.0, 8.0]


def test_interpolation_of_given_ground_is_exact_for_a_plane_up_to_its_edge():
    head = SubpixelHead(scale=2, channel_groups=[[0]], patch_size=4, width=8, rank=0)
    head.init_weights()
    rows, cols = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    fine = (2 * rows - 3 * cols).reshape(1, 1, 16, 16)
    known = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    known[..., 2:6, 4:8] = True
    base = torch.where(known, mean_pool(fine, 2), 1e3)
    found = head.interpolate(base, known)
    torch.testing.assert_close(found[..., 4:12, 8:16], fine[..., 4:12, 8:16])


def test_head_starts_as_interpolation_of_its_channels_in_channel_order():
    head = make_head()
    base, tokens = torch.randn(2, 3, 6, 6), torch.randn(2, 2, 9, 8)
    assert torch.equal(head(base, tokens), head.interpolate(base[:, [0, 2]]))


def test_detail_of_a_channel_comes_from_the_tokens_of_its_group():
    head = make_head()
    torch.nn.init.normal_(head.amplitudes["0"].weight)  # group 0 holds channel 2
    base, tokens = torch.zeros(1, 3, 6, 6), torch.zeros(1, 2, 9, 8)
    tokens[0, 0, 4] = 1.0  # the middle patch
    image = head(base, tokens)
    assert image[:, 0].abs().max() == 0
    outside = image[0, 1].clone()
    outside[8:16, 8:16] = 0
    assert outside.abs().max() == 0 and image[0, 1, 8:16, 8:16].abs().max() > 0
    tokens[0, 0], tokens[0, 1] = 0.0, 1.0
    assert head(base, tokens).abs().max() == 0


def test_mean_pool_is_the_mean():
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(mean_pool(x, 4), torch.nn.functional.avg_pool2d(x, 4), atol=1e-6)


def test_published_block_doubles_the_resolution():
    features, image = UpsampleBlock(8, 2)(torch.randn(1, 8, 5, 5))
    assert features.shape == (1, 8, 10, 10) and image.shape == (1, 2, 10, 10)
    assert UpsampleBlock(8, 0)(torch.randn(1, 8, 5, 5))[1] is None


def test_coarser_images_are_pooled_from_the_finest_one_of_the_channel():
    plan = plan_subpixel({1: (0, 1, 2), 2: (0, 1, 2), 3: (2,), 4: (0,), 8: ()})
    assert plan == {4: {4: (0,)}, 3: {3: (2,)}, 2: {4: (0,), 2: (1, 2)}}
    assert plan_subpixel({1: (0,), 2: (0,), 4: (0,), 8: (0,)}) == {8: {8: (0,)}, 4: {8: (0,)}, 2: {4: (0,)}}


def test_rank_falls_with_the_layers_and_has_bounds():
    size = MODEL_SIZES["tiny"].__dict__

    def rank(channels):
        layers = tuple(range(channels))
        config = {"img_size": 96, "patch_size": 8, "in_chans": channels, "channel_groups": [layers]}
        return detail_rank({**size, **config, "mlp_ratio": 4}, scored={1: layers, 2: layers, 4: layers})

    ranks = [rank(channels) for channels in (1, 8, 20, 100, 400)]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] == MAX_DETAIL_RANK and ranks[-1] == 0
    base_only = {"img_size": 96, "patch_size": 8, "in_chans": 1, "channel_groups": [(0,)], "mlp_ratio": 4}
    assert detail_rank({**size, **base_only}, scored={1: (0,)}) == 0


def test_head_without_detail_is_interpolation():
    head = make_head(rank=0)
    assert sorted(name for name, _ in head.named_parameters()) == ["col_taps", "row_taps"]
    base = torch.randn(1, 3, 6, 6)
    assert head(base, torch.randn(1, 2, 9, 8)).shape == (1, 2, 24, 24)


def test_light_heads_take_any_whole_scale():
    model = build_model(
        "tiny",
        img_size=24,
        in_chans=2,
        channel_groups=((0, 1),),
        depth=1,
        scales=(1, 3, 6),
        scored={1: [0, 1], 3: [0, 1], 6: [1]},
        scale_heads="subpixel",
    )
    images = [torch.randn(1, 2, 24 * s, 24 * s) for s in (1, 3, 6)]
    result = model(images[0], images[1:], details=True)
    assert {s: image.shape[-1] for s, image in result.images.items()} == {1: 24, 3: 72, 6: 144}
    assert result.images[6][:, 0].abs().max() == 0
    assert torch.allclose(mean_pool(result.images[6], 2)[:, 1], result.images[3][:, 1], atol=1e-5)
