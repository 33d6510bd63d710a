"""Held-out blocks for tests."""

import numpy as np

from datasets.folds.blocks import whole_block_grid
from datasets.survey.tiles import HoldoutBlocks


def holdout_blocks(chosen, height, width, buffer=0, *, wrap_columns=0):
    """Blocks of height x width pixels, held out where `chosen` is True."""
    chosen = np.asarray(chosen, dtype=bool)
    shape = chosen.shape[0] * height, chosen.shape[1] * width
    return HoldoutBlocks(
        whole_block_grid(shape, height=height, width=width, buffer=buffer, wrap_columns=wrap_columns), chosen
    )
