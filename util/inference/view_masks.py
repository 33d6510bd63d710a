"""Masks for several views of a tile, chosen so that every token is hidden at least once.

Which tokens a view hides follows from the seed and the tile's place alone: the same in every batch and process.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

KEEP_STEP = 0.75
"""Tiles with fewer valid tokens show fewer, in steps of this factor, so that many tiles fit into one batch."""


def least_draws(mask_ratio: float) -> int:
    """Number of views after which every token has been hidden at least once.

    Raises:
        ValueError: nothing is hidden at this ratio.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(
            f"--mask_ratio {mask_ratio:g}: nothing or everything would be hidden; expected above 0, below 1"
        )
    return max(2, math.ceil(round(1 / mask_ratio, 6)))


def visible_counts(valid: Tensor, mask_ratio: float) -> Tensor:
    """How many tokens of each tile a view shows.

    Args:
        valid: (N, K) bool, places that hold a valid pixel.
        mask_ratio: fraction of the valid places to hide, 0 < ratio < 1.

    Returns:
        (N,) int64: at most the given fraction of the valid places, out of few distinct numbers; 0 for tiles with fewer
        than two valid places, of which none can be hidden while another is seen.
    """
    full = max(1, int(valid.shape[1] * (1 - mask_ratio)))
    levels = {max(1, int(full * KEEP_STEP**k)) for k in range(64)}
    table = torch.tensor(sorted(levels), device=valid.device)
    count = valid.sum(dim=1)
    wanted = (count * (1 - mask_ratio) + 1e-6).long()
    index = torch.searchsorted(table, wanted, right=True) - 1
    keep = table[index.clamp_min(0)]
    return torch.where(count >= 2, keep, 0)


def view_noise(valid: Tensor, *, keep: int, draw: int, origins: np.ndarray, seed: int) -> Tensor:
    """Noise whose smallest `keep` entries are the places that one view shows.

    Views go round the valid places of a tile in a random order, each showing the next ones, until all were shown;
    then a new order is drawn. Any two views in a row hide every valid place at least once if half are hidden.

    Args:
        valid: (N, K) bool, places that hold a valid pixel; each tile must have more than `keep`.
        keep: number of places shown.
        draw: number of the view.
        origins: (N, 2) int64 places of the tiles.
        seed: seed of the run.

    Returns:
        (N, K) float32.
    """
    noise = torch.ones(valid.shape)
    for n, ok in enumerate(valid.cpu()):
        places = ok.nonzero()[:, 0]
        count = len(places)
        hidden = count - keep
        shift = min(keep, hidden)
        cycle = max(2, math.ceil(count / hidden) if hidden < keep else count // keep)
        round_number, position = divmod(draw, cycle)
        row, col = (int(x) & 0xFFFFFFFF for x in origins[n])
        order = np.random.default_rng((seed, row, col, round_number)).permutation(count)
        rank = torch.from_numpy((order - position * shift) % count)
        noise[n, places] = rank.float() / count
    return noise.to(valid.device)


def draws_to_show_all(valid: Tensor, keep: int) -> int:
    """Number of views after which every valid place of every tile has been shown; (N, K) bool."""
    most = int(valid.sum(dim=1).max())
    return max(2, math.ceil(most / keep))
