import math

import pytest
import torch

from util.model.pos_embed import resize_positions, sincos_1d, sincos_2d


def test_numbers_have_sines_then_cosines():
    # w = 1 and 1/100 for a width of 4.
    expected = [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]
    assert sincos_1d(torch.tensor([0, 2]), 4)[1].tolist() == pytest.approx(expected, abs=1e-7)
    assert sincos_1d(torch.tensor([0]), 4).tolist() == [[0, 0, 1, 1]]


def test_places_have_the_column_first_and_run_row_by_row():
    grid = sincos_2d(3, 8)
    column, row = sincos_1d(torch.tensor([2]), 4)[0], sincos_1d(torch.tensor([1]), 4)[0]
    assert torch.equal(grid[1 * 3 + 2], torch.cat([column, row]))


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="width 3: expected an even number"):
        sincos_1d(torch.tensor([0]), 3)
    with pytest.raises(ValueError, match="width 6: expected a multiple of 4"):
        sincos_2d(2, 6)


def test_stretching_keeps_the_class_row_and_leaves_an_equal_grid_alone():
    embedding = torch.randn(1, 1 + 16, 6)
    assert resize_positions(embedding, 4) is embedding
    for grid in (2, 3, 9):
        found = resize_positions(embedding, grid)
        assert found.shape == (1, 1 + grid * grid, 6) and torch.equal(found[:, 0], embedding[:, 0])


def test_a_smooth_wave_is_stretched_to_the_same_wave():
    def waves(edge):  # over the unit square, at the centres of the cells: one along the rows, one along the columns
        place = (torch.arange(edge) + 0.5) / edge
        row, col = torch.meshgrid(torch.sin(6 * place), torch.cos(4 * place), indexing="ij")
        return torch.stack([row.flatten(), col.flatten()], dim=1)

    embedding = torch.cat([torch.zeros(1, 2), waves(12)])[None]
    found = resize_positions(embedding, 18)[0, 1:].view(18, 18, 2)
    # Half a radian a cell: torch's cubic kernel is off by 2 %, the nearest cell would be by 25 %; the edge is made up.
    assert (found - waves(18).view(18, 18, 2))[2:-2, 2:-2].abs().max() < 0.03


def test_positions_that_are_no_grid_are_refused():
    with pytest.raises(ValueError, match="position embedding of 16 rows: expected a square number plus one"):
        resize_positions(torch.zeros(1, 16, 4), 3)
