"""Training tiles through xbatcher: its generator slices the windows that the tile index chooses for each batch.

xbatcher places windows on a regular lattice, in order, and drops those that do not fit. Training also needs edge tiles,
held-out blocks, a new order and new shifts every epoch, tiles that wrap around a planet, and validity as NaN: all of
this is in the origins that `TileIndex.epoch` returns, which become the generator's selectors here. Any loop written for
xbatcher, including its loaders for torch and keras, can then train on the same batches, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from datasets.ground.wraparound import wrap_columns, wraps
from datasets.rasters.xarray_store import require
from datasets.survey.stack import LayerBundle
from datasets.survey.survey import Survey
from datasets.survey.tile_reader import Tiles

ROWS, COLS = "y", "x"
TURN = "columns_of_turn"
"""Attribute of datasets that wrap around a planet: columns after which they repeat. One tile width is repeated."""


class TileBatches:
    """Batches of native pixels of one bundle of layers, read from an xarray dataset in the order of the tile index.

    Args:
        dataset: variables (y, x) of one grid: the bundle's layers in order, physical units, NaN = invalid, row 0 in the
            north (`bundle_dataset` makes one).
        bundle: the layers that travel together.
        origins: (n, 2) reference (row, col) of tiles, in order.
        batch_size: tiles in a batch; the last batch has the rest.

    Attributes:
        generator: the `xbatcher.BatchGenerator`; each batch is a dataset with dimensions sample, y and x.
        phases: (n, 2) float32 start of each tile in its first native pixel.

    Raises:
        ValueError: xbatcher is not installed.
    """

    def __init__(self, dataset: Any, bundle: LayerBundle, origins: np.ndarray, *, batch_size: int) -> None:
        xbatcher = require("xbatcher", "slicing tiles through xbatcher")
        self.bundle = bundle
        places = [bundle.window(float(row), float(col)) for row, col in origins]
        self.phases = np.array([place[2:] for place in places], dtype=np.float32)
        turn = dataset.attrs.get(TURN, 0)
        firsts = [(row, col % turn if turn else col) for row, col, _, _ in places]
        windows = [{ROWS: slice(row, row + bundle.rows), COLS: slice(col, col + bundle.cols)} for row, col in firsts]
        dataset, windows = _padded(dataset, windows)
        self.generator = xbatcher.BatchGenerator(
            dataset, input_dims={ROWS: bundle.rows, COLS: bundle.cols}, concat_input_dims=True, preload_batch=False
        )
        self.generator._batch_selectors.selectors = {
            number: windows[first : first + batch_size]
            for number, first in enumerate(range(0, len(windows), batch_size))
        }
        self._batch_size = batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.generator._batch_selectors.selectors)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One batch: (N, channels, rows, cols) float32 and its phases, as `Pyramid` takes them."""
        batch = self.generator[number]
        arrays = [batch[name].transpose("input_batch", ...).values for name in batch.data_vars]
        phases = self.phases[number * self._batch_size : (number + 1) * self._batch_size]
        return torch.from_numpy(np.stack(arrays, axis=1)), None if self.bundle.aligned else torch.from_numpy(phases)


def bundle_dataset(survey: Survey, bundle: LayerBundle) -> Any:
    """The layers of a bundle as an xarray dataset in native pixels: physical units, NaN = invalid, north up; in memory.

    Args:
        survey: the survey.
        bundle: layers of one grid.
    """
    xarray = require("xarray", "a dataset of a survey's layers")
    stack, (first, *_) = survey.stack, bundle.channels
    grid = stack.bands[first].grid
    turn = wrap_columns(grid) if wraps(grid) and wraps(stack.reference) else 0
    shape = (grid.rows, grid.cols + bundle.cols if turn else grid.cols)
    layers = {stack.bands[c].layer.name: ((ROWS, COLS), stack.read(c, 0, 0, *shape)) for c in bundle.channels}
    coordinates = {
        ROWS: grid.top - (np.arange(shape[0]) + 0.5) * grid.resolution_y,
        COLS: grid.left + (np.arange(shape[1]) + 0.5) * grid.resolution_x,
    }
    return xarray.Dataset(layers, coords=coordinates, attrs={"crs_wkt": grid.crs.to_wkt(), TURN: turn})


def epoch_batches(
    survey: Survey, datasets: Sequence[Any], *, seed: int, epoch: int, batch_size: int, tiles: int | None = None
) -> Any:
    """Yields an epoch's batches as `TileReader` reads them, sliced by xbatcher.

    Args:
        survey: the survey.
        datasets: one for each of its bundles, as `bundle_dataset` makes them.
        seed: seed of the run.
        epoch: number of the epoch.
        batch_size: tiles in a batch.
        tiles: number of tiles; default one for each window.

    Yields:
        `Tiles`.
    """
    origins = survey.tiles.epoch(seed=seed, epoch=epoch, tiles=tiles)
    parts = [
        TileBatches(dataset, bundle, origins, batch_size=batch_size)
        for dataset, bundle in zip(datasets, survey.bundles, strict=True)
    ]
    for number in range(len(parts[0])):
        arrays, phases = zip(*(part[number] for part in parts), strict=True)
        yield Tiles(arrays=list(arrays), phases=list(phases))


def _padded(dataset: Any, windows: list[dict[str, slice]]) -> tuple[Any, list[dict[str, slice]]]:
    """Pads the dataset with NaN by as much as windows stick out; returns it with the windows shifted to match."""
    margins = {}
    for dim in (ROWS, COLS):
        before = max(0, -min(window[dim].start for window in windows))
        after = max(0, max(window[dim].stop for window in windows) - dataset.sizes[dim])
        margins[dim] = (before, after)
    if any(margin != (0, 0) for margin in margins.values()):
        dataset = dataset.pad(margins, constant_values=np.nan)
    moved = [
        {dim: slice(w[dim].start + margins[dim][0], w[dim].stop + margins[dim][0]) for dim in (ROWS, COLS)}
        for w in windows
    ]
    return dataset, moved
