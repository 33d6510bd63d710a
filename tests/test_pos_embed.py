import math

import pytest
import torch

from util.pos_embed import sincos_1d, sincos_2d


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
