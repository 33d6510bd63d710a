"""Detail of layers: how far their native pixels lie from the mean of the base pixel that holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from datasets.layers.encoding import Encoding
from datasets.survey.pyramid import Pyramid
from datasets.survey.tile_reader import Tiles
from datasets.survey.tile_source import Reader

DETAIL_TILES = 64
"""Tiles from which detail is measured, spread evenly over training ground."""


def measure_detail(
    reader: Reader,
    pyramid: Pyramid,
    tiles: np.ndarray,
    encodings: Sequence[Encoding],
    *,
    ground: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[float, ...]:
    """Standard deviation of each layer's detail, model units.

    Args:
        reader: reads tiles as native pixels.
        pyramid: built for the groups that are read at their native pixels.
        tiles: (n, k) training tiles; up to `DETAIL_TILES` of them are read.
        encodings: per layer, how its values become channels.
        ground: tile -> (H, W) bool, the base pixels that count; None: all.

    Returns:
        A number for each layer: 0 if it has no finer pixels than the base, no valid one in these tiles, or if it holds
        classes or angles, of which there is no detail but the pixels themselves.
    """
    if len(tiles) > DETAIL_TILES:
        tiles = tiles[np.linspace(0, len(tiles) - 1, DETAIL_TILES).round().astype(int)]
    sums = np.zeros((len(encodings), 2))
    for tile in tiles:
        found = reader.read(tile[None])
        assert isinstance(found, Tiles)
        sample = pyramid(*found.parts)
        for group, own in zip(pyramid.native, sample.native, strict=True):
            channels = pyramid.native_channels(group)
            base = sample.imgs[:, channels]
            detail = own - base.repeat_interleave(group.scale, -1).repeat_interleave(group.scale, -2)
            if ground is not None:
                counts = torch.from_numpy(ground(tile).repeat(group.scale, 0).repeat(group.scale, 1))
                detail = torch.where(counts, detail, torch.nan)
            for layer in group.layers:
                if encodings[layer].form == "values":
                    squares = detail[:, channels.index(pyramid.ranges[layer][0])].double().square()
                    known = torch.isfinite(squares)
                    sums[layer] += squares[known].sum().item(), known.sum().item()
    return tuple(float(np.sqrt(total / count)) if count else 0.0 for total, count in sums)
