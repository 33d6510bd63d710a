"""Layers at scales finer than their own pixels: interpolation, and as much of the model's detail as holds elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from util.masked_products import Views, mosaic_views
from util.mosaic import Unit
from util.products import Arrays, Engine, Ground, LayerValues, Window
from util.raster_info import RasterInfo
from util.scale_heads import cell_average_taps

MARGIN = 4
"""Base-scale pixels around a unit that interpolation sees."""


def refine_known(image: np.ndarray, factor: int) -> np.ndarray:
    """Interpolation of (h, w) cell means with gaps to (factor * h, factor * w), NaN where they are not known.

    Parabolas through three cell means: exact for quadratic fields, and the parts of a cell average back to it.
    """
    known = np.isfinite(image)
    if not known.any():
        return np.full((image.shape[0] * factor, image.shape[1] * factor), np.nan, dtype=np.float32)
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    taps = cell_average_taps(factor).numpy()
    fine = image[tuple(nearest)].astype(np.float32)
    for _ in range(2):  # rows, then columns
        padded = np.pad(fine, ((1, 1), (0, 0)), mode="edge")
        parts = [t[0] * padded[:-2] + t[1] * padded[1:-1] + t[2] * padded[2:] for t in taps]
        fine = np.stack(parts, axis=1).reshape(-1, fine.shape[1]).T
    return np.where(known.repeat(factor, axis=0).repeat(factor, axis=1), fine, np.nan).astype(np.float32)


def pool_known(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of (h, w) values, NaN where any is unknown."""
    return image.reshape(image.shape[0] // factor, factor, image.shape[1] // factor, factor).mean(axis=(1, 3))


def detail_of(image: np.ndarray, factor: int) -> np.ndarray:
    """What an image holds beyond the interpolation of its own means over squares of `factor` pixels."""
    return image - refine_known(pool_known(image, factor), factor)


class FinerMaker:
    """Coarse layers at finer scales: interpolation plus a share of the detail that the model predicts.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        layers: all layers, in channel order.
        wanted: (channel, scale, finest scale at which the layer is known), the last a divisor of the scale.
        views: how tiles are shown.
        tags: facts to write along.

    Attributes:
        shares: share of the detail for each channel and scale; from `calibrate`.
    """

    def __init__(
        self,
        engine: Engine,
        ground: Ground,
        *,
        layers: Sequence[LayerValues],
        wanted: Sequence[tuple[int, int, int]],
        views: Views,
        tags: Mapping[str, str],
    ) -> None:
        self.engine, self.ground, self.layers, self.wanted, self.views = engine, ground, layers, wanted, views
        self.reach = engine.model.img_size + MARGIN
        self.shares: dict[tuple[int, int], float] = {}
        self.rasters = {
            self.name(c, s): RasterInfo(
                crs=ground.crs,
                left=ground.left,
                top=ground.top,
                resolution_x=ground.base / s,
                resolution_y=ground.base / s,
                rows=ground.rows * s,
                cols=ground.cols * s,
                dtype="float32",
                nodata=math.nan,
                names=(f"{layers[c].name} inferred", f"{layers[c].name} interpolated"),
                units=(layers[c].unit,) * 2,
                tags={
                    **tags,
                    "layer": layers[c].name,
                    "scale": f"{s}x",
                    "inferred": f"yes: finer than the layer's own pixels, known at {known}x",
                },
            )
            for c, s, known in wanted
        }

    def name(self, channel: int, scale: int) -> str:
        """Name of a raster."""
        return f"superresolution_{self.layers[channel].file}_{scale}x"

    def extent(self) -> tuple[int, int]:
        """Base-scale (rows, cols) to be divided into units."""
        return self.ground.rows, self.ground.cols

    def _look(self, unit: Unit, window: Window, tiles: np.ndarray, pairs: Sequence[tuple[int, int]]) -> Any:
        """Predicted and observed images by (scale, channel), model units, NaN where unknown."""
        wanted: dict[int, list[int]] = {}
        for s, c in sorted(set(pairs)):
            wanted.setdefault(s, []).append(c)
        predicted, observed = mosaic_views(
            self.engine,
            self.views,
            unit,
            tiles,
            lambda o: window.sample(o, self.engine.device),
            wanted,
            observe=list(wanted),
        )
        images = ({s: mosaic.mean for s, mosaic in mosaics.items()} for mosaics in (predicted, observed))
        return tuple({(s, c): found[s][k] for s, cs in wanted.items() for k, c in enumerate(cs)} for found in images)

    @torch.inference_mode()
    def make(self, unit: Unit, window: Window) -> Arrays:
        """The unit's finer grids."""
        grown = unit.grown(MARGIN)
        pairs = [(s, c) for c, s, _ in self.wanted] + [(known, c) for c, _, known in self.wanted]
        predicted, observed = self._look(grown, window, self.engine.tiles_of(grown, self.ground), pairs)
        arrays: Arrays = {}
        for c, s, known in self.wanted:
            interpolated = refine_known(observed[known, c], s // known)
            detail = detail_of(predicted[s, c], s // known)
            inferred = interpolated + self.shares[c, s] * np.nan_to_num(detail)
            core = slice(MARGIN * s, -MARGIN * s)
            bands = np.stack([inferred, interpolated])[:, core, core]
            bands = bands * self.layers[c].spread + self.layers[c].location
            name = self.name(c, s)
            arrays[name] = (self.rasters[name], bands.astype(np.float32), unit.top * s, unit.left * s)
        return arrays

    @torch.inference_mode()
    def calibrate(self, windows: Callable[[Unit], Any], tiles: np.ndarray) -> dict[tuple[int, int], float]:
        """Finds how much of the model's detail holds, by the same step up to the finest scale that is known.

        Args:
            windows: reads the ground of a unit.
            tiles: (n, 2) origins of tiles to look at.

        Returns:
            By (channel, scale) the least-squares share, held within 0..1; 0 where the layer is known at the base scale
            alone, at which the model predicts nothing that it sees.
        """
        size = self.engine.model.img_size
        sums = {(c, s): np.zeros(2) for c, s, known in self.wanted if known % (s // known) == 0 and known > 1}
        checked = [(c, s, known) for c, s, known in self.wanted if (c, s) in sums]
        for top, left in tiles.tolist() if checked else []:
            unit = Unit(0, 0, top, left, top + size, left + size)
            around = unit.grown(size)
            pairs = [(known, c) for c, _, known in checked]
            predicted, observed = self._look(unit, windows(around), np.array([[top, left]]), pairs)
            for c, s, known in checked:
                detail = detail_of(predicted[known, c], s // known)
                missed = detail_of(observed[known, c], s // known)
                both = np.isfinite(detail) & np.isfinite(missed)
                sums[c, s] += (detail * missed)[both].sum(), np.square(detail[both]).sum()
        found = {(c, s): 0.0 for c, s, _ in self.wanted}
        return found | {key: float(np.clip(a / max(b, 1e-30), 0.0, 1.0)) for key, (a, b) in sums.items()}
